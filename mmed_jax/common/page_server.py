"""One page at an address of this machine alone, made anew when what it is about has changed.

It listens on 127.0.0.1, and the address has a random part, so that nobody else on a shared machine reads it. A request
that was sent to another host's name (a page of the web that resolves its own name to 127.0.0.1) is refused.
"""

import http.server
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from mmed_jax.common.errors import UserError, WorkError, one_line, warn

HOST = "127.0.0.1"
_PAUSE_S = 1.0  # between two looks at the files; ten times as long as the last look or page took, if that is longer
_NAMES = ("127.0.0.1", "localhost")


class PageServer:
    """Serves one page until it is closed.

    Args:
      version: a text that changes when the page would; asked about once a second while someone looks.
      make_page: the page of a version. An error of either is shown instead of the page, until it is over.
      port: 0 = a free one.

    Attributes:
      address: where the page is.

    Raises:
      UserError: the port is taken or not allowed.
    """

    def __init__(self, version: Callable[[], str], make_page: Callable[[str], str], port: int = 0):
        self._version, self._make_page, self._lock = version, make_page, threading.Lock()
        self._seen, self._made, self._page = "", "", b""
        self._next_look = 0.0
        self._token = secrets.token_urlsafe(9)
        try:
            self._server = _Server((HOST, port), _handler(self))
        except (OSError, OverflowError) as e:
            raise UserError(f"--port={port}: can't be listened on ({getattr(e, 'strerror', None) or e})") from e
        self.address = f"http://{HOST}:{self._server.server_address[1]}/{self._token}/"

    def run(self) -> None:
        """Answers requests until `close` or Ctrl-C."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def close(self) -> None:
        """Ends `run`; called from another thread."""
        self._server.shutdown()

    def answer(self, path: str, host: str) -> tuple[HTTPStatus, str, bytes]:
        """(status, content type, body) of a GET. host: the header."""
        text = "text/plain; charset=utf-8"
        if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
            return HTTPStatus.FORBIDDEN, text, b"asked for by another name"
        wanted = path.partition("?")[0]
        if wanted not in (f"/{self._token}/", f"/{self._token}/version"):
            return HTTPStatus.NOT_FOUND, text, b"no such page; the address has a part that was printed"
        try:
            with self._lock:
                version = self._look()
                if wanted.endswith("/version"):
                    return HTTPStatus.OK, text, version.encode()
                return HTTPStatus.OK, "text/html; charset=utf-8", self._current(version)
        except (UserError, WorkError, OSError) as e:
            return HTTPStatus.SERVICE_UNAVAILABLE, text, one_line(e).encode(errors="replace")
        except Exception as e:  # a fault of ours: said here and there, and the next version may be without it
            warn(f"no page: {one_line(e)}")
            return HTTPStatus.INTERNAL_SERVER_ERROR, text, one_line(e).encode(errors="replace")

    def _look(self) -> str:
        begun = time.monotonic()
        if begun >= self._next_look:
            self._seen = self._version()
            self._wait_after(begun)
        return self._seen

    def _current(self, version: str) -> bytes:
        if self._made != version:
            begun = time.monotonic()
            self._page, self._made = self._make_page(version).encode(), version
            self._wait_after(begun)
        return self._page

    def _wait_after(self, begun: float) -> None:
        now = time.monotonic()
        self._next_look = max(self._next_look, now + max(_PAUSE_S, 10 * (now - begun)))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True  # a browser that keeps its connection open does not keep this process

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no news."""


def _handler(server: PageServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 60.0

        def do_GET(self) -> None:
            status, kind, body = server.answer(self.path, self.headers.get("Host", ""))
            self.send_response(status)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin",
                "X-Frame-Options": "DENY",
                **({"Refresh": "10"} if status >= 500 else {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are no news."""

    return Handler
