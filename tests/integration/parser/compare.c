// SPDX-License-Identifier: GPL-2.0
/*
 * Gives the parsers of the C and the Rust driver the same inputs, and aborts
 * with the first that they take differently.
 *
 * usage: compare COUNT SEED
 *
 * Prints how many inputs there were, and how many of them were each command.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "mfrc522_request.h"

#define LONGEST 80

int rust_parse(const char *text, size_t len, size_t *at, size_t *count);

static const char *const names[] = {
	"mem_write", "mem_read", "get_version", "gen_rand_id", "self_test",
	"debug:on", "debug:off",
};

static const char *const words[] = {
	"mem_read", "get_version", "version", "gen_rand_id", "self_test",
	"debug:on", "debug:off", "debug", "debug:", "mem_write", "mem_write:",
	"mem_", "get_", "on", "off", ":", "\n", "", " ", "0",
};

static unsigned long commands[ARRAY_SIZE(names)];
static unsigned long lengths[LONGEST + 1];

/* xorshift64*, so that a seed gives the same inputs everywhere */
static uint64_t state;

static unsigned int below(unsigned int limit)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (unsigned int)((state * 0x2545f4914f6cdd1dULL) >> 33) % limit;
}

static char any_byte(void)
{
	static const char likely[] = ":0123456789\n\r\t -+_mwrd";

	/* NUL, which ends the string, is as likely as the others. */
	return below(2) ? (char)below(256) : likely[below(sizeof(likely))];
}

static size_t add(char *text, size_t len, const char *word)
{
	size_t count = strlen(word);

	memcpy(text + len, word, count);
	return len + count;
}

/* A mem_write whose length is right, wrong by a little, or nonsense */
static size_t make_mem_write(char *text)
{
	static const char *const formats[] = {
		"%d", "%d", "%d", "%d", "%02d", "%03d", "%08d", "%+d", " %d",
		"%x", "%d ", "-%d", "",
	};
	int data = (int)below(below(4) ? 27 : 50);
	int said = data + (below(4) ? 0 : (int)below(5) - 2);
	char number[16];
	size_t len;

	if (!below(64))
		said += 256 << below(16);
	snprintf(number, sizeof(number), formats[below(ARRAY_SIZE(formats))], said);
	len = add(text, 0, "mem_write:");
	len = add(text, len, number);
	if (below(32))
		text[len++] = ':';
	while (data--)
		text[len++] = any_byte();
	return len;
}

/* Digits for so long that any type's range is left */
static size_t make_long_number(char *text)
{
	size_t len = add(text, 0, "mem_write:");
	unsigned int digits = below(45);

	while (digits--)
		text[len++] = below(3) ? '0' : (char)('0' + below(10));
	text[len++] = ':';
	digits = below(20);
	while (digits--)
		text[len++] = any_byte();
	return len;
}

static size_t make_words(char *text)
{
	unsigned int count = below(8) ? 1 : 1 + below(4);
	size_t len = 0;

	while (count--)
		len = add(text, len, words[below(ARRAY_SIZE(words))]);
	return len;
}

static size_t make_noise(char *text)
{
	size_t count = below(LONGEST + 1), len = 0;

	while (len < count)
		text[len++] = any_byte();
	return len;
}

/* Change, drop, double or add a byte, or cut the text. */
static size_t mutate(char *text, size_t len)
{
	size_t at = len ? below((unsigned int)len) : 0;

	switch (len ? below(6) : 5) {
	case 0:
		text[at] = any_byte();
		return len;
	case 1:
		text[at] ^= (char)(1 << below(8));
		return len;
	case 2:
		memmove(text + at, text + at + 1, len - at - 1);
		return len - 1;
	case 3:
		memmove(text + at + 1, text + at, len - at);
		return len + 1;
	case 4:
		return at;
	default:
		memmove(text + at + 1, text + at, len - at);
		text[at] = any_byte();
		return len + 1;
	}
}

static size_t make(char *text)
{
	size_t len;
	unsigned int times;

	switch (below(8)) {
	case 0:
	case 1:
	case 2:
		len = make_mem_write(text);
		break;
	case 3:
		len = make_long_number(text);
		break;
	case 4:
		len = make_noise(text);
		break;
	default:
		len = make_words(text);
	}
	for (times = below(2) ? below(4) : 0; times; times--)
		len = mutate(text, len);
	if (!below(3))
		text[len++] = '\n';
	return len < LONGEST ? len : LONGEST;
}

static void differ(const char *text, size_t len, const char *what)
{
	size_t i;

	fprintf(stderr, "%s differs for %zu bytes: ", what, len);
	for (i = 0; i < len; i++)
		fprintf(stderr, "%02x", (unsigned char)text[i]);
	fputc('\n', stderr);
	abort();
}

static void compare(const char *text, size_t len)
{
	struct mfrc522_request request = { .len = 0 };
	size_t at = 0, count = 0;
	int in_c, in_rust;

	in_c = mfrc522_parse_request(text, len, &request);
	in_rust = rust_parse(text, len, &at, &count);
	if (in_c != 0 && in_c != -EINVAL)
		differ(text, len, "what is returned");
	if ((in_c == 0) != (in_rust >= 0))
		differ(text, len, "whether it is a command");
	if (in_c)
		return;
	if ((int)request.op != in_rust)
		differ(text, len, "which command it is");
	if (request.len != count)
		differ(text, len, "how much is written");
	if (request.op == MFRC522_OP_MEM_WRITE &&
	    (count > MFRC522_MEM_SIZE || request.data != text + at || at + count > len))
		differ(text, len, "what is written");
	commands[request.op]++;
}

int main(int argc, char **argv)
{
	char text[4 * LONGEST];
	unsigned long total, i;

	if (argc != 3)
		return 2;
	total = strtoul(argv[1], NULL, 10);
	state = strtoull(argv[2], NULL, 10) * 2 + 1;

	for (i = 0; i < total; i++) {
		size_t len = make(text);
		/* Of exactly this size, so that one byte too far is noticed */
		char *exact = malloc(len);

		memcpy(exact, text, len);
		compare(exact, len);
		free(exact);
		lengths[len]++;
	}

	printf("inputs %lu\n", total);
	for (i = 0; i < ARRAY_SIZE(names); i++)
		printf("%s %lu\n", names[i], commands[i]);
	for (i = 0; i <= LONGEST; i++)
		if (!lengths[i])
			printf("none of %lu bytes\n", i);
	return 0;
}
