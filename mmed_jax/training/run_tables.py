"""Tables of the page about a run: its numbers, languages, events and settings."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from mmed_jax.checkpoints.run_directory import read_meta
from mmed_jax.common.html_page import Cell
from mmed_jax.common.progress import clock
from mmed_jax.config.resume import training_keys
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.training.run_files import Run

METRICS = {"validation/loss": "validation loss", "validation/accuracy": "accuracy on validation questions"}


def number_rows(run: Run) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    records, start = run.records, run.start
    if records.train:
        rows.append(("last step", f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")))
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
        found = [r[key] for r in records.train if key in r] or [e[key] for e in records.events if key in e]
        if found and isinstance(found[-1], int | float):
            rows.append((text, number(found[-1])))
    for key, text in [
        ("tokens_per_second", "tokens a second, median"),
        ("supervised_tokens_per_second", "supervised tokens a second, median"),
        ("step_seconds", "seconds a step, median"),
        ("data_wait_seconds", "of these waiting for data, median"),
        ("mfu", "MFU, median"),
    ]:
        middle = median(run, key)
        if middle is not None:
            rows.append((text, f"{middle:.1%}" if key == "mfu" else number(middle)))
    waited, seconds = (sum(records.series(k)[1]) for k in ("data_wait_seconds", "step_seconds"))
    if seconds:
        rows.append(("share of all steps' time waiting for data", f"{waited / seconds:.2%}"))
    if start.get("mfu_formula") and records.series("mfu")[1]:
        flops = start.get("peak_flops_per_device")
        each = number(flops if isinstance(flops, int | float) else 0.0)
        peak = f"; {start.get('peak_device', '')}, peak {each} each"
        rows.append(("how MFU is computed", f"{start['mfu_formula']}{peak}"))
    for name, best in (("loss", min), ("perplexity", min), ("bits_per_byte", min), ("accuracy", max)):
        rows += _last_and_best(run, name, best)
    if asked := records.series("validation/accuracy_questions")[1]:
        rows.append(("questions that the accuracy is of", number(asked[-1])))
    if run.resumes:
        rows.append(("resumed after step", ", ".join(f"{s:,}" for s in run.resumes)))
    times = [r["time"] for r in records.train if isinstance(r.get("time"), (int, float))]
    if len(times) > 1:
        rows.append(("first to last step", clock(max(times) - min(times))))
    if run.kept:
        rows.append(("checkpoints", ", ".join(f"{s:,}{_best_mark(run, s)}" for s in run.kept)))
    return rows or [("steps", "none recorded yet")]


def _last_and_best(run: Run, name: str, best: Callable[..., float]) -> list[tuple[str, str]]:
    """The rows of a number of validations."""
    steps, values = run.records.series(f"validation/{name}")
    text = f"validation {name.replace('_', ' ')}"
    key = f"validation/{name}"
    rows = [(f"{text}, last", f"{measured(key, values[-1])} at step {steps[-1]:,}")] if values else []
    finite = [(v, s) for s, v in zip(steps, values) if math.isfinite(v)]
    if finite:
        value: float = best(v for v, _ in finite)
        step = next(s for v, s in finite if v == value)
        rows.append((f"{text}, best", f"{measured(key, value)} at step {step:,}"))
    return rows


def _best_mark(run: Run, step: int) -> str:
    try:
        value = read_meta(run.place, step).get("best_metric")
    except (OSError, ValueError):
        return ""
    metric = METRICS.get(run.best_metric, run.best_metric)
    return f" ({metric} {measured(run.best_metric, value)})" if isinstance(value, float) else ""


def language_table(run: Run) -> dict[str, Any] | None:
    """A table with a row a language; columns that nothing is known for are left out."""
    records = run.records
    names = {k.rsplit("/", 1)[-1] for k in records.columns if "loss/" in k or "accuracy/" in k}
    columns: list[tuple[str, str, Callable | None]] = [
        ("training loss", "loss", None),
        ("validation loss", "validation/loss", None),
        ("best", "validation/loss", min),
        ("bits per byte", "validation/bits_per_byte", None),
        ("best", "validation/bits_per_byte", min),
        ("accuracy", "validation/accuracy", None),
        ("best", "validation/accuracy", max),
    ]
    table: list[list[str]] = []
    for language in [x for x in LANGUAGE_NAMES if x in names] + sorted(names - set(LANGUAGE_NAMES)):
        cells = []
        for _, key, best in columns:
            values = records.series(f"{key}/{language}")[1]
            finite = [v for v in values if math.isfinite(v)]
            shown = (best(finite) if finite else None) if best else (values[-1] if values else None)
            cells.append("" if shown is None else measured(key, shown))
        table.append([LANGUAGE_NAMES.get(language, language), *cells])
    there = [k for k in range(len(columns)) if any(row[k + 1] for row in table)]
    head = ["Language", *(columns[k][0] for k in there)]
    return {"head": head, "rows": [[row[0], *(row[k + 1] for k in there)] for row in table]} if table else None


def event_rows(run: Run) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for e in [e for e in run.records.events if e["event"] != "answers"][-200:]:
        what = "resumed" if e["event"] == "start" and e["step"] else e["event"]
        rest = {k: v for k, v in e.items() if k not in ("kind", "step", "time", "event", "mfu_formula")}
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(e["time"])) if "time" in e else ""
        rest_text = ", ".join(f"{k} {short(v)}" for k, v in rest.items())
        rows.append((Cell(when, kind="whole"), f"{e['step']:,}", what, Cell(rest_text, kind="text")))
    return rows


def config_rows(run: Run) -> list[tuple[str, str]]:
    config: Mapping[str, Any] = run.config or {}
    return [(k, short(v)) for k, v in training_keys(config, not_compared=()).items()]


def number(v: float) -> str:
    if not math.isfinite(v):
        return "NaN" if math.isnan(v) else "infinite"
    if v == int(v) and abs(v) < 1e15:
        return f"{int(v):,}"
    return f"{v:,.0f}" if abs(v) >= 1e4 else f"{v:.4g}" if abs(v) >= 1e-3 else f"{v:.3e}"


def short(v: Any) -> str:
    text = v if isinstance(v, str) else number(v) if isinstance(v, float) else json.dumps(v, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + " …"


def measured(metric: str, value: float) -> str:
    return f"{value:.1%}" if metric.startswith("validation/accuracy") else number(value)


def median(run: Run, key: str) -> float | None:
    values = [v for v in run.records.series(key)[1] if math.isfinite(v)]
    return statistics.median(values) if values else None
