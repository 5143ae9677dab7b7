"""Numbers of a run: written to metrics.jsonl first (checkpoints/metrics_file.py), to TensorBoard and W&B besides."""

import json
import math
import os
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.checkpoints.goodput import Goodput
from mmed_jax.checkpoints.metrics_file import METRICS_FILE, read_metrics
from mmed_jax.checkpoints.run_directory import run_storage
from mmed_jax.checkpoints.run_storage import RunStorage
from mmed_jax.common import console
from mmed_jax.common.errors import UserError, WorkError, one_line, warn
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import Place

WANDB_ID_FILE = "wandb_id.txt"


def json_value(x: Any) -> Any:
    """Python, numpy and jax numbers and arrays as strict JSON values."""
    if isinstance(x, Mapping):
        return {str(k): json_value(v) for k, v in x.items()}
    if isinstance(x, (str, bool)) or x is None:
        return x
    if hasattr(x, "tolist"):
        x = x.tolist()
    if isinstance(x, (list, tuple)):
        return [json_value(v) for v in x]
    if isinstance(x, float) and not math.isfinite(x):
        return "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"
    return x if isinstance(x, (int, float)) else str(x)


class MetricsLogger:
    """Writes the numbers of one run; on every process but the main one all methods do nothing.

    Args:
      run_dir: holds metrics.jsonl, tensorboard/ and the W&B run id, so that a resumed run goes on in the same ones.
      tensorboard: also write event files to <run_dir>/tensorboard.
      wandb: project name, or {"project": ..., further arguments of wandb.init}; None or "" = off.
      config: shown by W&B.

    Attributes:
      goodput: where the time of all starts went, those before this one included; empty on the other processes.

    Raises:
      UserError: a wanted writer is not installed, or W&B cannot start.
      WorkError: metrics.jsonl or the event files cannot be written.
    """

    def __init__(
        self,
        run_dir: str | Place,
        *,
        tensorboard: bool = True,
        wandb: str | Mapping[str, Any] | None = None,
        is_main: bool = True,
        config: Mapping[str, Any] | None = None,
    ):
        self._file: Any = None
        self._board: Any = None
        self._wandb: Any = None
        self.goodput = read_metrics(run_dir).goodput if is_main else Goodput()
        if not is_main:
            return
        self._storage = run_storage(run_dir)
        folder = self._storage.growing
        self._path = folder / METRICS_FILE
        try:
            self._file = open(self._path, "ab", buffering=0)
            if self._path.stat().st_size and not _ends_with_newline(self._path):
                self._file.write(b"\n")  # a line torn by a kill stays a line of its own
        except OSError as e:
            raise WorkError(f"{self._path}: cannot be written ({e.strerror or e})") from e
        if tensorboard:
            self._board = _Board(folder / "tensorboard")
        if wandb:
            self._wandb = _start_wandb(
                self._storage, {"project": wandb} if isinstance(wandb, str) else dict(wandb), config
            )

    def start(self, step: int, **info: Any) -> None:
        """Marks that training starts or resumes after `step` updates. startup_seconds: since the process began."""
        if self._board is not None:
            self._board.restart(step)
        self.event("start", step, **info)

    def event(self, event: str, step: int, **info: Any) -> None:
        """Records something that happened (start, stopped, compiled, save, output_lost, ...)."""
        self._append(self._counted({"kind": "event", "step": int(step), "time": time.time(), "event": event, **info}))

    def train(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the numbers of one training step, with the goodput until then."""
        self._record("train", step, values)

    def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the numbers of one evaluation; names carry their "validation/" themselves."""
        self._record("eval", step, values)

    def answers(self, step: int, answers: Sequence[Mapping[str, str]]) -> None:
        """Records answers to fixed prompts, [{"language", "question", "answer"}]; of none nothing is written."""
        if not answers:
            return
        self.event("answers", step, answers=list(answers))
        self._mirror("_board", lambda board: board.texts(step, answers))
        self._mirror("_wandb", lambda run: run.log({"step": int(step), "validation/answers": _wandb_table(answers)}))

    def close(self) -> None:
        """Flushes and closes every writer."""
        for writer in (self._board, self._wandb, self._file):
            if writer is not None:
                writer.finish() if hasattr(writer, "finish") else writer.close()
        self._file = self._board = self._wandb = None

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        record = self._counted({"kind": kind, "step": int(step), "time": time.time(), **values})
        if kind == "train" and self.goodput.share is not None:
            values = {**values, "goodput": self.goodput.share}
        self._append({**record, **values})
        scalars = {k: float(v) for k, v in values.items() if _is_scalar(v)}
        if kind == "train":
            scalars = {f"train/{k}": v for k, v in scalars.items()}
        self._mirror("_board", lambda board: board.scalars(step, scalars))
        # Not wandb's own step counter: it drops records that come out of order, as after a resume.
        self._mirror("_wandb", lambda run: run.log({"step": int(step), **scalars}))

    def _mirror(self, name: str, write: Callable[[Any], object]) -> None:
        """Writes to what is not the file, where it is there."""
        writer = getattr(self, name)
        try:
            if writer is not None:
                write(writer)
        except Exception as e:  # the file has the numbers; a broken side channel must not end a training run
            setattr(self, name, None)
            print(f"{name.strip('_')}: writing failed, continuing without it ({one_line(e)})", file=sys.stderr)

    def _counted(self, record: dict[str, Any]) -> dict[str, Any]:
        if self._file is not None:
            self.goodput.add(record)
        return record

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        line = json.dumps(json_value(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            if not os.path.exists(self._path) and os.fstat(self._file.fileno()).st_nlink == 0:
                # Its folder is gone as well, perhaps; written to nowhere it would be without an error.
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file.close()
                self._file = open(self._path, "ab", buffering=0)
                warn(f"{self._path}: was removed while the run went on; what it held is lost, a new one is begun")
            # One unbuffered write, so that a kill tears at most the last line.
            if self._file.write(line) != len(line):
                raise OSError("the disk is full")
        except OSError as e:
            raise WorkError(f"{self._path}: cannot be written ({e.strerror or e})") from e
        for lost in console.take_lost():  # the output of the run has a gap, and only here can it be said
            self.event("output_lost", record["step"], **lost)


class _Board:
    """TensorBoard event files, written by the tensorboard package itself (no TensorFlow, no torch)."""

    def __init__(self, folder: Path):
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as e:
            raise UserError(f"tensorboard is not usable ({e}): install it, or --config.tensorboard=false") from e
        self._event, self._summary = event_pb2, summary_pb2
        self._tensor, self._string = tensor_pb2.TensorProto, types_pb2.DT_STRING
        try:
            self._writer = EventFileWriter(str(folder))
        except OSError as e:
            why = e.strerror or e
            raise WorkError(f"{folder}: cannot be written ({why}); --config.tensorboard=false does without") from e

    def restart(self, step: int) -> None:
        """TensorBoard forgets what earlier files hold from here on; from step 0 all of it."""
        log = self._event.SessionLog(status=self._event.SessionLog.START)
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step + 1 if step else 0, session_log=log))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        entries = [self._summary.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._add(step, entries)

    def texts(self, step: int, answers: Sequence[Mapping[str, str]]) -> None:
        """Answers as the dashboard "Text" shows them, one tag a prompt."""
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        entries = []
        for number, a in enumerate(answers, start=1):
            # Markdown; indented text is shown as it is.
            shown = "\n\n".join(textwrap.indent(a[k], "    ") for k in ("question", "answer"))
            tensor = self._tensor(dtype=self._string, string_val=[shown.encode()])
            metadata = self._summary.SummaryMetadata(plugin_data=plugin)
            tag = f"validation/answers/{number}_{a['language']}"
            entries.append(self._summary.Summary.Value(tag=tag, metadata=metadata, tensor=tensor))
        self._add(step, entries)

    def _add(self, step: int, entries: list[Any]) -> None:
        summary = self._summary.Summary(value=entries)
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._writer.flush()
        self._writer.close()


def _start_wandb(storage: RunStorage, settings: dict[str, Any], config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as e:
        raise UserError("config.wandb is set but wandb is missing: pip install wandb, or --config.wandb=''") from e
    try:
        run_id = read_bytes(storage.place / WANDB_ID_FILE).decode().strip()
    except FileNotFoundError:
        run_id = uuid.uuid4().hex[:12]
    folder = storage.growing
    arguments = {"id": run_id, "resume": "allow", "dir": str(folder), "name": storage.place.name} | settings
    try:
        run = wandb.init(config=json_value(config or {}), **arguments)
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
    except Exception as e:
        hint = "log in, set WANDB_MODE=offline, or --config.wandb=''"
        raise UserError(f"wandb did not start ({one_line(e)}); {hint}") from e
    (folder / WANDB_ID_FILE).write_text(arguments["id"] + "\n", encoding="utf-8")
    return run


def _wandb_table(answers: Sequence[Mapping[str, str]]) -> Any:
    import wandb

    columns = ["language", "question", "answer"]
    return wandb.Table(columns=columns, data=[[a[c] for c in columns] for a in answers])


class DelayedMetrics:
    """Leaves a step's metrics on the devices until the next step was dispatched, so that the devices never wait.

    out = delayed.push(step, metrics)      # after train_step(...) of `step`; gives the step before, or None
    out = delayed.flush()                  # before an evaluation, a stop or the end
    """

    def __init__(self) -> None:
        self._held: tuple[int, Any, dict[str, Any]] | None = None

    def push(self, step: int, metrics: Any, **host: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Holds the (device) metrics of `step` with host values beside them; returns those held before, fetched."""
        previous = self.flush()
        self._held = (step, metrics, host)
        return previous

    def flush(self) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, fetched metrics as numpy, host values) of what is held, or None. Waits for that step to finish."""
        if self._held is None:
            return None
        import jax

        step, metrics, host = self._held
        self._held = None
        return step, jax.device_get(metrics), host


def _is_scalar(v: Any) -> bool:
    return not isinstance(v, (bool, str)) and (isinstance(v, (int, float)) or getattr(v, "ndim", 1) == 0)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as f:
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b"\n"
