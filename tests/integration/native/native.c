#include <stdio.h>
#include <sys/utsname.h>

int main(void)
{
	struct utsname name;

	if (uname(&name) < 0)
		return 1;
	printf("built for " ARCH ", runs on %s\n", name.machine);
	return 0;
}
