"""What the files of a run directory say: how far it is, for how long still, its best evaluation, what it answered.

Read without jax, at any time, also while the run goes on.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mmed_jax.checkpoints.best import best_of
from mmed_jax.checkpoints.metrics_file import Records, read_metrics
from mmed_jax.checkpoints.run_directory import CONFIG_FILE, read_meta, run_storage, step_folders
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.paths import tail_names
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import Place, is_bucket, parse_place
from mmed_jax.common.progress import clock
from mmed_jax.config.resume import training_keys
from mmed_jax.data.records.schema import LANGUAGES

_RECENT = 100  # steps that the time left is taken from
_SILENT_S = 600.0  # without a line, and ten steps long: nobody seems to be at work
_ANSWER = ("language", "question", "answer")


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation of a run by `metric`: its number and step, and those of the last."""

    metric: str
    value: float
    step: int
    last: float
    last_step: int


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was answered to one prompt: (step, answer), the first evaluation first."""

    language: str
    question: str
    given: Sequence[tuple[int, str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run. config: None where it cannot be read; notes: what is wrong with the files. now: unix seconds."""

    name: str
    place: Place
    records: Records
    config: Mapping[str, Any] | None
    notes: Sequence[str]
    now: float

    @functools.cached_property
    def start(self) -> Mapping[str, Any]:
        """The event of the newest start; {} without one."""
        return next((e for e in reversed(self.records.events) if e.get("event") == "start"), {})

    @property
    def step(self) -> int:
        """The last step whose numbers are there; 0 before one."""
        return self.records.train[-1]["step"] if self.records.train else 0

    @property
    def steps(self) -> int | None:
        """How many it will have."""
        steps = self.start.get("steps")
        return steps if type(steps) is int and steps > 0 else None

    @functools.cached_property
    def epochs_per_step(self) -> float | None:
        """Of the training rows, as the start says; of earlier versions by config.epochs, None without."""
        rows, of = _positive(self.start.get("rows")), _positive(self.start.get("rows_per_epoch"))
        if rows and of:
            return rows / of
        epochs = _positive(self.setting("epochs"))
        return epochs / self.steps if self.steps and epochs else None

    def setting(self, key: str) -> Any:
        """The value of a config key, "optim.lr"; None where it is not known."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def place_of(self, step: int) -> str:
        """ "step 1,200 (epoch 0.6)"."""
        if step == 0:
            return "step 0 (before training)"
        epochs = self.epochs_per_step
        return f"step {step:,}" + (f" (epoch {step * epochs:.3g})" if epochs else "")

    @functools.cached_property
    def seconds_a_step(self) -> float | None:
        """The middle of the recent steps, evaluations and saves between them left out; None where not known."""
        begun = self.start.get("time", 0.0)
        recent = [r for r in self.records.train[-_RECENT:] if r.get("time", -1.0) >= begun]
        pairs = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in zip(recent, recent[1:])]
        taken = [s for s in pairs if s >= 0]
        return statistics.median(taken) if taken else None

    @functools.cached_property
    def seconds_left(self) -> float | None:
        """Of the steps that are left, with evaluations and saves as often as they were; None where not known."""
        if self.seconds_a_step is None or self.steps is None:
            return None
        spent = self.records.goodput.seconds
        in_steps = spent["productive"] + spent["data_wait"]
        share = (spent["validation"] + spent["save"]) / in_steps if in_steps > 0 else 0.0
        return max(0, self.steps - self.step) * self.seconds_a_step * (1 + min(share, 10.0))

    @functools.cached_property
    def state(self) -> tuple[str, str]:
        """(one of "not begun", "running", "silent", "stopped", "finished"; the same in words)."""
        events: dict[str, Mapping[str, Any]] = {}
        for e in self.records.events:
            events = {} if e["event"] == "start" else {**events, e["event"]: e}
        if not self.start and not self.records.train:
            return "not begun", "has not begun"
        if self.steps is not None and self.step >= self.steps:
            return "finished", "finished"
        if early := events.get("stopped_early"):
            return "finished", f"ended early: {early.get('reason', 'no better evaluation')}"
        if stopped := events.get("stopped"):
            return "stopped", f"stopped by {stopped.get('signal', 'a signal')}; the same command goes on"
        if "end" in events:
            return "stopped", "stopped; the same command goes on"
        newest = (*self.records.train[-1:], *self.records.evals[-1:], *self.records.events[-1:])
        times = [r["time"] for r in newest if "time" in r]
        silence = self.now - max(times, default=self.now)
        if silence > max(_SILENT_S, 10 * (self.seconds_a_step or 0.0)):
            return "silent", f"no line for {clock(silence)}: killed, or at something long"
        return "running", "running"

    @property
    def best_metric(self) -> str:
        """Which number of an evaluation says which is the best."""
        metric = self.setting("checkpoint.best_metric")
        return metric if isinstance(metric, str) and metric else "validation/loss"

    @functools.cached_property
    def best(self) -> Best | None:
        """The best evaluation, the first of several that are as good; None before there is one."""
        for metric in dict.fromkeys((self.best_metric, "validation/loss")):
            best = best_of(metric, ((r["step"], r) for r in self.records.evals))
            if best is not None:
                last_step, last = [(s, v) for s, v in zip(*self.records.series(metric)) if math.isfinite(v)][-1]
                return Best(metric, best.value, best.step, last, last_step)
        return None

    @functools.cached_property
    def kept(self) -> list[int]:
        """Steps of its checkpoints, ascending. Raises WorkError: their folder cannot be read."""
        return list(step_folders(self.place))

    @functools.cached_property
    def contents(self) -> Sequence[Mapping[str, Any]]:
        """[{"source", "license", "language", "records"}] of the training data, from the newest checkpoint; () where it
        has none."""
        try:
            rows = read_meta(self.place, self.kept[-1])["data_state"]["contents"] if self.kept else []
            return [r for r in rows if _positive(r["records"]) and isinstance(r["language"], str) and r["source"]]
        except (OSError, WorkError, ValueError, KeyError, TypeError):
            return ()

    @functools.cached_property
    def answers(self) -> Sequence[Answers]:
        """To the fixed prompts, by language. What a later start took again is left out."""
        by_step: dict[int, Sequence[Any]] = {}
        for e in self.records.events:
            if e["event"] == "start":
                by_step = {s: a for s, a in by_step.items() if s <= e["step"] > 0}
            elif e["event"] == "answers" and isinstance(e.get("answers"), list):
                by_step[e["step"]] = e["answers"]
        given: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for step in sorted(by_step):
            for a in by_step[step]:
                if isinstance(a, Mapping) and all(isinstance(a.get(k), str) for k in _ANSWER):
                    given.setdefault((a["language"], a["question"]), []).append((step, a["answer"]))
        place = {language: k for k, language in enumerate(LANGUAGES)}
        ordered = sorted(given, key=lambda key: place.get(key[0], len(place)))
        return [Answers(*key, given[key]) for key in ordered]

    @property
    def resumes(self) -> list[int]:
        """Steps after which it was continued."""
        return sorted({e["step"] for e in self.records.events if e.get("event") == "start" and e["step"] > 0})


def read_run(run_dir: str | Place, name: str = "") -> Run:
    """The run of a run directory.

    Raises:
      UserError: no such directory, or it holds neither metrics nor a config.
    """
    place = parse_place(run_dir, "--run")
    storage = run_storage(place)
    if not storage.exists():
        raise UserError(f"--run={run_dir}: no such folder")
    notes: list[str] = []
    records = read_metrics(place)
    config = _read_config(place, notes)
    if config is None and not (records.train or records.evals or records.events):
        raise UserError(f"--run={run_dir}: holds neither metrics nor a run's config.json; is it a run directory?")
    return Run(name or storage.place.name, place, records, config, [*records.notes, *notes], time.time())


def named_places(text: str) -> list[tuple[str, Place]]:
    """[(name, run directory)] of --run=A,B or NAME=A,NAME=B; those without a name get as much of the end of their paths
    as tells them apart. A folder that has a comma or a "=" in its name stands for itself.

    Raises:
      UserError: nothing is named, or a name or a run twice.
    """
    parts = [text] if _is_folder(text) else [p.strip() for p in text.split(",") if p.strip()]
    if not parts:
        raise UserError(f"--run={text}: names no run")
    pairs = []
    for part in parts:
        name, sign, path = part.partition("=")
        alone = not sign or "/" in name or _is_folder(part)
        pairs.append(("", part) if alone else (name.strip(), path))
    places = [parse_place(path, "--run") for _, path in pairs]
    whole = [p if is_bucket(p) else p.resolve() for p in places]
    for k, place in enumerate(whole):
        if place in whole[:k]:
            raise UserError(f"--run={text}: {pairs[k][1]} is named twice")
    names = [name or tail for (name, _), tail in zip(pairs, tail_names(whole), strict=True)]
    for k, name in enumerate(names):
        if name in names[:k]:
            raise UserError(f"--run={text}: two runs are called '{name}'; name them as NAME=RUN_DIR")
    return list(zip(names, places, strict=True))


def read_runs(text: str) -> list[Run]:
    """The runs of --run, see named_places. Raises UserError."""
    return [read_run(place, name) for name, place in named_places(text)]


def _is_folder(text: str) -> bool:
    place = parse_place(text, "--run")
    return not is_bucket(place) and place.is_dir()


def _positive(v: Any) -> float | None:
    return v if isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < math.inf else None


def _read_config(run_dir: Place, notes: list[str]) -> dict[str, Any] | None:
    try:
        config = loads(read_bytes(run_dir / CONFIG_FILE))
        if isinstance(config, dict) and "model_type" not in config:
            training_keys(config, not_compared=())  # as the page will
            return config
        notes.append(f"{CONFIG_FILE}: {'of a model, not of a run' if isinstance(config, dict) else 'not an object'}")
    except BadJSON as e:
        notes.append(f"{CONFIG_FILE}: not readable ({e})")
    except (OSError, ValueError, TypeError, RecursionError) as e:
        notes.append(f"{CONFIG_FILE}: not readable ({type(e).__name__})")
    return None
