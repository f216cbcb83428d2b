"""Where a kernel's source comes from, and what is said when it doesn't."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rbuild.errors import UsageError
from rbuild.provision.apt import version_key
from rbuild.source import patches, tree

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
    assert "nowhere is unavailable" in module(host, path)
    assert "is unavailable" not in module(host, path)
    path = profile(host, tarball(host, host.tree), "directory: nowhere")
    module(host, path)


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("file:///no/such/file.tar", 4, "can't be read"),
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
    first = patches.patches_for("6.12.5")[0]
    monkeypatch.setattr(patches, "patches_for", lambda version: [first])
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
    assert tree.kernel_version(tmp_path) == version


@pytest.mark.parametrize(
    "makefile",
    [
        "VERSION = ../../x\nPATCHLEVEL = 1\n",
        "VERSION = 6\nPATCHLEVEL = 1\nEXTRAVERSION = /../../x\n",
        f"VERSION = {'6' * 400}\nPATCHLEVEL = 1\n",
        "VERSION = 6\nPATCHLEVEL = $(shell x)\n",
    ],
)
def test_a_version_that_is_no_kernels_makes_no_name(tmp_path: Path, makefile: str) -> None:
    (tmp_path / "Makefile").write_text(makefile)
    with pytest.raises(UsageError, match="is not a kernel tree: its version can't be"):
        tree.kernel_version(tmp_path)


def offer(host: Host, *packages: str) -> None:
    """Let the mirror have these packages, each a name and a version."""
    (host.folder / "offered").write_text("".join(f"{one}\n" for one in packages))


MAINLINE = "debian: 'linux-source-7.*', suite: trixie-backports"


def versions_in_store(host: Host) -> list[str]:
    """Return the versions of the trees of packages."""
    found = (json.loads(path.read_text()) for path in host.cache.glob("trees/*/metadata.json"))
    return sorted(one["package"]["version"] for one in found if "package" in one)


def a_day_goes_by(host: Host, monkeypatch) -> None:
    now = time.time() + 86_401
    monkeypatch.setattr(time, "time", lambda: now)


def test_the_newest_package_that_a_pattern_matches_is_taken(host: Host) -> None:
    offer(
        host,
        "linux-source-7.2 7.2.12-1~bpo13+1",
        "linux-source-7.10 7.10~rc1-1~exp1",
        "linux-source-7.10 7.10-1~bpo13+1",
        "linux-source-7.9 7.9.9-1",
        "linux-source 8.0-1",
    )
    module(host, profile(host, MAINLINE))
    assert host.calls("download linux-source-7.10=7.10-1~bpo13+1  trixie-backports") == 1
    (metadata,) = host.cache.glob("trees/linux-source-7.10-*/metadata.json")
    found = json.loads(metadata.read_text())
    assert found["source"] == "linux-source-7.10 7.10-1~bpo13+1 of trixie-backports"
    assert found["package"] == {
        "package": "linux-source-7.10",
        "version": "7.10-1~bpo13+1",
        "suite": "trixie-backports",
    }


def test_the_mirror_is_asked_once_a_day(host: Host, monkeypatch) -> None:
    path = profile(host, MAINLINE)
    offer(host, "linux-source-7.3 7.3.4-1")
    module(host, path)
    offer(host, "linux-source-7.3 7.3.4-1", "linux-source-7.3 7.3.5-1")
    module(host, path)
    assert versions_in_store(host) == ["7.3.4-1"]
    a_day_goes_by(host, monkeypatch)
    module(host, path)
    assert versions_in_store(host) == ["7.3.4-1", "7.3.5-1"]


def test_without_a_mirror_the_newest_of_the_store_is_used(host: Host, monkeypatch) -> None:
    path = profile(host, MAINLINE)
    host.fault("no-mirror")
    assert "could not be listed" in module(host, path, code=4)
    host.fault()
    for version in ("7.3.9-1", "7.3.10-1"):
        offer(host, f"linux-source-7.3 {version}")
        module(host, path)
        a_day_goes_by(host, monkeypatch)
    host.fault("no-mirror")
    assert "The cached linux-source-7.3 7.3.10-1 of trixie-backports is used" in module(host, path)
    other = profile(host, MAINLINE.replace("7.*", "8.*"))
    assert "could not be listed" in module(host, other, code=4)


def test_a_pattern_that_matches_nothing_lists_what_there_is(host: Host) -> None:
    offer(
        host, "linux-source-6.12 6.12.5-1", "linux-source-8.0 8.0.9-1", "linux-source-8.0 8.0.1-1"
    )
    err = module(host, profile(host, "debian: 'linux-source-*.7', suite: sid"), code=2)
    assert "Debian sid has no package that linux-source-*.7 matches" in err
    assert "linux-source-6.12 6.12.5-1" in err
    assert "linux-source-8.0 8.0.9-1" in err
    assert "8.0.1-1" not in err
    err = module(host, profile(host, "debian: 'kernel-?', suite: sid"), code=2)
    assert "none whose name begins with 'kernel-'" in err


def test_a_package_that_is_gone_is_looked_for_again(host: Host) -> None:
    path = profile(host, MAINLINE)
    offer(host, "linux-source-7.3 7.3.4-1")
    host.fault("no-version")
    assert "run it again" in module(host, path, code=4)
    host.fault()
    offer(host, "linux-source-7.4 7.4-1")
    module(host, path)
    assert versions_in_store(host) == ["7.4-1"]


def test_a_pattern_gives_way_to_the_next(host: Host) -> None:
    host.fault("no-mirror")
    found = module(host, profile(host, MAINLINE, tarball(host, host.tree)))
    assert "linux-source-7.* of trixie-backports is unavailable" in found


@pytest.mark.parametrize("wrong", ["suite: sid, directory: linux", "debian: Linux"])
def test_a_debian_source_that_is_wrong(host: Host, wrong: str) -> None:
    module(host, profile(host, wrong), code=2)


def test_debian_versions_compare_as_dpkg_does() -> None:
    ordered = [
        "0~~", "0~", "0", "1~rc1-1", "1-0", "1-1~bpo13+1", "1-1", "1-1a", "1-1+b1", "1-1.1",
        "1.0-1", "1.0a-1", "1.0+dfsg-1", "1.0.1-1", "1.9", "1.10", "7.2.12-1~bpo13+1",
        "7.3~rc1-1~exp1", "7.3.4-1~bpo13+1", "7.3.4-1", "7.10-1", "1:0", "2:0",
    ]  # fmt: skip
    assert sorted(sorted(ordered), key=version_key) == ordered


@pytest.mark.parametrize(
    ("version", "nearest"),
    [
        ("6.12.117", "6.12"),
        ("7.3.4", "7.3"),
        ("7.2.12", "7.3"),
        ("7.4.0-rc1", "7.3"),
        ("6.13.1", "6.12"),
        ("6.1.9", "6.12"),
        ("12.0.1", "7.3"),
    ],
)
def test_patches_are_those_of_the_nearest_version(version: str, nearest: str) -> None:
    assert patches.nearest_series(version, ["7.3", "README", "6.12"]) == nearest
    assert {path.parent.name for path in patches.patches_for(version)} == {nearest}


def test_there_may_be_no_patches() -> None:
    assert patches.nearest_series("7.3.4", ["README"]) is None


def test_of_patches_as_near_the_older_are_taken() -> None:
    assert patches.nearest_series("6.14.1", ["6.12", "6.16"]) == "6.12"


def test_that_another_version_s_patches_are_tried_is_said(host: Host) -> None:
    words = "There are no patches for 6.13.5: those for 6.12 are the nearest."
    path = host.write_profile(
        f"name: p\nsource: {{directory: {host.tree}}}\nconfig: {{base: tinyconfig}}\n", "p"
    )
    assert words not in module(host, path)
    makefile = host.tree / "Makefile"
    makefile.write_text(makefile.read_text().replace("PATCHLEVEL = 12", "PATCHLEVEL = 13"))
    assert words in module(host, path)


PATCH = """\
--- a/rust/kernel/lib.rs
+++ b/rust/kernel/lib.rs
@@ -1,1 +1,1 @@
-a
+b
--- a/rust/helpers/helpers.c
+++ b/rust/helpers/helpers.c
@@ -1,1 +1,1 @@ one
-a
+b
@@ -9,1 +9,1 @@ two
-c
+d
"""


def test_hunks_that_fail_are_found_in_the_patch() -> None:
    said = [
        "checking file rust/kernel/lib.rs",
        "Hunk #1 succeeded at 5 (offset 4 lines).",
        "checking file rust/helpers/helpers.c",
        "Hunk #2 FAILED at 9.",
        "1 out of 2 hunks FAILED",
        "can't find file to patch at input line 30",
    ]
    assert patches.failed_hunks(PATCH, said) == [
        "rust/helpers/helpers.c: hunk 2 fails at line 9 (line 11 of the patch)",
        "can't find file to patch at input line 30",
    ]


def test_a_version_that_is_none_sorts_somewhere() -> None:
    odd = ["x:1", ":", "9" * 5000, f"{'9' * 5000}:1", "1-", "-1", "\u0663:1", "\u0663", ""]
    assert len(sorted(odd, key=version_key)) == len(odd)


def test_a_disk_that_fills_up_while_a_tree_is_copied(host: Host) -> None:
    host.tool("cp", "echo 'cp: cannot create directory: No space left on device'; exit 1")
    found = host("module", host.write_module(), "--profile", host.profile, code=4)
    assert f"{host.tree} can't be copied: the disk is full" in found.err
    assert "rbuild clean" in found.err
