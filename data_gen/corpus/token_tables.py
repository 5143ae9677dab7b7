"""Tokens of a table by language, source and kind of source, beside the published numbers of MMedC."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from data_gen.corpus.corpus_recipe import KINDS
from data_gen.corpus.corpus_report import published_tokens


def count_lines(info: Mapping[str, Any]) -> list[str]:
    """A line a group, and one a split: documents, tokens, rows, how full they are, tokens a byte of text."""
    rows: list[tuple[str, ...]] = [("split", "language/source", "documents", "tokens", "rows", "full", "tokens a byte")]
    for split, part in info["splits"].items():
        total = {name: sum(g[name] for g in part["groups"]) for name in ("documents", "tokens", "rows", "bytes")}
        for name, counts in [*((g["name"], g) for g in part["groups"]), ("all", total)]:
            full = counts["tokens"] / max(1, counts["rows"] * info["seq_len"])
            each = counts["tokens"] / max(1, counts["bytes"])
            numbers = (f"{counts[k]:,}" for k in ("documents", "tokens", "rows"))
            rows.append((split, name, *numbers, f"{full:.1%}", f"{each:.3f}"))
    return _aligned(rows, 2)


def published_lines(info: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    """Billions of tokens of the training split, "ours / published", by language and kind of source.

    Args:
      kinds: source -> of KINDS; where none is known there are only the totals.
    """
    ours: Counter[tuple[str, str]] = Counter()
    for group in info["splits"]["train"]["groups"]:
        ours[group["language"], kinds.get(group["source"], "")] += group["tokens"]
    published, columns = published_tokens(), KINDS if kinds else ()
    rows: list[tuple[str, ...]] = [("10^9 tokens", *(kind.replace("_", " ") for kind in columns), "total")]
    for language in dict.fromkeys(language for language, _ in ours):
        theirs = published.get(language)
        total = sum(n for (code, _), n in ours.items() if code == language)
        pairs = [(ours[language, kind], theirs[kind] if theirs else None) for kind in columns]
        pairs.append((total, sum(theirs.values()) if theirs else None))
        rows.append((language, *(f"{a / 1e9:.3g} / {'-' if b is None else f'{b:.2f}'}" for a, b in pairs)))
    return _aligned(rows, 1)


def _aligned(rows: list[tuple[str, ...]], left: int) -> list[str]:
    """Columns one beside the other: the first `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    padded = (
        [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths))] for r in rows
    )
    return ["  ".join(cells).rstrip() for cells in padded]
