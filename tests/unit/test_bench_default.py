"""What ``bench`` without options measures, and what it reports if an environment can't be measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rbuild.bench import benchmark
from rbuild.bench import report as words
from rbuild.bench.result import Unmeasured
from rbuild.errors import MissingDependency
from rbuild.kernel import prepare
from rbuild.kernel.identity import Kernel
from tests.unit.conftest import Host, Result
from tests.unit.test_pictures import report, rows

SHORT = ("--runs", "1", "--warmup", "0")


@pytest.fixture
def emulating(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose aarch64 programs run, whatever this machine has."""
    monkeypatch.setattr("rbuild.provision.qemu_user.binfmt.require", lambda *_: None)
    return host


def bench(host: Host, *words: object, code: int = 0) -> Result:
    return host("bench", *SHORT, "--profile", host.profile, *words, code=code)


def modes(data: Any) -> list[tuple[str, str, str]]:
    return sorted({(row["environment"], row["kind"], row["driver"]) for row in data["rows"]})


def test_it_answers_the_question_of_the_tool(emulating: Host) -> None:
    found = bench(emulating, "--json")
    assert modes(found.json) == sorted(
        (environment, "out-of-tree", driver)
        for environment in ("cross", "hybrid", "chroot")
        for driver in ("rust", "c")
    )
    assert [one["name"] for one in found.json["environments"]] == ["cross", "hybrid", "chroot"]
    assert found.json["unmeasured"] == []


def test_the_plan_is_told_first(emulating: Host) -> None:
    first, *_ = found = bench(emulating).err.splitlines()
    if "busy" in first:
        first = found[1]
    assert first == (
        "Measuring cross, hybrid, chroot: out-of-tree, rust, c, clean; runs of each: 1."
    )
    assert "Provisioning first: chroot." in found


def test_the_first_figures_come_before_an_emulated_preparation(emulating: Host) -> None:
    said = bench(emulating).err
    table, preparing = said.index("hybrid out-of-tree rust"), said.index("in chroot for modules")
    assert "cross out-of-tree rust" in said[:preparing]
    assert table < preparing
    assert "Now chroot, which is emulated" in said
    # Once it is prepared, all environments take turns from the start.
    assert "Now chroot" not in bench(emulating).err


def test_a_kernel_is_not_built_under_emulation_unless_asked(emulating: Host) -> None:
    found = bench(emulating, "--kind", "kernel", "--json").json
    assert [one["name"] for one in found["environments"]] == ["cross", "hybrid"]


def test_a_profile_without_rust_has_no_rust_driver(emulating: Host) -> None:
    text = emulating.profile.read_text().replace("RUST: y, ", "")
    emulating.write_profile(text)
    found = bench(emulating, "--env", "cross", "--json").json
    assert modes(found) == [("cross", "out-of-tree", "c")]


def test_what_the_host_cannot_run_is_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MissingDependency("aarch64 programs can't run on this host.")

    monkeypatch.setattr("rbuild.provision.qemu_user.binfmt.require", refuse)
    found = bench(host)
    assert "warning: hybrid is left out: aarch64 programs can't run on this host." in found.err
    assert "chroot is left out" in found.err
    assert "hybrid was not measured: aarch64 programs can't run on this host." in found.out
    # Who asks for it by name gets an error.
    bench(host, "--env", "cross", "--env", "hybrid", code=3)


def stop(host: Host, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the preparation of the chroot's KDIR end with an error."""
    real: Callable[..., Any] = prepare.prepare

    def prepare_or_stop(kernel: Kernel) -> Any:
        if kernel.ready.environment.name == "chroot":
            raise error
        return real(kernel)

    monkeypatch.setattr(benchmark, "prepare", prepare_or_stop)


def test_ctrl_c_keeps_the_figures(
    emulating: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop(emulating, monkeypatch, KeyboardInterrupt())
    out = tmp_path / "x.json"
    found = bench(emulating, "--export-json", out, code=130)
    assert "hybrid out-of-tree rust" in found.out
    assert "chroot was not measured: interrupted." in found.out
    assert "Interrupted." in found.err
    assert json.loads(out.read_text())["unmeasured"] == [
        {"environment": "chroot", "reason": "interrupted"}
    ]
    # JSON is one value, with the error in it.
    found = bench(emulating, "--json", code=130)
    assert found.json["exit_code"] == 130
    assert {row["environment"] for row in found.json["rows"]} == {"cross", "hybrid"}


def test_a_failure_keeps_the_figures(emulating: Host) -> None:
    bench(emulating, "--env", "cross", "--env", "hybrid")
    emulating.fault("prepare-error")
    found = bench(emulating, code=1)
    assert "hybrid out-of-tree rust" in found.out
    assert "chroot was not measured: " in found.out
    assert "error: expected ';'" in found.err
    data = bench(emulating, "--json", code=1).json
    assert data["unmeasured"][0]["environment"] == "chroot"
    assert data["rows"]
    assert data["error"]
    # Nothing was measured yet: the failure is all that there is.
    assert bench(emulating, "--env", "chroot", code=1).out == ""


def test_the_sentence_names_what_was_not_measured() -> None:
    made = report(rows({"cross": 1.0}), unmeasured=(Unmeasured(environment="x", reason="why."),))
    assert words.conclusion(made) == "x was not measured: why."
