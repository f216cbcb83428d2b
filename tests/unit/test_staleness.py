"""Whatever a result depends on: changed, it changes the answer; or it is shown why it need not."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbuild.boot import qemu
from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError, UsageError
from rbuild.kernel import identity
from rbuild.provision.rootfs import entry_of
from rbuild.source import contents, git
from rbuild.specs import architecture, environment, profile, settings
from rbuild.specs.architecture import Machine
from rbuild.specs.definitions import HybridDefinition, Level, RootfsDefinition, VariantDefinition
from rbuild.specs.profile import Config, Objects, Profile, Source
from rbuild.specs.settings import Settings
from rbuild.ui.console import Console

from .conftest import Host

FOR_PEOPLE = "shown only"
ONLY_HOW_FAST = "QEMU's version and CPU model: bench compares the bytes that variants make"
RESOLVED = "stands for fields that count themselves once it is resolved"
CHOOSES = "which of several results is meant, each of which has a place of its own"
NOT_KEPT = "acts after what is kept: on each command anew"


# --- definitions of environments ------------------------------------------------------------


def _definition(folder: Path, **changes: str) -> environment.Environment:
    fields = {
        "name": "own",
        "suite": "trixie",
        "architecture": "host",
        "target": "arm64",
        "packages": "[make, gcc]",
        "llvm": '"-19"',
        "cc": "gcc",
        "variables": "{KCFLAGS: -DA}",
        "mount_points": "[/usr/lib/x]",
        **changes,
    }
    path = folder / "own.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in fields.items() if value))
    return environment.load(str(path))


ROOTFS_CHANGES = {
    "name": "other",
    "suite": "forky",
    "architecture": "arm64",
    "target": "armhf",
    "packages": "[make, gcc, bc]",
    "more_packages": "[bc]",
    "llvm": '"-18"',
    "variables": "{KCFLAGS: -DB}",
}
ROOTFS_IRRELEVANT = {
    "description": FOR_PEOPLE,
    "extends": RESOLVED,
    "emulator": ONLY_HOW_FAST,
    "emulated_variables": ONLY_HOW_FAST,
    "cc": "compiles the program of the verification only, whose record has it (below)",
    "mount_points": "made where the rootfs is emulated (below)",
}


def _names(found: environment.Environment, cache: Cache) -> tuple[Any, ...]:
    return (*(entry_of(part, cache).name for part in found.rootfses), found.inputs)


@pytest.mark.parametrize("field", RootfsDefinition.model_fields)
def test_each_field_of_a_rootfs_counts(field: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Console())
    if field in ROOTFS_IRRELEVANT:
        assert field not in ROOTFS_CHANGES
        return
    before = _names(_definition(tmp_path), cache)
    assert _names(_definition(tmp_path, **{field: ROOTFS_CHANGES[field]}), cache) != before


def test_the_mount_points_of_an_emulated_rootfs_count(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Console())
    before = _names(_definition(tmp_path, architecture="arm64"), cache)
    other = _definition(tmp_path, architecture="arm64", mount_points="[/usr/lib/y]")
    assert _names(other, cache) != before


def _hybrid(folder: Path, **changes: str) -> environment.Environment:
    for name, arch in (("below", "arm64"), ("beside", "host"), ("third", "host")):
        more = "target: arm64\n" if arch == "host" else ""
        packages = "[make, bc]" if name == "third" else "[make]"
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\nsuite: trixie\narchitecture: {arch}\n{more}packages: {packages}\n"
        )
    (folder / "fourth.yaml").write_text(
        "name: fourth\nsuite: trixie\narchitecture: arm64\npackages: [gcc]\n"
    )
    fields = {
        "name": "mixed",
        "base": f"{folder}/below.yaml",
        "native": f"{folder}/beside.yaml",
        "level": "one",
        "levels": "{one: {programs: [make], folders: [/usr/lib/x]}, two: {programs: [bc]}}",
        **changes,
    }
    path = folder / "mixed.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    return environment.load(str(path))


def test_each_field_of_a_hybrid_counts(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Console())
    changes = {
        "name": "other",
        "base": f"{tmp_path}/fourth.yaml",
        "native": f"{tmp_path}/third.yaml",
        "level": "two",
        "levels": "{one: {programs: [bc], folders: [/usr/lib/x]}, two: {}}",
    }
    irrelevant = {"description": FOR_PEOPLE, "extends": RESOLVED}
    assert changes.keys() | irrelevant.keys() == HybridDefinition.model_fields.keys()
    before = _names(_hybrid(tmp_path), cache)
    for field, value in changes.items():
        assert _names(_hybrid(tmp_path, **{field: value}), cache) != before, field


@pytest.mark.parametrize("field", Level.model_fields)
def test_each_field_of_a_level_counts(field: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Console())
    value = {"folders": "[/usr/lib/y]", "programs": "[ls]"}[field]
    before = _names(_hybrid(tmp_path, levels="{one: {}}"), cache)
    assert _names(_hybrid(tmp_path, levels=f"{{one: {{{field}: {value}}}}}"), cache) != before


def test_a_variant_has_the_fields_that_its_base_counts(tmp_path: Path) -> None:
    for field in VariantDefinition.model_fields:
        assert field == "base" or field in ROOTFS_IRRELEVANT, field


# --- machines, settings ---------------------------------------------------------------------


def test_each_field_of_a_machine_changes_the_boot(tmp_path: Path) -> None:
    machine = architecture.machine("virt", "arm64")
    changes: dict[str, Any] = {
        "model": "raspi3b",
        "cpu": "cortex-a72",
        "processors": 3,
        "memory_mib": 1024,
        "console": "ttyS7",
        "serial_port": 1,
        "device_tree": "x/y.dtb",
        "arguments": "quiet",
    }
    irrelevant = {
        "description": FOR_PEOPLE,
        "architecture": "has to be the profile's",
        "needs": "compared with the configuration at each boot",
    }
    assert changes.keys() | irrelevant.keys() == Machine.model_fields.keys()
    kdir = _kdir(tmp_path)
    before = qemu.command_line(kdir, tmp_path / "archive", ["rust"], machine)
    for field, value in changes.items():
        other = machine.model_copy(update={field: value})
        assert qemu.command_line(kdir, tmp_path / "archive", ["rust"], other) != before, field


def _kdir(folder: Path) -> Any:
    cache = Cache(folder / "cache", Console())
    found = environment.load("cross")
    ready = type("PreparedEnvironment", (), {"environment": found})()
    entry = cache.entry("kdirs", "x", "y")  # type: ignore[arg-type]
    return type("Kdir", (), {
        "ready": ready,
        "image": entry.path / "Image",
        "device_trees": entry.path / "dts",
    })()  # fmt: skip


def test_each_setting_is_an_option_of_every_command_anew() -> None:
    """A setting stands for an option's default: nothing is kept by it that its value doesn't name."""
    reasons = {
        "profile": CHOOSES,
        "environment": CHOOSES,
        "driver": CHOOSES,
        "machine": NOT_KEPT,
        "runtime": "makes the same bytes: tests/integration compares them",
        "memory": "limits a build; one that reaches it fails",
        "cpus": "limits a build's speed",
        "jobs": "limits a build's speed",
        "ccache": "makes the same bytes: tests/integration compares them",
        "runs": NOT_KEPT,
        "warmup": NOT_KEPT,
        "cache_dir": CHOOSES,
        "docker_host": "makes the same bytes",
        "ssh": NOT_KEPT,
        "scheduler": NOT_KEPT,
    }
    assert reasons.keys() == Settings.model_fields.keys()
    assert settings.Settings is Settings


# --- profiles -------------------------------------------------------------------------------


PROFILE_IRRELEVANT = {
    "description": FOR_PEOPLE,
    "machine": NOT_KEPT,
    "driver": CHOOSES,
    "kind": CHOOSES,
    "objects": "what progress counts to",
}


def _built(host: Host, text: str) -> tuple[str, list[str]]:
    """Return where a profile's kernel is, and make's targets of this run."""
    path = host.write_profile(text)
    calls = host.folder / "calls"
    calls.unlink(missing_ok=True)
    found = host("--json", "kernel", "--profile", path).json
    lines = calls.read_text().splitlines() if calls.exists() else []
    made = [line for line in lines if " modules " in f"{line} "]
    return _kernel_folder(found), made


def _kernel_folder(found: Any) -> str:
    return str(Path(found["artefacts"][0]["path"]).parents[3])


def _text(host: Host, **changes: str) -> str:
    fields = {
        "name": "tiny",
        "architecture": "arm64",
        "source": f"{{directory: {host.tree}}}",
        "patches": "false",
        "config": "{base: tinyconfig, options: {RUST: y, SPI: y}}",
        **changes,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def test_each_field_of_a_profile_changes_its_kernel(host: Host) -> None:
    other = host.folder / "other"
    subprocess.run(["cp", "-a", str(host.tree), str(other)], check=True)
    (other / "init/new.c").write_text("")
    fragment = host.folder / "more.config"
    fragment.write_text("CONFIG_I2C=y\n")
    changes = {
        "name": "small",
        "source": f"{{directory: {other}}}",
        "config": "{base: tinyconfig, options: {RUST: y, SPI: y}, fragments: [more.config]}",
        "device_trees": "[broadcom/bcm2837-rpi-3-b.dtb]",
    }
    elsewhere = {"architecture", "patches"}  # the tests below
    assert changes.keys() | elsewhere | PROFILE_IRRELEVANT.keys() == Profile.model_fields.keys()
    before, _ = _built(host, _text(host))
    for field, value in changes.items():
        kdir, made = _built(host, _text(host, **{field: value}))
        assert kdir != before or made, field
        again, more = _built(host, _text(host, **{field: value}))
        assert (again, more) == (kdir, []), field


def test_a_second_device_tree_is_built(host: Host) -> None:
    one, two = "broadcom/bcm2837-rpi-3-b.dtb", "broadcom/bcm2837-rpi-3-b-plus.dtb"
    _built(host, _text(host, device_trees=f"[{one}]"))
    _, made = _built(host, _text(host, device_trees=f"[{one}, {two}]"))
    assert len(made) == 1
    assert two in made[0]
    found = host("--json", "kernel", "--profile", host.profile).json
    assert {Path(one["path"]).name for one in found["artefacts"]} >= {
        "bcm2837-rpi-3-b.dtb",
        "bcm2837-rpi-3-b-plus.dtb",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", "base.config"),
        ("fragments", "[more.config]"),
        ("options", "{RUST: y}"),
    ],
)
def test_each_field_of_a_configuration_changes_the_kernel(
    host: Host, field: str, value: str
) -> None:
    assert {"base", "fragments", "options"} == Config.model_fields.keys()
    assert {"prepare", "kernel"} == Objects.model_fields.keys()
    (host.folder / "more.config").write_text("CONFIG_I2C=y\n")
    (host.folder / "base.config").write_text("CONFIG_RUST=y\nCONFIG_SPI=y\n")
    fields = {"base": "tinyconfig", "options": "{RUST: y, SPI: y}"}
    before, _ = _built(host, _text(host))
    text = ", ".join(f"{name}: {one}" for name, one in (fields | {field: value}).items())
    assert _built(host, _text(host, config=f"{{{text}}}"))[0] != before


def test_a_fragment_s_content_counts(host: Host) -> None:
    fragment = host.folder / "more.config"
    text = _text(host, config="{base: tinyconfig, fragments: [more.config]}")
    fragment.write_text("CONFIG_I2C=y\n")
    before, _ = _built(host, text)
    fragment.write_text("CONFIG_I2C=m\n")
    assert _built(host, text)[0] != before


# --- variables, packages --------------------------------------------------------------------


def test_a_variable_of_an_environment_builds_anew(host: Host) -> None:
    """``variables: {KCFLAGS: -DFOO}`` once changed nothing: the old .ko, and exit code 0."""
    from rbuild.util import data

    path = host.folder / "own.yaml"
    text = (data.folder("rootfs") / "cross.yaml").read_text()
    module = host.write_module()
    first = host.module(module, "--env", "cross").json
    path.write_text(f"{text}variables: {{KCFLAGS: -DFOO}}\n")
    second = host.module(module, "--env", path).json
    assert second["artefacts"][0]["path"] != first["artefacts"][0]["path"]
    assert not second["phases"][-1]["cached"]
    path.write_text(f"{text}variables: {{KCFLAGS: -DBAR}}\n")
    assert not host.module(module, "--env", path).json["phases"][-1]["cached"]
    assert host.module(module, "--env", path).json["phases"][-1]["cached"]


def test_other_versions_of_any_package_make_another_kernel(tmp_path: Path) -> None:
    tree = type("Tree", (), {"key": "t", "date": time.gmtime})
    found = environment.load("cross")
    one = type("PreparedEnvironment", (), {"environment": found, "inputs": {"packages": ["a"]}})
    two = type("PreparedEnvironment", (), {"environment": found, "inputs": {"packages": ["b"]}})
    dated = type("Tree", (), {"key": tree.key, "date": _Date()})
    kernels = [identity.Kernel(None, dated, ready, None) for ready in (one, two)]  # type: ignore[arg-type]
    assert kernels[0].builder != kernels[1].builder


class _Date:
    def strftime(self, _: str) -> str:
        return "today"


# --- sources --------------------------------------------------------------------------------


def test_each_field_of_a_source_names_its_tree() -> None:
    reasons = {
        "debian": "test_sources.py",
        "suite": "test_sources.py",
        "tarball": "test_downloads.py",
        "sha256": "test_downloads.py",
        "key": "below",
        "signature": "below",
        "git": "below",
        "ref": "below",
        "directory": "below",
    }
    assert reasons.keys() == Source.model_fields.keys()


@pytest.mark.parametrize("edit", ["same size and time", "mode", "link", "name", "new folder"])
def test_an_edit_of_a_local_tree_is_seen(host: Host, edit: str) -> None:
    path = host.tree / "kernel/printk.c"
    link = host.tree / "kernel/link"
    link.symlink_to("printk.c")
    before, _ = _built(host, _text(host))
    assert _built(host, _text(host)) == (before, [])
    status = path.stat()
    if edit == "same size and time":
        path.write_text(path.read_text().replace("_printk", "_Printk"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_mtime_ns == status.st_mtime_ns
    elif edit == "mode":
        path.chmod(0o755)
    elif edit == "link":
        link.unlink()
        link.symlink_to("./printk.c")
    elif edit == "name":
        path.rename(path.with_name("print.c"))
    else:
        (host.tree / "empty").mkdir()
    assert _built(host, _text(host))[0] != before


def test_an_untouched_tree_is_hashed_once(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in host.tree.rglob("*"):
        os.utime(path, (1, 1))
    monkeypatch.setattr(contents, "SETTLES_S", -1.0)
    index = tmp_path / "index"
    first = contents.content(host.tree, index)
    monkeypatch.setattr(contents, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    assert contents.content(host.tree, index) == first


@pytest.mark.parametrize("damage", [b"", b"\0" * 4000, b"cut"])
def test_an_index_that_is_damaged_is_not_believed(
    host: Host, tmp_path: Path, damage: bytes
) -> None:
    index = tmp_path / "index"
    first = contents.content(host.tree, index)
    index.write_bytes(index.read_bytes()[:-9] if damage == b"cut" else damage)
    assert contents.content(host.tree, index) == first


def test_a_tree_that_changes_while_it_is_copied_is_refused(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content names the copy, so what was copied must have that content."""
    host.tool("cp", f'echo "/* B */" >>{host.tree}/kernel/printk.c\nexec /bin/cp "$@"')
    said = host("module", host.write_module(), "--profile", host.profile, code=2).err
    assert "changed while it was copied" in said
    assert not [one for one in (host.cache / "trees").iterdir() if not one.name.startswith(".")]


def test_a_local_tree_s_date_counts(host: Host) -> None:
    """Time stamps in the kernel come from it; what was built before must not decide it."""
    before, _ = _built(host, _text(host))
    os.utime(host.tree / "Makefile", (1_000_000_000, 1_000_000_000))
    assert _built(host, _text(host))[0] != before


class Repository:
    """A git repository with a kernel tree of a few files."""

    def __init__(self, tree: Path) -> None:
        self.path = tree
        self("init", "--quiet", "--initial-branch=main")
        self("add", ".")
        self("commit", "--quiet", "-m", "one")

    def __call__(self, *words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        done = subprocess.run(
            ["git", "-C", str(self.path), *who, *words], check=True, capture_output=True, env=env
        )
        return done.stdout.decode().strip()

    def commit(self) -> str:
        (self.path / "init/new.c").write_text(f"/* {time.monotonic_ns()} */\n")
        self("add", ".")
        self("commit", "--quiet", "-m", "more")
        return self("rev-parse", "HEAD")


@pytest.fixture
def repository(host: Host) -> Repository:
    return Repository(host.tree)


def _of_git(host: Host, ref: str) -> str:
    return _text(host, source=f"{{git: 'file://{host.tree}', ref: {ref}}}")


def test_a_branch_that_moved_is_fetched_again(host: Host, repository: Repository) -> None:
    before, _ = _built(host, _of_git(host, "main"))
    assert _built(host, _of_git(host, "main"))[0] == before
    repository.commit()
    assert _built(host, _of_git(host, "main"))[0] != before


def test_a_commit_is_itself(host: Host, repository: Repository) -> None:
    commit = repository("rev-parse", "HEAD")
    before, _ = _built(host, _of_git(host, commit))
    repository.commit()
    assert _built(host, _of_git(host, commit))[0] == before
    assert _built(host, _of_git(host, "main"))[0] != before


def test_an_annotated_tag_is_its_commit(host: Host, repository: Repository) -> None:
    repository("tag", "-a", "-m", "x", "v1")
    before, _ = _built(host, _of_git(host, "v1"))
    assert _built(host, _of_git(host, repository("rev-parse", "HEAD")))[0] == before


def test_where_a_repository_does_not_answer_its_commit_in_the_store_is_used(
    host: Host, repository: Repository
) -> None:
    path = host.write_profile(_of_git(host, "main"))
    before = _kernel_folder(host("--json", "kernel", "--profile", path).json)
    host.tree.rename(host.tree.with_name("moved"))
    found = host("--json", "kernel", "--profile", path)
    assert _kernel_folder(found.json) == before
    assert "Looking up main in" in found.err
    assert "Using the cached commit" in found.err


def test_a_ref_that_is_not_there_is_said(host: Host, repository: Repository) -> None:
    path = host.write_profile(_of_git(host, "nosuch"))
    assert "has no branch or tag 'nosuch'" in host("kernel", "--profile", path, code=4).err


def test_a_ref_that_moves_while_it_is_fetched_is_not_published(
    host: Host, repository: Repository, tmp_path: Path
) -> None:
    commit = repository("rev-parse", "HEAD")
    repository.commit()
    target = tmp_path / "target"
    target.mkdir()
    url = f"file://{host.tree}"
    with pytest.raises(InfrastructureError, match="moved from"):
        git.fetch(url, "main", commit, target, lambda _: None)


def test_a_tag_that_moved_is_found_by_the_next_run(host: Host, repository: Repository) -> None:
    repository("tag", "v1")
    _built(host, _of_git(host, "v1"))
    repository.commit()
    repository("tag", "--force", "v1")
    for entry in (host.cache / "trees").glob("linux-*"):
        shutil.rmtree(entry)
    path = host.write_profile(_of_git(host, "v1"))
    assert "moved from" in host("kernel", "--profile", path, code=4).err
    host("kernel", "--profile", path)


def test_the_key_of_a_tarball_counts(host: Host) -> None:
    from rbuild.source import fetch

    cache = Cache(host.cache, Console())
    ready = type("PreparedEnvironment", (), {"environment": environment.load("cross")})
    text = "{tarball: 'https://example.org/linux.tar.xz', key: k.asc, signature: '%s'}"

    def name(signature: str) -> str:
        own = profile.load(str(host.write_profile(_text(host, source=text % signature))))
        return fetch._origin(own, own.source[0], ready, cache).entry.name  # type: ignore[arg-type]

    (host.folder / "k.asc").write_text("one")
    first = name("https://example.org/a.sign")
    assert name("https://example.org/b.sign") != first
    (host.folder / "k.asc").write_text("two")
    assert name("https://example.org/a.sign") != first
    (host.folder / "k.asc").unlink()
    with pytest.raises(UsageError, match=r"source.key: .*k\.asc can't be read"):
        name("https://example.org/a.sign")


def test_the_suite_of_the_environment_counts_for_a_debian_source(host: Host) -> None:
    from rbuild.source import fetch

    cache = Cache(host.cache, Console())
    text = _text(host, source="{debian: linux-source-6.12}")
    own = profile.load(str(host.write_profile(text)))
    found = environment.load("cross")
    names = set()
    for suite in ("trixie", "forky"):
        definition = found.base.definition.model_copy(update={"suite": suite})
        other = replace(found, base=replace(found.base, definition=definition))
        ready = type("PreparedEnvironment", (), {"environment": other})
        names.add(fetch._origin(own, own.source[0], ready, cache).entry.name)  # type: ignore[arg-type]
    assert len(names) == 2


@pytest.mark.parametrize("first", ["git", "directory"])
def test_a_tree_that_came_by_another_source_is_not_debian_s(
    host: Host, repository: Repository, first: str
) -> None:
    """Trees are named by what is in them, so the name of a source tells nothing of its commands."""
    from rbuild.source import fetch

    cache = Cache(host.cache, Console())
    ready = type("PreparedEnvironment", (), {"environment": environment.load("cross")})
    repository("tag", "v1")
    copy = host.folder / "copy" / host.tree.name
    shutil.copytree(host.tree, copy, symlinks=True)
    texts = [_of_git(host, "main"), _of_git(host, "v1")]
    if first == "directory":
        texts = [_text(host), _text(host, source=f"{{directory: {copy}}}")]
    kdirs, known = [], set()
    for text in texts:
        kdirs.append(_built(host, text)[0])
        own = profile.load(str(host.write_profile(text)))
        known.add(identity.provenance(own, fetch.obtain(own, ready, cache)))  # type: ignore[arg-type]
    assert kdirs[0] == kdirs[1]
    assert len(known) == 2
    assert "debian" not in known
    cache.release()


def test_a_copy_s_mode_is_what_counts(host: Host) -> None:
    """cp(1) keeps no set-group-ID bit of another user's folder, as shared trees have it."""
    before = contents.content(host.tree)
    (host.tree / "kernel").chmod(0o2755)
    assert contents.content(host.tree) == before
    (host.tree / "kernel").chmod(0o700)
    assert contents.content(host.tree) != before


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_repository_that_is_no_folder_is_not_copied(host: Host, kind: str) -> None:
    if kind == "link":
        elsewhere = host.folder / "elsewhere"
        elsewhere.mkdir()
        (host.tree / ".git").symlink_to(elsewhere)
    else:
        (host.tree / ".git").write_text("gitdir: /x\n")
    _built(host, _text(host))
    (copy,) = (host.cache / "trees").glob("linux-*/src")
    assert not os.path.lexists(copy / ".git")
    assert (host.folder / "elsewhere").exists() or kind == "file"
