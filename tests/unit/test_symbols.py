"""What a kernel that isn't built would export: told by its source and configuration, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbuild.kernel import symbols
from rbuild.kernel.symbols import Answer, Exports, option_off
from rbuild.source.preprocessor import truth
from rbuild.source.tree import Tree

from .conftest import Host

EXPORT_H = """\
#ifndef _LINUX_EXPORT_H
#define _LINUX_EXPORT_H
#define EXPORT_SYMBOL(sym) __EXPORT_SYMBOL(sym, "")
#ifdef CONFIG_KUNIT
#define EXPORT_IF_TESTED(sym) EXPORT_SYMBOL(sym)
#else
#define EXPORT_IF_TESTED(sym)
#endif
#define EXPORT_OPS(name, license) \\
\tconst struct ops name; \\
\t__EXPORT_SYMBOL(name, license)
#define EXPORT_GPL_OPS(name) EXPORT_OPS(name##_gpl, "GPL")
#endif
"""
FILES = {
    "include/linux/export.h": EXPORT_H,
    "kernel/plain.c": "EXPORT_SYMBOL(plain);\nEXPORT_SYMBOL_NS_GPL(named,\n\tSPACE);\n"
    "int one; EXPORT_PER_CPU_SYMBOL_GPL(one);\nEXPORT_SYMBOL (blank);\n"
    " * EXPORT_SYMBOL(told_of);\n",
    "kernel/events.c": "EXPORT_TRACEPOINT_SYMBOL_GPL(9p_event);\nEXPORT_STATIC_CALL(called);\n"
    "EXPORT_STATIC_CALL_TRAMP(hidden);\n",
    "kernel/params.c": "#define STANDARD(name, type) \\\n\tint get_##name(type x); \\\n"
    "\tEXPORT_SYMBOL(get_##name); \\\n\tEXPORT_SYMBOL(param_ops_##name)\n"
    "STANDARD(int,\tint);\nSTANDARD(ulong, unsigned long);\n",
    "kernel/ops.c": "EXPORT_GPL_OPS(mine);\nEXPORT_IF_TESTED(inner);\n",
    "kernel/list.c": "#define SUBSYS(_x) EXPORT_SYMBOL(_x ## _subsys_key);\n#include <subsys.h>\n",
    "kernel/odd.c": "#define SAFE(name) name##_safe\nEXPORT_SYMBOL_GPL(SAFE(compress));\n",
    "kernel/made.c": 'int main(void) { puts("EXPORT_SYMBOL(table_of_made);\\n"); }\n',
    "kernel/ifs.c": "#ifdef CONFIG_SMP\nEXPORT_SYMBOL(many);\n#else\nEXPORT_SYMBOL(few);\n#endif\n"
    "#if defined(ARCH_HAS_IT)\nEXPORT_SYMBOL(perhaps);\n#elif 0\nEXPORT_SYMBOL(never);\n#endif\n",
    "kernel/whole.c": '#include "part.c"\n',
    "kernel/part.c": "EXPORT_SYMBOL(in_part);\n",
    "drivers/hwmon/hwmon.c": "EXPORT_SYMBOL_GPL(hwmon_register);\n",
    "drivers/hwmon/Makefile": "obj-$(CONFIG_HWMON) += hwmon.o\n",
    "arch/arm64/include/asm/string.h": "#ifndef CONFIG_KASAN\n#define __HAVE_ARCH_STRLEN\n#endif\n",
    "arch/arm/include/asm/string.h": "#define __HAVE_ARCH_STRCPY\n",
    "lib/string.c": "#ifndef __HAVE_ARCH_STRCPY\nEXPORT_SYMBOL(strcpy);\n#endif\n"
    "#ifndef __HAVE_ARCH_STRLEN\nEXPORT_SYMBOL(strlen);\n#endif\n",
    "arch/arm64/lib/string.S": "EXPORT_SYMBOL(memcpy)\n",
    "arch/x86/lib/string.S": "EXPORT_SYMBOL(memcpy_of_x86)\n",
    "tools/x.c": "EXPORT_SYMBOL(of_a_tool);\n",
}
COMPILED = {
    *(f"kernel/{name}.o" for name in ("plain", "events", "params", "ops", "list", "odd", "ifs")),
    *("kernel/whole.o", "arch/arm64/lib/string.o", "lib/string.o"),
}
CONFIG = {"SMP": "y", "MODULES": "y", "ARM64": "y"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("tree") / "src"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "kernel/gone.h").symlink_to("nowhere.h")
    return Tree(root, "k", "s", "6.12.0", None, (), False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exports(tree: Tree) -> Exports:
    more = frozenset({"of_a_crate"})
    return Exports(symbols.index(tree), frozenset(COMPILED), CONFIG, "arm64", more)


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "named", "one", "blank", "of_a_crate", "memcpy", "many", "strcpy"),
        *("__tracepoint_9p_event", "__traceiter_9p_event", "__SCK__tp_func_9p_event"),
        *("__SCK__called", "__SCT__called", "__SCT__hidden"),
        *("get_int", "param_ops_int", "param_ops_ulong", "mine_gpl"),
    ],
)
def test_what_is_exported_is_found(exports: Exports, name: str) -> None:
    assert exports.find(name) is Answer.YES


@pytest.mark.parametrize(
    "name",
    [
        *("int", "GPL", "nowhere", "told_of", "name", "sym", "SPACE", "mine"),
        *("few", "never", "inner", "hwmon_register", "memcpy_of_x86", "of_a_tool"),
        "__SCK__hidden",
    ],
)
def test_what_is_not_is_refused(exports: Exports, name: str) -> None:
    assert exports.find(name) is Answer.NO


@pytest.mark.parametrize(
    "name", ["perhaps", "in_part", "table_of_made", "compress_safe", "memory_subsys_key", "strlen"]
)
def test_what_reading_cant_decide_is_said(exports: Exports, name: str) -> None:
    assert exports.find(name) is Answer.UNKNOWN


def test_the_configuration_decides(tree: Tree) -> None:
    config = {"KUNIT": "y", "HWMON": "m"}
    more = {*COMPILED, "drivers/hwmon/hwmon.o"}
    found = Exports(symbols.index(tree), frozenset(more), config, "arm64")
    for name in ("few", "inner", "hwmon_register"):
        assert found.find(name) is Answer.YES
    assert found.find("many") is Answer.NO
    unknown = Exports(symbols.index(tree), None, config, "arm64")
    assert unknown.find("plain") is Answer.UNKNOWN
    assert unknown.find("many") is unknown.find("nowhere") is Answer.NO


def test_it_is_read_once(tree: Tree) -> None:
    found = symbols.index(tree)
    (tree.path / "kernel/later.c").write_text("EXPORT_SYMBOL(later);\n")
    assert symbols.index(tree) == found
    kept = tree.path.parent / "exports.json"
    whole = kept.read_text()
    for broken in ("", "[]", "{}", whole[:-9], whole.replace("[", "{"), whole.replace("0", "x")):
        kept.write_text(broken)
        assert symbols.index(tree).sites("later")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("", True),
        ("defined(CONFIG_A)", True),
        ("defined CONFIG_A && !defined(CONFIG_N)", True),
        ("defined(CONFIG_M)", False),
        ("defined(CONFIG_M_MODULE)", True),
        ("IS_ENABLED(CONFIG_M) || 0", True),
        ("IS_BUILTIN(CONFIG_M)", False),
        ("IS_MODULE(CONFIG_M)", True),
        ("IS_REACHABLE(CONFIG_M)", None),
        ("IS_REACHABLE(CONFIG_A)", True),
        ("defined(CONFIG_HZ) && (defined(CONFIG_A))", True),
        ("CONFIG_HZ > 100", None),
        ("CONFIG_HZ > 100 && defined(CONFIG_N)", False),
        ("defined(ELSE) || defined(CONFIG_A)", True),
        ("!defined(ELSE)", None),
        ("!(defined(CONFIG_A))", False),
        ("1", True),
        ("0", False),
        ("1 == 2", None),
        ("(BITS_PER_LONG == 64) || 1", True),
        ("defined(CONFIG_A) ? 0 : 1", None),
        ("defined(CONFIG_A", None),
        ("__has_attribute(noreturn) && 0", False),
    ],
)
def test_conditions(condition: str, expected: bool | None) -> None:
    assert truth(condition, {"A": "y", "M": "m", "HZ": "250", "N": "n"}) is expected


def test_the_option_that_is_off(tmp_path: Path) -> None:
    files = {
        "drivers/net/wan/Makefile": "obj-$(CONFIG_WAN_CARD) += card.o\ncard-y := main.o \\\n\tio.o\n"
        "card-$(CONFIG_WAN_EXTRA) += extra.o\nobj-y += always.o\n",
        "drivers/net/Makefile": "obj-$(CONFIG_WAN) += wan/ other.o\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def off(file: str, **config: str) -> str | None:
        return option_off(tmp_path, f"drivers/net/{file}", config)

    assert off("wan/io.c", WAN="y") == "WAN_CARD"
    assert off("wan/io.c", WAN_CARD="m") == "WAN"
    assert off("wan/extra.c", WAN_CARD="m", WAN="y") == "WAN_EXTRA"
    assert off("wan/always.c") == off("other.c") == "WAN"
    assert off("wan/always.c", WAN="y") is None
    assert off("wan/unheard-of.c", WAN="y") is None


# By the command line.


def test_a_symbol_that_is_missing_names_file_option_and_profile(host: Host) -> None:
    for name, text in (
        ("drivers/spi/spidev.c", "EXPORT_SYMBOL(spidev_go);\n"),
        ("drivers/spi/Makefile", "obj-$(CONFIG_SPI_SPIDEV) += spidev.o\n"),
        ("Kconfig", "config SPI_SPIDEV\n\ttristate\n"),
    ):
        (host.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (host.tree / name).write_text(text)
    (host.folder / "left-out").write_text("drivers/spi/spidev.c")
    folder = host.write_module("NEED(spidev_go)\n")
    found = host("module", folder, "--profile", host.profile, code=1)
    assert "nothing exports spidev_go" in found.err
    assert (
        "spidev_go is exported by drivers/spi/spidev.c, which needs CONFIG_SPI_SPIDEV; the profile "
        "rpi3bplus has it."
    ) in found.err


def test_a_symbol_that_cant_be_decided_is_a_warning(host: Host) -> None:
    (host.tree / "kernel/perhaps.c").write_text("#ifdef HAVE_IT\nEXPORT_SYMBOL(perhaps);\n#endif\n")
    folder = host.write_module("NEED(perhaps)\n")
    found = host.module(folder)
    assert "doesn't tell whether this kernel exports perhaps: run `rbuild kernel`" in found.err
    (made,) = found.json["artefacts"]
    assert made["symbols_undecided"] == ["perhaps"]
    again = host("module", folder, "--profile", host.profile)
    assert "it doesn't tell of perhaps" in again.out
    assert host.calls(" . ") <= 1
