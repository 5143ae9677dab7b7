"""results.json of --perplexity: loss, perplexity and bits per byte, by language and source, with intervals.

Loss is nats per token, so it and the perplexity, its exponential, depend on the tokenizer. Bits per byte are the same
nats over ln 2 and the UTF-8 bytes of the text: comparable between tokenizers, and between languages as far as their
bytes are.
"""

import math
from collections.abc import Sequence
from typing import Any

from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.metrics.intervals import ratio_interval
from mmed_jax.evaluation.results_json import SCHEMA

KIND = "perplexity"
METRIC = "Bits per byte: nats of all scored tokens / (ln 2 x UTF-8 bytes of the text)"


# What a cell has.
CELL = ("documents", "tokens", "bytes", "nll", "loss", "perplexity", "bits_per_byte", "interval95", "loss_interval95")


def cell(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is counted of some lines of predictions.jsonl, one of them at least.

    Returns:
      {"documents", "tokens", "bytes", "nll" (nats), "loss" (nats per token), "perplexity", "bits_per_byte" (None where
      the lines have no bytes), "interval95" of the bits per byte and "loss_interval95": over documents, None of one}.
    """
    nll, tokens, size = ([line[k] for line in lines] for k in ("nll", "tokens", "bytes"))
    total = math.fsum(nll)
    loss = total / sum(tokens)
    bits = ratio_interval(nll, [math.log(2) * b for b in size]) if sum(size) else None
    per_token = ratio_interval(nll, tokens)
    return {
        "documents": len(lines),
        "tokens": sum(tokens),
        "bytes": sum(size),
        "nll": total,
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": total / (math.log(2) * sum(size)) if sum(size) else None,
        "interval95": list(bits) if bits else None,
        "loss_interval95": list(per_token) if per_token else None,
    }


def perplexity(loss: float) -> float | None:
    """exp(loss); None where that is no number a float holds."""
    return math.exp(loss) if loss < 700 else None


def ordered_languages(names: Sequence[str]) -> list[str]:
    """Languages in the order of schema.LANGUAGES, others after them by name."""
    known = [c for c in LANGUAGES if c in names]
    return known + sorted(set(names) - set(known))


def summarise(
    lines: Sequence[dict[str, Any]], *, settings: dict[str, Any], model: dict[str, Any], data: dict[str, Any]
) -> dict[str, Any]:
    """All of results.json; `lines` are those of predictions.jsonl.

    "languages" holds a cell for each, with "sources", and "mean_over_languages" the unweighted mean of their bits per
    byte, which does not depend on how much of each language was scored.
    """
    languages = {}
    for language in ordered_languages([line["language"] for line in lines]):
        mine = [line for line in lines if line["language"] == language]
        sources = sorted({line["source"] for line in mine})
        languages[language] = {
            **cell(mine),
            "sources": {s: cell([line for line in mine if line["source"] == s]) for s in sources},
        }
    bits = [c["bits_per_byte"] for c in languages.values()]
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "metric": METRIC,
        "model": model,
        "settings": settings,
        "data": data,
        "overall": cell(lines),
        "mean_over_languages": None if None in bits else sum(bits) / len(bits),
        "languages": languages,
    }


def rows(results: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(language, source, cell) lines of a table: every language's sources, where it has several its total, and all."""
    out = []
    for language, block in results["languages"].items():
        sources = block["sources"]
        out += [(language, source, c) for source, c in sources.items()]
        if len(sources) > 1:
            out.append((language, "all", block))
    if len(results["languages"]) > 1:
        out.append(("all", "all", results["overall"]))
    return out
