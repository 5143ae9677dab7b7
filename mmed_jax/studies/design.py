"""What a study is made of: steps that are ordinary commands, arms that end in a model, claims about two arms.

Recipes (configs/two_stage.py and others) build them with the functions below. Nothing is run here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, nearest

# What a step leaves in its folder, and the flag that names it.
RESULTS = {
    "train": ("run", "config.run_dir"),
    "export": ("model", "output"),
    "merge": ("model", "output"),
    "evaluate": ("results", "output"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One command. Two steps of equal command, settings and inputs are one, whichever arms they stand in.

    name: of letters, digits, - and _; it names the step's folder. command: of RESULTS. flags: {flag: value} without
    dashes; a value is text, a number, True (a bare switch; of a config key "true"), a mapping of names to numbers, a
    Step (its result), or a tuple of these. seed: of a study of several seeds, that of this step.
    """

    name: str
    command: str
    flags: Mapping[str, Any]
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"step '{self.name}': a name is of letters, digits, - and _")
        if self.command not in RESULTS:
            raise UserError(f"step {self.name}: '{self.command}' is no command of a study: {', '.join(RESULTS)}")

    @property
    def inputs(self) -> list["Step"]:
        """The steps whose results this one reads, in the order of its flags."""
        values = (v if isinstance(v, tuple | list) else (v,) for v in self.flags.values())
        return [part for group in values for part in group if isinstance(part, Step)]


Model = Step | str


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is compared: a name, the model that is evaluated (a step, or a folder), and what it is in words."""

    name: str
    model: Model
    text: str = ""

    def __post_init__(self) -> None:
        if not self.name or set("=/") & set(self.name) or not self.name.isprintable():
            raise UserError(f"arm '{self.name}': a name has no = and no /, and is one line")


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is to be seen: the arm `better` is better than `worse`, in a column ("zh") or, "", over all of them."""

    text: str
    better: str
    worse: str
    column: str = ""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What every arm is asked: flags of evaluate but for the model and the folder of the results."""

    name: str
    flags: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Design:
    """The arms of a study, what they are asked and what is claimed of them.

    compared_with: the arm that all others are compared with; "" = the first.
    """

    arms: tuple[Arm, ...]
    benchmarks: tuple[Benchmark, ...]
    claims: tuple[Claim, ...] = ()
    compared_with: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or not self.benchmarks:
            raise UserError("a study has at least one arm and one benchmark")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two arms are called '{name}'")
        boards = [benchmark.name for benchmark in self.benchmarks]
        for name in boards:
            if boards.count(name) > 1:
                raise UserError(f"two benchmarks are called '{name}'")
        named = [n for c in self.claims for n in (c.better, c.worse)]
        for name in (*named, *([self.compared_with] if self.compared_with else [])):
            if name not in names:
                raise UserError(f"no arm is called '{name}'; there are {', '.join(names)}")


@dataclasses.dataclass(frozen=True)
class Study:
    """What get_study of a recipe returns.

    question: what is asked, in words. settings: from `settings()`, with keys of the recipe's own; the command line
    changes them before `design` makes the arms of them. expect: what a reader should know of the result beforehand.
    """

    question: str
    settings: ConfigDict
    design: Callable[[ConfigDict], Design]
    expect: str = ""


def settings(name: str, variant: str) -> ConfigDict:
    """The keys that every study has.

    seeds: the trainings of each are run and compared. arms: names of those that are wanted, () = all. base: the weights
    that all arms start from. benchmark, data_dir, data, mode, prompt_family, limit, languages: of the questions, as
    evaluate takes them. texts: held-out texts for bits per byte, () for none. topology, price: where trainings are
    planned for by --dry_run, and what a chip and hour costs.
    """
    c = ConfigDict()
    c.name, c.variant = name, variant
    c.seeds = ("0",)
    c.arms = ()
    c.base = ""
    c.benchmark, c.data_dir, c.data = "", "", ()
    c.mode, c.prompt_family = "direct", ""
    c.limit = 0
    c.languages = ()
    c.texts = ()
    c.topology = ""
    c.price = 0.0
    return c


def train(name: str, config: str, start: Model | None = None, keys: Mapping[str, Any] | None = None) -> Step:
    """A training: `python -m mmed_jax.train --config=CONFIG` with other keys, from the weights `start`.

    start: None = as the recipe has it; "" = random weights.
    """
    flags: dict[str, Any] = {"config": config}
    if start is not None:
        flags["config.init_from"] = start
    return Step(name, "train", {**flags, **{f"config.{k}": v for k, v in (keys or {}).items()}})


def export(name: str, model: Model, flags: Mapping[str, Any] | None = None) -> Step:
    """A Hugging Face folder of a run."""
    return Step(name, "export", {"model": model, **(flags or {})})


def merge(name: str, models: tuple[Model, ...], weights: str = "") -> Step:
    """The average of Hugging Face folders; weights as the flag of `python -m mmed_jax.merge`."""
    return Step(name, "merge", {"models": models, **({"weights": weights} if weights else {})})


def benchmarks(c: ConfigDict) -> tuple[Benchmark, ...]:
    """What the settings ask of every arm: questions, and held-out texts where some are named.

    Raises UserError: neither is named.
    """
    out = []
    languages = {"languages": tuple(c.languages)} if c.languages else {}
    limit = {"limit": c.limit} if c.limit else {}
    if c.benchmark and c.data:
        raise UserError("config.benchmark and config.data: both are set; empty one of them, as --config.benchmark=")
    if c.benchmark or c.data:
        asked = {"benchmark": c.benchmark, "data_dir": c.data_dir} if c.benchmark else {"data": tuple(c.data)}
        family = {"prompt_family": c.prompt_family} if c.prompt_family else {}
        out.append(Benchmark("questions", {**asked, "mode": c.mode, **family, **languages, **limit}))
    if c.texts:
        out.append(Benchmark("texts", {"perplexity": tuple(c.texts), **languages, **limit}))
    if not out:
        raise UserError("config.benchmark, config.data and config.texts are empty: name what the arms are asked")
    return tuple(out)


def choose_arms(design: Design, names: Sequence[str]) -> Design:
    """The design with the arms of these names alone, () = all, and the claims about them. Raises UserError."""
    if not names:
        return design
    known = [arm.name for arm in design.arms]
    for name in names:
        if name not in known:
            raise UserError(f"config.arms: no arm is called '{name}'{nearest(name, known)}")
    claims = tuple(c for c in design.claims if {c.better, c.worse} <= set(names))
    compared_with = design.compared_with if design.compared_with in names else ""
    arms = tuple(arm for arm in design.arms if arm.name in names)
    return dataclasses.replace(design, arms=arms, claims=claims, compared_with=compared_with)


def map_steps(design: Design, change: Callable[[Step], Step]) -> Design:
    """The design with `change` of every step; called once a step, with its inputs changed already."""
    made: dict[int, Step] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(visit, value))
        if not isinstance(value, Step):
            return value
        if id(value) not in made:
            made[id(value)] = change(dataclasses.replace(value, flags={k: visit(v) for k, v in value.flags.items()}))
        return made[id(value)]

    arms = tuple(dataclasses.replace(arm, model=visit(arm.model)) for arm in design.arms)
    return dataclasses.replace(design, arms=arms)


def with_seed(design: Design, seed: int) -> Design:
    """The design with `seed` in every training that names none; what comes of one has it as its own."""

    def seeded(step: Step) -> Step:
        drawn = step.command == "train" and "config.seed" not in step.flags
        flags = {**step.flags, "config.seed": seed} if drawn else step.flags
        varies = drawn or any(s.seed is not None for s in step.inputs)
        return dataclasses.replace(step, flags=flags, seed=seed if varies else None)

    return map_steps(design, seeded)


# Flags that are no user's to set for all steps of a command, and what is to be done instead.
_OF_STUDY = {
    ("train", "config.init_from"): "its arms say what each training starts from; --config.base=FOLDER sets their base",
    ("train", "config.run_dir"): "the study names the folders of its steps; --output=DIR holds them",
    ("train", "config.seed"): "the seeds of a study are --seeds=1,2,3",
    ("evaluate", "model"): "every arm's own model is asked; --config.base=FOLDER sets what they start from",
    ("evaluate", "output"): "the study names the folders of its steps; --output=DIR holds them",
}


def _own_values(design: Design, command: str, flag: str) -> list[Any]:
    """The different values that the steps of a command have for a flag."""
    values: list[Any] = []

    def note(step: Step) -> Step:
        if step.command == command and flag in step.flags and step.flags[flag] not in values:
            values.append(step.flags[flag])
        return step

    map_steps(design, note)
    return values


def with_flags(design: Design, added: Mapping[str, Mapping[str, Any]]) -> Design:
    """The design with further flags in all steps of a command: {"train": {"config.log_every": "100"}}.

    Raises:
      UserError: one that the study itself sets, or by which its steps differ: they would be equal afterwards.
    """
    for command, flags in added.items():
        for flag in flags:
            shown = f"--{command}.{flag.removeprefix('config.')}"
            if reason := _OF_STUDY.get((command, flag)):
                raise UserError(f"{shown}: {reason}")
            if len(_own_values(design, command, flag)) > 1:
                raise UserError(f"{shown}: the steps of this study differ by it, so it is not set for all of them")

    def flagged(step: Step) -> Step:
        return dataclasses.replace(step, flags={**step.flags, **added.get(step.command, {})})

    asked = [dataclasses.replace(b, flags={**b.flags, **added.get("evaluate", {})}) for b in design.benchmarks]
    return dataclasses.replace(map_steps(design, flagged), benchmarks=tuple(asked))
