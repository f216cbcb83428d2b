"""What stands in the environment, or in a proxy's address, gets nowhere where others read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Host

MARK = "hunter2-7f3a"
"""What no file of rbuild's and nothing that it prints may hold."""

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": MARK,
    "GITHUB_TOKEN": f"ghp_{MARK}",
    "RBUILD_TEST_SECRET": MARK,
    "KBUILD_BUILD_USER": MARK,
    "http_proxy": f"http://me:{MARK}@proxy.invalid:3128",
}


@pytest.fixture
def secretive(bare: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a host in whose environment and apt configuration are secrets."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    bare.tool("apt-config", f"echo 'Acquire::http::Proxy \"{SECRETS['http_proxy']}\";'")
    return bare


def told(folder: Path) -> Iterator[Path]:
    """Yield the files that tell a secret, but for those of the fakes."""
    for path in folder.rglob("*"):
        own = path.parent in (folder, folder / "bin")
        if path.is_file() and not own and MARK.encode() in path.read_bytes():
            yield path


def test_mmdebstrap_is_told_what_it_needs(secretive: Host) -> None:
    secretive("setup", "cross")
    seen = (secretive.folder / "mmdebstrap.env").read_text()
    # apt needs the proxy, to reach the mirror at all.
    for name in SECRETS.keys() - {"http_proxy"}:
        assert name not in seen
    assert "http_proxy" in seen


@pytest.mark.parametrize("verbose", [(), ("--verbose",), ("--json",)])
def test_nothing_that_is_printed_or_kept_has_a_secret(
    secretive: Host, verbose: tuple[str, ...]
) -> None:
    module = secretive.write_module()
    profile = ("--profile", secretive.write_bootable())
    lines = [
        ("setup", "cross"),
        ("kernel", *profile),
        ("module", module, *profile),
        ("boot", "--driver", "c", *profile),
        (
            *("bench", *profile, "--env", "cross", "--driver", "c"),
            *("--runs", "1", "--warmup", "0", "--scenario", "noop"),
        ),
        ("status",),
        ("config", "show", "--origin"),
    ]
    for words in lines:
        found = secretive(*verbose, *words)
        assert MARK not in found.out + found.err, words
    # What a host of fakes lacks is no matter here.
    found = secretive.anyhow(*verbose, "doctor")
    assert MARK not in found.out + found.err
    assert list(told(secretive.folder)) == []


@pytest.mark.parametrize("fault", ["network", "stale-mirror", "disk", "broken-compiler"])
def test_nor_has_a_failing_setup(secretive: Host, fault: str) -> None:
    secretive.fault(fault)
    found = secretive("--verbose", "setup", "cross", code=4)
    assert MARK not in found.out + found.err
    assert list(told(secretive.folder)) == []


def test_nor_has_a_failing_build(secretive: Host) -> None:
    secretive("setup", "cross")
    module = secretive.write_module("oops\n")
    found = secretive("--verbose", "module", module, "--profile", secretive.profile, code=1)
    assert MARK not in found.out + found.err
    assert list(told(secretive.folder)) == []
