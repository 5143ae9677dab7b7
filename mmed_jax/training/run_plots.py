"""The numbers of a run as plots: curves for the page, several runs over each other, and plots/*.png."""

import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmed_jax.checkpoints.metrics_file import Records
from mmed_jax.common.curves import Mark, Series, curves, half_window, rolling_median, thinned
from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES
from mmed_jax.training.run_files import Run

_COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8a5cc2", "#c77d17", "#3a3a3a", "#0f9aa8")
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

    file: str
    title: str
    keys: Sequence[str]
    unit: str
    compared: int = 0
    in_page_only: bool = False


def plots(names: set[str]) -> list[Plot]:
    """What is drawn of runs that have the numbers `names`."""
    by_language = _languages(names, "validation/loss/") or _languages(names, "loss/")
    where = "Validation" if by_language and by_language[0].startswith("validation/") else "Training"
    accuracy, bits = ([k, *_languages(names, f"{k}/")] for k in ("validation/accuracy", "validation/bits_per_byte"))
    memory = ("device_memory_peak_gib", "host_memory_peak_gib", "device_memory_gib", "host_memory_gib")
    nats = "nats per supervised token"
    return [
        Plot("loss", "Loss", ("loss", "validation/loss"), nats),
        Plot("accuracy", "Validation questions answered right", accuracy, "share"),
        Plot("loss_by_language", f"{where} loss by language", by_language, nats),
        Plot(
            "bits_per_byte",
            "Validation, bits per byte of text",
            bits,
            "bits per byte",
        ),
        Plot("learning_rate", "Learning rate", ("lr",), "learning rate"),
        Plot("grad_norm", "Gradient norm (before clipping)", ("grad_norm",), "global norm"),
        Plot("tokens_per_second", "Speed", ("tokens_per_second", "supervised_tokens_per_second"), "tokens a second", 1),
        Plot("data_wait", "Waiting for data", ("data_wait_share",), "share of the step's time", 1, True),
        Plot("memory", "Memory", memory, "GiB", 2, True),
    ]


def page_plots(runs: Sequence[Run]) -> list[Markup]:
    """The plots of a page about these runs, those that have a point."""
    names = {k for run in runs for r in (*run.records.train, *run.records.evals) for k in r}
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


# plots/*.png


def write_plots(folder: Path, records: Records) -> None:
    """One PNG for every group of numbers that has a point. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {k for r in (*records.train, *records.evals) for k in r}
    resumes = sorted({e["step"] for e in records.events if e.get("event") == "start" and e["step"] > 0})
    for plot in plots(names):
        lines = [(k, *records.series(k)) for k in plot.keys]
        lines = [(k, steps, values) for k, steps, values in lines if steps]
        path = folder / f"{plot.file}.png"
        if lines and not plot.in_page_only:
            _draw_png(path, plot, lines, resumes)
        else:
            path.unlink(missing_ok=True)


def _draw_png(path: Path, plot: Plot, lines: list, resumes: list[int]) -> None:
    # Without a home it keeps its fonts in a temporary folder, which is no news.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # The object interface, not pyplot: no global state, no display, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bad_steps = []
    for i, (key, steps, values) in enumerate(lines):
        bad_steps += [s for s, v in zip(steps, values) if not math.isfinite(v)]
        _draw_series(axes, key, steps, values, _COLOURS[i % len(_COLOURS)])
    _mark_steps(axes, resumes, sorted(set(bad_steps)))
    axes.set_title(plot.title, fontsize=12)
    axes.set_xlabel("step", fontsize=11)
    axes.set_ylabel(plot.unit, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=9, framealpha=0.8)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    os.replace(temporary, path)


def _draw_series(axes: Any, key: str, steps: list[int], values: list[float], colour: str) -> None:
    finite = [(s, v) for s, v in zip(steps, values) if math.isfinite(v)]
    if not finite:
        return
    xs, ys = [s for s, _ in finite], [v for _, v in finite]
    noisy = len(xs) > 200 and not key.startswith(_NOT_SMOOTHED)
    axes.plot(
        xs,
        ys,
        color=colour,
        lw=1.0 if noisy else 1.6,
        alpha=0.35 if noisy else 1.0,
        marker="o" if len(xs) <= 40 else None,
        ms=4,
        label=None if noisy else label(key),
    )
    if noisy:
        few_x, few_y = thinned(xs, ys)
        smoothed = rolling_median(few_y, half_window(len(few_y), 5))
        axes.plot(few_x, smoothed, color=colour, lw=1.8, label=f"{label(key)} (rolling median)")


def _mark_steps(axes: Any, resumes: list[int], bad_steps: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, step in enumerate(resumes):
        axes.axvline(step, color="#999999", lw=0.9, ls=":", label="resumed" if i == 0 else None)
    if bad_steps:
        top = axes.get_xaxis_transform()  # x in steps, y in 0..1 of the axes
        axes.plot(bad_steps, [0.97] * len(bad_steps), "x", color="#d1495b", transform=top, label="NaN or infinite")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
