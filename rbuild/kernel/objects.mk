# Lists the objects that a configured kernel consists of, a line each: Kbuild's own makefiles are
# read, and nothing is built.  Run by the kernel's Makefile in place of scripts/Makefile.build:
#     make . build='-f .../objects.mk list=.../objects.mk obj'
ifneq ($(MAKECMDGOALS),)
# A call for one target is one of `make prepare`, which has been run.
$(MAKECMDGOALS): ; @:
else
# The same variables as scripts/Makefile.build has.
src := $(srctree)/$(obj)
$(foreach name, obj-y obj-m lib-y lib-m always-y always-m targets subdir-y subdir-m \
	EXTRA_AFLAGS EXTRA_CFLAGS EXTRA_CPPFLAGS EXTRA_LDFLAGS \
	asflags-y ccflags-y rustflags-y cppflags-y ldflags-y subdir-asflags-y subdir-ccflags-y, \
	$(eval $(name) :=))
-include include/config/auto.conf
include $(srctree)/scripts/Kbuild.include
-include $(srctree)/scripts/Makefile.compiler
include $(firstword $(wildcard $(src)/Kbuild $(src)/Makefile))
include $(srctree)/scripts/Makefile.lib
.DEFAULT_GOAL := all
.PHONY: all $(subdir-ym)
all: $(filter-out %/dts,$(subdir-ym))
	$(foreach one,$(filter %.o,$(real-obj-y) $(real-obj-m) $(lib-y)),$(info $(one)))@:
$(subdir-ym):
	@$(MAKE) -f $(list) obj=$@
endif
