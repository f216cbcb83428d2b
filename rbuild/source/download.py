"""Downloads: a file from a URL, resumed where it broke off, with its checksum and its progress."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from rbuild.errors import FREE_SPACE, InfrastructureError, UsageError
from rbuild.ui.format import size
from rbuild.ui.step import Step
from rbuild.util import textfile
from rbuild.util.files import read_json, write_json
from rbuild.util.host import boot_id

TRANSIENT = (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException)
"""What may pass: a connection that breaks in the midst of an answer, or one that is none."""

MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""The statuses of a server that may do better in a moment."""

MAX_BYTES = 8 * 1024**3
"""More than this is no kernel's source."""

BLOCK = 1 << 18


@dataclass(frozen=True)
class RetryPolicy:
    """How often a download is tried, with what pauses between, and how slow it may be.

    Less than ``slowest_bytes`` within ``stalls_s`` seconds is a stall.
    """

    tries: int = 4
    pause_s: float = 2.0
    stalls_s: float = 60.0
    slowest_bytes: int = 4096


DEFAULT_RETRIES = RetryPolicy()


class _Transient(Exception):  # noqa: N818 - a message between two functions here
    """It broke off, and may go on."""


def download(url: str, file: Path, step: Step, retries: RetryPolicy | None = None) -> str:
    """Download ``url`` into ``file``; return the SHA-256 of what came.

    A file that is there already is what an earlier try has got: the rest is asked for, if the
    server says by its ETag or date that it still has the same.  Raises UsageError if it is no URL,
    InfrastructureError if not all of it can be had; what came so far then stays.
    """
    if not url.startswith(("https://", "http://", "file://")):
        raise UsageError(f"{shown(url)}: a tarball's URL begins with https://, http:// or file://.")
    retries = retries or DEFAULT_RETRIES
    for number in range(1, retries.tries + 1):
        try:
            _get(url, file, step, retries)
            break
        except (http.client.InvalidURL, ValueError) as error:
            raise UsageError(f"{shown(url)} is not a URL: {error}.") from error
        except urllib.error.HTTPError as error:
            why, passes = f"the server says {error.code} {error.reason}", error.code in MAY_PASS
        except urllib.error.URLError as error:
            why = f"{error.reason}"
            passes = url.startswith("http") and not isinstance(error.reason, ssl.SSLError)
        except (_Transient, *TRANSIENT) as error:
            why, passes = f"{error}" or type(error).__name__, True
        if not passes or number == retries.tries:
            tried = f" after {number} tries" if number > 1 else ""
            raise InfrastructureError(
                f"{shown(url)} can't be downloaded{tried}: {why}.",
                hint="What came so far is kept: the next run goes on from there."
                if file.exists() and file.stat().st_size
                else None,
            )
        step.update(f"{why}; trying again")
        time.sleep(retries.pause_s * number)
    forget_validator(file)
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def shown(url: str) -> str:
    """Return a URL as it may be shown: without a name and password that it has."""
    return re.sub(r"^(\w+://)[^/?#]*@", r"\1", url)


def looks_like_a_page(file: Path) -> bool:
    """Tell whether a file begins as HTML, as what a proxy sends instead of what was asked for."""
    with file.open("rb") as content:
        return re.match(rb"\s*<(!doctype html|html|head)", content.read(200), re.I) is not None


def _validator(file: Path) -> Path:
    return file.with_name(f"{file.name}.validator")


def forget_validator(file: Path) -> None:
    """Forget by what the server knows whether it still has what a file is the begin of."""
    _validator(file).unlink(missing_ok=True)


def _get(url: str, file: Path, step: Step, retries: RetryPolicy) -> None:
    """Get what is missing of a file by one request."""
    mark = read_json(_validator(file)) or {}
    # What came before a power cut may have holes.
    known = mark.get("validator") if mark.get("boot") == boot_id() else None
    begun = file.stat().st_size if file.exists() and isinstance(known, str) else 0
    headers = {"Accept-Encoding": "identity"}
    if begun:
        headers |= {"Range": f"bytes={begun}-", "If-Range": str(known)}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme is known
    if url.startswith("file:"):
        _copy_local(url, file, step, retries)
        return
    with _opener().open(request, timeout=retries.stalls_s) as answer:
        resumes = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumes:
            whole = _range(answer.headers.get("Content-Range", ""), begun)
        else:
            begun = 0
            length = answer.headers.get("Content-Length", "")
            whole = int(length) if re.fullmatch("[0-9]{1,18}", length) else 0
        _must_fit(url, whole, whole - begun, file)
        validator = answer.headers.get("ETag", "") or answer.headers.get("Last-Modified", "")
        forget_validator(file)
        if validator and not validator.startswith("W/"):
            write_json(_validator(file), {"validator": validator, "boot": boot_id()})
        with file.open("ab" if resumes else "wb") as out:
            done = _copy(answer, out, begun, whole, step, retries)
    if done < whole:
        raise _Transient(f"it ended after {size(done)} of {size(whole)}")


def _copy_local(url: str, file: Path, step: Step, retries: RetryPolicy) -> None:
    """Copy a file of this host's; raise UsageError for what is no regular file, unopened.

    The copy is as private as the original may be: it could be any file until its checksum is known.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in {"", "localhost"}:
        raise UsageError(f"{shown(url)}: a file:// URL names a file of this host: file:///PATH.")
    path = Path(urllib.parse.unquote(parts.path, errors="surrogateescape"))
    file.unlink(missing_ok=True)
    try:
        content = textfile.open_regular(path)
    except (OSError, ValueError) as error:
        if reason := getattr(error, "strerror", None):
            raise InfrastructureError(f"{shown(url)} can't be read: {reason}.") from error
        raise UsageError(f"{shown(url)}: {error}.") from error
    with content:
        whole = os.fstat(content.fileno()).st_size
        _must_fit(url, whole, whole, file)
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(made, "wb") as out:
            _copy(content, out, 0, whole, step, retries)


def _must_fit(url: str, whole: int, missing: int, file: Path) -> None:
    if whole > MAX_BYTES:
        raise InfrastructureError(
            f"{shown(url)} is {size(whole)}; rbuild accepts at most {size(MAX_BYTES)}.",
            hint="Check the URL.",
        )
    if missing > shutil.disk_usage(file.parent).free:
        raise InfrastructureError(
            f"{shown(url)} needs {size(missing)} in {file.parent}, which has too little free "
            "space.",
            hint=FREE_SPACE,
        )


def _range(header: str, begun: int) -> int:
    """Return how large the whole is of which a server sends the rest."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", header.strip())
    if found is None or int(found[1]) != begun or int(found[2]) + 1 != int(found[3]):
        raise InfrastructureError(
            f"The server was asked for the bytes from {begun} on, and sends {header or 'others'!r}."
        )
    return int(found[3])


def _copy(
    answer: http.client.HTTPResponse | BinaryIO,
    out: IO[bytes],
    done: int,
    whole: int,
    step: Step,
    retries: RetryPolicy,
) -> int:
    """Write what a server sends; return how much is there then."""
    since, then = time.monotonic(), done
    while block := answer.read1(BLOCK):  # type: ignore[union-attr]
        out.write(block)
        done += len(block)
        if done > MAX_BYTES:
            raise InfrastructureError(f"It has more than {size(MAX_BYTES)}, and didn't end.")
        of = f" of {size(whole)}" if whole else ""
        step.unit = "MiB"
        step.update(f"{size(done)}{of}", done=done >> 20, total=whole >> 20)
        if (now := time.monotonic()) - since > retries.stalls_s:
            if done - then < retries.slowest_bytes:
                raise _Transient(f"only {done - then} bytes came in {now - since:.0f} s")
            since, then = now, done
    return done


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens a URL, and no redirection from HTTP to anything else."""
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ]
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler)
    return opener
