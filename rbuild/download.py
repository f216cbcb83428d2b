"""Downloads: a file from a URL, with its checksum and its progress."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from rbuild.console import Step, size
from rbuild.errors import InfrastructureError, UsageError

BROKEN = (TimeoutError, ConnectionError, ssl.SSLError)
"""What a connection that breaks in the midst of an answer raises."""


def download(url: str, file: Path, step: Step) -> str:
    """Download ``url`` into ``file``; return the SHA-256 of what came.

    Raises UsageError if it is no URL, InfrastructureError if not all of it can be had.
    """
    checksum = hashlib.sha256()
    if not url.startswith(("https://", "http://", "file://")):
        raise UsageError(f"{url}: a tarball's URL begins with https://, http:// or file://.")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, file.open("wb") as out:  # noqa: S310
            length = answer.headers.get("Content-Length", "")
            whole = int(length) if length.isdigit() else 0
            done = 0
            while block := answer.read(1 << 20):
                out.write(block)
                checksum.update(block)
                done += len(block)
                step.update(f"{size(done)} of {size(whole)}", done=done >> 20, total=whole >> 20)
    except (http.client.InvalidURL, ValueError) as error:
        raise UsageError(f"{url} is not a URL: {error}.") from error
    except (urllib.error.URLError, http.client.HTTPException, *BROKEN) as error:
        raise InfrastructureError(f"{url} can't be downloaded: {error}.") from error
    if done < whole:
        raise InfrastructureError(
            f"{url} can't be downloaded: it ended after {size(done)} of {size(whole)}."
        )
    return checksum.hexdigest()
