"""Progress of a long run: a bar with the time left on a terminal, plain lines in a log. tqdm draws."""

import contextlib
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from mmed_jax.common.time_left import TimeLeft

_REDRAW_SECONDS = 0.1
_LOG_SECONDS = 10.0  # between two lines of a counting bar in a log
# Of a heartbeat: seconds before the first sign of it, and between two; at a terminal and in a log.
BEATS, LOG_BEATS = (0.5, 1.0), (10.0, 30.0)


class Heartbeat:
    """Context around work that shows nothing of itself: says how many seconds it has taken, from a thread.

    A terminal gets one line that counts and is wiped out at the end; a log gets a line after 10 s, one every 30 s then,
    and one at the end where there was any.

    Args:
      text: what is being done. stream: default stderr. show: False = nothing at all.
      draw: puts a text in place of that line, "" at the end; for a terminal on which there is more than the line.
    """

    def __init__(
        self, text: str, *, stream: TextIO | None = None, show: bool = True, draw: Callable[[str], None] | None = None
    ):
        self._text, self._show, self._draw = text, show, draw or self._line
        self._stream = sys.stderr if stream is None else stream
        self._interactive = _is_terminal(self._stream)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._began, self._beats = 0.0, 0

    def __enter__(self) -> "Heartbeat":
        self._began = time.monotonic()
        if self._show:
            self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """The work is done, or shows something of itself from here on. May be called again."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        if self._beats and self._interactive:
            self._draw("")
        elif self._beats:
            self._print(f"took {clock(time.monotonic() - self._began)}")

    def _beat(self) -> None:
        first, every = BEATS if self._interactive else LOG_BEATS
        wait = first
        while not self._over.wait(wait):
            wait, self._beats = every, self._beats + 1
            spent = clock(time.monotonic() - self._began)
            with contextlib.suppress(OSError, ValueError):  # a stream that is gone ends no work
                if self._interactive:
                    self._draw(f"{self._text} ... {spent}")
                else:
                    self._print(f"... {spent}")

    def _print(self, text: str) -> None:
        print(f"{self._text} {text}", file=self._stream, flush=True)

    def _line(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{text[:width]:{width}s}\r{text[:width]}")
        self._stream.flush()


class Progress:
    """Shows how far a run is. Does nothing unless `is_main`.

    Args:
      total: the last step. start: the step the run starts or resumes after.
      every: in a log, one line each `every` steps (and the first and the last).
      label: what is being done. stream: a terminal gets a bar, anything else lines.
      steady: the steps take about as long each, so that the time left goes by their median (TimeLeft).
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
        steady: bool = False,
    ):
        self.total, self.every, self.label, self._on = total, max(1, every), label, is_main
        self._stream = sys.stderr if stream is None else stream
        self._interactive = _is_terminal(self._stream)
        self._bar: _StepBar | None = None
        self._start = self._step = start
        self._times: deque[tuple[float, int]] = deque(maxlen=101)
        self._drawn_at = 0.0
        self._left = TimeLeft(total, start) if steady else None
        self._kept: dict[str, Any] = {}
        self._drawn: tuple[str, list[str]] = ("", [])  # the texts of the newest step's bar

    def keep(self, values: Mapping[str, Any]) -> None:
        """Shows these behind the first value of every step from here on: the newest numbers of a validation."""
        self._kept.update(values)

    @contextlib.contextmanager
    def working(self, text: str, *, pause: str = "", show: bool = True) -> Iterator[None]:
        """Around what is no step and takes its time: says so, with the seconds (Heartbeat), unless `show` is False.

        pause: the kind of thing, where it comes again; its time counts as TimeLeft.pause does.
        """
        began = time.monotonic()
        show = show and self._on
        draw = (lambda beat: self._draw(*((beat, []) if beat else self._drawn))) if self._interactive else None
        with Heartbeat(f"{self.label}  {text}" if draw is None else text, stream=self._stream, show=show, draw=draw):
            yield
        if pause:
            self.pause(pause, time.monotonic() - began)

    def pause(self, kind: str, seconds: float) -> None:
        """Since the last update so many seconds went into something that is no step (TimeLeft.pause)."""
        if self._left is not None:
            self._left.pause(kind, seconds)

    def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """`step` is done; `values` are shown beside it ({"loss": 2.31, "tok/s": 1200})."""
        if not self._on:
            return
        now = time.monotonic()
        self._times.append((now, step))
        if self._left is not None:
            self._left.step(step, now)
        first, self._step = self._step == self._start, step
        left = self.seconds_left()
        remaining = "..." if left is None else f"{clock(left)} left"
        texts = [f"{k} {_number(v)}" for k, v in (values or {}).items()]
        texts[1:1] = [f"{k} {_number(v)}" for k, v in self._kept.items()]
        if self._interactive:
            self._drawn = remaining, texts
            if step >= self.total or now - self._drawn_at >= _REDRAW_SECONDS:
                self._drawn_at = now
                self._draw(remaining, texts)
        elif first or step % self.every == 0 or step >= self.total:
            share = step / self.total if self.total else 1.0
            shown = "  ".join(texts)
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
        if self._left is not None:
            return self._left.seconds()
        if len(self._times) < 2:
            return None
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        return (t1 - t0) / (s1 - s0) * max(0, self.total - s1) if s1 > s0 else None

    def _draw(self, remaining: str, shown: list[str]) -> None:
        # A line that wraps could not be overwritten. Some terminals know no size of their own: they count as 80 wide.
        width = shutil.get_terminal_size().columns - 1
        step, before = self._step, len(f"{self.label} 100% |{'':20}| {self._step}/{self.total} {remaining}")
        # Half a number would be another number.
        fitting = (n for n in range(len(shown), 0, -1) if before + sum(2 + len(t) for t in shown[:n]) <= width)
        texts = {"remaining_time": remaining, "shown": "  ".join(shown[: next(fitting, 0)])}
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
