"""What a project's rbuild.yaml may set before its user has trusted it, and whose files are read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rbuild.errors import RefusedFileError
from rbuild.specs import config, environment, profile, trust
from rbuild.specs.settings import Settings

from .conftest import Host


class Project:
    """A cloned repository with a module, and rbuild called in it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.write_module()
        self.file = self.folder / "rbuild.yaml"
        (self.folder / ".git").mkdir()
        self.profile = self.write(
            "boards/p.yaml",
            f"name: mine\nsource: {{directory: {host.tree}}}\npatches: false\n"
            "config: {base: tinyconfig, fragments: [extra.config], options: {RUST: y}}\n",
        )
        self.fragment = self.write("boards/extra.config", "CONFIG_SPI=y\n")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def trust(self) -> None:
        self.host("config", "trust")

    def state(self) -> str:
        rows = self.host("--json", "config", "path").json
        return str(next(row["state"] for row in rows if row["scope"] == "project"))


@pytest.fixture
def project(host: Host, monkeypatch: pytest.MonkeyPatch) -> Project:
    for variable in (*config.VARIABLES.values(), config.CONFIG_VARIABLE, "SUDO_UID"):
        if variable != "RBUILD_CACHE_DIR":
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(host.folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(host.folder / "xdg"))
    monkeypatch.setenv("XDG_STATE_HOME", str(host.folder / "state"))
    made = Project(host)
    monkeypatch.chdir(made.folder)
    return made


def as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this user's files another's: nobody is trusted."""
    monkeypatch.setattr(trust, "trusted_owners", frozenset)


def test_each_field_is_either_harmless_or_not() -> None:
    """A new field needs a decision."""
    tables = (config.USER_ONLY, config.HARMLESS, config.NAMES_ONLY, config.NEEDS_TRUST)
    assert sorted(name for table in tables for name in table) == sorted(Settings.model_fields)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("profile: boards/p.yaml\n", "profile"),
        ("environment: ./env.yaml\n", "environment"),
        ("environment: env.yaml:all\n", "environment"),
        ("environment: ~/env.yml\n", "environment"),
        ("runtime: docker\n", "runtime"),
        ("memory: 400g\n", "memory"),
        ("cpus: 64\n", "cpus"),
    ],
)
def test_what_needs_trust_ends_the_command(project: Project, text: str, field: str) -> None:
    project.file.write_text(f"# a clone\n{text}")
    done = project.host("module", ".", code=2)
    assert f"{project.file}:2: {field} needs trust" in done.err
    assert "rbuild config trust" in done.err
    assert not project.host.calls("make")


def test_a_machine_needs_trust_where_there_is_one(project: Project) -> None:
    project.file.write_text('machine: "virt,dumpdtb=FILE"\n')
    assert f"{project.file}:1: machine needs trust" in project.host("boot", code=2).err
    # It isn't an option of this one.
    project.host.module(".")


def test_names_and_numbers_need_none(project: Project) -> None:
    project.file.write_text(
        "profile: slim\nenvironment: hybrid:all\nmachine: raspi3b\n"
        "jobs: 3\ndriver: c\nccache: false\nruns: 2\nwarmup: 0\n"
    )
    rows = project.host("--json", "config", "show").json
    assert {row["field"]: row["value"] for row in rows}["environment"] == "hybrid:all"
    assert all(row["ignored"] is None for row in rows)
    assert project.state() == "used"


def test_the_command_line_and_variables_need_none(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.file.write_text("profile: boards/p.yaml\nenvironment: ./env.yaml\njobs: 7\n")
    done = project.host("--json", "module", ".", "--profile", project.profile, "--env", "cross")
    assert " --jobs 7 " in done.json["reproduce"]["rbuild"]
    monkeypatch.setenv("RBUILD_ENV", "cross")
    monkeypatch.setenv("RBUILD_PROFILE", str(project.profile))
    project.host("module", ".")
    project.host("status")
    monkeypatch.delenv("RBUILD_PROFILE")
    assert "[default: slim]" in project.host("module", "--help").out


def test_the_stranger_s_file_isn_t_opened_before(project: Project) -> None:
    project.file.write_text("profile: p.yaml\n")
    os.mkfifo(project.folder / "p.yaml")
    project.host("module", ".", code=2)


def test_trust_once(project: Project) -> None:
    project.file.write_text("profile: boards/p.yaml\n")
    assert "not trusted" in project.state()
    done = project.host("--json", "config", "trust").json
    assert done["path"] == str(project.file)
    assert set(done["files"]) == {
        str(path) for path in (project.file, project.profile, project.fragment)
    }
    assert project.state() == "used, trusted"
    assert project.host("--json", "module", ".").json["profile"] == "mine"
    record = Path(done["record"])
    assert record.is_relative_to(project.host.folder / "state/rbuild")
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
    assert [path.name for path in record.parent.iterdir()] == [record.name]


def test_untrust(project: Project) -> None:
    project.file.write_text("profile: boards/p.yaml\n")
    project.trust()
    assert "no longer" in project.host("config", "untrust").out
    project.host("module", ".", code=2)
    assert "was not trusted" in project.host("config", "untrust", project.file).out
    # Also of a file that is gone.
    project.trust()
    project.file.unlink()
    assert "no longer" in project.host("config", "untrust", project.file).out


def _edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n# changed\n")


@pytest.mark.parametrize("change", [_edit, Path.unlink])
@pytest.mark.parametrize("name", ["file", "profile", "fragment"])
def test_a_change_needs_a_new_yes(
    project: Project, name: str, change: Callable[[Path], None]
) -> None:
    project.file.write_text("profile: boards/p.yaml\n")
    project.trust()
    path = getattr(project, name)
    before = path.read_text()
    change(path)
    if path.exists() or path != project.file:
        done = project.host("module", ".", code=2)
        assert f"{project.file}:1: profile needs trust" in done.err
        assert path.name in done.err
    path.write_text(before)
    project.host("module", ".")


def test_all_that_an_environment_names_is_recorded(project: Project) -> None:
    rootfs = (
        "name: mine\nsuite: trixie\narchitecture: amd64\ntarget: arm64\npackages: [make]\n"
        "llvm: '-19'\n"
    )
    paths = [
        project.write("env/base.yaml", rootfs),
        project.write("env/lower.yaml", "name: lower\nextends: base\narchitecture: arm64\n"),
        project.write("env/native.yaml", "extends: base\nname: native\n"),
        project.write(
            "env/e.yaml",
            "name: both\nbase: ./lower.yaml\nnative: ./native.yaml\nlevel: all\n"
            "levels: {all: {programs: [make]}}\n",
        ),
        project.file,
    ]
    project.file.write_text("environment: env/e.yaml:none\n")
    files = project.host("--json", "config", "trust").json["files"]
    assert {os.path.normpath(path) for path in files} == {str(path) for path in paths}
    project.write("env/base.yaml", f"{rootfs}emulated_variables: {{PERL5OPT: x}}\n")
    done = project.host("module", ".", code=2)
    assert "base.yaml" in done.err


def test_all_that_a_profile_names_is_recorded(project: Project) -> None:
    project.write(
        "boards/p.yaml",
        "name: mine\nsource: {tarball: 'https://x.invalid/linux-6.12.tar.xz', key: k.asc}\n"
        "config: {base: mine.config, fragments: [extra.config]}\nmachine: ./m.yaml\n",
    )
    key = project.write("boards/k.asc", "a key\n")
    base = project.write("boards/mine.config", "CONFIG_SPI=y\n")
    machine = project.write("boards/m.yaml", "model: virt\narchitecture: arm64\nconsole: x\n")
    project.file.write_text("profile: boards/p.yaml\n")
    files = project.host("--json", "config", "trust").json["files"]
    expected = {project.file, project.profile, project.fragment, key, base, machine}
    assert {os.path.normpath(path) for path in files} == {str(path) for path in expected}


def test_what_was_hashed_is_what_is_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files change between the check and their use: what was trusted is used."""
    project.file.write_text("profile: boards/p.yaml\n")
    project.trust()
    load = profile.load

    def race(name: str) -> profile.Profile:
        project.profile.write_text("name: evil\nsource: {directory: /}\n")
        project.fragment.write_text("CONFIG_EVIL=y\n")
        return load(name)

    monkeypatch.setattr(profile, "load", race)
    assert project.host("--json", "module", ".").json["profile"] == "mine"
    assert project.profile.read_text().startswith("name: evil")
    config = next(project.host.cache.rglob("*/.config"), None)
    assert config is None or "EVIL" not in config.read_text()
    project.host("module", ".", code=2)


def test_it_does_not_count_elsewhere(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust is of a file at its path: a copy somewhere else is another one."""
    project.file.write_text("profile: boards/p.yaml\n")
    project.trust()
    project.folder.rename(project.folder.with_name("other"))
    monkeypatch.chdir(project.folder.with_name("other"))
    project.host("module", ".", code=2)


def test_names_in_a_definition_are_relative_to_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another folder would mean other files than those that were trusted."""
    project.write("env/base.yaml", "name: one\nextends: real\n")
    project.write(
        "env/real.yaml",
        "name: real\nsuite: trixie\narchitecture: amd64\ntarget: arm64\npackages: [make]\n",
    )
    variant = project.write("env/v.yaml", "base: ./base.yaml\n")
    (project.folder / "base.yaml").write_text("name: other\nextends: real\n")
    assert environment.load(str(variant)).base.definition.name == "one"
    project.write("boards/p.yaml", f"{project.profile.read_text()}machine: m.yaml\n")
    assert profile.load(str(project.profile)).machine_name == str(project.folder / "boards/m.yaml")


@pytest.mark.parametrize("named", ["../outside.yaml", "link.yaml", "folder/outside.yaml"])
def test_files_outside_of_the_project_can_t_be_trusted(project: Project, named: str) -> None:
    outside = project.host.folder / "outside.yaml"
    outside.write_text("secret: word\n")
    (project.folder / "link.yaml").symlink_to(outside)
    (project.folder / "folder").symlink_to(project.host.folder)
    project.file.write_text(f"profile: {named}\n")
    done = project.host("config", "trust", code=2)
    assert "outside of" in done.err
    assert "secret" not in done.err
    assert "word" not in done.err


def test_a_fragment_that_leaves_the_project_can_t_be_trusted(project: Project) -> None:
    (project.host.folder / "secret").write_text("word\n")
    project.fragment.unlink()
    project.fragment.symlink_to(project.host.folder / "secret")
    project.file.write_text("profile: boards/p.yaml\n")
    assert "outside of" in project.host("config", "trust", code=2).err


def test_a_link_within_the_project_is_followed(project: Project) -> None:
    (project.folder / "link.yaml").symlink_to("boards/p.yaml")
    project.file.write_text("profile: link.yaml\n")
    project.trust()
    assert project.host("--json", "module", ".").json["profile"] == "mine"


def test_a_file_of_a_link_that_leads_out_later_is_not_read(project: Project) -> None:
    project.file.write_text("profile: boards/p.yaml\n")
    project.trust()
    project.fragment.rename(project.host.folder / "moved")
    project.fragment.symlink_to(project.host.folder / "moved")
    assert "extra.config" in project.host("module", ".", code=2).err


def refused(project: Project, reason: str) -> None:
    """Check that the project's file is named with the reason, and that nothing of it is shown."""
    for words in (("config", "show"), ("status",), ("config", "path")):
        done = project.host(*words)
        said = " ".join((done.out + done.err).split())
        assert f"{project.file}" in said
        assert reason in said
        assert "secret" not in said
    done = project.host("config", "trust", code=2)
    assert reason in " ".join(done.err.split())
    assert "secret" not in done.err


SHADOW = "root:secret:19000\n- secret: [\n"


@pytest.mark.parametrize("target", ["shadow", "missing", "loop"])
def test_a_link_is_refused(project: Project, target: str) -> None:
    shadow = project.host.folder / "shadow"
    shadow.write_text(SHADOW)
    project.file.symlink_to({"shadow": shadow, "missing": "nowhere"}.get(target, project.file))
    refused(project, "symbolic link")


def test_another_user_s_file_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.file.write_text(SHADOW)
    as_another_user(monkeypatch)
    refused(project, "another user")


@pytest.mark.parametrize("mode", [0o777, 0o707])
def test_a_folder_that_others_may_write_to_is_refused(project: Project, mode: int) -> None:
    project.file.write_text(SHADOW)
    project.folder.chmod(mode)
    refused(project, "other users can write")
    project.folder.chmod(mode | stat.S_ISVTX)
    project.file.write_text("jobs: 3\n")
    assert project.state() == "used"


def test_a_file_that_others_may_write_to_is_refused(project: Project) -> None:
    project.file.write_text(SHADOW)
    project.file.chmod(0o666)
    refused(project, "other users can write")


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_who_is_trusted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.file.write_text("jobs: 3\n")
    assert project.state() == "used"
    os.chown(project.file, 12345, -1)
    refused(project, "another user")
    monkeypatch.setenv("SUDO_UID", "12345")
    assert project.state() == "used"
    os.chown(project.folder, 23456, -1)
    refused(project, "another user")


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_group_of_one_s_own_may_write(project: Project) -> None:
    """As with umask 002 where each user has a group; another's group is something else."""
    project.file.write_text("jobs: 3\n")
    project.folder.chmod(0o775)
    assert project.state() == "used"
    os.chown(project.folder, -1, 12345)
    refused(project, "other users can write")


class TestUserFile:
    """The user's own file: no trust is needed, but that it is the user's."""

    @pytest.fixture
    def file(self, project: Project) -> Path:
        path = project.host.folder / "xdg/rbuild/rbuild.yaml"
        path.parent.mkdir(parents=True)
        return path

    def test_it_may_name_files_and_be_a_link(self, project: Project, file: Path) -> None:
        real = project.host.folder / "dotfile"
        real.write_text(f"profile: {project.profile}\n")
        file.symlink_to(real)
        assert project.host("--json", "module", ".").json["profile"] == "mine"
        done = project.host("config", "trust", file, code=2)
        assert "your own" in done.err

    def test_another_s_is_refused(
        self, project: Project, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file.write_text(SHADOW)
        as_another_user(monkeypatch)
        done = project.host("status")
        assert f"{file}: it belongs to another user" in " ".join(done.err.split())
        assert "secret" not in done.err
        assert "another user" in project.host("config", "path").out
        # What was asked for by its name isn't left out without a word.
        monkeypatch.setenv(config.CONFIG_VARIABLE, str(file))
        done = project.host("status", code=2)
        assert "another user" in done.err
        assert "secret" not in done.err

    @pytest.mark.root
    @pytest.mark.skipif(os.getuid() != 0, reason="needs root")
    def test_a_link_of_the_user_behind_sudo_leads_to_that_user_s_files_only(
        self, project: Project, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUDO_UID", "12345")
        shadow = project.host.folder / "shadow"
        shadow.write_text(SHADOW)
        file.symlink_to(shadow)
        os.chown(file, 12345, -1, follow_symlinks=False)
        done = project.host("status")
        assert f"{file}: it goes through a symbolic link whose owner" in " ".join(done.err.split())
        assert "secret" not in done.err
        shadow.write_text("jobs: 3\n")
        os.chown(shadow, 12345, -1)
        assert "jobs" in project.host("config", "show").out
        assert project.host("status").err == ""


class TestRecord:
    """The record of trust counts only if the user has made it."""

    def record(self, project: Project) -> Path:
        project.file.write_text("profile: boards/p.yaml\n")
        return Path(project.host("--json", "config", "trust").json["record"])

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "[" * 100_000, '{"format": 1, "path": 1, "files": 3}', '{"files": {}}'],
    )
    def test_a_damaged_one_is_none(self, project: Project, text: str) -> None:
        self.record(project).write_text(text)
        project.host("module", ".", code=2)
        project.trust()
        project.host("module", ".")

    def test_a_link_or_one_that_others_may_write_is_none(self, project: Project) -> None:
        record = self.record(project)
        record.chmod(0o666)
        project.host("module", ".", code=2)
        record.chmod(0o600)
        project.host("module", ".")
        moved = record.rename(record.parent.parent / "moved")
        record.symlink_to(moved)
        project.host("module", ".", code=2)

    def test_one_of_another_path_is_none(self, project: Project) -> None:
        record = self.record(project)
        data = json.loads(record.read_text())
        data["path"] = "/elsewhere/rbuild.yaml"
        record.write_text(json.dumps(data))
        project.host("module", ".", code=2)

    def test_a_folder_that_others_may_write_to_is_said(self, project: Project) -> None:
        record = self.record(project)
        record.parent.chmod(0o777)
        assert str(record) in project.host("config", "trust", code=2).err

    @pytest.mark.root
    @pytest.mark.skipif(os.getuid() != 0, reason="needs root")
    def test_under_sudo_it_belongs_to_the_user(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUDO_UID", "12345")
        os.chown(project.host.folder, 12345, 12345)
        record = self.record(project)
        for path in (record, record.parent, record.parent.parent):
            assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)
        project.host("module", ".")


def test_show_says_what_is_ignored_and_why(project: Project) -> None:
    project.file.write_text("jobs: 3\nprofile: boards/p.yaml\n")
    rows = {row["field"]: row for row in project.host("--json", "config", "show").json}
    assert rows["profile"]["value"] == "slim"
    assert rows["profile"]["ignored"]["origin"] == f"project file {project.file}:2"
    assert rows["profile"]["ignored"]["value"] == str(project.profile)
    assert "never been trusted" in rows["profile"]["ignored"]["reason"]
    assert rows["jobs"]["ignored"] is None
    shown = " ".join(project.host("config", "show").out.split())
    assert f"{project.file}:2: profile: " in shown
    row = project.host("--json", "config", "path").json[0]
    assert (row["trusted"], row["ignored"]) == (False, ["profile"])
    project.trust()
    rows = {row["field"]: row for row in project.host("--json", "config", "show").json}
    assert rows["profile"]["value"] == str(project.profile)
    assert rows["profile"]["ignored"] is None
    row = project.host("--json", "config", "path").json[0]
    assert (row["trusted"], row["ignored"]) == (True, [])


def test_trusting_what_isn_t_there(project: Project) -> None:
    assert "There is no rbuild.yaml" in project.host("config", "trust", code=2).err
    assert "There is no rbuild.yaml" in project.host("config", "untrust", code=2).err
    assert "nowhere" in project.host("config", "trust", "nowhere/rbuild.yaml", code=2).err
    other = project.write("boards/other.yaml", "jobs: 1\n")
    assert "rbuild.yaml" in project.host("config", "trust", other, code=2).err


def test_a_wrong_file_can_t_be_trusted(project: Project) -> None:
    project.file.write_text("profile: boards/p.yaml\n")
    project.fragment.unlink()
    assert "extra.config can't be read" in project.host("config", "trust", code=2).err
    project.write("boards/p.yaml", "nam: x\n")
    assert "boards/p.yaml:1: nam: unknown field" in project.host("config", "trust", code=2).err
    project.file.write_text("ssh: x\n")
    assert "a project can't set this" in project.host("config", "trust", code=2).err


def test_a_folder_names_its_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.file.write_text("profile: boards/p.yaml\n")
    (project.host.folder / "link").symlink_to(project.folder)
    monkeypatch.chdir(project.host.folder)
    done = project.host("--json", "config", "trust", "link").json
    assert done["path"] == str(project.file)


def test_a_huge_file_is_not_read(project: Project) -> None:
    with project.file.open("w") as file:
        file.truncate(1 << 34)
    assert f"{project.file} can't be read: it is" in project.host("status", code=2).err


def test_a_file_that_is_replaced_by_a_link_meanwhile(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the file and its opening; the same at the user's own."""
    secret = project.host.folder / "secret"
    secret.write_text("word\n")
    project.file.write_text("jobs: 1\n")
    lstat = Path.lstat

    def race(path: Path) -> os.stat_result:
        status = lstat(path)
        if path.name == "rbuild.yaml" and stat.S_ISREG(status.st_mode):
            project.file.unlink()
            project.file.symlink_to(secret)
        return status

    monkeypatch.setattr(Path, "lstat", race)
    for read in (trust.read_project_file, trust.read_user_file):
        with pytest.raises(RefusedFileError, match="was replaced"):
            read(project.file)
        project.file.unlink()
        project.file.write_text("jobs: 1\n")
