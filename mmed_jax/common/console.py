"""stdout and stderr of every command: an output that cannot be written is no reason to lose work.

`install` (called by errors.run_command) replaces both. Characters that an output's encoding lacks are then escaped, and
stderr, which holds messages only, never fails. stdout does until a command calls `outlive`: what `generate` prints is
its product. From then on nothing that is written can end the command or hold it up, whoever writes it (this program,
jax, warnings, tqdm): the reader gone, the disk full, the terminal closed, a reader that does not read. What cannot be
written is left out; the first time it is said on stderr, and training logs it (`take_lost`).
"""

import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# How long a command that outlives its output waits for a reader that does not read, before it leaves lines out.
PATIENCE_SECONDS = 5.0
# A command that is asked to end and does not is ended: spot machines give about 30 seconds.
_END_SECONDS = 20.0


class OutputLost(Exception):
    """A product on stdout cannot be written."""


class ReaderGone(OutputLost):
    """The reader of a product on stdout went away (`| head`)."""


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP came outside a PreemptionGuard: what is half made is removed on the way out."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Output(io.RawIOBase):
    """A file descriptor whose every write succeeds, or is left out and remembered in `lost`.

    It writes to a copy of the descriptor. While nothing can be written there, the descriptor itself leads nowhere, so
    that other writers (C++, children, whoever took hold of sys.stderr before) do not fail or wait either.

    Args:
      closed: there was no such output; the descriptor is one of /dev/null.
    """

    mode = "wb"

    def __init__(self, fd: int, name: str, closed: bool = False):
        super().__init__()
        self._fd, self.name, self._closed = fd, name, closed
        self.copy = os.dup(fd)
        self.product = name == "stdout"  # what cannot be written is an error
        self.patient = True  # a reader is waited for as long as it takes
        self.lost = ""  # why something could not be written
        self._stalled = self._cut = False

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self.copy)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            if self._closed:
                raise OSError(errno.EBADF, "it is closed")
            while rest:
                rest = rest[self._write(rest) :]
        except OSError as e:
            self._failed(e)
        return size

    def _write(self, data: memoryview) -> int:
        while True:
            if not self.patient:
                self._wait(0 if self._stalled else PATIENCE_SECONDS)
                data = data[: select.PIPE_BUF]  # so much a pipe that is ready takes without waiting
            try:
                done = os.write(self.copy, data)
            except BlockingIOError:
                if self.patient:
                    self._wait(None)
                continue
            self._stalled = False
            self.cut(False)
            return done

    def _wait(self, seconds: float | None) -> None:
        if not _ready(self.copy, seconds):
            self._stalled = True
            raise OSError(errno.EAGAIN, "its reader does not read")

    def cut(self, off: bool) -> None:
        """Lets the descriptor itself lead nowhere, or where it led before."""
        if off != self._cut and not self._closed:
            target = os.open(os.devnull, os.O_WRONLY) if off else self.copy
            os.dup2(target, self._fd)
            if off:
                os.close(target)
            self._cut = off

    def _failed(self, e: OSError) -> None:
        first, self.lost = not self.lost, self.lost or e.strerror or str(e)
        if not self.product:
            with suppress(OSError):
                self.cut(True)
                for other in _outputs.values():  # often the same pipe
                    if not _ready(other.copy, 0):
                        other.cut(True)
        if not first:
            return  # Python writes what is left once more, at its exit
        if not self.product:
            if self.name == "stdout":
                write_now(f"warning: stdout cannot be written ({self.lost}); going on without it\n")
        elif e.errno == errno.EPIPE:
            raise ReaderGone("the reader of stdout is gone") from e
        else:
            raise OutputLost(f"stdout cannot be written ({self.lost})") from e


def _ready(fd: int, seconds: float | None) -> bool:
    """Whether a write to `fd` would not wait (it may fail); looks for at most `seconds`, None = as long as it takes."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


_outputs: dict[str, _Output] = {}
_told: set[str] = set()


def install() -> None:
    """Replaces sys.stdout and sys.stderr where they are the interpreter's own (not a notebook's, not a test's)."""
    if sys.stdin is None and sys.__stdin__ is None:
        _nowhere(0)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if name in _outputs or stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is None:  # closed by whoever started us
            output, encoding, lines, unbuffered = _Output(_nowhere(fd), name, closed=True), "utf-8", True, False
        else:
            with suppress(OSError, ValueError):
                stream.flush()
            output, encoding = _Output(stream.fileno(), name), stream.encoding
            lines, unbuffered = stream.line_buffering, stream.write_through
        _outputs[name] = output
        text = io.TextIOWrapper(
            output if unbuffered else io.BufferedWriter(output),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=lines,
            write_through=unbuffered,
        )
        setattr(sys, name, text)


def _nowhere(fd: int) -> int:
    """A descriptor of /dev/null: `fd` itself when it is free, so that no file opened later gets its text."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    with suppress(OSError):
        if nowhere != fd:
            os.fstat(fd)
            return nowhere
    if nowhere != fd:
        os.dup2(nowhere, fd)
        os.close(nowhere)
    os.set_inheritable(fd, True)
    return fd


def outlive() -> None:
    """From here on no write to stdout or stderr can end this command or hold it up; its results are in files."""
    for output in _outputs.values():
        output.product = output.patient = False


def take_lost() -> list[dict[str, str]]:
    """Outputs from which something is missing and that were not named before: [{"output": "stdout", "reason": ...}]."""
    found = [{"output": n, "reason": o.lost} for n, o in _outputs.items() if o.lost and n not in _told]
    _told.update(f["output"] for f in found)
    return found


def write_now(text: str) -> None:
    """Writes to stderr past all buffers; for signal handlers, which must wait for no lock and no reader."""
    fd = _outputs["stderr"].copy if "stderr" in _outputs else 2
    with suppress(OSError):
        if _ready(fd, 0):
            os.write(fd, text.encode(errors="backslashreplace"))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise Stopped, so that what is half made is removed; unless they have a handler."""
    before: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for n in before:
            signal.signal(n, signal.SIG_DFL)  # the second ends at once
        timer = threading.Timer(_END_SECONDS, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for n, handler in before.items():
            if signal.getsignal(n) is stop:
                signal.signal(n, handler)
