"""What strangers write in YAML: no field becomes an option, a line, another word or a way out.

A definition, a machine, a profile and a settings file may come from anybody.  What they say ends
in command lines of programs of the host's, some of which run as root.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError, UsageError
from rbuild.kernel.config import quote, read_config
from rbuild.matrix import bundle
from rbuild.provision import dockerfile, mmdebstrap, rootfs
from rbuild.provision.prepare import runtime_for
from rbuild.sandbox import binfmt
from rbuild.sandbox.runtime import variables_for
from rbuild.source import fetch, git
from rbuild.specs import architecture, definitions, environment, profile, settings
from rbuild.ui.console import Console
from rbuild.util.yaml_model import MAX_BYTES, MAX_VALUES, Strict

from .conftest import Host

ELF = {"name": "AArch64", "bits": 64, "number": 183, "exit_42": "00"}
DEBIAN = {"debian": "linux-source-6.12", "suite": "trixie"}
TARBALL = {
    "tarball": "https://example.org/linux.tar.xz",
    "sha256": "0" * 64,
    "key": "key.asc",
    "signature": "https://example.org/linux.tar.sign",
}
MACHINE = {
    "model": "virt",
    "description": "x",
    "architecture": "arm64",
    "cpu": "cortex-a53",
    "console": "ttyS1",
    "device_tree": "broadcom/x.dtb",
    "needs": ["SPI"],
    "arguments": "quiet x=1",
}
KERNEL = {"arch": "arm64", "image": "Image", "board_image": "kernel8.img"}

SAMPLES: dict[type[Strict], list[dict[str, Any]]] = {
    profile.Source: [
        DEBIAN,
        TARBALL,
        {"git": "https://example.org/linux.git", "ref": "v6.12"},
        {"directory": "../linux"},
    ],
    profile.Config: [{"base": "defconfig", "fragments": ["a.config"], "options": {"SPI": "y"}}],
    profile.Objects: [{"prepare": 1}],
    profile.Profile: [
        {
            "name": "x",
            "description": "x",
            "architecture": "arm64",
            "source": DEBIAN,
            "machine": "virt",
            "device_trees": ["broadcom/x.dtb"],
        }
    ],
    settings.Settings: [
        {
            "profile": "slim",
            "environment": "cross",
            "memory": "4g",
            "machine": "virt",
            "cache_dir": "x",
            "docker_host": "ssh://me@there",
            "ssh": "ssh",
            "scheduler": "tcp://there:8786",
        }
    ],
    architecture.Elf: [ELF],
    architecture.Word: [{"word": "ARMv7", "when": ["SMP"], "unless": ["PM"]}],
    architecture.Machine: [MACHINE],
    architecture.KbuildNames: [KERNEL],
    architecture.Architecture: [
        {
            "debian": "arm64",
            "machine": "aarch64",
            "triplet": "aarch64-linux-gnu",
            "rust_triplet": "aarch64-unknown-linux-gnu",
            "rust_bare": "aarch64-unknown-none",
            "qemu": "aarch64",
            "elf": ELF,
        }
    ],
    definitions.RootfsDefinition: [
        {
            "name": "x",
            "description": "x",
            "extends": "cross",
            "suite": "trixie",
            "architecture": "host",
            "target": "arm64",
            "packages": ["make"],
            "more_packages": ["gcc"],
            "llvm": "-19",
            "cc": "gcc",
            "variables": {"KCFLAGS": "-DX"},
            "emulated_variables": {"QEMU_CPU": "max"},
            "emulator": ["trixie"],
            "mount_points": ["/usr/lib/{triplet}"],
        }
    ],
    definitions.Level: [{"folders": ["/usr/lib/{triplet}"], "programs": ["make"]}],
    definitions.HybridDefinition: [
        {
            "name": "x",
            "description": "x",
            "extends": "hybrid",
            "base": "chroot",
            "native": "cross",
            "level": "all",
            "levels": {"all": {}},
        }
    ],
    definitions.VariantDefinition: [
        {
            "base": "chroot",
            "description": "x",
            "emulator": ["trixie"],
            "emulated_variables": {"QEMU_CPU": "max"},
        }
    ],
}
"""For each model documents that are right, which together have each of its fields of text."""

SHOWN = "a line for people, which is only shown"
FREE = {
    (profile.Profile, "description"): SHOWN,
    (architecture.Machine, "description"): SHOWN,
    (definitions.RootfsDefinition, "description"): SHOWN,
    (definitions.HybridDefinition, "description"): SHOWN,
    (definitions.VariantDefinition, "description"): SHOWN,
    (profile.Config, "options"): "the value stands quoted in a fragment, and in no command line",
    (definitions.RootfsDefinition, "variables"): "the value is what a variable has in a sandbox",
}
"""Fields that may begin with a dash, each with the reason; a newline they may not have."""

READS = "it names a file to read, which is where a user has it"
PATHS = {
    (profile.Source, "directory"): READS,
    (profile.Source, "key"): READS,
    (profile.Source, "tarball"): "a server's path is the server's",
    (profile.Source, "signature"): "a server's path is the server's",
    (profile.Source, "git"): "a server's path is the server's",
    (profile.Config, "base"): READS,
    (profile.Config, "fragments"): READS,
    (profile.Profile, "machine"): READS,
    (architecture.Machine, "arguments"): "they are words of the kernel's command line",
    (definitions.RootfsDefinition, "extends"): READS,
    (definitions.HybridDefinition, "extends"): READS,
    (definitions.HybridDefinition, "base"): READS,
    (definitions.HybridDefinition, "native"): READS,
    (definitions.VariantDefinition, "base"): READS,
    **{
        (settings.Settings, name): READS
        for name in ("profile", "environment", "machine", "cache_dir")
    },
    (settings.Settings, "docker_host"): "it is the user's own: no project can set it",
    (settings.Settings, "ssh"): "it is the user's own: no project can set it",
    (settings.Settings, "scheduler"): "it is the user's own: no project can set it",
}
"""Fields that may have ``..`` in them, each with the reason."""


def models(base: type[BaseModel] = Strict) -> Iterator[type[BaseModel]]:
    for one in base.__subclasses__():
        yield one
        yield from models(one)


OURS = sorted(
    (one for one in models() if one.__module__.startswith("rbuild.")),
    key=lambda one: (one.__module__, one.__name__),
)


def has_text(kind: object) -> bool:
    """Tell whether a field's type has a text or a path in it that isn't one of a few words."""
    if get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return False
    return kind in {str, Path} or any(has_text(one) for one in get_args(kind))


def texts() -> list[tuple[type[BaseModel], str]]:
    return [
        (model, name)
        for model in OURS
        for name, field in model.model_fields.items()
        if has_text(field.annotation)
    ]


def attacked(value: object, change: Callable[[str], str]) -> Iterator[object]:
    """Yield what a field's value is with each of its texts changed."""
    if isinstance(value, str):
        yield change(value)
    elif isinstance(value, list):
        for one in value:
            for changed in attacked(one, change):
                yield [changed]
                yield [*value, changed]
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield {change(key): one}
            for changed in attacked(one, change):
                yield {**value, key: changed}


def accepted(model: type[BaseModel], name: str, change: Callable[[str], str]) -> list[object]:
    """Return which values of a field, made of a right one, are let pass."""
    found = []
    for sample in SAMPLES[model]:  # type: ignore[index]
        for value in attacked(sample.get(name), change):
            try:
                model.model_validate({**sample, name: value})
            except ValidationError:
                continue
            found.append(value)
    return found


def ids(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize("model", OURS, ids=ids)
def test_each_model_has_samples_with_all_its_texts(model: type[Strict]) -> None:
    for sample in SAMPLES[model]:
        model.model_validate(sample)
    named = {name for sample in SAMPLES[model] for name in sample}
    assert {name for one, name in texts() if one is model} <= named


@pytest.mark.parametrize(("model", "name"), texts(), ids=ids)
def test_no_text_is_taken_for_an_option(model: type[BaseModel], name: str) -> None:
    if (model, name) in FREE:
        return
    for attack in ("--x", "-x", "-oProxyCommand=x", "--setup-hook=touch /tmp/x"):
        assert accepted(model, name, lambda _, attack=attack: attack) == []


@pytest.mark.parametrize(("model", "name"), texts(), ids=ids)
def test_no_text_has_a_second_line_or_steers_a_terminal(model: type[BaseModel], name: str) -> None:
    for piece in ("\n", "\r", "\x1b[2J", "\x9b", "\0", "\u2028"):
        assert accepted(model, name, lambda text, piece=piece: f"{text}{piece}{text}") == []


@pytest.mark.parametrize(("model", "name"), texts(), ids=ids)
def test_no_path_leads_out(model: type[BaseModel], name: str) -> None:
    if (model, name) in FREE or (model, name) in PATHS:
        return
    for attack in ("..", "../x", "/..", "/../../x", "/usr/../x", "x/../../x.dtb", "/usr/.."):
        assert accepted(model, name, lambda _, attack=attack: attack) == []


def test_the_exceptions_are_of_fields_that_there_are() -> None:
    assert {*FREE, *PATHS} <= set(texts())


def test_unions_are_looked_into() -> None:
    assert has_text(str | None)
    assert has_text(dict[str, int | bool])
    assert not has_text(Literal["a"] | None)
    assert get_origin(str | None) in {Union, UnionType}


ROOTFS = "name: mine\nsuite: trixie\narchitecture: arm64\npackages: [make]\n"


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "x", "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(binfmt, "require", lambda arch: None)


def load(folder: Path, text: str) -> environment.Environment:
    path = folder / "env.yaml"
    path.write_text(text)
    return environment.load(str(path))


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    return f"{caught.value.message}\n{caught.value.detail}"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (
            "emulated_variables: {PERL5OPT: -Mx}",
            "'PERL5OPT' is not supported; use one of QEMU_CPU, ",
        ),
        ("emulated_variables: {QEMU_PLUGIN: x.so}", "'QEMU_PLUGIN' is not supported"),
        ("emulated_variables: {QEMU_GDB: '1234'}", "'QEMU_GDB' is not supported"),
        ("emulated_variables: {QEMU_LOG_FILENAME: x}", "'QEMU_LOG_FILENAME' is not supported"),
        (
            "emulated_variables: {QEMU_CPU: 'max,x=/etc/x'}",
            "QEMU_CPU: 'max,x=/etc/x' is not a QEMU CPU model",
        ),
        ("emulated_variables: {QEMU_STACK_SIZE: lots}", "QEMU_STACK_SIZE: 'lots' is not a number"),
        ("variables: {PERL5OPT: -Mx}", "env.yaml:5: variables.PERL5OPT"),
        (
            "variables: {LD_PRELOAD: /module/x.so}",
            "'LD_PRELOAD' is not a variable that a definition can set",
        ),
        ("variables: {PATH: /module}", "'PATH' is not a variable that a definition can set"),
        ("variables: {'A=b': c}", "'A=b' is not a variable that a definition can set"),
        ("variables: {CCACHE_PREFIX: x}", "and names that begin with CCACHE_, LD_"),
        ("mount_points: [/../../x]", "'/../../x' is not a folder below /usr without .."),
        ("mount_points: [/var/run/x]", "'/var/run/x' is not a folder below /usr"),
        ("mount_points: ['/usr/lib/$(touch x)']", "is not a folder below /usr"),
        ("more_packages: [./evil.deb]", "'./evil.deb' is not a Debian package, such as clang-19"),
        ("more_packages: ['make,--x']", "is not a Debian package"),
        ("more_packages: [make-]", "'make-' is not a Debian package"),
        ("emulator: ['trixie main [trusted=yes]']", "is not a Debian suite, such as"),
        ("cc: ./cc", "'./cc' is not a program's name without a path"),
        ("llvm: /x/", "'/x/' is not 1, or a version such as -19"),
        ('description: "x\\nRUN evil"', "is not a line of text"),
    ],
)
def test_a_definition_that_reaches_the_host_is_refused(
    tmp_path: Path, field: str, said: str
) -> None:
    assert said in refused(tmp_path, f"{ROOTFS}{field}\n")


def test_a_suite_that_is_an_option_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, ROOTFS.replace("trixie", '"--setup-hook=touch /tmp/x"'))
    assert "env.yaml:2: suite: '--setup-hook=touch /tmp/x' is not a Debian suite" in said


def test_what_definitions_need_is_accepted(tmp_path: Path, x86: None) -> None:
    found = load(
        tmp_path,
        f"{ROOTFS}more_packages: [g++, libc6-dev, 'gcc:amd64', 'gcc=4:14.2.0-1']\n"
        "variables: {KCFLAGS: '-O2 -DX=\"a b\"', MY_FLAG: ''}\nemulator: [trixie-backports]\n"
        "emulated_variables: {QEMU_CPU: 'max,pauth-impdef=on,sve-max-vq=4', QEMU_TB_SIZE: '1'}\n"
        "mount_points: ['/usr/lib/{triplet}', /usr/lib/llvm-19, '/usr/lib/gcc/{triplet}/14']\n",
    )
    assert found.variables["KCFLAGS"] == '-O2 -DX="a b"'
    assert found.base.definition.emulator == ("trixie-backports",)


def test_only_the_emulators_variables_reach_mmdebstrap(
    bare: Host, tmp_path: Path, x86: None
) -> None:
    found = load(
        tmp_path,
        f"{ROOTFS}variables: {{KCFLAGS: -DX, TAR_OPTIONS: -x}}\n"
        "emulated_variables: {QEMU_CPU: max}\n",
    )
    rootfs.provision(found.base, Cache(bare.cache, Console(verbosity=-1)))
    env = eval((tmp_path / "mmdebstrap.env").read_text())
    assert env["QEMU_CPU"] == "max"
    assert not {"KCFLAGS", "TAR_OPTIONS"} & env.keys()


def test_a_rootfs_of_the_hosts_own_architecture_has_no_emulators_variables(
    bare: Host, tmp_path: Path, x86: None
) -> None:
    native = ROOTFS.replace("arm64", "host")
    found = load(tmp_path, f"{native}emulated_variables: {{QEMU_CPU: max}}\n")
    rootfs.provision(found.base, Cache(bare.cache, Console(verbosity=-1)))
    assert "QEMU_CPU" not in eval((tmp_path / "mmdebstrap.env").read_text())


def test_mmdebstraps_operands_stand_behind_a_double_dash(
    tmp_path: Path, x86: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a definition didn't come from a file that was checked."""
    seen: list[list[str]] = []
    monkeypatch.setattr(mmdebstrap.process, "run", lambda argv, **_: seen.append(list(argv)))
    monkeypatch.setattr(mmdebstrap.pipe, "pipe", lambda argv, *_, **__: seen.append(list(argv)))
    monkeypatch.setattr(mmdebstrap, "fix_modes", lambda root: None)
    monkeypatch.setattr(mmdebstrap, "proxy_options", list)
    monkeypatch.setattr(mmdebstrap, "host_mirrors", lambda suite: [])
    found = load(tmp_path, ROOTFS).base
    odd = found.definition.model_copy(update={"suite": "--setup-hook=x"})
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        root = tmp_path / str(user) / "root"
        root.parent.mkdir()
        mmdebstrap.debootstrap(
            rootfs.Rootfs(odd, found.architecture, True, found.host), root, print
        )
    made = [argv for argv in seen if "mmdebstrap" in argv]
    assert len(made) == 2
    for argv in made:
        behind = argv[argv.index("mmdebstrap") :]
        assert behind.index("--") + 1 == behind.index("--setup-hook=x")


def test_mount_points_are_made_inside_of_the_rootfs(tmp_path: Path) -> None:
    """A link there, such as /var/run, must lead to no folder of the host's."""
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "usr/link").symlink_to(outside)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "chroot").write_text('#!/bin/sh\necho "$@" >"$0.called"\n')
    (folder / "chroot").chmod(0o755)
    hook = mmdebstrap._folders_hook(["/src", "/usr/link/x"])
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", hook, "sh", str(root)], env=env, check=True)
    assert list(outside.iterdir()) == []
    called = (folder / "chroot.called").read_text().split()
    assert called == [str(root), "/bin/mkdir", "-p", "--", "/src", "/usr/link/x"]


def test_variables_are_for_builds_alone(host: Host) -> None:
    """A job that fetches a source has a network, and what it gets is everybody's."""
    path = host.folder / "env.yaml"
    path.write_text((Path(__file__).parents[2] / "rootfs/cross.yaml").read_text())
    with path.open("a") as file:
        file.write("variables: {KCFLAGS: -DFOO}\n")
    found = environment.load(str(path))
    assert found.variables == {"KCFLAGS": "-DFOO"}
    assert found.emulator_variables == {}
    made = host.module(host.write_module(), "--env", path).json
    lines = Path(made["log"]).read_text().splitlines()
    calls = [shlex.split(line) for line in lines if line.startswith("$ ")]
    builds = [words for words in calls if "M=/module" in words]
    assert builds
    for words in builds:
        assert words[words.index("KCFLAGS") + 1] == "-DFOO"
    from rbuild.provision.prepare import prepare_environment

    cache = Cache(host.cache, Console(verbosity=-1))
    ready = prepare_environment(found, cache, runtime_for("bwrap", cache))
    from rbuild.sandbox.runtime import Job

    assert "KCFLAGS" not in variables_for(ready.sandbox, Job(["apt-get"], network=True))


def test_a_dockerfile_has_no_line_of_a_definitions_own(tmp_path: Path, x86: None) -> None:
    text = dockerfile.dockerfile(load(tmp_path, f"{ROOTFS}description: 'x # RUN evil'\n"))
    assert [line for line in text.splitlines() if "evil" in line] == ["# mine: x # RUN evil"]
    assert "install -y --no-install-recommends -- " in text
    assert "mkdir -p -- /src /kdir /module\n" in text


MACHINE_TEXT = "model: virt\narchitecture: arm64\nconsole: ttyAMA0\n"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('model: "virt,dumpdtb=/home/me/file"', "is not a QEMU machine name without properties"),
        ('cpu: "max,x=/etc/passwd"', "is not a QEMU CPU model, such as cortex-a53"),
        ("device_tree: ../../../etc/x.dtb", "is not a device tree in the kernel source, such as"),
        ("device_tree: /etc/x.dtb", "is not a device tree in the kernel source"),
        ("arguments: -- evil", "is not a part of the kernel's command line"),
        ("serial_port: 1000000000", "less than or equal to 15"),
        ("console: 'ttyS1 init=/x'", "is not a console of the kernel's"),
    ],
)
def test_a_machine_that_reaches_the_host_is_refused(tmp_path: Path, field: str, said: str) -> None:
    path = tmp_path / "m.yaml"
    kept = [
        line for line in MACHINE_TEXT.splitlines() if not field.startswith(line.split(":")[0] + ":")
    ]
    path.write_text("\n".join([field, *kept]) + "\n")
    with pytest.raises(UsageError) as caught:
        architecture.machine(str(path), "arm64")
    assert said in caught.value.message
    assert "m.yaml:1: " in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/x",
        "fd::17",
        "ssh://-oProxyCommand=x/y",
        "ssh://me@-oProxyCommand=x/y",
        "-oProxyCommand=x:y",
        "--upload-pack=x",
        "gopher://x/y",
        "ftp://x/y",
        "../linux.git",
        "host:-x",
    ],
)
def test_a_git_url_that_runs_a_program_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="is not the URL of a git repository: https"):
        profile.Source(git=url, ref="x")


@pytest.mark.parametrize(
    "url",
    [
        "https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git",
        "https://me:secret@example.org:8443/linux.git",
        "ssh://git@example.org:22/~me/linux.git",
        "git://example.org/linux.git",
        "file:///srv/my linux.git",
        "/srv/linux.git",
        "git@example.org:me/linux.git",
        "example.org:/srv/linux.git",
        "https://[::1]/linux.git",
    ],
)
def test_git_urls_that_are_accepted(url: str) -> None:
    assert profile.Source(git=url, ref="v6.12").git == url


@pytest.mark.parametrize("ref", ["-x", "--upload-pack=x", "+a:b", "a:b", "a..b", "a b", "@{-1}"])
def test_a_git_ref_that_is_more_than_one_is_refused(ref: str) -> None:
    with pytest.raises(ValidationError, match="is not a branch, tag or commit"):
        profile.Source(git="https://example.org/x", ref=ref)


@pytest.mark.parametrize("ref", ["v6.12.9", "rpi-6.12.y", "feature/#12", "a" * 40, "refs/tags/x"])
def test_git_refs_that_are_accepted(ref: str) -> None:
    assert profile.Source(git="https://example.org/x", ref=ref).ref == ref


def test_git_runs_no_helper_of_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for one that came some other way, or that a server redirects to."""
    target = tmp_path / "target"
    target.mkdir()
    for name, value in (("COUNT", "1"), ("KEY_0", "protocol.ext.allow"), ("VALUE_0", "always")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    mark = tmp_path / "ran"
    with pytest.raises(InfrastructureError, match="Fetching x from"):
        git.fetch(f"ext::touch {mark}", "x", "0" * 40, target, print)
    with pytest.raises(InfrastructureError, match="Looking up"):
        git.resolve(f"ext::touch {mark}", "x", Cache(tmp_path / "cache", Console(verbosity=-1)))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x/linux-6.12.tar.xz", "linux-6.12.tar.xz"),
        ("https://x/linux-6.12.tar.xz?a=/b", "linux-6.12.tar.xz"),
        ("https://x/..", "tarball"),
        ("https://x/-dc", "tarball"),
        ("https://x/signature", "tarball"),
        ("https://x/key.gpg", "tarball"),
        ("https://x/tarball.validator", "tarball"),
        ("https://x/", "tarball"),
    ],
)
def test_a_tarballs_file_is_named_by_no_url(url: str, name: str) -> None:
    assert fetch._file_name(url) == name


@pytest.mark.parametrize("value", ['a"\nCONFIG_EVIL=y', "a\rb", "a\x1b[2J"])
def test_an_options_value_of_two_lines_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="without control characters"):
        profile.Config(options={"LOCALVERSION": value})


def test_an_options_text_stays_in_its_quotes() -> None:
    """Kconfig's own way (scripts/kconfig/confdata.c): a backslash before both."""
    text = profile.Config(options={"CMDLINE": 'a "b" \\', "NR_CPUS": 4, "SPI": "y"}).as_fragment()
    assert text == 'CONFIG_CMDLINE="a \\"b\\" \\\\"\nCONFIG_NR_CPUS=4\nCONFIG_SPI=y\n'
    assert read_config(text).keys() == {"CMDLINE", "NR_CPUS", "SPI"}


KCONFIG = """\
config PHYS
\thex "Where"
config LOCALVERSION
\tstring "A name"
config DEFAULT_HOSTNAME
\tstring
\tprompt "Another"
config NR_CPUS
\tint "How many"
config SPI
\tbool "A switch"
"""

WRITTEN = [
    ("PHYS", "0x1b0", "0x1b0"),
    ("PHYS", "016", "016"),
    ("PHYS", "1b0", "1b0"),
    ("PHYS", "1e3", "1e3"),
    ("NR_CPUS", "016", "016"),
    ("NR_CPUS", "0x10", "0x10"),
    ("NR_CPUS", "'4'", "4"),
    ("LOCALVERSION", "'-20260101'", '"-20260101"'),
    ("LOCALVERSION", "-20260101", '"-20260101"'),
    ("LOCALVERSION", "2026-01-01", '"2026-01-01"'),
    ("LOCALVERSION", "1.10", '"1.10"'),
    ("LOCALVERSION", "0x1b0", '"0x1b0"'),
    ("DEFAULT_HOSTNAME", "42", '"42"'),
    ("DEFAULT_HOSTNAME", "deadbeef", '"deadbeef"'),
    ("DEFAULT_HOSTNAME", "'a \"b\" \\ c'", '"a \\"b\\" \\\\ c"'),
    ("DEFAULT_HOSTNAME", "y", '"y"'),
    ("SPI", "y", "y"),
    ("SPI", "yes", "y"),
    ("SPI", "on", "y"),
]


@pytest.mark.parametrize(("option", "written", "value"), WRITTEN)
def test_an_option_is_as_it_was_written_and_quoted_by_its_type(
    tmp_path: Path, option: str, written: str, value: str
) -> None:
    (tmp_path / "Kconfig").write_text(KCONFIG)
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\nsource: {debian: linux-source-6.12}\n"
        f"config: {{options: {{MODULES: y, {option}: {written}}}}}\n"
    )
    text = quote(profile.load(str(path)).config.as_fragment(), tmp_path)
    assert read_config(text)[option] == value
    # A matrix hands it on as it is.
    (copy := tmp_path / "copy.yaml").write_text(bundle.pack(profile.load(str(path))).files[0][1])
    assert profile.load(str(copy)).config == profile.load(str(path)).config


@pytest.mark.parametrize("base", ["-config", "--x", "a\nb", "--eval=x_defconfig"])
def test_a_base_that_is_an_option_of_makes(base: str) -> None:
    with pytest.raises(ValidationError, match="doesn't begin with a dash"):
        profile.Config(base=base)


@pytest.mark.parametrize("path", ["x.dtb ../y.dtb", "-x.dtb", "/x.dtb", "a/../../x.dtb", "x.dts"])
def test_a_device_tree_that_is_none(path: str) -> None:
    with pytest.raises(ValidationError, match="is not a device tree in the kernel source"):
        profile.Profile.model_validate({"name": "x", "source": DEBIAN, "device_trees": [path]})


DUPLICATES = [
    ("name: a\nname: b\n", "2:1", "name", 1),
    ("name: a\nconfig:\n  options:\n    SPI: y\n    I2C: y\n    SPI: n\n", "6:5", "SPI", 4),
    ("{name: a, name: b}", "1:11", "name", 1),
]


@pytest.mark.parametrize(("text", "mark", "key", "line"), DUPLICATES)
def test_a_key_that_stands_twice(tmp_path: Path, text: str, mark: str, key: str, line: int) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    for read in (profile.load, environment.load, lambda name: settings.read(Path(name))):
        with pytest.raises(UsageError) as caught:
            read(str(path))
        assert caught.value.message == (
            f"{path}:{mark}: not valid YAML: duplicate key '{key}', first set in line {line}."
        )


READERS: list[Callable[[str], object]] = [
    profile.load,
    environment.load,
    lambda name: architecture.machine(name, "arm64"),
    lambda name: settings.read(Path(name)),
]


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, read: Callable[[str], object]
) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for name, kind in (("fifo", "a FIFO"), ("zero", "a device"), ("folder", "a folder")):
        path = tmp_path / f"{name}.yaml"
        with pytest.raises(UsageError) as caught:
            read(str(path))
        assert caught.value.message == (f"{path} can't be read: it is {kind}, not a regular file.")


@pytest.mark.parametrize("read", READERS)
def test_what_is_too_large_is_not_read(tmp_path: Path, read: Callable[[str], object]) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError) as caught:
        read(str(path))
    assert f"it is {1 << 40} bytes; the limit is {MAX_BYTES}" in caught.value.message
    path.write_text("- a\n" * (MAX_VALUES + 1))
    with pytest.raises(UsageError, match=f"there are more than {MAX_VALUES} values"):
        read(str(path))


def test_a_definition_that_is_extended_is_read_with_the_same_care(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "twice.yaml").write_text("suite: a\nsuite: b\n")
    said = refused(tmp_path, "extends: twice\nname: mine\n")
    assert f"{tmp_path}/twice.yaml:2:1: not valid YAML: duplicate key 'suite'" in said
    assert "there is no pipe.yaml beside it" in refused(tmp_path, "extends: pipe\nname: mine\n")
    assert "extends: '/etc/x' is not the name of a definition" in refused(
        tmp_path, f"{ROOTFS}extends: /etc/x\n"
    )
