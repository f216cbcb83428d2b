"""Downloads from a server that is down, slow or lying, and signatures."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbuild.errors import InfrastructureError, RbuildError, UsageError
from rbuild.source import download as module
from rbuild.source.download import RetryPolicy, download, shown
from rbuild.ui.step import Step
from rbuild.util import gpg as signatures
from rbuild.util import host
from rbuild.util.host import boot_id
from tests.faults.server import CONTENT, FAILURES, LyingServer, lying_server
from tests.unit.conftest import Host

HASTY = RetryPolicy(tries=2, pause_s=0, stalls_s=0.5)
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def running() -> Iterator[LyingServer]:
    with lying_server() as server:
        yield server


@pytest.fixture
def server(running: LyingServer, monkeypatch: pytest.MonkeyPatch) -> LyingServer:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running.asked.clear()
    running.ranges.clear()
    return running


def get(server: LyingServer, name: str, file: Path, patience: RetryPolicy = HASTY) -> str:
    return download(server.url(name), file, Step(""), patience)


@pytest.mark.parametrize("name", ["good", "redirected", "no-ranges", "changes", "busy"])
def test_what_can_be_had_is_had(server: LyingServer, tmp_path: Path, name: str) -> None:
    assert get(server, name, tmp_path / "file") == SUM
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_breaks_off_goes_on_from_there(server: LyingServer, tmp_path: Path) -> None:
    assert get(server, "breaks", tmp_path / "file", RetryPolicy(tries=4, pause_s=0)) == SUM
    third = len(CONTENT) // 3 + 1
    assert server.ranges == ["", f"bytes={third}-", f"bytes={2 * third}-"]


def test_the_next_run_goes_on_from_there(server: LyingServer, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="it ended after") as error:
        get(server, "breaks", tmp_path / "file", RetryPolicy(tries=1))
    assert "the next run goes on from there" in str(error.value.hint)
    assert get(server, "good", tmp_path / "file") == SUM
    assert server.ranges[-1] == f"bytes={len(CONTENT) // 3 + 1}-"


def test_what_the_server_no_longer_has_begins_again(server: LyingServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    mark = {"validator": '"of another file"', "boot": boot_id()}
    (tmp_path / "file.validator").write_text(json.dumps(mark))
    assert get(server, "good", tmp_path / "file") == SUM
    assert server.ranges == ["bytes=1000-"]


def test_what_came_before_a_power_cut_is_fetched_again(
    server: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InfrastructureError, match="it ended after"):
        get(server, "breaks", tmp_path / "file", RetryPolicy(tries=1))
    monkeypatch.setattr(host, "BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another\n")
    assert get(server, "good", tmp_path / "file") == SUM
    assert server.ranges == ["", ""]


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_is_told(server: LyingServer, tmp_path: Path, name: str) -> None:
    with pytest.raises(InfrastructureError) as error:
        get(server, name, tmp_path / "file")
    assert FAILURES[name] in error.value.message
    assert error.value.exit_code == 4


def test_what_is_longer_than_any_source_is_ended(
    server: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(InfrastructureError, match="rbuild accepts at most 1"):
        get(server, "good", tmp_path / "file")


def test_no_server_is_told(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="Connection refused"):
        download("http://127.0.0.1:9/x.tar", tmp_path / "file", Step(""), HASTY)


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(RbuildError) as error:
        download("http://me:secret@127.0.0.1:9/x.tar", tmp_path / "file", Step(""), HASTY)
    assert "secret" not in error.value.message
    assert shown("https://me:secret@example.org/a?b#c") == "https://example.org/a?b#c"


# A profile's tarball.


def tarball(folder: Path, tree: Path, name: str = "linux-6.12.5.tar.gz") -> Path:
    path = folder / name
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree, "linux-6.12.5")
    return path


def profile(host: Host, source: str) -> Path:
    return host.write_profile(
        f"name: packed\nsource: {{{source}}}\npatches: false\n"
        "config: {base: tinyconfig, options: {RUST: y}}\n",
        "packed",
    )


def test_another_checksum_is_refused_with_both(host: Host, server: LyingServer) -> None:
    words = ("module", host.write_module(), "--profile")
    path = profile(host, f"tarball: {server.url('good')}, sha256: '{'0' * 64}'")
    found = host(*words, path, code=4)
    assert f"expected sha256 {'0' * 64}" in found.err
    assert f"got      sha256 {SUM}" in found.err
    # What is wrong isn't kept, so that it isn't gone on with.
    assert not list(host.cache.glob("trees/.*.download/*"))
    page = profile(host, f"tarball: {server.url('page')}, sha256: '{'0' * 64}'")
    assert "It looks like a web page" in host(*words, page, code=4).err


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Return two public keys' files, by the names of their owners."""
    if any(shutil.which(one) is None for one in ("gpg", "gpgv", "gpgconf")):
        pytest.skip("needs gpg, gpgv and gpgconf")
    home = tmp_path_factory.mktemp("gnupg")
    home.chmod(0o700)
    found = {"home": home}
    for name in ("linus", "mallory"):
        words = ["--batch", "--passphrase", "", "--quick-gen-key", f"{name}@example.org", "ed25519"]
        gpg(home, *words)
        found[name] = home / f"{name}.asc"
        found[name].write_bytes(gpg(home, "--armor", "--export", f"{name}@example.org"))
    yield found
    # Whoever makes a key starts an agent, which stays.
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=True)


def gpg(home: Path, *words: str | Path) -> bytes:
    argv = ["gpg", "--homedir", home, "--quiet", "--no-autostart", *words]
    if "--quick-gen-key" in words or "--detach-sign" in words:
        argv.remove("--no-autostart")
    return subprocess.run(argv, check=True, capture_output=True).stdout


def sign(keys: dict[str, Path], who: str, packed: Path) -> Path:
    """Sign the uncompressed archive as kernel.org does."""
    plain = packed.with_suffix("")
    plain.write_bytes(
        subprocess.run(["gzip", "-dc", packed], check=True, capture_output=True).stdout
    )
    signed = packed.with_name(f"{plain.name}.sign")
    signed.unlink(missing_ok=True)
    gpg(keys["home"], "--batch", "--passphrase", "", "--pinentry-mode", "loopback", "--local-user",
        f"{who}@example.org", "--detach-sign", "--output", signed, plain)  # fmt: skip
    return signed


def test_a_signature_is_checked(host: Host, keys: dict[str, Path]) -> None:
    packed = tarball(host.folder, host.tree)
    sign(keys, "linus", packed)
    shutil.copy(keys["linus"], host.folder)
    path = profile(host, f"tarball: file://{packed}, key: linus.asc")
    host("module", host.write_module(), "--profile", path)


def test_another_signature_is_refused(host: Host, keys: dict[str, Path]) -> None:
    packed = tarball(host.folder, host.tree)
    sign(keys, "mallory", packed)
    words = ("module", host.write_module(), "--profile")
    shutil.copy(keys["linus"], host.folder)
    path = profile(host, f"tarball: file://{packed}, key: linus.asc")
    found = host(*words, path, code=4)
    assert "it was signed by the key " in found.err
    assert f"isn't the one in {host.folder / 'linus.asc'}" in found.err
    sign(keys, "linus", packed)
    (host.tree / "Kbuild").write_text("# changed\n")
    tarball(host.folder, host.tree)
    assert "is of another content" in host(*words, path, code=4).err
    Path(f"{packed.with_suffix('')}.sign").write_text("nothing")
    assert "no signature that can be read" in host(*words, path, code=4).err
    Path(f"{packed.with_suffix('')}.sign").unlink()
    assert "can't be read" in host(*words, path, code=4).err
    assert not list(host.cache.glob("trees/[!.]*"))


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="no OpenPGP public key"):
        signatures.keyring(tmp_path / "key", content)


def test_a_key_is_the_same_as_text(keys: dict[str, Path]) -> None:
    key = keys["linus"]
    binary = signatures.keyring(key, key.read_bytes())
    assert signatures.armoured(key, binary) == signatures.armoured(key, key.read_bytes())
    assert signatures.keyring(key, signatures.armoured(key, binary).encode()) == binary


@pytest.mark.parametrize(
    ("tarball", "signed"),
    [("linux-6.12.tar.xz", "linux-6.12.tar.sign"), ("a.tar", "a.tar.sign")],
)
def test_kernel_orgs_name_of_a_signature(tarball: str, signed: str) -> None:
    assert signatures.url_of(f"https://example.org/{tarball}") == f"https://example.org/{signed}"
