"""Progress of a long run: a bar with the time left on a terminal, plain lines in a log. tqdm draws."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

_REDRAW_SECONDS = 0.1
_LOG_SECONDS = 10.0  # between two lines of a counting bar in a log


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
        self._interactive = _is_terminal(self._stream)
        self._bar: _StepBar | None = None
        self._start = self._step = start
        self._times: deque[tuple[float, int]] = deque(maxlen=101)
        self._drawn_at = 0.0

    def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """`step` is done; `values` are shown beside it ({"loss": 2.31, "tok/s": 1200})."""
        if not self._on:
            return
        now = time.monotonic()
        self._times.append((now, step))
        first, self._step = self._step == self._start, step
        left = self.seconds_left()
        remaining = "..." if left is None else f"{clock(left)} left"
        shown = "  ".join(f"{k} {_number(v)}" for k, v in (values or {}).items())
        if self._interactive:
            if step >= self.total or now - self._drawn_at >= _REDRAW_SECONDS:
                self._drawn_at = now
                self._draw(step, remaining, shown)
        elif first or step % self.every == 0 or step >= self.total:
            share = step / self.total if self.total else 1.0
            print(
                f"{self.label} {step}/{self.total} ({share:.0%})  {shown}  {remaining}", file=self._stream, flush=True
            )

    def note(self, text: str) -> None:
        """One line of text that stays, above the bar."""
        if self._on:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def close(self) -> None:
        """Leaves the bar where it is and goes to the next line."""
        if self._bar is not None:
            self._bar.close()
            self._stream.flush()
            self._bar = None

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

    def _draw(self, step: int, remaining: str, shown: str) -> None:
        texts = {"remaining_time": remaining, "shown": shown}
        # A line that wraps could not be overwritten. Some terminals know no size of their own: they count as 80 wide.
        width = shutil.get_terminal_size().columns - 1
        if self._bar is None:
            marks = "·█" if _can_show(self._stream, "█·") else ".#"
            self._bar = _StepBar(
                texts,
                desc=self.label,
                total=self.total,
                initial=step,
                file=self._stream,
                ncols=width,
                nrows=20,
                ascii=marks,
                bar_format="{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {remaining_time}  {shown}",
            )
        else:
            self._bar.n, self._bar.ncols, self._bar.texts = step, width, texts
            self._bar.refresh()


class _StepBar(tqdm):
    """A bar that shows texts of its own; when it is drawn is the caller's affair, so no thread watches over it."""

    monitor_interval = 0

    def __init__(self, texts: dict[str, str], **look: Any):
        self.texts = texts
        super().__init__(**look)

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, **self.texts}


def counting_bar(
    label: str,
    total: int | None = None,
    *,
    unit: str,
    show: bool = True,
    in_logs: bool = False,
    leave: bool = False,
    **look: Any,
) -> tqdm:
    """tqdm's bar on stderr for things that are counted as they come.

    Args:
      show: False = nothing at all.
      in_logs: where stderr is no terminal, a line now and then instead of nothing.
      leave: the bar stays when it is done. look: tqdm's other arguments.
    """
    interactive = _is_terminal(sys.stderr)
    return tqdm(
        desc=label,
        total=total,
        unit=unit,
        disable=not show or not (interactive or in_logs),
        leave=leave,
        dynamic_ncols=True,
        mininterval=_REDRAW_SECONDS if interactive else _LOG_SECONDS,
        file=sys.stderr,
        **look,
    )


def say_above_bars(text: str) -> None:
    """A line on stderr that leaves the bars on it whole."""
    tqdm.write(text, file=sys.stderr)


def _is_terminal(stream: Any) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


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
