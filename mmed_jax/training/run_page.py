"""The page about a run, report.html, or about several over each other: made from their files alone, without jax."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from mmed_jax.checkpoints.run_directory import run_storage
from mmed_jax.common.errors import UserError, one_line, warn
from mmed_jax.common.html_page import render
from mmed_jax.common.output_files import check_file, write_text
from mmed_jax.common.place_files import write_bytes
from mmed_jax.common.places import Place, is_bucket, parse_place
from mmed_jax.common.progress import clock
from mmed_jax.config.resume import training_keys
from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES
from mmed_jax.training.run_files import Answers, Best, Run, read_run
from mmed_jax.training.run_plots import page_plots
from mmed_jax.training.run_tables import (
    METRICS,
    config_rows,
    event_rows,
    language_table,
    measured,
    median,
    number,
    number_rows,
    short,
)

PAGE = "report.html"
RUNS_PAGE = "report_runs.html"
_NOTES_SHOWN = 20
_ANSWERS_SHOWN = 8  # of a prompt: the first, the last, and others between them


def make_report(run_dir: str | Place) -> Place:
    """Writes report.html of a run directory; returns its path.

    Any number of points will do, also none, as will NaN, a torn last line, or a missing config: what is wrong with the
    files stands in the report.

    Raises:
      UserError: no such directory, or it holds neither metrics nor a config; or it cannot be written.
    """
    run = read_run(run_dir)
    try:
        with run_storage(run.place).put_files() as folder:
            write_text(folder / PAGE, make_page([run]))
    except OSError as e:
        raise UserError(f"--run={run_dir}: the report cannot be written there ({e.strerror or e})") from e
    return run.place / PAGE


def try_report(run_dir: Place) -> None:
    """As make_report; where the page cannot be made that is a warning, for all that it shows is saved."""
    try:
        make_report(run_dir)
    except Exception as e:  # also a fault of the page's own: a run of days does not end with an error for it
        warn(f"no report: {one_line(e)}; python -m mmed_jax.report --run={run_dir} makes it")


def make_runs_report(runs: Sequence[Run], output: str | None = None) -> Place:
    """Writes the page about several runs to `output`, or to the directory of the first; returns its path.

    Raises:
      UserError: it cannot be written there.
    """
    page = parse_place(output, "--output") if output else runs[0].place / RUNS_PAGE
    if not is_bucket(page):
        page = check_file(page, "--output")
    text = make_page(runs)
    try:
        write_bytes(page, text.encode()) if is_bucket(page) else write_text(page, text)
    except OSError as e:
        raise UserError(f"--output={page}: can't be written ({e.strerror or e})") from e
    return page


def make_page(runs: Sequence[Run], version: str = "") -> str:
    """The page about one run, or about several over each other. version: of the files, for a page that follows them."""
    return _page(runs[0], version) if len(runs) == 1 else _runs_page(runs, version)


def _page(run: Run, version: str) -> str:
    records = run.records
    return render(
        "training_report.html",
        version=version,
        title=run.name,
        recipe=_recipe(run),
        now=_now(),
        notes=_few(run.notes),
        bad_steps=[s for s, v in zip(*records.series("loss")) if not math.isfinite(v)],
        share=_share_done(run),
        tiles=_tiles(run),
        warning=_best_warning(run),
        about=_about(run),
        numbers=number_rows(run),
        goodput=records.goodput.describe(),
        time_parts=records.goodput.rows(),
        languages=language_table(run),
        contents=[[r["source"], r["language"], r["license"], r["records"]] for r in run.contents],
        plots=page_plots([run]),
        answers=[_answer_lines(run, a) for a in run.answers],
        events=event_rows(run),
        config=config_rows(run),
    )


def _runs_page(runs: Sequence[Run], version: str) -> str:
    return render(
        "training_runs.html",
        version=version,
        title=" · ".join(run.name for run in runs),
        now=_now(),
        notes=[f"{run.name}: {note}" for run in runs for note in _few(run.notes)],
        runs={"head": ["", *(run.name for run in runs)], "rows": _compared(runs)},
        differences=_config_differences(runs),
        plots=page_plots(runs),
        answers=_answers_of_runs(runs),
    )


def _few(notes: Sequence[str]) -> list[str]:
    """The first notes, and how many more there are: of a file that is none, each line has one."""
    more = len(notes) - _NOTES_SHOWN
    return [*notes[:_NOTES_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]


# What stands first


def _recipe(run: Run) -> str:
    parts = (run.setting("name"), run.setting("variant"))
    return ":".join(str(p) for p in parts if p) or "a run"


def _share_done(run: Run) -> float | None:
    return min(1.0, run.step / run.steps) if run.steps else None


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """(what, the number, a line below it) of what one looks for first."""
    return [
        tile
        for tile in (_progress(run), _time_left(run), _best(run), _last_loss(run), _speed(run), _memory(run))
        if tile
    ]


def _progress(run: Run) -> tuple[str, str, str]:
    epochs, share = run.epochs_per_step, _share_done(run)
    parts = [] if share is None else [f"{share:.0%}"]
    if epochs:
        total = f" of {run.steps * epochs:.3g}" if run.steps else ""
        parts.append(f"epoch {run.step * epochs:.3g}{total}")
    return "step", f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else ""), ", ".join(parts)


def _time_left(run: Run) -> tuple[str, str, str]:
    state, text = run.state
    over = "in all" if state == "finished" else "so far"
    spent = f"{clock(run.records.goodput.wall)} {over}" if run.records.goodput.wall else ""
    if state != "running":
        return "state", state, ", ".join(filter(None, (text if text != state else "", spent)))
    if run.seconds_left is None:
        return "time left", "…", spent or "not known yet"
    end = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.now + min(run.seconds_left, 1e9)))
    return "time left", f"about {clock(run.seconds_left)}", ", ".join(filter(None, (f"until {end}", spent)))


def _metric(best: Best) -> str:
    return METRICS.get(best.metric, best.metric)


def _best(run: Run) -> tuple[str, str, str] | None:
    if run.best is None:
        return None
    b = run.best
    last = "the last evaluation" if b.last_step == b.step else f"last {measured(b.metric, b.last)}"
    return f"best {_metric(b)}", measured(b.metric, b.value), f"{run.place_of(b.step)}, {last}"


def _best_warning(run: Run) -> str:
    """What has to be said where training on has made the model worse by its own measure."""
    b = run.best
    if b is None or b.step == b.last_step or b.value == b.last:
        return ""
    values = f"{measured(b.metric, b.value)}; at {run.place_of(b.last_step)} it is {measured(b.metric, b.last)}"
    if b.step == 0:
        return f"The untrained model has the best {_metric(b)}, {values}."
    take = f" python -m mmed_jax.export --model={run.place} --best takes its checkpoint." if b.step in run.kept else ""
    return f"The best {_metric(b)} lies before the last evaluation: at {run.place_of(b.step)}, {values}.{take}"


def _last_loss(run: Run) -> tuple[str, str, str] | None:
    values = run.records.series("loss")[1]
    rate = run.records.series("lr")[1]
    return (
        ("training loss", number(values[-1]), f"learning rate {number(rate[-1])}" if rate else "") if values else None
    )


def _speed(run: Run) -> tuple[str, str, str] | None:
    if not (rate := median(run, "tokens_per_second")):
        return None
    used, waiting = median(run, "mfu"), median(run, "data_wait_share")
    parts = [f"MFU {used:.1%}"] if used else []
    parts += [f"{waiting:.1%} waiting for data"] if waiting is not None else []
    return "tokens a second", number(round(rate)), ", ".join(parts)


def _memory(run: Run) -> tuple[str, str, str] | None:
    """True peaks: of the fullest device as the runtime counts it, of the process as the kernel does."""
    peaks = {k: max(run.records.series(f"{k}_memory_peak_gib")[1], default=None) for k in ("device", "host")}
    known = {k: v for k, v in peaks.items() if v is not None and math.isfinite(v)}
    if not known:
        return None
    first, *rest = [(k, f"{number(v)} GiB") for k, v in known.items()]
    return f"{first[0]} memory, peak", first[1], ", ".join(f"{k} {v}" for k, v in rest)


def _about(run: Run) -> list[tuple[str, str]]:
    """What is trained, on what, with which data."""
    start = run.setting("init_from")
    rows: list[tuple[str, str]] = [("trained", f"{_what_is_trained(run)}, from {start or 'random weights'}")]
    if device := run.start.get("peak_device"):
        rows.append(("on", str(device)))
    if files := run.setting("data.train"):
        rows.append(("data", ", ".join(map(str, files)) if isinstance(files, list) else str(files)))
    if counts := _records_by_language(run):
        parts = ", ".join(f"{LANGUAGE_NAMES.get(k, k)} {n:,}" for k, n in counts.items())
        rows.append(("training records", f"{sum(counts.values()):,}: {parts}"))
    batch, length = run.setting("batch_size") or run.start.get("rows"), run.setting("data.seq_len")
    if batch and length:
        seen = f"; {run.step * batch:,} rows read" if isinstance(batch, int) else ""
        rows.append(("a step", f"{batch} rows of {length} tokens{seen}"))
    return rows if run.config else rows[1:]


def _what_is_trained(run: Run) -> str:
    rank = run.setting("lora.rank")
    if not rank:
        return "all weights"
    kind = {"int8": " on 8-bit weights", "nf4": " on 4-bit weights"}.get(str(run.setting("lora.base")), "")
    return f"a LoRA adapter of rank {rank}{kind}"


def _records_by_language(run: Run) -> dict[str, int]:
    counts = dict.fromkeys(LANGUAGES, 0)
    for row in run.contents:
        counts[row["language"]] = counts.get(row["language"], 0) + row["records"]
    return {k: n for k, n in counts.items() if n}


# Several runs


def _compared(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of a table with a column a run; rows that no run has anything in are left out."""
    facts: list[tuple[str, Callable[[Run], Any]]] = [
        ("recipe", _recipe),
        ("trained", lambda r: _what_is_trained(r) if r.config else ""),
        ("from", lambda r: (r.setting("init_from") or "random weights") if r.config else ""),
        ("on", lambda r: r.start.get("peak_device")),
        ("step", lambda r: _progress(r)[1]),
        ("", lambda r: _progress(r)[2]),
        ("state", lambda r: r.state[1]),
        ("time left, about", lambda r: clock(r.seconds_left) if r.state[0] == "running" and r.seconds_left else ""),
        ("best evaluation", lambda r: f"{measured(r.best.metric, r.best.value)} {_metric(r.best)}" if r.best else ""),
        ("at", lambda r: r.place_of(r.best.step) if r.best else ""),
        ("last evaluation", lambda r: measured(r.best.metric, r.best.last) if r.best else ""),
        ("training loss, last", lambda r: _last(r, "loss")),
        ("tokens seen", lambda r: _last(r, "tokens_seen")),
        ("tokens a second, median", lambda r: (_speed(r) or ("", "", ""))[1]),
        ("MFU, waiting for data", lambda r: (_speed(r) or ("", "", ""))[2]),
        ("device memory, peak (GiB)", lambda r: _last(r, "device_memory_peak_gib")),
        ("host memory, peak (GiB)", lambda r: _last(r, "host_memory_peak_gib")),
        ("goodput", lambda r: f"{r.records.goodput.share:.1%}" if r.records.goodput.share is not None else ""),
    ]
    rows = [[text, *(str(fact(run) or "") for run in runs)] for text, fact in facts]
    return [row for row in rows if any(row[1:])]


def _last(run: Run, key: str) -> str:
    values = run.records.series(key)[1]
    return number(values[-1]) if values else ""


def _config_differences(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The keys that are not the same in all runs, as a table; None where there are none or a config is missing."""
    if any(run.config is None for run in runs):
        return None
    flat = [training_keys(run.config or {}, not_compared=()) for run in runs]
    keys = list(dict.fromkeys(k for values in flat for k in values))
    shown = [[k, *(short(v[k]) if k in v else "" for v in flat)] for k in keys]
    rows = [row for row in shown if len(set(row[1:])) > 1]
    return {"head": ["", *(run.name for run in runs)], "rows": rows} if rows else None


def _answers_of_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The last answers of the runs to each prompt, beside each other."""
    last: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for a in run.answers:
            step, text = a.given[-1]
            last.setdefault((a.language, a.question), []).append(
                {"at": f"{run.name}, {run.place_of(step)}", "text": text}
            )
    return [_prompt(*key, lines, []) for key, lines in last.items()]


# Tables


def _answer_lines(run: Run, answers: Answers) -> dict[str, Any]:
    lines = [{"at": run.place_of(step), "text": text} for step, text in answers.given]
    *earlier, last = lines
    return _prompt(answers.language, answers.question, [last], _spread(earlier))


def _prompt(language: str, question: str, lines: Sequence[dict], earlier: Sequence[dict]) -> dict[str, Any]:
    name = LANGUAGE_NAMES.get(language, language)
    return {"language": name, "code": language, "question": question, "lines": lines, "earlier": earlier}


def _spread(lines: Sequence[dict]) -> list[dict]:
    """All of few; of many the first, the last, and others between them."""
    if len(lines) <= _ANSWERS_SHOWN:
        return list(lines)
    return [lines[k * (len(lines) - 1) // (_ANSWERS_SHOWN - 1)] for k in range(_ANSWERS_SHOWN)]


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
