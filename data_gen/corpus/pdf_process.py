"""Pages of PDF files, read in a process of its own (pdf_server.py), so that a page that ends pdfium costs one page.

One such process serves a worker for all its files; it is started again after its end, and ends with the worker.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import WorkError

_PROGRAM = Path(__file__).with_name("pdf_server.py")
# Seconds; a book of a gigabyte is opened, and a page's layer read, in far less.
OPEN_TIMEOUT_S = PAGE_TIMEOUT_S = 120.0


class PageProblem(Exception):
    """A file or page that cannot be read. `reason` as a Reject has it, `detail` for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class PageProcess:
    """The process that reads pages; methods as pdf_server.Server, of the file at `path`. All raise PageProblem.

    WorkError where the process was killed from outside: whoever runs the task may try again.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._open: tuple[str, int] | None = None  # and its pages
        self._late = False

    def pages(self, path: Path) -> int:
        """How many pages a file has."""
        name = str(path)
        if self._process is None or self._open is None or self._open[0] != name:
            self._open = None
            try:
                self._open = name, self._ask(path, "", OPEN_TIMEOUT_S, "open", name)
            except PageProblem:
                self.close()  # pdfium would give the reason of this file for the next one as well
                raise
        return self._open[1]

    def text(self, path: Path, number: int) -> str:
        """The text of a page's layer, as pdfium gives it."""
        return self._of_page(path, number, PAGE_TIMEOUT_S, "text", number)

    def ink(self, path: Path, number: int) -> float:
        """Which share of a page is not of its commonest grey."""
        return self._of_page(path, number, PAGE_TIMEOUT_S, "ink", number)

    def image(
        self, path: Path, number: int, dpi: int, pixels: int, timeout_s: float = PAGE_TIMEOUT_S
    ) -> tuple[int, int, int, bytes]:
        """Width, height, dots an inch (fewer where a page has more than `pixels`), rows of grey (uint8)."""
        return self._of_page(path, number, timeout_s, "image", number, dpi, pixels)

    def _of_page(self, path: Path, number: int, timeout_s: float, *request: Any) -> Any:
        self.pages(path)
        return self._ask(path, f"page {number + 1}", timeout_s, *request)

    def _ask(self, path: Path, place: str, timeout_s: float, *request: Any) -> Any:
        process = self._process = self._process or self._start()
        with self._deadline(process, timeout_s):
            answer = _exchange(process, request)
        if answer is None:
            raise self._problem(path, place, timeout_s)
        if "reason" in answer:
            raise PageProblem(answer["reason"], answer["detail"])
        return answer["value"]

    def _problem(self, path: Path, place: str, timeout_s: float) -> Exception:
        """What became of a process that does not answer."""
        code = self.close()
        what = "page" if place else "file"
        if self._late:
            return PageProblem(f"{what}_timeout", f"not read in {timeout_s:g} s")
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            name = signal.Signals(-code).name
            return WorkError(
                f"the process that reads pages was ended by {name} (out of memory?)", place=f"{path} {place}".strip()
            )
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return PageProblem(f"{what}_crashed", f"pdfium ended {ended}")

    @contextlib.contextmanager
    def _deadline(self, process: subprocess.Popen, timeout_s: float) -> Iterator[None]:
        self._late = False

        def end() -> None:
            self._late = True
            process.kill()

        timer = threading.Timer(timeout_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen:
        # -P: the folder of the program has modules of the names of others.
        return subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
        )

    def close(self) -> int:
        """Ends the process; its exit code, 0 where none runs."""
        process, self._process, self._open = self._process, None, None
        if process is None:
            return 0
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code


def _exchange(process: subprocess.Popen, request: tuple) -> dict[str, Any] | None:
    """The answer to a request, its bytes behind its value; None where the process ended over it."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        if size := answer.get("bytes", 0):
            content = process.stdout.read(size)
            answer = {"value": (*answer["value"], content)} if len(content) == size else None
    except (OSError, ValueError):
        return None
    return answer


@functools.cache
def page_process() -> PageProcess:
    """The one of this process."""
    process = PageProcess()
    atexit.register(process.close)
    return process
