"""report.html of an evaluation: one self-contained page with settings, tables, charts and answers."""

from collections.abc import Sequence
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.common.html_page import Cell, Row, render
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.comparison.compare_runs import compare_runs
from mmed_jax.evaluation.comparison.render import page_table
from mmed_jax.evaluation.comparison.runs import Run, describe, read_runs
from mmed_jax.evaluation.metrics.accuracy import SEVERAL, UNPARSED
from mmed_jax.evaluation.metrics.intervals import short
from mmed_jax.evaluation.metrics.text_similarity import AVERAGE
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.results_answers import answer_groups, unread_answers
from mmed_jax.evaluation.results_json import has_parse_rate, rationale_columns, rows, sample_note

_PUBLISHED = "mean_over_languages"  # the average that leads where a benchmark's papers print it


def make_page(
    results: dict[str, Any], items: Sequence[Item], predictions: Sequence[dict], baseline: Run | None = None
) -> str:
    """The page.

    Args:
      predictions: records of predictions.jsonl that belong to `items` one by one.
      baseline: an earlier evaluation that is shown with it, see check_baseline.
    """
    pairs = list(zip(items, predictions, strict=True))
    blocks = results["benchmarks"].items()
    return render(
        "evaluation_report.html",
        title=_title(results),
        sample=sample_note(results),
        about=_facts(results),
        results=_results_table(results),
        charts=[_chart(name, block) for name, block in blocks],
        confusions=[_confusion(name, block) for name, block in blocks if block.get("confusion")],
        rationales=_rationales(results),
        rules=_rules(results),
        unread=unread_answers(results, pairs),
        groups=answer_groups(pairs, lines_by_key(baseline) if baseline else {}),
        baseline=_baseline(baseline, results, predictions) if baseline else None,
        settings=_settings(results),
    )


def _title(results: dict[str, Any]) -> str:
    overall = results["overall"]
    title = f"{overall['accuracy']:.1%} of {overall['count']:,} answers right"
    blocks = list(results["benchmarks"].values())
    if len(blocks) != 1 or len(blocks[0]["languages"]) < 2 or blocks[0].get("published_average") != _PUBLISHED:
        return title
    return f"{blocks[0]['mean_over_languages']:.1%} mean over languages, as published; {title}"


def describe_model(results: dict[str, Any]) -> str:
    """Which model it was: path, kind, step and weights."""
    model = results["model"]
    if model.get("kind") == "api":
        served = f", served as {', '.join(model['served'])}" if model.get("served") else ""
        return f"{model['path']} (at {model['base_url']}{served})"
    kind = {"hf": "Hugging Face folder"}.get(model.get("kind"), model.get("kind"))
    step = f"step {model['step']:,}" if model.get("step") is not None else None
    weights = f"weights {model['fingerprint']}" if model.get("fingerprint") else None
    details = ", ".join(str(x) for x in (kind, step, weights) if x)
    return f"{model['path']} ({details})" if details else str(model["path"])


def describe_tuning(results: dict[str, Any]) -> str:
    """How it was tuned, and on what."""
    t = results["model"].get("tuning")
    if not t:
        return "not known"
    trained, total = t["trained_parameters"], t["parameters"]
    share = f", {trained:,} of {total:,} parameters trained" if trained else ""
    return f"{t['text']}{share}, base {t['base'] or 'not known'}"


def _facts(results: dict[str, Any]) -> list[tuple[str, object]]:
    """What the number is of; the rest stands at the end of the page."""
    s = results["settings"]
    conditions = describe(s, passages="with passages" if s.get("book") == "open" else "")
    out = [("model", describe_model(results)), ("tuning", describe_tuning(results)), ("mode", conditions)]
    for name, block in results["benchmarks"].items():
        data = results["data"].get(name, {})
        split = f", split {data['split']}" if data.get("split") else ""
        left = f", {data['needs_image']:,} left out that need an image" if data.get("needs_image") else ""
        count = block["overall"]["count"]
        out.append((name, f"{count:,} items asked{split}{left}"))
        if data.get("count_mismatch"):
            out.append(("not as published", data["count_mismatch"]))
    return out


def _settings(results: dict[str, Any]) -> list[tuple[str, object]]:
    s = dict(results["settings"])
    out: list[tuple[str, object]] = []
    if s.get("max_new_tokens") and s.get("mode") != "loglikelihood":
        decoding = ", ".join(f"{k} {v}" for k, v in s["params"].items()) if s.get("params") else "greedy"
        out.append(("decoding", f"{decoding}, at most {s['max_new_tokens']} new tokens"))
    names = {
        "dtype": "computed in",
        "system_prompt": "system message",
        "rules_version": "version of the answer rules",
        "languages": "only the languages",
        "limit": "at most, a language or part",
        "stop_ids": "stop ids",
        "prompts_sha256": "SHA-256 of the prompts",
    }
    for key, name in names.items():
        value = s.get(key, results.get(key))
        if value not in (None, "", 0, []):
            out.append((name, ", ".join(map(str, value)) if isinstance(value, list) else value))
    for name, data in results["data"].items():
        facts = {"licence": data.get("licence"), "revision": data.get("revision"), "SHA-256": data.get("sha256")}
        shown = ", ".join(f"{k} {v}" for k, v in facts.items() if v)
        expected = f"{data['expected']:,} published; " if data.get("expected") else ""
        out.append((name, f"{expected}{shown}" or "-"))
    return out


def _results_table(results: dict[str, Any]) -> dict[str, Any]:
    overall = results["overall"]
    spoken = [c.get("response_language") for _, _, c in rows(results)]
    columns = {
        "chance": ("chance", "chance" in overall),
        "parse_rate": ("parsed", has_parse_rate(results)),
        "response_language": ("in its language", any(v is not None for v in spoken)),
        "cut": ("cut", results.get("mode") != "loglikelihood"),
    }
    shown = {key: name for key, (name, wanted) in columns.items() if wanted}
    head = ["", "items", "accuracy", "95 % interval", *shown.values()]

    def line(what: str, c: dict[str, Any]) -> list[str]:
        further = [_share(c.get(key)) if key != "cut" else f"{c['cut']:,}" for key in shown]
        return [what, f"{c['count']:,}", f"{c['accuracy']:.1%}", _between(c["interval95"]), *further]

    lines: list[Any] = []
    for name, block in results["benchmarks"].items():
        languages = block["languages"]
        lines.append(Row("head", [Cell(name, span=len(head))]))
        lines += [line(LANGUAGE_NAMES.get(k, k), c) for k, c in languages.items()]
        lines += [line(k.replace("_", " "), c) for k, c in block.get("parts", {}).items()]
        if len(languages) > 1:
            lines.append(Row("all", line("all", block["overall"])))
            mean = [f"{block['mean_over_languages']:.1%}", _between(block["mean_interval95"])]
            lines.append(Row("all", ["mean over languages", "", *mean, *[""] * len(shown)]))
    if len(results["benchmarks"]) > 1:
        lines += [Row("head", [Cell("together", span=len(head))]), Row("all", line("all", overall))]
    generated = results.get("mode") != "loglikelihood"
    parsed = has_parse_rate(results)
    return {"head": head, "rows": lines, "metric": results["metric"], "parsed": parsed, "generated": generated}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _between(interval: Sequence[float]) -> str:
    return "{:.1%} to {:.1%}".format(*interval)


def _chart(name: str, block: dict[str, Any]) -> dict[str, Any]:
    parts = block.get("parts", {})
    by, cells = ("part", parts) if len(block["languages"]) == 1 and len(parts) > 1 else ("language", block["languages"])
    lines = [(LANGUAGE_NAMES.get(k, k.replace("_", " ")), c) for k, c in cells.items()]
    note = "line: 95 % interval" + ("; red: blind choice" if block["overall"].get("chance") else "")
    return {"title": f"{name}, accuracy by {by}", "lines": lines, "note": note}


def _confusion(name: str, block: dict[str, Any]) -> dict[str, Any]:
    confusion = block["confusion"]
    columns = list(next(iter(confusion.values())))
    if UNPARSED in columns and not any(row[UNPARSED] for row in confusion.values()):
        columns.remove(UNPARSED)
    lines = []
    for key, row in confusion.items():
        total = sum(row.values())
        cells = [
            Cell(f"{row[c]:,}", shade=row[c] / total if total else 0, kind="right" if c == key != SEVERAL else "")
            for c in columns
        ]
        share = "" if key == SEVERAL else _share(row.get(key, 0) / total if total else None)
        lines.append([f"right is {key}", *cells, f"{total:,}", share])
    bias = block.get("order_bias")
    notes = ["Columns: what was answered."]
    if SEVERAL in confusion:
        notes.append("“several”: more than one letter, the right ones or others.")
    if bias and len(bias["letters"]) > 1:
        order = "the options were shuffled" if bias["shuffled"] else "the options stood as published"
        spread = f"{100 * bias['recall_std']:.1f} points"
        notes.append(f"Standard deviation of the accuracy by right letter: {spread}; {order}.")
    return {"name": name, "head": ["", *columns, "items", "right"], "rows": lines, "notes": notes}


def _rationales(results: dict[str, Any]) -> dict[str, Any] | None:
    by_benchmark = {name: block["rationale"] for name, block in results["benchmarks"].items() if block.get("rationale")}
    if not by_benchmark:
        return None
    from mmed_jax.evaluation.metrics.word_split import WORDS_OF

    metrics = list(dict.fromkeys(m for by in by_benchmark.values() for m in by))

    def shown(c: dict[str, Any] | None) -> Cell:
        return Cell("-") if c is None else Cell(f"{100 * c['mean']:.2f}", short(c["interval95"]))

    lines: list[Any] = []
    for name, by in by_benchmark.items():
        lines.append(Row("head", [Cell(name, span=len(metrics) + 2)]))
        for k in rationale_columns(by):
            cells = [by.get(m, {}).get(k) for m in metrics]
            count = max(c["count"] for c in cells if c)
            what = "mean over languages" if k == AVERAGE else LANGUAGE_NAMES[k]
            lines.append(Row("all" if k == AVERAGE else "", [what, f"{count:,}", *map(shown, cells)]))
    there = [k for k in WORDS_OF if any(k in cells for by in by_benchmark.values() for cells in by.values())]
    ways = dict.fromkeys(WORDS_OF[k] for k in there)
    cut = "; ".join(f"{', '.join(LANGUAGE_NAMES[k] for k in there if WORDS_OF[k] == way)}: {way}" for way in ways)
    checked = results.get("rationale_settings", {}).get("checked")
    which = "only items whose reference people have checked and passed" if checked else "all items with a reference"
    return {"head": ["", "items", *metrics], "rows": lines, "which": which, "words": cut}


def _rules(results: dict[str, Any]) -> list[list[str]]:
    count = results["overall"]["count"]
    return (
        [[rule, f"{n:,}", f"{n / count:.1%}"] for rule, n in results["rules"].items()]
        if has_parse_rate(results)
        else []
    )


# ---- An earlier evaluation ------------------------------------------------------------------------------------------


def read_baseline(text: str, items: Sequence[Item]) -> Run:
    """The evaluation of --baseline=[NAME=]DIR, as of the model before training.

    Raises:
      UserError: none is there, or it has no question in common with `items`, or other options or answers to one.
    """
    (run,) = read_runs([text])
    lines = lines_by_key(run)
    common = [(item, lines[item.key]) for item in items if item.key in lines]
    if not common:
        raise UserError(f"--baseline={text}: has none of the questions that are asked here")
    for item, line in common:
        if (line["answer"], line["options"]) != (item.answer, item.options):
            raise UserError(
                f"--baseline={text}: {item.benchmark} item {item.id} has other options, or another answer; evaluations "
                "are shown together when they ask the same questions in the same order of options"
            )
    return run


def lines_by_key(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of an evaluation by benchmark and id, as Item.key."""
    return {(line["benchmark"], line["id"]): line for line in run.lines}


def _baseline(baseline: Run, results: dict[str, Any], predictions: Sequence[dict]) -> dict[str, Any]:
    """How often it was right and this one is, with intervals and paired tests where both were asked alike."""
    ours = "this evaluation" if baseline.name != "this evaluation" else "this one"
    run = Run(ours, baseline.path, results, list(predictions))
    asked = [describe(r.settings) for r in (baseline, run)]
    note = ""
    try:
        compared = [t for t in compare_runs([baseline, run], methods=()) if t.differences]
        tables = [{**page_table(t), "board": t.board} for t in compared]
        if not tables:
            note = f"It was asked otherwise ({asked[0]}; here {asked[1]}): no differences are computed."
    except UserError as e:  # of two benchmarks one is asked of other items: the answers are there all the same
        tables, note = [], f"No differences are computed: {e}."
    return {"name": baseline.name, "about": describe_model(baseline.results), "tables": tables, "note": note}
