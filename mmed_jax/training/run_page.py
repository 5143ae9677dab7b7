"""The page about a run, report.html, with its curves: made from the files of the run directory alone, without jax."""

import base64
import dataclasses
import io
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed_jax.checkpoints.metrics_file import Records, read_metrics
from mmed_jax.checkpoints.run_directory import CONFIG_FILE, read_meta, run_storage, step_folders
from mmed_jax.common.errors import UserError, WorkError, one_line, warn
from mmed_jax.common.html_page import Cell, render
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.output_files import write_text
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import Place, parse_place
from mmed_jax.common.progress import clock
from mmed_jax.config.resume import training_keys
from mmed_jax.data.records.schema import LANGUAGE_NAMES

PAGE = "report.html"
_COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8a5cc2", "#c77d17", "#3a3a3a", "#0f9aa8")


def make_report(run_dir: str | Place) -> Place:
    """Writes plots and report.html of a run directory; returns the path of the page.

    Any number of points will do, also none, as will NaN, a torn last line, or a missing config: what is wrong with the
    files stands in the report.

    Raises:
      UserError: no such directory, or it holds neither metrics nor a config; or it cannot be written.
    """
    run_dir = parse_place(run_dir, "--run")
    storage = run_storage(run_dir)
    if not storage.exists():
        raise UserError(f"--run={run_dir}: no such folder")
    records, notes = read_metrics(run_dir), []
    config = _read_config(run_dir, notes)
    if config is None and not (records.train or records.evals or records.events):
        raise UserError(f"--run={run_dir}: holds neither metrics nor a run's config.json; is it a run directory?")
    notes = [*records.notes, *notes]
    try:
        with storage.put_files() as folder:
            plots = write_plots(folder / "plots", records)
            write_text(folder / PAGE, _page(run_dir, records, config, plots, notes))
    except OSError as e:
        raise UserError(f"--run={run_dir}: the report cannot be written there ({e.strerror or e})") from e
    return run_dir / PAGE


def try_report(run_dir: Place) -> None:
    """As make_report; where the page cannot be written that is a warning, for all that it shows is saved."""
    try:
        make_report(run_dir)
    except (UserError, WorkError, OSError) as e:
        warn(f"no report: {one_line(e)}; python -m mmed_jax.report --run={run_dir} makes it")


_LABELS = {
    "loss": "training",
    "validation/loss": "validation",
    "validation/bits_per_byte": "all",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "real tokens (no padding)",
    "supervised_tokens_per_second": "supervised tokens",
}

# Set by the recipe, and so without noise: drawn as they are, however many points there are.
_DETERMINISTIC = ("lr",)

# Plots


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot as SVG. It stands in the page as an image, where nothing in it can be run or fetch anything."""

    title: str
    svg: bytes

    @property
    def data_uri(self) -> str:
        """What `src` of an image is."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def write_plots(folder: Path, records: Records) -> list[Plot]:
    """One PNG for every group of numbers that has a point, and the same as SVG for the page. Raises OSError."""
    names = sorted({k for r in (*records.train, *records.evals) for k in r})
    by_language = [k for k in names if k.startswith("validation/loss/")] or [k for k in names if k.startswith("loss/")]
    where = "Validation" if by_language and by_language[0].startswith("validation/") else "Training"
    bits = [k for k in names if k.startswith("validation/bits_per_byte")]
    wanted: list[tuple[str, str, Sequence[str], str]] = [
        ("loss", "Loss", ("loss", "validation/loss"), "nats per supervised token"),
        ("loss_by_language", f"{where} loss by language", by_language, "nats per supervised token"),
        ("bits_per_byte", "Validation, bits per byte of text", bits, "bits per byte"),
        ("learning_rate", "Learning rate", ("lr",), "learning rate"),
        ("grad_norm", "Gradient norm (before clipping)", ("grad_norm",), "global norm"),
        ("tokens_per_second", "Speed", ("tokens_per_second", "supervised_tokens_per_second"), "tokens a second"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    resumes = _resumes(records)
    plots = []
    for file, title, keys, unit in wanted:
        series = [(k, *records.series(k)) for k in keys]
        series = [(k, steps, values) for k, steps, values in series if steps]
        path = folder / f"{file}.png"
        if series:
            plots.append(_plot(path, title, unit, series, resumes))
        else:
            path.unlink(missing_ok=True)
    return plots


def _plot(path: Path, title: str, unit: str, series: list, resumes: list[int]) -> Plot:
    # Without a home it keeps its fonts in a temporary folder, which is no news.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # The object interface, not pyplot: no global state, no display, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # So small that its text can be read where the page is as narrow as a phone.
    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bad_steps = []
    for i, (name, steps, values) in enumerate(series):
        bad_steps += [s for s, v in zip(steps, values) if not math.isfinite(v)]
        _draw_series(axes, name, steps, values, _COLOURS[i % len(_COLOURS)])
    _mark_steps(axes, resumes, sorted(set(bad_steps)))
    axes.set_title(title, fontsize=12)
    axes.set_xlabel("step", fontsize=11)
    axes.set_ylabel(unit, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=9, framealpha=0.8)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    os.replace(temporary, path)
    figure.set_layout_engine("none")  # laid out already, which takes most of the time
    svg = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return Plot(title, svg.getvalue())


def _draw_series(axes: Any, name: str, steps: list[int], values: list[float], colour: str) -> None:
    finite = [(s, v) for s, v in zip(steps, values) if math.isfinite(v)]
    if not finite:
        return
    xs, ys = [s for s, _ in finite], [v for _, v in finite]
    noisy = len(xs) > 200 and name not in _DETERMINISTIC
    axes.plot(
        xs,
        ys,
        color=colour,
        lw=1.0 if noisy else 1.6,
        alpha=0.35 if noisy else 1.0,
        marker="o" if len(xs) <= 40 else None,
        ms=4,
        label=None if noisy else _label(name),
    )
    if noisy:
        axes.plot(*_rolling_median(xs, ys), color=colour, lw=1.8, label=f"{_label(name)} (rolling median)")


def _mark_steps(axes: Any, resumes: list[int], bad_steps: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, step in enumerate(resumes):
        axes.axvline(step, color="#999999", lw=0.9, ls=":", label="resumed" if i == 0 else None)
    if bad_steps:
        top = axes.get_xaxis_transform()  # x in steps, y in 0..1 of the axes
        axes.plot(bad_steps, [0.97] * len(bad_steps), "x", color="#d1495b", transform=top, label="NaN or infinite")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    return _LABELS.get(name) or LANGUAGE_NAMES.get(last, last)


def _rolling_median(xs: list[int], ys: list[float]) -> tuple[list[int], list[float]]:
    # At most some 300 places, so that a run of a million steps is drawn in seconds too.
    width = max(5, len(ys) // 60)
    places = sorted({*range(0, len(ys), max(1, len(ys) // 300)), len(ys) - 1})
    return [xs[i] for i in places], [statistics.median(ys[max(0, i - width) : i + width + 1]) for i in places]


# Page


def _page(run_dir: Place, records: Records, config: dict | None, plots: list[Plot], notes: list[str]) -> str:
    return render(
        "training_report.html",
        title=run_storage(run_dir).place.name,
        recipe=f"{config.get('name', '')}:{config.get('variant', '')}" if config else "",
        now=_now(),
        notes=notes,
        bad_steps=[s for s, v in zip(*records.series("loss")) if not math.isfinite(v)],
        numbers=_final_numbers(run_dir, records),
        goodput=records.goodput.describe(),
        time_parts=records.goodput.rows(),
        languages=_language_rows(records),
        plots=plots,
        events=_event_rows(records),
        config=[(k, _short(v)) for k, v in training_keys(config, not_compared=()).items()] if config else [],
    )


def _final_numbers(run_dir: Place, records: Records) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    start = next((e for e in reversed(records.events) if e.get("event") == "start"), {})
    last = records.train[-1] if records.train else {}
    if last:
        total = start.get("steps")
        rows.append(("last step", f"{last['step']:,}" + (f" of {total:,}" if isinstance(total, int) else "")))
    for key, text in [
        ("loss", "training loss, last"),
        ("lr", "learning rate"),
        ("grad_norm", "gradient norm"),
        ("tokens_seen", "tokens seen (no padding)"),
        ("device_memory_peak_gib", "device memory, peak (GiB)"),
        ("host_memory_gib", "host memory (GiB)"),
        ("host_memory_peak_gib", "host memory, peak (GiB)"),
        ("compile_count", "compilations of the step"),
        ("compile_seconds", "seconds of compiling it"),
        ("compile_cache_hits", "programs from the compile cache"),
        ("startup_seconds", "seconds from the start of the process to the first step"),
    ]:
        values = records.series(key)[1] or Records(train=records.events).series(key)[1]
        if values:
            rows.append((text, _number(values[-1])))
    for key, text in [
        ("tokens_per_second", "tokens a second, median"),
        ("supervised_tokens_per_second", "supervised tokens a second, median"),
        ("step_seconds", "seconds a step, median"),
        ("data_wait_seconds", "of these waiting for data, median"),
        ("mfu", "MFU, median"),
    ]:
        values = [v for v in records.series(key)[1] if math.isfinite(v)]
        if values:
            middle = statistics.median(values)
            rows.append((text, f"{middle:.1%}" if key == "mfu" else _number(middle)))
    waited, seconds = (sum(records.series(k)[1]) for k in ("data_wait_seconds", "step_seconds"))
    if seconds:
        rows.append(("share of all steps' time waiting for data", f"{waited / seconds:.2%}"))
    if start.get("mfu_formula") and records.series("mfu")[1]:
        flops = start.get("peak_flops_per_device")
        each = _number(flops if isinstance(flops, int | float) else 0.0)
        peak = f"; {start.get('peak_device', '')}, peak {each} each"
        rows.append(("how MFU is computed", f"{start['mfu_formula']}{peak}"))
    for name in ("loss", "perplexity", "bits_per_byte"):
        rows += _last_and_best(f"validation {name.replace('_', ' ')}", *records.series(f"validation/{name}"))
    if resumes := _resumes(records):
        rows.append(("resumed after step", ", ".join(f"{s:,}" for s in resumes)))
    times = [r["time"] for r in records.train if isinstance(r.get("time"), (int, float))]
    if len(times) > 1:
        rows.append(("first to last step", clock(max(times) - min(times))))
    if kept := step_folders(run_dir):
        rows.append(("checkpoints", ", ".join(f"{s:,}{_best_mark(run_dir, s)}" for s in kept)))
    return rows or [("steps", "none recorded yet")]


def _last_and_best(text: str, steps: list[int], values: list[float]) -> list[tuple[str, str]]:
    """The rows of a number of validations."""
    rows = [(f"{text}, last", f"{_number(values[-1])} at step {steps[-1]:,}")] if values else []
    if finite := [(v, s) for s, v in zip(steps, values) if math.isfinite(v)]:
        rows.append((f"{text}, best", f"{_number(min(finite)[0])} at step {min(finite)[1]:,}"))
    return rows


def _best_mark(run_dir: Place, step: int) -> str:
    try:
        value = read_meta(run_dir, step).get("best_metric")
    except (OSError, ValueError):
        return ""
    return f" (validation loss {_number(value)})" if isinstance(value, float) else ""


def _language_rows(records: Records) -> list[tuple[str, ...]]:
    names = {k.rsplit("/", 1)[-1] for r in (*records.train, *records.evals) for k in r if "loss/" in k}
    rows = []
    for language in [x for x in LANGUAGE_NAMES if x in names] + sorted(names - set(LANGUAGE_NAMES)):
        train = records.series(f"loss/{language}")[1]
        cells = [train[-1] if train else None]
        for name in ("loss", "bits_per_byte"):
            held = records.series(f"validation/{name}/{language}")[1]
            finite = [v for v in held if math.isfinite(v)]
            cells += [held[-1] if held else None, min(finite) if finite else None]
        rows.append((LANGUAGE_NAMES.get(language, language), *("" if c is None else _number(c) for c in cells)))
    return rows


def _event_rows(records: Records) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for e in records.events[-200:]:
        what = "resumed" if e["event"] == "start" and e["step"] else e.get("event", "")
        rest = {k: v for k, v in e.items() if k not in ("kind", "step", "time", "event", "mfu_formula")}
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(e.get("time", 0)))
        rest_text = ", ".join(f"{k} {_short(v)}" for k, v in rest.items())
        rows.append((Cell(when, kind="whole"), f"{e['step']:,}", what, Cell(rest_text, kind="text")))
    return rows


def _resumes(records: Records) -> list[int]:
    return sorted({e["step"] for e in records.events if e.get("event") == "start" and e["step"] > 0})


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


def _number(v: float) -> str:
    if not math.isfinite(v):
        return "NaN" if math.isnan(v) else "infinite"
    if v == int(v) and abs(v) < 1e15:
        return f"{int(v):,}"
    return f"{v:,.0f}" if abs(v) >= 1e4 else f"{v:.4g}" if abs(v) >= 1e-3 else f"{v:.3e}"


def _short(v: Any) -> str:
    text = v if isinstance(v, str) else _number(v) if isinstance(v, float) else json.dumps(v, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + " …"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
