"""Progress of a long run: a bar with the time left on a terminal, plain lines in a log."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

_REDRAW_SECONDS = 0.1


class Progress:
    """Shows how far a run is. Does nothing unless `is_main`.

    Args:
      total: the last step. start: the step the run starts or resumes after.
      every: in a log, one line each `every` steps (and the first and the last).
      label: what is being done. stream: a terminal gets a bar, anything else lines.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        every: int = 10,
        label: str = "train",
        is_main: bool = True,
        stream: TextIO | None = None,
    ):
        self.total, self.every, self.label, self._on = total, max(1, every), label, is_main
        self._stream = sys.stderr if stream is None else stream
        self._bar = bool(getattr(self._stream, "isatty", lambda: False)())
        self._marks = ("█", "·") if _can_show(self._stream, "█·") else ("#", ".")
        self._start = self._step = start
        self._times: deque[tuple[float, int]] = deque(maxlen=101)
        self._drawn_at, self._width = 0.0, 0

    def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """`step` is done; `values` are shown beside it ({"loss": 2.31, "tok/s": 1200})."""
        if not self._on:
            return
        now = time.monotonic()
        self._times.append((now, step))
        first, self._step = self._step == self._start, step
        line = self._line(step, values or {})
        if self._bar:
            if step >= self.total or now - self._drawn_at >= _REDRAW_SECONDS:
                self._drawn_at = now
                self._draw(line)
        elif first or step % self.every == 0 or step >= self.total:
            print(line, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """One line of text that stays, above the bar."""
        if self._on:
            self._clear()
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar where it is and goes to the next line."""
        if self._on and self._bar and self._width:
            print(file=self._stream, flush=True)
            self._width = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seconds_left(self) -> float | None:
        """From the pace of the last 100 steps; None while not known. The first step (compilation) never counts."""
        if len(self._times) < 2:
            return None
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        return (t1 - t0) / (s1 - s0) * max(0, self.total - s1) if s1 > s0 else None

    def _line(self, step: int, values: Mapping[str, Any]) -> str:
        left = self.seconds_left()
        shown = "  ".join(f"{k} {_number(v)}" for k, v in values.items())
        share = step / self.total if self.total else 1.0
        eta = f"{clock(left)} left" if left is not None else "..."
        if not self._bar:
            return f"{self.label} {step}/{self.total} ({share:.0%})  {shown}  {eta}"
        filled = int(share * 20)
        full, empty = self._marks
        return f"{self.label} {share:4.0%} |{full * filled}{empty * (20 - filled)}| {step}/{self.total} {eta}  {shown}"

    def _draw(self, line: str) -> None:
        # A line that wraps could not be overwritten.
        line = line[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + line + " " * max(0, self._width - len(line)))
        self._stream.flush()
        self._width = len(line)

    def _clear(self) -> None:
        if self._bar and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0


def _can_show(stream: Any, text: str) -> bool:
    try:
        return bool(text.encode(getattr(stream, "encoding", None) or "utf-8"))
    except (UnicodeEncodeError, LookupError):
        return False


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _number(v: Any) -> str:
    if isinstance(v, float):
        return f"{v:.2e}" if v and (abs(v) < 1e-3 or abs(v) >= 1e6) else f"{v:.4g}"
    return str(v)
