"""Bad input: the file, the line and the field are named, and what would be accepted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.cli import size
from rbuild.cli.main import COMMANDS, main
from rbuild.errors import MissingDependency, RbuildError, UsageError
from rbuild.matrix import scheduler
from rbuild.source import fetch
from rbuild.specs import config, environment, profile, settings
from rbuild.specs.architecture import machine
from rbuild.util import yaml_model

from .conftest import Host

GOOD = "name: x\nsource: {debian: linux-source-6.12}\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: x\n  bad: [", 2, "not valid YAML"),
        ("- a\n- b\n", None, "expected fields"),
        ("", None, "got nothing"),
        ("name: x\n", 1, "source: this field is required"),
        (GOOD + "fragmnts: []\n", 3, "unknown field"),
        (
            GOOD + "config:\n  fragmnts: [a]\n",
            4,
            "config.fragmnts: unknown field. Did you mean 'fragments'?",
        ),
        (GOOD + "driver: perl\n", 3, "driver: Input should be 'rust', 'c' or 'glue' (got 'perl')"),
        (GOOD + "architecture: riscv\n", 3, "architecture:"),
        (GOOD + "config:\n  options:\n    CONFIG_SPI: y\n", 5, "without CONFIG_"),
        ("name: x\nsource:\n  - {debian: a, git: /b, ref: c}\n", 3, "exactly one of"),
        ("name: x\nsource: {tarball: 'https://x.invalid/a.tar'}\n", 2, "go together"),
        ("name: x\nsource: {tarball: 'https://x.invalid/a.tar', sha256: 12}\n", 2, "sha256"),
        ("name: 'Bad Name'\nsource: {debian: a}\n", 1, "name:"),
    ],
)
def test_a_bad_profile_names_line_and_field(
    tmp_path: Path, text: str, line: int | None, words: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        profile.load(str(path))
    said = f"{caught.value.message}\n{caught.value.detail}"
    assert words in said
    assert str(path) in said
    if line is not None:
        assert f"bad.yaml:{line}:" in said


def test_an_unknown_profile_suggests_the_nearest(host: Host) -> None:
    found = host("kernel", "--profile", "slimm", code=2)
    assert "Did you mean 'slim'?" in found.err


def test_an_unknown_environment_suggests_the_nearest(host: Host) -> None:
    assert "Did you mean 'hybrid'?" in host("setup", "hybird", code=2).err


def test_a_mistyped_command_suggests_the_nearest(host: Host) -> None:
    assert "Did you mean 'module'?" in host("modul", code=2).err


def test_a_missing_fragment_is_named(host: Host) -> None:
    path = host.write_profile(
        f"name: x\nsource: {{directory: {host.tree}}}\npatches: false\n"
        "config: {base: tinyconfig, fragments: [nowhere.config]}\n"
    )
    found = host("kernel", "--profile", path, code=2)
    assert "config.fragments" in found.err
    assert "nowhere.config" in found.err


def test_a_directory_that_is_no_kernel_tree(host: Host) -> None:
    path = host.write_profile(f"name: x\nsource: {{directory: {host.folder}}}\n")
    assert "is not a kernel tree" in host("kernel", "--profile", path, code=2).err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "neither a Kbuild nor a Makefile"),
        (
            lambda folder: (
                (folder / "init").mkdir(parents=True),
                (folder / "Kbuild").touch(),
                (folder / "init/Kconfig").touch(),
            ),
            "is a kernel tree",
        ),
    ],
)
def test_a_path_that_is_no_module(host: Host, make, words: str) -> None:
    folder = host.folder / "odd"
    make(folder)
    assert words in host("module", folder, "--profile", host.profile, code=2).err


def test_path_and_in_tree_exclude_each_other(host: Host) -> None:
    assert "out-of-tree" in host("module", host.write_module(), "--in-tree", code=2).err


BOMB = "".join(
    f"&{name} [{', '.join([f'*{before}'] * 8)}], "
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("!!int ''", "not what its tag says"),
        ("!!bool x", "not what its tag says"),
        ("!!timestamp x", "not what its tag says"),
        ("0x" + "f" * 4000, "bad.yaml:3:9: not valid YAML: a number has more than 100 digits"),
        ("[&a [x, x], " + BOMB + "x]", "aliases expand to more than 10000 values"),
        ("&a [*a]", "bad.yaml:3:9: not valid YAML: a value is a part of itself"),
        ("[" + "x, " * 300 + "x]", "..."),
        (r'"a\0b"', "bad.yaml:3:9: not valid YAML: a text has the character '\\x00'"),
        (r'"\ud800"', "a text has the character"),
    ],
)
def test_yaml_that_means_mischief_is_refused(tmp_path: Path, value: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"{GOOD}driver: {value}\n")
    with pytest.raises(UsageError) as caught:
        profile.load(str(path))
    said = f"{caught.value.message}\n{caught.value.detail}"
    assert words in said
    assert len(said) < 2000


@pytest.mark.parametrize("name", profile.names())
def test_our_profiles_load(name: str) -> None:
    found = profile.load(name)
    assert found.name == name
    assert found.fragments()


@pytest.mark.parametrize("name", environment.names())
def test_our_environments_load(name: str) -> None:
    assert environment.load(name).name == name


def test_a_variant_of_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"base: {path}\n")
    with pytest.raises(UsageError, match=r"odd\.yaml: base: odd is a variant of itself"):
        environment.load(str(path))


@pytest.mark.parametrize(
    "load", [profile.load, environment.load, lambda name: machine(name, "arm64")]
)
def test_a_name_that_no_file_can_have(load) -> None:
    with pytest.raises(UsageError, match="There is no"):
        load("x" * 300)


def test_extending_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"extends: {'x' * 300}\n")
    with pytest.raises(UsageError, match=r"odd\.yaml: extends: there is no"):
        environment.load(str(path))


def test_the_home_of_a_user_that_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "rbuild.yaml"
    path.write_text("jobs: 1\ncache_dir: ~nobody-has-this-name/x\n")
    with pytest.raises(UsageError, match=r"rbuild\.yaml:2: cache_dir: ~nobody-has-this-name/x is"):
        config.load(path, config.Scope.USER)
    path.write_text("name: x\nsource: {directory: ~nobody-has-this-name/x}\n")
    found = profile.load(str(path))
    with pytest.raises(UsageError, match=r"rbuild\.yaml: source\.directory: ~nobody"):
        fetch._directory(found, found.source[0])


def test_a_cache_directory_in_a_home_that_is_not_known(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = host("--cache-dir", "~nobody-has-this-name/x", "status", code=2)
    assert "--cache-dir: ~nobody-has-this-name/x is the home of a user" in found.err
    monkeypatch.setenv("RBUILD_CONFIG", "~nobody-has-this-name/x")
    assert "RBUILD_CONFIG: ~nobody-has-this-name/x is the home" in host("status", code=2).err
    with pytest.raises(UsageError, match="--tls-ca: ~nobody-has-this-name/x is the home"):
        scheduler._readable("ca", Path("~nobody-has-this-name/x"))


def test_environments_on_an_aarch64_host(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "x", "6", "1", "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    assert not environment.load("chroot").emulated
    assert environment.load("chroot").variables == {}
    assert environment.load("hybrid").native is None


def test_environments_on_an_x86_host(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "x", "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    chroot, hybrid = environment.load("chroot"), environment.load("hybrid")
    assert chroot.emulated
    assert chroot.variables == {"QEMU_CPU": "cortex-a72"}
    assert chroot.builder.debian == "arm64"
    assert not hybrid.emulated
    assert hybrid.builder.debian == "amd64"
    assert "/usr/lib/x86_64-linux-gnu" in chroot.base.mount_points


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "x", "6", "1", "s390x"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    with pytest.raises(MissingDependency, match="s390x"):
        environment.load("cross")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(host: Host, name: str) -> None:
    assert "Examples:" in host(name, "--help").out


def test_the_kept_help_is_clicks_own() -> None:
    env = {**os.environ, "COLUMNS": "80"}
    own = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rbuild.cli.main import main; main(prog_name='rbuild')",
            "--help",
        ],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    kept = subprocess.run(
        [sys.executable, "-m", "rbuild", "--help"], capture_output=True, text=True, check=True
    )
    assert kept.stdout.strip() == own.strip()
    assert main.name == "main"


@given(st.text())
def test_any_text_is_a_profile_or_a_usage_error(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "f.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    try:
        yaml_model.load(path, profile.Profile)
    except RbuildError as error:
        assert str(path) in error.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["name", "source", "config", "debian", "options", "base", "x"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_is_a_profile_or_a_usage_error(tmp_path_factory, data: object) -> None:
    import yaml

    path = tmp_path_factory.mktemp("fuzz") / "f.yaml"
    path.write_text(yaml.safe_dump(data))
    try:
        yaml_model.load(path, profile.Profile)
    except UsageError as error:
        assert str(path) in error.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"# my notes\nSPI=y\n", "it has no line that sets a CONFIG_ option"),
        (b"CONFIG_SPI=y\0\n", "it is binary"),
        (b"\x7fELF\xff\xfe", "can't be read"),
    ],
)
def test_a_base_that_is_no_configuration(host: Host, content: bytes, words: str) -> None:
    base = host.folder / "my.config"
    base.write_bytes(content)
    path = host.write_profile(
        f"name: x\nsource: {{directory: {host.tree}}}\npatches: false\n"
        "config: {base: my.config}\n"
    )
    found = host("kernel", "--profile", path, code=2)
    assert f"{path}: config.base: " in found.err
    assert str(base) in found.err
    assert words in found.err
    assert "such as defconfig, or a .config file with lines such as CONFIG_SPI=y" in found.err
    base.write_text("# CONFIG_SPI is not set\n")
    host("kernel", "--profile", path)


FIGURES = [
    (("module", "--runtime", "docker"), "--cpus", ("nan", "inf", "-inf", "1e300", "0", "0.001")),
    (("module",), "--timeout", ("nan", "inf", "1e300", "0", "-1")),
    (("module",), "--jobs", ("nan", "1e3", "0", "9" * 30, "9" * 5000)),
    (("boot",), "--timeout", ("nan", "inf", "1e300", "0")),
    (("bench",), "--runs", ("0", "9" * 30)),
    (("bench",), "--warmup", ("-1", "9" * 30)),
    (("bench",), "--jobs", ("0", "9" * 30)),
    (("bench", "--compare", "/dev/null"), "--fail-above", ("nan%", "inf%", "9" * 400 + "%")),
    (("clean",), "--older-than", ("nan", "inf", "-1", "1e300")),
    (("clean",), "--keep-last", ("-1", "9" * 30)),
    (("clean",), "--max-size", ("0", "0.0001", "9" * 15 + "t", "9" * 400, "-1")),
    (("matrix",), "--wait", ("nan", "inf", "-1", "1e300")),
    (("module", "--runtime", "docker"), "--memory", ("3m", "0.01k", "9" * 15 + "t", "nan")),
    (("matrix", "--runtime", "docker"), "--memory", ("3m",)),
]


@pytest.mark.parametrize(("command", "option", "values"), FIGURES, ids=lambda one: str(one)[:30])
def test_a_figure_that_no_machine_has_is_refused(
    bare: Host, command: tuple[str, ...], option: str, values: tuple[str, ...]
) -> None:
    for value in values:
        found = bare(*command, f"{option}={value}", code=2)
        assert option in found.err, value
        assert value[:20] in found.err or "a container needs at least 6m" in found.err
    variable = f"RBUILD_{option.lstrip('-').upper()}"
    if option in {"--cpus", "--timeout"} and command[0] == "module":
        bare.monkeypatch.setenv(variable, "nan")
        assert "nan" in bare(*command, code=2).err


@pytest.mark.parametrize(
    "text", ["cpus: .nan", "cpus: .inf", "cpus: 0", "jobs: 99999999999999999999", "runs: 1e300"]
)
def test_a_figure_of_a_file_that_no_machine_has_is_refused(bare: Host, text: str) -> None:
    path = bare.folder / "rbuild-settings.yaml"
    path.write_text(f"runtime: docker\n{text}\n")
    bare.monkeypatch.setenv("RBUILD_CONFIG", str(path))
    found = bare("module", code=2)
    assert f"{path.name}:2: {text.partition(':')[0]}" in found.err


def test_the_same_figures_are_accepted_in_files_and_on_the_command_line() -> None:
    assert settings.MAX == size.MAX


def test_a_matrix_hands_limits_to_its_builds(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for the runtime of each build, not for the matrix's own."""
    plans = []

    def rows(plan, *_):  # type: ignore[no-untyped-def]
        plans.append(plan)
        raise UsageError("enough")

    monkeypatch.setattr("rbuild.cli.matrix._rows", rows)
    bare("matrix", "--runtime", "docker", "--memory", "4g", "--cpus", "2", code=2)
    (plan,) = plans
    words = " ".join(plan.options)
    assert "--memory 4294967296" in words
    assert "--cpus 2.0" in words
    assert "for --runtime docker" in bare("matrix", "--memory", "4g", code=2).err
    assert len(plans) == 1
