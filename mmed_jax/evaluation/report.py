"""report.html of an evaluation: one self-contained page with table, charts and some wrong answers."""

import html
from collections.abc import Sequence
from typing import Any

from mmed_jax.data.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.benchmarks import Item
from mmed_jax.evaluation.results import rows

_SHOWN = 12  # wrong answers
_CUT = 700  # characters of a text

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#1c1c1c;background:#fff}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}tr.all td{font-weight:600;border-top:2px solid #888}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:0}
dt{color:#555}dd{margin:0;overflow-wrap:anywhere}
figure{margin:1rem 0}svg{max-width:100%;height:auto}figcaption{color:#555;font-size:.9rem}
details{border:1px solid #ddd;border-radius:4px;padding:.4rem .8rem;margin:.5rem 0}summary{cursor:pointer}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.6rem;font-size:.85rem}
@media print{details{break-inside:avoid}body{max-width:none}}
"""


def make_page(results: dict[str, Any], items: Sequence[Item], predictions: Sequence[dict]) -> str:
    """The page. `predictions` belong to `items` one by one (records of predictions.jsonl)."""
    overall = results["overall"]
    title = f"{overall['accuracy']:.1%} of {overall['count']:,} answers right"
    charts = "".join(_chart(name, block) for name, block in results["benchmarks"].items())
    wrong = [(i, p) for i, p in zip(items, predictions, strict=True) if not p["correct"]]
    # Spread over the whole list rather than the first ones, which are all of one language.
    some = [wrong[k * len(wrong) // _SHOWN] for k in range(_SHOWN)] if len(wrong) > _SHOWN else wrong
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation: {html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1>{_facts(results)}<h2>Results</h2>{_table(results)}"
        f"<p>{html.escape(results['metric'])}. An answer that can't be read counts as wrong; “cut” answers reached "
        "the token limit. Intervals are Wilson's, 95 %.</p>"
        f"{charts}<h2>Wrong answers ({len(some)} of {len(wrong):,})</h2>{''.join(_answer(i, p) for i, p in some)}"
        "</body></html>\n"
    )


def _facts(results: dict[str, Any]) -> str:
    model, settings = results["model"], results["settings"]
    step = f", step {model['step']:,}" if model.get("step") is not None else ""
    facts = {
        "model": f"{model['path']} ({'run' if model['kind'] == 'run' else 'Hugging Face folder'}{step}, "
        f"weights {model['fingerprint']})",
        "mode": settings["mode"],
        "prompts": f"family {settings['prompt_family']}, SHA-256 {results['prompts_sha256'][:16]}",
        "decoding": f"greedy, at most {settings['max_new_tokens']} new tokens, {settings['dtype']}",
        "mean over languages": f"{results['mean_over_languages']:.1%}",
    }
    for name, data in results["data"].items():
        left = f", {data['needs_image']:,} left out that need an image" if data["needs_image"] else ""
        facts[name] = f"{data['asked']:,} items asked{left}; SHA-256 of the file {data['sha256'][:16]}"
    lines = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts.items())
    return f"<dl>{''.join(lines)}</dl>"


def _table(results: dict[str, Any]) -> str:
    letters = "parse_rate" in results["overall"]
    head = ["benchmark", "language", "items", "accuracy", "95 % interval"]
    head += [*(["chance", "parsed"] if letters else []), "cut"]
    lines = []
    for name, language, c in rows(results):
        low, high = c["interval95"]
        cells = [name, LANGUAGE_NAMES.get(language, language), f"{c['count']:,}", f"{c['accuracy']:.1%}"]
        cells += [f"{low:.1%} to {high:.1%}"]
        cells += [f"{c['chance']:.1%}", f"{c['parse_rate']:.1%}"] if letters else []
        mark = ' class="all"' if language == "all" else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in [*cells, c["cut"]]) + "</tr>")
    header = "".join(f"<th>{h}</th>" for h in head)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _chart(name: str, block: dict[str, Any]) -> str:
    """Bars by language with their intervals; a dashed line where blind choice would be."""
    left, width, row = 90, 560, 30
    parts = []
    languages = block["languages"]
    for k, (language, c) in enumerate(languages.items()):
        y, (low, high) = k * row + 6, c["interval95"]
        end = left + width * c["accuracy"]
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" font-size="13">{LANGUAGE_NAMES[language]}</text>'
            f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="18" fill="#1f6fb4"/>'
            f'<line x1="{left + width * low:.1f}" x2="{left + width * high:.1f}" y1="{y + 9}" y2="{y + 9}" '
            'stroke="#111" stroke-width="2"/>'
            f'<text x="{left + width * high + 6:.1f}" y="{y + 13}" font-size="12">{c["accuracy"]:.1%}</text>'
        )
        if "chance" in c:
            x = left + width * c["chance"]
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{y + 22}" stroke="#d1495b" stroke-width="2" '
                'stroke-dasharray="3 2"/>'
            )
    height = len(languages) * row + 24
    for tick in (0, 25, 50, 75, 100):
        x = left + width * tick / 100
        parts.append(f'<text x="{x}" y="{height - 4}" text-anchor="middle" font-size="11" fill="#555">{tick} %</text>')
    note = "line: 95 % interval" + ("; red: blind choice" if "chance" in block["overall"] else "")
    return (
        f'<figure><svg role="img" viewBox="0 0 {left + width + 60} {height}" font-family="sans-serif">'
        f"<title>Accuracy by language, {html.escape(name)}</title>{''.join(parts)}</svg>"
        f"<figcaption>{html.escape(name)}, accuracy by language ({note})</figcaption></figure>"
    )


def _answer(item: Item, prediction: dict[str, Any]) -> str:
    got = prediction["extracted"] or ("not parsed" if item.options else "another text")
    right = item.answer if item.options else _short(item.answer)
    head = f"{item.benchmark} {item.id} ({LANGUAGE_NAMES[item.language]}): {got}, right is {right}"
    prompt = html.escape(_short(prediction["prompt"], end=True))
    return (
        f"<details><summary>{html.escape(head)}</summary><pre>{prompt}</pre>"
        f"<pre>{html.escape(_short(prediction['output']) or '(nothing)')}</pre>"
        f"<p>rule {html.escape(prediction['rule'])}, ended by {html.escape(prediction['finish_reason'])}</p></details>"
    )


def _short(text: str, *, end: bool = False) -> str:
    if len(text) <= _CUT:
        return text
    return "… " + text[-_CUT:] if end else text[:_CUT] + " …"
