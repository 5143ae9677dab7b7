"""report.html of a set: one printable page with plots, tables and random rows; no external resources."""

import html
from typing import Any

from data_gen.sets.statistics import LENGTHS, Facts, answer_text, how_made, languages_present, license_rows, loss_rows
from mmed_jax.data.records.schema import LANGUAGE_NAMES

_CUT = 1200
_COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8a5cc2", "#c77d17", "#3a3a3a", "#0f9aa8", "#a5668b", "#6b8e23")
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem;color:#1c1c1c;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid #ccc}h3{font-size:1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}td.n,th.n{text-align:right}
figure{margin:1rem 0}svg{max-width:100%;height:auto}figcaption{color:#555;font-size:.9rem}
article{border:1px solid #ddd;border-radius:4px;padding:.4rem .8rem;margin:.6rem 0}
article p{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0}.meta{color:#555;font-size:.8rem}
.warn{color:#a11}@media print{article,figure,tr{break-inside:avoid}body{max-width:none;font-size:11px}}
"""


def page(build: Any, facts: Facts) -> str:
    """The page of a finished build (data_gen.commands.build.Build)."""
    recipe = build.recipe
    codes = list(languages_present(facts))
    title = f"{recipe.title or recipe.name} {recipe.version}: {facts.total:,} rows"
    hows = sorted({how for _, how in facts.how})
    sources = sorted({s for _, s in facts.sources}, key=lambda s: (-sum(facts.sources[c, s] for c in codes), s))
    body = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(recipe.description)}</p>{_warnings(build, facts)}",
        "<h2>Rows by language and method</h2>",
        bars(codes, {h: [facts.how[c, h] for c in codes] for h in hows}),
        "<h2>Rows by language and source</h2>",
        bars(codes, {s: [facts.sources[c, s] for c in codes] for s in sources}),
        "<h2>Length of answers and rationales (characters)</h2>",
        _lengths(facts, codes),
        "<h2>Splits</h2>",
        _table(
            ("language", *build.splits), [(LANGUAGE_NAMES[c], *(facts.rows[s, c] for s in build.splits)) for c in codes]
        ),
        "<h2>Not in the set</h2>",
        _losses(build),
        "<h2>Licences</h2>",
        _table(("licence", "rows", "kind", "note"), license_rows(facts)),
        _balance(build),
        _topics(facts),
        "<h2>Requests</h2>",
        f"<p>{html.escape(build.cost_text())}</p>",
        "<h2>Random rows</h2>",
        *(_samples(facts, code) for code in codes),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        + "".join(body)
        + "</body></html>\n"
    )


def bars(labels: list[str], series: dict[str, list[int]]) -> str:
    """Horizontal stacked bars, one a label, as SVG with a legend."""
    totals = [sum(values[i] for values in series.values()) for i in range(len(labels))]
    most, width = max([*totals, 1]), 560
    parts, legend = [], []
    for i, label in enumerate(labels):
        x, y = 60.0, 8 + 28 * i
        parts.append(f'<text x="52" y="{y + 14}" text-anchor="end">{html.escape(label)}</text>')
        for colour, (name, values) in zip(_cycle(), series.items()):
            w = width * values[i] / most
            if values[i]:
                tip = f"<title>{html.escape(f'{name}: {values[i]:,}')}</title>"
                parts.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="20" fill="{colour}">{tip}</rect>')
                x += w
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 14}">{totals[i]:,}</text>')
    base = 28 * len(labels) + 24
    for n, (colour, name) in enumerate(zip(_cycle(), series)):
        x, y = 60 + 200 * (n % 3), base + 20 * (n // 3)
        legend.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        legend.append(f'<text x="{x + 18}" y="{y}">{html.escape(name)}</text>')
    height = base + 20 * ((len(series) + 2) // 3) + 8
    return (
        f'<figure><svg viewBox="0 0 720 {height}" font-size="13" font-family="system-ui,sans-serif" role="img">'
        + "".join(parts + legend)
        + "</svg></figure>"
    )


def _cycle():
    while True:
        yield from _COLOURS


def _lengths(facts: Facts, codes: list[str]) -> str:
    names = [f"{a}–{b - 1}" for a, b in zip(LENGTHS, LENGTHS[1:])] + [f"{LENGTHS[-1]}+"]
    empty = [0] * len(names)
    return bars(codes, {name: [facts.lengths.get(c, empty)[i] for c in codes] for i, name in enumerate(names)})


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    def cell(tag: str, value: object, number: bool) -> str:
        text = f"{value:,}" if isinstance(value, int) else html.escape(str(value))
        return f"<{tag}{' class=n' if number else ''}>{text}</{tag}>"

    numbers = [bool(rows) and isinstance(rows[0][i], int) for i in range(len(head))]
    top = "".join(cell("th", h, n) for h, n in zip(head, numbers))
    lines = "".join("<tr>" + "".join(cell("td", v, n) for v, n in zip(row, numbers)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{lines}</table></div>'


def _warnings(build: Any, facts: Facts) -> str:
    notes = [f"{name} was not read: {why}" for name, why in build.inputs.missing.items()]
    wanted = build.recipe.targets
    notes += [f"{code}: {n:,} of {wanted[code]:,} rows wanted" for code, n in build.short_of_target(facts)]
    notes += [] if build.benchmarks else ["no benchmark was given: nothing was checked against test sets"]
    notes += [f"{build.rows.pending():,} requests have no answer yet"] if build.rows.pending() else []
    return "".join(f'<p class="warn">{html.escape(n)}</p>' for n in notes)


def _losses(build: Any) -> str:
    rows = loss_rows(build.recipe, build.inputs, build.rows, build.selection)
    return _table(("stage", "part", "reason", "rows"), rows) if rows else "<p>Nothing was left out.</p>"


def _balance(build: Any) -> str:
    if not build.selection.balance:
        return ""
    rows = [
        (
            b.source,
            b.language,
            b.options,
            sum(b.counts.values()),
            " ".join(f"{k} {n}" for k, n in b.counts.items()),
            f"{b.letter} {b.share:.0%}" + (" (leans to it)" if b.skewed else ""),
        )
        for b in build.selection.balance
    ]
    head = ("source", "language", "options", "rows", "letters", "most")
    return "<h2>Letters of the right answers</h2>" + _table(head, rows)


def _topics(facts: Facts) -> str:
    if not facts.topics:
        return ""
    return "<h2>Topics</h2>" + _table(("topic", "rows"), facts.topics.most_common())


def _samples(facts: Facts, code: str) -> str:
    return f"<h3>{LANGUAGE_NAMES[code]}</h3>" + "".join(_sample(r) for r in facts.samples.get(code, ()))


def _sample(record: dict) -> str:
    def text(name: str, value: str) -> str:
        cut = value if len(value) <= _CUT else value[:_CUT] + " …"
        return f"<p><b>{html.escape(name)}</b> {html.escape(cut)}</p>"

    about = record["provenance"]
    meta = [record["id"], record["source"], how_made(record), record["license"], *about.get("flags", ())]
    if "options" in record:
        shown = [text("passage", record["context"])] if record.get("context") else []
        shown += [text("question", record["question"])]
        shown += [text(k, v) for k, v in record["options"].items()]
        shown += [text("answer", record["answer_idx"]), text("rationale", answer_text(record) or "—")]
    else:
        shown = [text(m["role"], m["content"]) for m in record["messages"]]
    head = f'<p class="meta">{html.escape(" · ".join(meta))}</p>'
    return f'<article lang="{record["language"]}">{head}{"".join(shown)}</article>'
