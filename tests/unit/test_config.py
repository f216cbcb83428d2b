"""Configuration files: what they say, what counts more, and what they may not say."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rbuild.cli.main import run
from rbuild.errors import RbuildError
from rbuild.specs import config
from rbuild.specs.settings import Settings

from .conftest import Host


class Files:
    """A project's file, the user's own, and a folder of the project's in which rbuild is called."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project/rbuild.yaml"
        self.user = folder / "xdg/rbuild/rbuild.yaml"
        self.below = self.project.parent / "a/b"
        self.below.mkdir(parents=True)
        self.user.parent.mkdir(parents=True)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    for variable in (*config.VARIABLES.values(), config.CONFIG_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    made = Files(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(made.below)
    return made


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, tuple[str, str]]:
    capsys.readouterr()
    assert run([*words, "--json", "config", "show"]) == 0
    rows = json.loads(capsys.readouterr().out)
    return {row["field"]: (row["value"], row["origin"]) for row in rows}


def test_what_counts_more(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys)["environment"] == ("cross", "default")
    files.user.write_text("# mine\nenvironment: chroot\njobs: 3\ncache_dir: ~/elsewhere\n")
    assert shown(capsys)["environment"] == ("chroot", f"user file {files.user}:2")
    files.project.write_text("environment: hybrid\n")
    found = shown(capsys)
    assert found["environment"] == ("hybrid", f"project file {files.project}:1")
    assert found["jobs"] == (3, f"user file {files.user}:3")
    assert found["cache_dir"] == (f"{Path.home()}/elsewhere", f"user file {files.user}:4")
    monkeypatch.setenv("RBUILD_ENV", "cross")
    assert shown(capsys)["environment"] == ("cross", "variable RBUILD_ENV")
    assert shown(capsys, "--cache-dir", "/x")["cache_dir"] == ("/x", "command line")


def test_options_take_what_files_say(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: the values are in force in a build, and the command line counts more."""
    folder = host.write_module()
    own = host.folder / "own.yaml"
    own.write_text(f"profile: {host.profile}\n")
    (folder / "rbuild.yaml").write_text("jobs: 7\nccache: false\n")
    monkeypatch.chdir(folder)
    for variable in (*config.VARIABLES.values(), config.CONFIG_VARIABLE):
        if variable != "RBUILD_CACHE_DIR":
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(config.CONFIG_VARIABLE, str(own))
    said = host("--json", "module", ".").json["reproduce"]["rbuild"]
    assert f"--profile {host.profile} --jobs 7 --no-ccache" in said
    said = host("--json", "module", ".", "-j2").json["reproduce"]["rbuild"]
    assert " --jobs 2 " in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\njobs: 0\n", ":2: jobs: Input should be greater than or equal to 1 (got 0)."),
        ("enviroment: cross\n", ":1: enviroment: unknown field. Did you mean 'environment'?"),
        ("driver: go\n", ":1: driver: Input should be 'rust', 'c' or 'glue' (got 'go')."),
        ("memory: much\n", ":1: memory: String should match"),
        ("- a\n", ": expected fields (`name: value`), got a list."),
        ("a: [\n", "not valid YAML"),
        ("ssh: x\n", ":1: ssh: a project can't set this: it is a command that is run."),
        ("jobs: 1\ncache_dir: /\n", ":2: cache_dir: a project can't set this"),
        ("docker_host: x\n", ":1: docker_host: a project can't set this"),
        ("scheduler: x\n", ":1: scheduler: a project can't set this"),
    ],
)
def test_faults_are_named(
    files: Files, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    files.project.write_text(text)
    assert run(["status"]) == 2
    err = capsys.readouterr().err
    assert f"{files.project}" in err
    assert message in " ".join(err.split())
    assert not (Path.home() / "cache/rbuild").exists()


def test_help_doctor_and_path_work_all_the_same(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.user.write_text("jobs: none\n")
    assert run(["module", "--help"]) == 0
    assert run(["completion", "bash"]) == 0
    assert "warning: " in capsys.readouterr().err
    assert run(["config", "path"]) == 0
    assert f"{files.user} (wrong: {files.user}:1: jobs: " in capsys.readouterr().out
    assert run(["config", "show"]) == 2


def test_an_empty_file_says_nothing(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.project.write_text("# nothing yet\n")
    assert {origin for _, origin in shown(capsys).values()} == {"default"}


def test_where_a_project_s_file_is_looked_for(files: Files) -> None:
    assert config.project_file() is None
    files.project.write_text("")
    assert config.project_file() == files.project
    nearer = files.below / "rbuild.yaml"
    nearer.write_text("")
    assert config.project_file() == nearer
    nearer.unlink()
    (files.below / ".git").touch()  # as in a worktree
    assert config.project_file() is None


def test_above_home_is_not_looked(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.project.write_text("")
    monkeypatch.setenv("HOME", str(files.below))
    assert config.project_file() is None


def test_paths_are_relative_to_their_file(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.project.write_text("profile: boards/mine.yaml\nmachine: virt\nenvironment: hybrid:all\n")
    (files.project.parent / "boards").mkdir()
    (files.project.parent / "boards/mine.yaml").write_text("name: x\nsource: {directory: /x}\n")
    assert run(["config", "trust"]) == 0
    found = shown(capsys)
    assert found["profile"][0] == str(files.project.parent / "boards/mine.yaml")
    assert found["machine"][0] == "virt"
    assert found["environment"][0] == "hybrid:all"


def test_the_user_s_file_may_be_another(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = files.below / "other.yaml"
    other.write_text("runtime: docker\ndocker_host: unix:///x\n")
    monkeypatch.setenv(config.CONFIG_VARIABLE, str(other))
    found = shown(capsys)
    assert found["runtime"] == ("docker", f"user file {other}:1")
    assert found["docker_host"] == ("unix:///x", f"user file {other}:2")
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv(config.CONFIG_VARIABLE, "/nonexistent")
    assert run(["status"]) == 2
    assert "RBUILD_CONFIG=/nonexistent: there is no such file." in capsys.readouterr().err


def test_a_benchmark_s_modes_are_not_changed(files: Files) -> None:
    """What is compared is only what the command line says."""
    from rbuild.cli.defaults import Defaults
    from rbuild.cli.main import main

    files.project.write_text("environment: chroot\ndriver: glue\njobs: 1\nccache: true\nruns: 9\n")
    found = Defaults(main).get("bench")
    assert found == {"runs": 9}


def test_a_driver_of_a_file_leaves_other_modules_alone(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.project.write_text("driver: c\n")
    (files.below / "module").mkdir()
    for command in ("module", "boot"):
        # What is wrong is the folder, not the driver.
        assert run([command, "--driver", "c", "module"]) == 2
        assert "goes without --driver" in capsys.readouterr().err
        assert run(["--cache-dir", "/proc/none", command, "module"]) != 0
        assert "goes without --driver" not in capsys.readouterr().err


def test_the_schema_is_of_what_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate({"jobs": 3, "driver": "c"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"jobs": 0}, schema)
    assert set(schema["properties"]) == set(config.VARIABLES) == set(Settings.model_fields)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=6,
)


@given(
    st.one_of(
        st.text(),
        st.dictionaries(st.sampled_from([*config.VARIABLES, "x"]), values).map(yaml.safe_dump),
    ),
    st.sampled_from(config.Scope),
)
def test_whatever_is_in_it_only_our_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, text: str, scope: config.Scope
) -> None:
    path = tmp_path_factory.mktemp("x") / "rbuild.yaml"
    path.write_text(text, errors="surrogatepass")
    try:
        found = config.load(path, scope)
    except RbuildError as error:
        assert str(path) in error.message
    else:
        assert set(found.values) <= set(config.VARIABLES)
        assert set(found.values) <= set(found.lines)
