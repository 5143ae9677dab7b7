"""Tokens of a table by language and kind of source, beside the published numbers of MMedC."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from data_gen.corpus.corpus_recipe import KINDS
from data_gen.corpus.corpus_report import published_tokens
from mmed_jax.data.token_report import align


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
    return align(rows, 1)
