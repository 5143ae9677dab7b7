"""Goodput: which part of a run's time, over all its starts, went into steps that count.

Computed from the lines of metrics.jsonl in the order in which they were written. Each line ends the stretch of time
since the line before, and every stretch goes to one part or is divided between two, so that the parts sum to the time
from the beginning of the first process to the last line.
"""

import math
from array import array
from collections.abc import Mapping
from typing import Any

from mmed_jax.common.progress import clock

PARTS = {
    "productive": "steps that count",
    "redone": "steps that a later start took again",
    "data_wait": "waiting for data (all of it, also what the devices did not notice)",
    "compile": "compiling the step",
    "start_up": "start-up: imports, hosts, data, restoring",
    "save": "steps held up by a save, and the last save's end",
    "validation": "validation",
    "other": "anything else between steps",
    "between": "between starts: killed or stopped, waiting, not begun",
}


class Goodput:
    """Seconds by part of what has been added so far. A start that was killed is counted as far as its last line."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.starts = 0
        self._last: float | None = None  # unix seconds of the last line
        self._compiled = 0.0  # seconds of compiling that this start has told
        # What each step that counts has in "productive", as a stack: two numbers of eight bytes a step.
        self._steps, self._productive = array("q"), array("d")

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts one line, in the order of the file. Lines without a time and events of no other part are left out:
        their time is the next line's."""
        if "time" not in record:
            return
        kind, now = record["kind"], float(record["time"])
        if kind == "event":
            self._add_event(record, now)
        elif kind == "eval":
            self._end_stretch(now, "validation")
        elif kind == "train":
            self._end_stretch(now, "productive", record["step"], _seconds(record, "data_wait_seconds"), "data_wait")

    @property
    def wall(self) -> float:
        """Seconds from the beginning of the first process to the last line; clocks that go backwards stand still."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float | None:
        """Productive over wall time, 0..1; None before there is a time."""
        return self.seconds["productive"] / self.wall if self.wall > 0 else None

    def rows(self) -> list[tuple[str, str, str]]:
        """(what it is, h:mm:ss, share of the wall time) of each part that took time, the productive one first."""
        taken = [(text, self.seconds[part]) for part, text in PARTS.items() if self.seconds[part] > 0]
        return [(text, clock(seconds), f"{seconds / self.wall:.1%}") for text, seconds in taken]

    def describe(self) -> str:
        """One line: the share, and the two parts that cost most. "" before there is a time."""
        if self.share is None:
            return ""
        lost = sorted(((s, p) for p, s in self.seconds.items() if p != "productive" and s > 0), reverse=True)[:2]
        rest = ", ".join(f"{part.replace('_', ' ')} {seconds / self.wall:.1%}" for seconds, part in lost)
        starts = f"{self.starts:,} start{'' if self.starts == 1 else 's'}"
        return f"{self.share:.1%} of {clock(self.wall)} in {starts} went into steps that count" + (
            f" ({rest})" if rest else ""
        )

    def _add_event(self, record: Mapping[str, Any], now: float) -> None:
        event, step = record["event"], record["step"]
        if event == "start":
            self.starts += 1
            self._compiled = 0.0
            self._take_back(step)
            begun = now - _seconds(record, "startup_seconds")
            self._last = begun if self._last is None else self._last
            self._end_stretch(begun, "between")
            self._end_stretch(now, "start_up")
        elif event == "compiled":
            self._compiled = _seconds(record, "compile_seconds")
            self._end_stretch(now, "compile")
        elif event == "recompiled":  # written while the step before still runs
            before, self._compiled = self._compiled, _seconds(record, "compile_seconds")
            self._end_stretch(now, "productive", step - 1, max(0.0, self._compiled - before), "compile")
        elif event == "save":
            self._end_stretch(now, "other", None, _seconds(record, "blocked_seconds"), "save")
        elif event in ("stopped", "end"):
            self._end_stretch(now, "save" if event == "end" else "other")

    def _end_stretch(self, now: float, part: str, step: int | None = None, within: float = 0.0, of: str = "") -> None:
        """Gives the time since the last line to `part`, but up to `within` seconds of it to the part `of`."""
        seconds = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now if self._last is None else max(self._last, now)
        if of:
            within = min(within, seconds)
            self.seconds[of] += within
            seconds -= within
        self.seconds[part] += seconds
        if step is not None:
            self._steps.append(step)
            self._productive.append(seconds)

    def _take_back(self, step: int) -> None:
        """Steps beyond `step` are taken again: what was productive is not any more."""
        while self._steps and self._steps[-1] > step:
            self._steps.pop()
            seconds = self._productive.pop()
            self.seconds["productive"] -= seconds
            self.seconds["redone"] += seconds


def _seconds(record: Mapping[str, Any], name: str) -> float:
    """A duration of a record; 0 where it has none, or none that can be one."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return max(0.0, float(value))
