"""The steps of a study in the order in which they are run, each once, with its folder; what of them is done."""

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.common.hashes import json_hash
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.output_files import write_json
from mmed_jax.studies.design import (
    RESULTS,
    Arm,
    Benchmark,
    Claim,
    Design,
    Step,
    Study,
    choose_arms,
    with_flags,
    with_seed,
)
from mmed_jax.studies.open_study import seeds_of
from mmed_jax.studies.step_key import flags_text, key_of, settings_of
from mmed_jax.training.run_files import read_run

STATE_FILE, LOG_FILE, NAME_FILE = "step.json", "log.txt", "study.json"
STEPS = "steps"
SCHEMA = 1
_LONGEST_SLUG = 60
DONE, RUNNING, FAILED, UNFINISHED, SUBMITTED = "done", "running", "failed", "unfinished", "submitted"


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A step with its place.

    label: unique in a study. key: hash of all that decides the result (step_key). settings: of that. needs: the tasks
    that come before. flags: as of the command, results of other steps as paths. arms: that use it.
    """

    step: Step
    label: str
    key: str
    settings: Mapping[str, Any]
    folder: Path
    needs: tuple["Task", ...]
    flags: Mapping[str, Any]
    arms: list[str] = dataclasses.field(default_factory=list)

    @property
    def result(self) -> Path:
        """What it leaves: a run directory, a model's folder, or results of an evaluation."""
        return self.folder / RESULTS[self.step.command][0]

    @property
    def log(self) -> Path:
        return self.folder / LOG_FILE

    @property
    def arguments(self) -> list[str]:
        """Of its command, that of the result included."""
        return flags_text({**self.flags, RESULTS[self.step.command][1]: str(self.result)})

    def shell(self, python: str = "python") -> str:
        """The line that runs it in a shell."""
        return f"{python} -m mmed_jax.{self.step.command} {shlex.join(self.arguments)}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """An arm with one seed (None: it has none), and its evaluations by benchmark."""

    arm: Arm
    seed: int | None
    model: Task | None
    evaluations: Mapping[str, Task]

    @property
    def name(self) -> str:
        """As tables call it."""
        return self.arm.name if self.seed is None else f"{self.arm.name}, seed {self.seed}"

    @property
    def chain(self) -> list[Task]:
        """The tasks that make its model, in order."""
        out: list[Task] = []

        def visit(task: Task) -> None:
            for need in task.needs:
                visit(need)
            if task not in out:
                out.append(task)

        if self.model:
            visit(self.model)
        return out


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study laid out in a folder: its tasks in order and the trials that they make up."""

    study: Study
    folder: Path
    tasks: tuple[Task, ...]
    trials: tuple[Trial, ...]
    benchmarks: tuple[Benchmark, ...]
    claims: tuple[Claim, ...]
    compared_with: str


def lay_out(study: Study, folder: Path, added: Mapping[str, Mapping[str, Any]] | None = None) -> Plan:
    """The tasks of a study; settings are checked as the commands check them, no device is touched, nothing is written.

    Args:
      folder: of all results. added: further flags of all steps of a command.

    Raises:
      UserError: settings that train refuses, names that stand for two things.
    """
    design = choose_arms(with_flags(study.design(study.settings), added or {}), study.settings.arms)
    seeds = seeds_of(study)
    layout = _Layout(folder, several=len(seeds) > 1)
    trials: dict[tuple[str, int | None], Trial] = {}
    for seed in seeds:
        seeded = with_seed(design, seed)
        for arm in seeded.arms:
            trial = layout.trial(arm, seeded, seed)
            trials.setdefault((arm.name, trial.seed), trial)
    ordered = sorted(trials.values(), key=lambda t: [a.name for a in design.arms].index(t.arm.name))
    compared_with = design.compared_with or design.arms[0].name
    return Plan(
        study, folder, tuple(layout.tasks.values()), tuple(ordered), design.benchmarks, design.claims, compared_with
    )


class _Layout:
    """Tasks as they are met, by key."""

    def __init__(self, folder: Path, several: bool) -> None:
        self._folder, self._several = folder, several
        self.tasks: dict[str, Task] = {}
        self._of_step: dict[int, Task] = {}
        self._kept: list[Step] = []  # so that no other step gets the id of one that is gone

    def trial(self, arm: Arm, design: Design, seed: int) -> Trial:
        model = self._task(arm.model, arm.name) if isinstance(arm.model, Step) else None
        evaluations = {}
        for benchmark in design.benchmarks:
            own_seed = arm.model.seed if isinstance(arm.model, Step) else None
            step = Step(
                f"{_slug(arm.name)}-{benchmark.name}", "evaluate", {"model": arm.model, **benchmark.flags}, own_seed
            )
            evaluations[benchmark.name] = self._task(step, arm.name)
        varies = self._several and isinstance(arm.model, Step) and arm.model.seed is not None
        return Trial(arm, seed if varies else None, model, evaluations)

    def _task(self, step: Step, arm: str) -> Task:
        if id(step) in self._of_step:
            task = self._of_step[id(step)]
            self._name_arm(task, arm)
            return task
        needs = tuple(self._task(s, arm) for s in step.inputs)
        of = dict(zip(step.inputs, needs))
        settings = settings_of(step, {s: t.key for s, t in of.items()})
        key = key_of(step, settings)
        if key not in self.tasks:
            label = step.name + (f"-seed{step.seed}" if self._several and step.seed is not None else "")
            if any(t.label == label for t in self.tasks.values()):
                raise UserError(f"step {label}: two steps of different settings have this name")
            flags = {k: _paths(v, of) for k, v in step.flags.items()}
            # Without the seed, which the key covers: a study that gets more seeds keeps what it has.
            place = self._folder / STEPS / f"{step.name}-{key[:8]}"
            self.tasks[key] = Task(step, label, key, settings, place, tuple(dict.fromkeys(needs)), flags)
        self._of_step[id(step)] = self.tasks[key]
        self._kept.append(step)
        self._name_arm(self.tasks[key], arm)
        return self.tasks[key]

    def _name_arm(self, task: Task, arm: str) -> None:
        if arm not in task.arms:
            task.arms.append(arm)
            for need in task.needs:
                self._name_arm(need, arm)


def _slug(name: str) -> str:
    """An arm's name as a step's; of another script, with a hash that keeps two of them apart."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in name).split()
    slug = "-".join(words).lower()[:_LONGEST_SLUG].strip("-") or "arm"
    return slug if name.isascii() and len(name) <= _LONGEST_SLUG else f"{slug}-{json_hash(name, 6)}"


def _paths(value: Any, of: Mapping[Step, Task]) -> Any:
    """A value with the results of tasks in the place of steps."""
    if isinstance(value, tuple | list):
        return tuple(_paths(v, of) for v in value)
    return str(of[value].result) if isinstance(value, Step) else value


# ---- What is done ---------------------------------------------------------------------------------------------------


def read_state(folder: Path) -> dict[str, Any]:
    """step.json of a step's folder; {} where there is none that can be read."""
    try:
        return loads((folder / STATE_FILE).read_bytes(), dict)
    except (OSError, BadJSON):
        return {}


def write_state(task: Task, state: str, **facts: Any) -> None:
    """Puts step.json of a task, whole; what it held besides is kept. Raises WorkError."""
    task.folder.mkdir(parents=True, exist_ok=True)
    known = {k: v for k, v in read_state(task.folder).items() if k in ("seconds", "calls", "job")}
    values = {
        "schema": SCHEMA,
        "state": state,
        "time": time.time(),
        "label": task.label,
        "name": task.step.name,
        "seed": task.step.seed,
        "key": task.key,
        "command": task.shell(),
        "settings": task.settings,
    }
    write_json(task.folder / STATE_FILE, {**known, **values, **facts})


def name_of(plan: Plan) -> str:
    """NAME:VARIANT of a study."""
    c = plan.study.settings
    return c.name + (f":{c.variant}" if c.variant else "")


def keep_name(plan: Plan) -> None:
    """Writes to a study's folder whose it is. Raises UserError: another study's, whose report would be replaced."""
    path = plan.folder / NAME_FILE
    try:
        known = loads(path.read_bytes(), dict).get("study")
    except (OSError, BadJSON):
        known = None
    name = name_of(plan)
    if known is None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": SCHEMA, "study": name})
    elif known != name:
        raise UserError(f"--output={plan.folder}: is the folder of the study {known}; name another one for {name}")


def is_done(task: Task) -> bool:
    """Whether its result is there and whole: by its state, or, of a step that another launcher ran, by its files."""
    if not task.result.is_dir() or not any(task.result.iterdir()):
        return False
    state = read_state(task.folder)
    return (state.get("state") == DONE and state.get("key") == task.key) or _is_whole(task)


def _is_whole(task: Task) -> bool:
    if task.step.command == "evaluate":
        return (task.result / "results.json").is_file() and (task.result / "report.html").is_file()
    if task.step.command != "train":
        return (task.result / "config.json").is_file()  # the folder got its name when it was whole
    try:
        run = read_run(task.result)
    except UserError:  # it has written nothing yet
        return False
    ended = run.records.events and run.records.events[-1]["event"] == "end"  # written when the last save was whole
    return bool(ended) and run.state[0] == "finished"


def changed_settings(task: Task, tasks: Sequence[Task]) -> str:
    """What differs from the newest step of this name and seed with other settings, in one line; "" for none."""
    ours = {t.folder for t in tasks}
    others = []
    with contextlib.suppress(OSError):
        for folder in task.folder.parent.glob(f"{task.step.name}-????????"):
            state = read_state(folder)
            if folder not in ours and (state.get("name"), state.get("seed")) == (task.step.name, task.step.seed):
                others.append((float(state.get("time", 0.0)), folder, state))
    if not others or task.folder.exists():
        return ""
    _, folder, state = max(others, key=lambda x: x[0])
    before, now = state.get("settings", {}), task.settings
    differing = [k for k in {**now, **before} if _json(before.get(k)) != _json(now.get(k))]
    shown = [f"{k}: {_short(before.get(k))} there, {_short(now.get(k))} now" for k in differing[:3]]
    more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f"settings differ from those of {folder.name} ({'; '.join(shown)}{more}): made anew"


def _json(value: Any) -> Any:
    return [_json(v) for v in value] if isinstance(value, tuple | list) else value


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
