"""metrics.jsonl, the numbers of a run, as a file: what it holds, and reading it across resumes and damage.

Append-only, one object a line:
  {"kind": "train", "step": 12, "time": unix seconds, "loss": 2.1, "loss/en": ..., "lr": ..., ...}
  {"kind": "eval",  "step": 12, "time": ..., "validation/loss": 2.3, "validation/bits_per_byte/en": ..., ...}
  {"kind": "event", "step": 12, "time": ..., "event": "start", ...}
An evaluation of the untrained model has step 0; answers to fixed prompts are an event, "answers", of the same step.
NaN and infinities are the strings "NaN", "Infinity", "-Infinity", so that every JSON reader accepts the file.

A resumed run writes {"event": "start", "step": s} and goes on from s. Readers let the last record of a step win and
leave out what an interrupted run had written beyond s, and with s = 0 all before. The writer is training/metric_log.py.

In a bucket the file is the segments of common/buckets/growing_files.py, one after the other.
"""

import errno
import functools
import math
import sys
from dataclasses import dataclass, field
from typing import Any

from mmed_jax.checkpoints.goodput import Goodput
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import check_file
from mmed_jax.common.jsonl import loads
from mmed_jax.common.place_files import as_os_error
from mmed_jax.common.places import Place, is_bucket, parse_place

METRICS_FILE = "metrics.jsonl"
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass
class Records:
    """What metrics.jsonl says: train and evals by ascending step, events as written, notes on damage, and where the
    time of all its lines went."""

    train: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    goodput: Goodput = field(default_factory=Goodput)

    @functools.cached_property
    def columns(self) -> dict[str, tuple[list[int], list[float]]]:
        """{name: (steps, values)} of every number; NaN included. Gathered once, from the records as they are then."""
        out: dict[str, tuple[list[int], list[float]]] = {}
        for record in (*self.train, *self.evals):
            step = record["step"]
            for name, value in record.items():
                if isinstance(value, (int, float)):
                    steps, values = out.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(float(value))
        return out

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of every record that has the number `name`; NaN included. Not to be changed."""
        return self.columns.get(name, ([], []))


def read_metrics(path: str | Place) -> Records:
    """Reads metrics.jsonl (or that of a run directory); of a missing or damaged file what is there, with notes."""
    path = parse_place(path)
    path = path / METRICS_FILE if is_bucket(path) or path.is_dir() else path
    out = Records()
    by_kind: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "eval": {}}
    try:
        lines = _read_lines(path)
    except (OSError, UserError) as e:
        out.notes.append(f"{path.name}: not readable ({getattr(e, 'strerror', None) or e})")
        return out
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _record(line)
        except (ValueError, KeyError, TypeError, OverflowError):
            what = "torn by an interruption" if number == len(lines) else "not a record"
            out.notes.append(f"{path.name} line {number}: {what}, left out")
            continue
        kind, step = record["kind"], record["step"]
        out.goodput.add(record)
        if kind == "event":
            out.events.append(record)
            if record.get("event") == "start":
                for steps in by_kind.values():
                    # From step 0 all is new, the evaluation of the untrained model too.
                    for beyond in [s for s in steps if s > step or not step]:
                        del steps[beyond]
        elif kind in by_kind:
            by_kind[kind][step] = record
    out.train = [by_kind["train"][s] for s in sorted(by_kind["train"])]
    out.evals = [by_kind["eval"][s] for s in sorted(by_kind["eval"])]
    return out


def metrics_version(run_dir: str | Place) -> str:
    """A text that changes when the numbers of a run do, without reading them: "" where there are none.

    Raises:
      WorkError, UserError: of a bucket.
    """
    place = parse_place(run_dir)
    if is_bucket(place):
        from mmed_jax.common.buckets.growing_files import segments_version

        return segments_version(place, METRICS_FILE)
    try:
        facts = (place / METRICS_FILE).stat()
    except OSError:
        return ""
    return f"{facts.st_ino:x}-{facts.st_size}-{facts.st_mtime_ns}"


def _read_lines(path: Place) -> list[bytes]:
    """Raises OSError; UserError where it is no file."""
    if is_bucket(path):
        from mmed_jax.common.buckets.growing_files import read_segments

        with as_os_error(path):
            data = read_segments(path.parent, path.name)
        if not data:
            raise FileNotFoundError(errno.ENOENT, "there is none", str(path))
        return data.split(b"\n")
    check_file(path)
    return path.read_bytes().split(b"\n")


def _record(line: bytes) -> dict[str, Any]:
    """One line of the file, checked as far as readers rely on it. Raises ValueError, KeyError, TypeError or
    OverflowError."""
    record = loads(line, dict)
    # The same few names in every line: one text each, or those of a long run take more memory than its numbers.
    record = {sys.intern(k): _value(v) for k, v in record.items()}
    record["step"] = int(record["step"])
    if not 0 <= record["step"] < 2**63 or not isinstance(record["kind"], str):
        raise ValueError("not a record")
    if record["kind"] == "event" and not isinstance(record["event"], str):
        raise ValueError("an event without a name")
    when = record.get("time", 0.0)
    if isinstance(when, bool) or not isinstance(when, int | float) or not 0 <= when < 1e11:
        del record["time"]
    return record


def _value(v: Any) -> Any:
    """The numbers that are written as names, and integers beyond the largest float as infinity."""
    if isinstance(v, str):
        return _NAMES.get(v, v)
    if isinstance(v, int) and abs(v) >= 2**1023:
        return math.inf if v > 0 else -math.inf
    return v
