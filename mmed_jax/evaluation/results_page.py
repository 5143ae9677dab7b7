"""report.html of an evaluation: one self-contained page with settings, tables, charts and some wrong answers."""

from collections.abc import Sequence
from typing import Any

from mmed_jax.common.html_page import Cell, bars, esc, facts, page, table
from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES
from mmed_jax.evaluation.benchmarks.select import Item
from mmed_jax.evaluation.comparison.runs import describe
from mmed_jax.evaluation.metrics.accuracy import SEVERAL, UNPARSED, has_parse_rate, limited, rows
from mmed_jax.evaluation.metrics.breakdown import columns_of
from mmed_jax.evaluation.metrics.intervals import short
from mmed_jax.evaluation.metrics.text_similarity import AVERAGE
from mmed_jax.evaluation.ratings.explanations import draw

_SHOWN = 12  # wrong answers
_CUT = 700  # characters of a text
_SEED = 0  # of the choice of wrong answers


def make_page(results: dict[str, Any], items: Sequence[Item], predictions: Sequence[dict]) -> str:
    """The page. `predictions` belong to `items` one by one (records of predictions.jsonl)."""
    overall = results["overall"]
    pairs = list(zip(items, predictions, strict=True))
    wrong = [(i, p) for i, p in pairs if not p["correct"]]
    some = _examples(wrong)
    unread = " An answer that can't be read counts as wrong." if has_parse_rate(results) else ""
    cut = " “cut” answers reached the token limit." if results.get("mode") != "loglikelihood" else ""
    told = limited(results)
    body = [
        f'<p class="note"><b class="bad">{esc(told)}</b></p>' if told else "",
        facts(_facts(results)),
        "<h2>Results</h2>",
        _table(results),
        f'<p class="note">{esc(results["metric"])}.{unread}{cut} Intervals are 95 %: Wilson’s; for means over '
        "languages those of the languages combined (MOVER). Means are unweighted, as the MMedBench tables print.</p>",
        *(_chart(name, block) for name, block in results["benchmarks"].items()),
        *(_confusion(name, block) for name, block in results["benchmarks"].items()),
        _rationales(results),
        _rules(results),
        f"<h2>Wrong answers ({len(some)} of {len(wrong):,})</h2>",
        _wrong(some),
        "<h2>Settings</h2>",
        facts(_settings(results)),
    ]
    title = f"{overall['accuracy']:.1%} of {overall['count']:,} answers right"
    blocks = list(results["benchmarks"].values())
    if len(blocks) == 1 and blocks[0].get("published_average") == "mean_over_languages":
        mean = f"{blocks[0]['mean_over_languages']:.1%}"
        title = f"{mean} mean over languages, as published; {title}" if len(blocks[0]["languages"]) > 1 else title
    return page(title, "".join(body))


def _model(results: dict[str, Any]) -> str:
    model = results["model"]
    if model.get("kind") == "api":
        served = f", served as {', '.join(model['served'])}" if model.get("served") else ""
        return f"{model['path']} (at {model['base_url']}{served})"
    kind = {"hf": "Hugging Face folder"}.get(model.get("kind"), model.get("kind"))
    step = f"step {model['step']:,}" if model.get("step") is not None else None
    weights = f"weights {model['fingerprint']}" if model.get("fingerprint") else None
    told = ", ".join(str(x) for x in (kind, step, weights) if x)
    return f"{model['path']} ({told})" if told else str(model["path"])


def _facts(results: dict[str, Any]) -> list[tuple[str, object]]:
    """What the number is of; the rest stands at the end of the page."""
    s = results["settings"]
    asked = describe(s, passages="with passages" if s.get("book") == "open" else "")
    out = [("model", _model(results)), ("mode", asked)]
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
        how = ", ".join(f"{k} {v}" for k, v in s["params"].items()) if s.get("params") else "greedy"
        out.append(("decoding", f"{how}, at most {s['max_new_tokens']} new tokens"))
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
        told = {"licence": data.get("licence"), "revision": data.get("revision"), "SHA-256": data.get("sha256")}
        shown = ", ".join(f"{k} {v}" for k, v in told.items() if v)
        expected = f"{data['expected']:,} published; " if data.get("expected") else ""
        out.append((name, f"{expected}{shown}" or "-"))
    return out


def _table(results: dict[str, Any]) -> str:
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
        more = [_share(c.get(key)) if key != "cut" else f"{c['cut']:,}" for key in shown]
        return [what, f"{c['count']:,}", f"{c['accuracy']:.1%}", _between(c["interval95"]), *more]

    lines: list[Any] = []
    for name, block in results["benchmarks"].items():
        languages = block["languages"]
        lines.append(("head", [Cell(name, span=len(head))]))
        lines += [line(LANGUAGE_NAMES.get(k, k), c) for k, c in languages.items()]
        lines += [line(k.replace("_", " "), c) for k, c in block.get("parts", {}).items()]
        if len(languages) > 1:
            lines.append(("all", line("all", block["overall"])))
            mean = [f"{block['mean_over_languages']:.1%}", _between(block["mean_interval95"])]
            lines.append(("all", ["mean over languages", "", *mean, *[""] * len(shown)]))
    if len(results["benchmarks"]) > 1:
        lines += [("head", [Cell("together", span=len(head))]), ("all", line("all", overall))]
    return table(head, lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _between(interval: Sequence[float]) -> str:
    return "{:.1%} to {:.1%}".format(*interval)


def _chart(name: str, block: dict[str, Any]) -> str:
    parts = block.get("parts", {})
    by, cells = ("part", parts) if len(block["languages"]) == 1 and len(parts) > 1 else ("language", block["languages"])
    lines = [(LANGUAGE_NAMES.get(k, k.replace("_", " ")), c) for k, c in cells.items()]
    note = "line: 95 % interval" + ("; red: blind choice" if block["overall"].get("chance") else "")
    return bars(f"{name}, accuracy by {by}", lines, note)


def _confusion(name: str, block: dict[str, Any]) -> str:
    found = block.get("confusion")
    if not found:
        return ""
    columns = list(next(iter(found.values())))
    if UNPARSED in columns and not any(row[UNPARSED] for row in found.values()):
        columns.remove(UNPARSED)
    lines = []
    for key, row in found.items():
        total = sum(row.values())
        cells = [
            Cell(f"{row[c]:,}", shade=row[c] / total if total else 0, kind="right" if c == key != SEVERAL else "")
            for c in columns
        ]
        share = "" if key == SEVERAL else _share(row.get(key, 0) / total if total else None)
        lines.append(("", [f"right is {key}", *cells, f"{total:,}", share]))
    bias = block.get("order_bias")
    notes = ["Columns: what was answered."]
    if SEVERAL in found:
        notes.append("“several”: more than one letter, the right ones or others.")
    if bias and len(bias["letters"]) > 1:
        told = "the options were shuffled" if bias["shuffled"] else "the options stood as published"
        spread = f"{100 * bias['recall_std']:.1f} points"
        notes.append(f"Standard deviation of the accuracy by right letter: {spread}; {told}.")
    return (
        f"<h2>Letters answered, {esc(name)}</h2>"
        + table(["", *columns, "items", "right"], lines, wide=False)
        + f'<p class="note">{esc(" ".join(notes))}</p>'
    )


def _rationales(results: dict[str, Any]) -> str:
    found = {name: block["rationale"] for name, block in results["benchmarks"].items() if block.get("rationale")}
    if not found:
        return ""
    from mmed_jax.evaluation.metrics.word_split import WORDS_OF

    metrics = list(dict.fromkeys(m for by in found.values() for m in by))

    def shown(c: dict[str, Any] | None) -> Cell:
        return Cell("-") if c is None else Cell(f"{100 * c['mean']:.2f}", short(c["interval95"]))

    lines: list[Any] = []
    for name, by in found.items():
        lines.append(("head", [Cell(name, span=len(metrics) + 2)]))
        for k in columns_of(by):
            cells = [by.get(m, {}).get(k) for m in metrics]
            count = max(c["count"] for c in cells if c)
            what = "mean over languages" if k == AVERAGE else LANGUAGE_NAMES[k]
            lines.append(("all" if k == AVERAGE else "", [what, f"{count:,}", *map(shown, cells)]))
    there = [k for k in WORDS_OF if any(k in cells for by in found.values() for cells in by.values())]
    ways = dict.fromkeys(WORDS_OF[k] for k in there)
    cut = "; ".join(f"{', '.join(LANGUAGE_NAMES[k] for k in there if WORDS_OF[k] == way)}: {way}" for way in ways)
    checked = results.get("rationale_settings", {}).get("checked")
    which = "only items whose reference people have checked and passed" if checked else "all items with a reference"
    return (
        "<h2>Rationales</h2>"
        + table(["", "items", *metrics], lines, wide=False)
        + f'<p class="note">Times 100; {which}; means over items, then over languages; below them 95 % intervals by a '
        f"bootstrap over items. Words: {esc(cut)}.</p>"
    )


def _rules(results: dict[str, Any]) -> str:
    if not has_parse_rate(results):
        return ""
    count = results["overall"]["count"]
    lines = [[rule, f"{n:,}", f"{n / count:.1%}"] for rule, n in results["rules"].items()]
    return "<h2>How answers were read</h2>" + table(["rule", "items", "share"], lines, wide=False)


# ---- Wrong answers --------------------------------------------------------------------------------------------------


def _examples(wrong: Sequence[tuple[Item, dict]]) -> list[tuple[Item, dict]]:
    """At most _SHOWN, as many of each language as there is room for, drawn by a fixed seed, by language."""
    drawn = sorted(wrong, key=lambda pair: draw(_SEED, *pair[0].key))
    of = {lang: [p for p in drawn if p[0].language == lang] for lang in LANGUAGES}
    turns = [(k, lang) for lang, there in of.items() for k in range(len(there))]
    chosen = sorted(turns, key=lambda t: (t[0], LANGUAGES.index(t[1])))[:_SHOWN]
    return [of[lang][k] for k, lang in sorted(chosen, key=lambda t: (LANGUAGES.index(t[1]), t[0]))]


def _wrong(some: Sequence[tuple[Item, dict]]) -> str:
    parts, language = [], None
    for item, prediction in some:
        if item.language != language:
            language = item.language
            parts.append(f"<h3>{esc(LANGUAGE_NAMES[language])}</h3>")
        parts.append(_answer(item, prediction))
    return "".join(parts) or "<p>There are none.</p>"


def _answer(item: Item, prediction: dict[str, Any]) -> str:
    got = prediction["extracted"] or ("not parsed" if item.options else "another text")
    right = item.answer if item.options else _short(item.answer)
    asked = item.record.get("question") or prediction["prompt"]
    passage = item.record.get("context")
    lang = f' lang="{item.language}"'
    parts = [f'<div class="text"{lang}>{esc(_short(passage))}</div>'] if passage else []
    parts.append(f'<div class="text"{lang}>{esc(_short(asked, end=not item.record.get("question")))}</div>')
    if item.options:
        parts.append(f'<ul class="options"{lang}>{"".join(_option(k, item, prediction) for k in item.options)}</ul>')
    scored = bool(prediction.get("loglikelihoods"))
    if not scored:
        output = _short(prediction["output"].strip()) or "(nothing)"
        parts.append(f'<p class="note">answer</p><div class="text">{esc(output)}</div>')
    if prediction.get("generated_rationale") is not None and prediction.get("rationale"):
        shown = esc(_short(prediction["rationale"].strip()))
        parts.append(f'<p class="note">reference</p><div class="text"{lang}>{shown}</div>')
    read = "" if scored else f"; rule {prediction['rule']}, ended by {prediction['finish_reason']}"
    parts.append(f'<p class="note">{esc(f"{item.benchmark} {item.id}{read}")}</p>')
    head = f"{got}, right is {_short(right, size=60)}: "
    start = f"<span{lang}>{esc(_short(' '.join(item.record.get('question', '').split()), size=80))}</span>"
    return f"<details><summary>{esc(head)}{start}</summary>{''.join(parts)}</details>"


def _option(letter: str, item: Item, prediction: dict[str, Any]) -> str:
    values = prediction.get("loglikelihoods")
    score = f" ({values[list(item.options).index(letter)]:.2f} nats)" if values else ""
    right, chosen = (letter in (text or "").split(",") for text in (item.answer, prediction["extracted"]))
    mark = ' <b class="good">right</b>' if right else ""
    mark += f' <b class="{"good" if right else "bad"}">chosen</b>' if chosen else ""
    return f"<li>{esc(letter)}. {esc(_short(item.options[letter]))}{esc(score)}{mark}</li>"


def _short(text: str, *, end: bool = False, size: int = _CUT) -> str:
    if len(text) <= size:
        return text
    return "… " + text[-size:] if end else text[:size] + " …"
