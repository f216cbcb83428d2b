"""Where a kernel's source comes from, and what is said when it doesn't."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rbuild import source

from .conftest import Host

NO_SUM = "0" * 64


def profile(host: Host, *found: str) -> Path:
    listed = "".join(f"  - {{{one}}}\n" for one in found)
    return host.write_profile(
        f"name: s\npatches: false\nsource:\n{listed}config: {{base: tinyconfig}}\n", "s"
    )


def tarball(host: Host, folder: Path) -> str:
    path = host.folder / f"{folder.name}.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, folder.name)
    return f"tarball: 'file://{path}', sha256: {hashlib.sha256(path.read_bytes()).hexdigest()}"


def module(host: Host, path: Path, code: int = 0) -> str:
    return host("module", host.write_module(), "--profile", path, code=code).err


def trees(host: Host) -> list[Path]:
    return [path for path in host.cache.glob("trees/*/src") if path.parent.name[0] != "."]


def test_a_debian_source_is_fetched_once(host: Host) -> None:
    path = profile(host, "debian: linux-source-6.12")
    module(host, path)
    module(host, path)
    assert host.calls("linux-source-6.12") == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no-package", "Debian trixie has no package linux-source-6.12"),
        ("no-mirror", "Temporary failure resolving"),
    ],
)
def test_a_debian_source_that_cannot_be_had(host: Host, fault: str, said: str) -> None:
    host.fault(fault)
    path = profile(host, "debian: linux-source-6.12")
    assert said in module(host, path, code=4)
    assert trees(host) == []
    host.fault()
    module(host, path)


def test_a_directory_that_is_not_there_gives_way_to_the_next_source(host: Host) -> None:
    path = profile(host, "directory: nowhere", tarball(host, host.tree))
    assert "nowhere can't be had" in module(host, path)
    assert "can't be had" not in module(host, path)
    path = profile(host, tarball(host, host.tree), "directory: nowhere")
    module(host, path)


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("file:///no/such/file.tar", 4, "can't be downloaded"),
        ("gopher://x.invalid/a.tar", 2, "begins with https://"),
        ("http://bad host/a.tar", 2, "bad host"),
        ("http://[bad/a.tar", 2, "[bad"),
    ],
)
def test_a_url_that_cannot_be_had_is_named(host: Host, url: str, code: int, said: str) -> None:
    path = profile(host, f"tarball: '{url}', sha256: '{NO_SUM}'")
    assert said in module(host, path, code=code)


class Server(BaseHTTPRequestHandler):
    """Breaks off in the midst of its answer, or makes none that is HTTP."""

    def do_GET(self) -> None:
        if self.path == "/cut.tar":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
        else:
            self.wfile.write(b"what?\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("name", "said"), [("cut.tar", "ended after 9 B"), ("odd.tar", "what?")])
def test_a_server_that_breaks_off(host: Host, monkeypatch, name: str, said: str) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        err = module(host, profile(host, f"tarball: '{url}', sha256: '{NO_SUM}'"), code=4)
        thread.join()
    assert url in err
    assert said in err


def test_a_tarball_that_is_no_archive(host: Host) -> None:
    file = host.folder / "x.tar"
    file.write_bytes(b"no archive")
    checksum = hashlib.sha256(b"no archive").hexdigest()
    path = profile(host, f"tarball: 'file://{file}', sha256: '{checksum}'")
    assert "can't be unpacked" in module(host, path, code=4)


def test_a_tarball_of_something_else_is_no_kernel_tree(host: Host) -> None:
    other = host.folder / "other"
    other.mkdir()
    (other / "README").touch()
    assert "is not a kernel tree" in module(host, profile(host, tarball(host, other)), code=2)
    assert trees(host) == []


def test_a_directory_is_copied_without_what_was_built_and_without_git(host: Host) -> None:
    (host.tree / ".config").write_text("CONFIG_X=y\n")
    (host.tree / ".git").mkdir()
    (host.tree / ".git/HEAD").write_text("ref: x\n")
    path = profile(host, "directory: linux")  # beside the profile
    module(host, path)
    (copy,) = trees(host)
    assert not (copy / ".config").exists()
    assert not (copy / ".git").exists()
    assert (host.tree / ".config").exists()
    (host.tree / ".git/HEAD").write_text("ref: y\n")
    module(host, path)
    assert trees(host) == [copy]


def test_the_date_of_a_git_source_is_its_commits(host: Host, monkeypatch) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    env = {**os.environ, "GIT_COMMITTER_DATE": "2024-05-06T07:08:09+02:00"}
    for words in (["init", "-b", "trunk"], ["add", "-f", "."], ["commit", "-m", "one"]):
        subprocess.run(
            ["git", "-C", str(host.tree), *who, *words], check=True, capture_output=True, env=env
        )
    # As in a git hook: the repository that it names is none of rbuild's business.
    monkeypatch.setenv("GIT_DIR", str(host.folder / "repository"))
    module(host, profile(host, f"git: 'file://{host.tree}', ref: trunk"))
    assert not (host.folder / "repository").exists()
    (metadata,) = host.cache.glob("trees/*/metadata.json")
    assert json.loads(metadata.read_text())["date"] == "2024-05-06T05:08:09+00:00"
    assert host.calls("KBUILD_BUILD_TIMESTAMP=Mon May 06 05:08:09 UTC 2024") > 0


def test_a_patch_that_is_in_the_tree_already_is_left_alone(host: Host, monkeypatch) -> None:
    first = source._patches("6.12.5")[0]
    monkeypatch.setattr(source, "_patches", lambda version: [first])
    host.fault("patched-already")
    path = host.write_profile(
        f"name: p\nsource: {{directory: {host.tree}}}\nconfig: {{base: tinyconfig}}\n", "p"
    )
    module(host, path)
    assert len(trees(host)) == 2
    assert not any((tree / "patched").exists() for tree in trees(host))


@pytest.mark.parametrize(
    ("makefile", "version"),
    [
        ("VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\n", "6.12.117"),
        ("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 0\nEXTRAVERSION = -rc1\nNAME = x\n", "7.3.0-rc1"),
        ("VERSION=6\nPATCHLEVEL=1\n", "6.1.0"),
    ],
)
def test_kernel_versions(tmp_path: Path, makefile: str, version: str) -> None:
    (tmp_path / "Makefile").write_text(makefile)
    assert source.kernel_version(tmp_path) == version
