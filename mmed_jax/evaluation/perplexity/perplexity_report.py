"""What is shown of results.json of --perplexity: lines of text, and report.html."""

from collections.abc import Sequence
from typing import Any

from mmed_jax.common.html_page import Row, render
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.perplexity.score import Texts
from mmed_jax.evaluation.perplexity.summary import rows
from mmed_jax.evaluation.results_page import describe_model, describe_tuning

_HEAD = ("documents", "tokens", "bytes", "loss", "perplexity", "bits/byte", "95 % interval")
_SHOWN = 10  # documents with the most bits per byte
_LEAST = 200  # bytes of a document that is listed: a short one says little
_CUT = 300  # characters of its text


def _numbers(c: dict[str, Any]) -> list[str]:
    low_high = c["interval95"]
    return [
        f"{c['documents']:,}",
        f"{c['tokens']:,}",
        f"{c['bytes']:,}",
        f"{c['loss']:.4f}",
        "-" if c["perplexity"] is None else f"{c['perplexity']:,.4g}" if c["perplexity"] < 1e6 else "over 1e6",
        "-" if c["bits_per_byte"] is None else f"{c['bits_per_byte']:.4f}",
        "-" if low_high is None else "{:.4f} to {:.4f}".format(*low_high),
    ]


def sample_note(results: dict[str, Any]) -> str:
    """What has to be said of a run with --limit; "" of others."""
    limit = results["settings"].get("limit")
    return f"a sample (--limit={limit}): the first {limit} documents of each language and source" if limit else ""


def results_table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    lines = [["language", "source", *_HEAD]]
    lines += [[language, source, *_numbers(c)] for language, source, c in rows(results)]
    if len(results["languages"]) > 1 and results["mean_over_languages"] is not None:
        lines.append(["mean", "", "", "", "", "", "", f"{results['mean_over_languages']:.4f}", ""])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        "  ".join(v.ljust(w) if i < 2 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    ]
    return "\n".join([*filter(None, [sample_note(results)]), *shown])


def make_page(results: dict[str, Any], texts: Texts, lines: Sequence[dict[str, Any]]) -> str:
    """The page. `lines` belong to the documents of `texts` one by one."""
    overall, settings = results["overall"], results["settings"]
    bits = overall["bits_per_byte"]
    title = f"{bits:.4f} bits per byte" if bits is not None else f"{overall['loss']:.4f} nats per token"
    table: list[Any] = []
    for language, source, c in rows(results):
        name = "all" if language == "all" else LANGUAGE_NAMES.get(language, language)
        total = source == "all"
        table.append(Row("all" if total else "", [name, "" if total else source, *_numbers(c)]))
    return render(
        "perplexity_report.html",
        title=f"{title}, {overall['documents']:,} documents",
        sample=sample_note(results),
        about=[
            ("model", describe_model(results)),
            ("tuning", describe_tuning(results)),
            ("texts", ", ".join(results["data"]["names"])),
            ("scored", results["data"]["rule"]),
        ],
        results={"head": ["", "source", *_HEAD], "rows": table, "metric": results["metric"]},
        mean=results["mean_over_languages"] if len(results["languages"]) > 1 else None,
        chart=_chart(results),
        hardest=_hardest(texts, lines),
        settings=[(k.replace("_", " "), v) for k, v in settings.items() if v not in (None, "", 0)],
    )


def _chart(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Bars of bits per byte: {"name", "count", "value", and as shares of the longest bar "at", "low", "high"}."""
    cells = {k: c for k, c in results["languages"].items() if c["bits_per_byte"] is not None}
    most = max((x for c in cells.values() for x in (c["bits_per_byte"], *(c["interval95"] or ()))), default=0) or 1
    return [
        {
            "name": LANGUAGE_NAMES.get(k, k),
            "documents": c["documents"],
            "value": c["bits_per_byte"],
            "at": c["bits_per_byte"] / most,
            "interval": [max(0.0, x) / most for x in c["interval95"]] if c["interval95"] else None,
        }
        for k, c in cells.items()
    ]


def _hardest(texts: Texts, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents with the most bits per byte: damaged text, another language, what the model does not know."""
    some = [(i, line) for i, line in enumerate(lines) if line["bits_per_byte"] is not None and line["bytes"] >= _LEAST]
    some.sort(key=lambda pair: (-pair[1]["bits_per_byte"], pair[1]["id"]))
    return [{**line, "begin": texts.begin(i, _CUT)} for i, line in some[:_SHOWN]]
