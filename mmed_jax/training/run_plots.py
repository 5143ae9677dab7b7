"""The numbers of a run, or of several over each other, as the curves of a page."""

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from mmed_jax.common.curves import Mark, Series, curves
from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES
from mmed_jax.training.run_files import Run

_LABELS = {
    "loss": "training",
    "validation/loss": "validation",
    "validation/bits_per_byte": "all",
    "validation/accuracy": "all",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "real tokens (no padding)",
    "supervised_tokens_per_second": "supervised tokens",
    "data_wait_share": "waiting for data",
    "device_memory_peak_gib": "device, peak",
    "device_memory_gib": "device",
    "host_memory_peak_gib": "host, peak",
    "host_memory_gib": "host",
}
# Without noise, or too few to tell: drawn as they are, however many points there are.
_NOT_SMOOTHED = ("lr", "validation/", "device_memory", "host_memory")


@dataclasses.dataclass(frozen=True)
class Plot:
    """Numbers that are drawn together. compared: of several runs only so many of the keys that there are, 0 = all."""

    title: str
    keys: Sequence[str]
    unit: str
    compared: int = 0


def plots(names: set[str]) -> list[Plot]:
    """What is drawn of runs that have the numbers `names`."""
    by_language = _languages(names, "validation/loss/") or _languages(names, "loss/")
    where = "Validation" if by_language and by_language[0].startswith("validation/") else "Training"
    accuracy, bits = ([k, *_languages(names, f"{k}/")] for k in ("validation/accuracy", "validation/bits_per_byte"))
    memory = ("device_memory_peak_gib", "host_memory_peak_gib", "device_memory_gib", "host_memory_gib")
    nats = "nats per supervised token"
    return [
        Plot("Loss", ("loss", "validation/loss"), nats),
        Plot("Validation questions answered right", accuracy, "share"),
        Plot(f"{where} loss by language", by_language, nats),
        Plot(
            "Validation, bits per byte of text",
            bits,
            "bits per byte",
        ),
        Plot("Learning rate", ("lr",), "learning rate"),
        Plot("Gradient norm (before clipping)", ("grad_norm",), "global norm"),
        Plot("Speed", ("tokens_per_second", "supervised_tokens_per_second"), "tokens a second", 1),
        Plot("Waiting for data", ("data_wait_share",), "share of the step's time", 1),
        Plot("Memory", memory, "GiB", 2),
    ]


def page_plots(runs: Sequence[Run]) -> list[Markup]:
    """The plots of a page about these runs, those that have a point."""
    names = {k for run in runs for k in run.records.columns}
    alone = len(runs) == 1
    marks = [mark for run in runs for mark in _marks(run)] if alone else []
    drawn = []
    for plot in plots(names):
        keys = [k for k in plot.keys if k in names]
        keys = keys if alone or not plot.compared else keys[: plot.compared]
        by_language = any(_language(k) for k in keys)
        lines = []
        for key in keys:
            for run in runs:
                steps, values = run.records.series(key)
                text = label(key) if alone else f"{run.name}: {label(key)}" if len(keys) > 1 else run.name
                colour = "" if alone else label(key) if by_language else run.name
                smooth = not key.startswith(_NOT_SMOOTHED)
                lines.append(Series(text, steps, values, colour, smooth, run.epochs_per_step))
        drawn.append(curves(plot.title, lines, unit=plot.unit, marks=marks))
    return [figure for figure in drawn if figure]


def label(key: str) -> str:
    """A number's name in a legend."""
    return _LABELS.get(key) or LANGUAGE_NAMES.get(_language(key), key.rsplit("/", 1)[-1])


def _language(key: str) -> str:
    last = key.rsplit("/", 1)[-1]
    return last if "/" in key and last in LANGUAGES else ""


def _languages(names: set[str], prefix: str) -> list[str]:
    found = {k for k in names if k.startswith(prefix)}
    known = [prefix + x for x in LANGUAGES if prefix + x in found]
    return known + sorted(found - set(known))


def _marks(run: Run) -> list[Mark]:
    marks = [Mark(s, "resumed", run.epochs_per_step) for s in run.resumes]
    if run.best is not None and len(run.records.evals) > 1:
        marks.append(Mark(run.best.step, "best evaluation", run.epochs_per_step))
    return marks
