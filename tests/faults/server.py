"""A web server on loopback that is down, slow or lying, in a way that the path names."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = bytes(range(256)) * 4096
"""What /good and its like are: 1 MiB."""

ETAG = '"one"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LyingServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        name = self.path.strip("/").split("?")[0]
        self.server.asked[name] += 1
        self.server.ranges.append(self.headers.get("Range", ""))
        getattr(self, f"_{name.replace('-', '_').split('.')[0]}", self._missing)()

    # Honest ones.

    def _good(self) -> None:
        begin = self._asked_from()
        if begin:
            self._head(206, len(CONTENT) - begin, self._range(begin, len(CONTENT)))
        else:
            self._head(200, len(CONTENT))
        self.wfile.write(CONTENT[begin:])

    def _breaks(self) -> None:
        """Break off a third further each time."""
        begin = self._asked_from()
        end = min(len(CONTENT), begin + len(CONTENT) // 3 + 1)
        self._head(206 if begin else 200, len(CONTENT) - begin, self._range(begin, len(CONTENT)))
        self.wfile.write(CONTENT[begin:end])
        self.close_connection = True

    def _no_ranges(self) -> None:
        """Break off once, and know nothing of ranges."""
        whole = self.server.asked["no-ranges"] > 1
        self._head(200, len(CONTENT))
        self.wfile.write(CONTENT if whole else CONTENT[: len(CONTENT) // 2])
        self.close_connection = True

    def _changes(self) -> None:
        """Break off once, and have another content afterwards."""
        if self.server.asked["changes"] == 1:
            self._head(200, len(CONTENT), {"ETag": '"before"'})
            self.wfile.write(b"x" * (len(CONTENT) // 2))
            self.close_connection = True
            return
        assert self.headers.get("If-Range") == '"before"'
        self._head(200, len(CONTENT))
        self.wfile.write(CONTENT)

    def _busy(self) -> None:
        """Be busy once."""
        if self.server.asked["busy"] > 1:
            self._good()
        else:
            self._head(503, 0)

    def _redirected(self) -> None:
        self._head(302, 0, {"Location": "/good"})

    # The others.

    def _missing(self) -> None:
        self._head(404, 0)

    def _error(self) -> None:
        self._head(500, 0)

    def _page(self) -> None:
        text = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>\n"
        self._head(200, len(text))
        self.wfile.write(text)

    def _silent(self) -> None:
        time.sleep(5)

    def _stalls(self) -> None:
        self._head(200, len(CONTENT))
        self.wfile.write(CONTENT[:1000])
        self.wfile.flush()
        time.sleep(5)

    def _drips(self) -> None:
        self._head(200, len(CONTENT))
        with contextlib.suppress(OSError):
            for number in range(200):
                self.wfile.write(CONTENT[number : number + 1])
                self.wfile.flush()
                time.sleep(0.05)

    def _resets(self) -> None:
        self._head(200, len(CONTENT))
        self.wfile.write(CONTENT[:1000])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _empty(self) -> None:
        self.close_connection = True

    def _garbage(self) -> None:
        self.wfile.write(b"\x00\x01\x02 not HTTP\r\n\r\n")
        self.close_connection = True

    def _huge(self) -> None:
        self._head(200, 10 * 1024**4)
        self.close_connection = True

    def _loops(self) -> None:
        self._head(302, 0, {"Location": "/loops"})

    def _to_file(self) -> None:
        self._head(302, 0, {"Location": "file:///etc/passwd"})

    def _to_ftp(self) -> None:
        self._head(302, 0, {"Location": "ftp://127.0.0.1/x"})

    def _elsewhere(self) -> None:
        """Break off, and send another range than the one that is asked for."""
        begin = self._asked_from()
        if not begin:
            self._head(200, len(CONTENT))
            self.wfile.write(CONTENT[:1000])
        else:
            self._head(206, len(CONTENT), self._range(0, len(CONTENT)))
            self.wfile.write(CONTENT)
        self.close_connection = True

    def _asked_from(self) -> int:
        asked = self.headers.get("Range", "")
        if self.headers.get("If-Range") != ETAG or not asked:
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))

    @staticmethod
    def _range(begin: int, end: int) -> dict[str, str]:
        return {"Content-Range": f"bytes {begin}-{end - 1}/{end}"}

    def _head(self, status: int, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), "ETag": ETAG, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()


class LyingServer(ThreadingHTTPServer):
    """Knows how often each path was asked for, and for which ranges."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is what the tests want."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


@contextlib.contextmanager
def lying_server() -> Iterator[LyingServer]:
    """Have the server while the body runs."""
    with LyingServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


FAILURES = {
    "missing": "the server says 404 Not Found",
    "error": "after 2 tries: the server says 500 Internal Server Error",
    "silent": "after 2 tries: ",
    "stalls": "after 2 tries: ",
    "drips": "after 2 tries: only ",
    "resets": "after 2 tries: ",
    "empty": "after 2 tries: ",
    "garbage": "after 2 tries: ",
    "huge": "is 10240.0 GiB; rbuild accepts at most",
    "loops": "infinite loop",
    "to-file": "Redirection to url 'file:///etc/passwd' is not allowed",
    "to-ftp": "unknown url type: ftp",
    "elsewhere": "The server was asked for the bytes from 1000 on",
}
"""What a download says of each path that fails, with two tries."""
