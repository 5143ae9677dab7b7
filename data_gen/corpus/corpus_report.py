"""report.html of a corpus: plots of what was kept, tables of what was dropped and why, borderline texts, tokens."""

import csv
from collections import Counter
from typing import Any

from ml_collections import ConfigDict

from data_gen.corpus.accounting import Books
from data_gen.corpus.corpus_recipe import KINDS, STEPS
from mmed_jax.common.html_page import render
from mmed_jax.common.paths import ASSETS
from mmed_jax.data.records.schema import LANGUAGE_NAMES

# Tokens a UTF-8 byte by Llama 3's tokenizer, over this project's hand-written medical records (data_gen/handcrafted).
TOKENS_PER_BYTE = {"en": 0.217, "zh": 0.324, "ja": 0.280, "ko": 0.275, "fr": 0.282, "es": 0.285, "ru": 0.175}
_OTHER = 0.26
_SAMPLES = 4  # of a reason and language
_BAD_LINES = 40


def page(
    recipe: ConfigDict, summary: dict[str, Any], filtered: Books, cleaned: Books, samples: list[dict[str, Any]]
) -> str:
    """The page of a finished corpus; arguments as CorpusBuild has them."""
    languages = [c for c in recipe.languages if any(code == c for _, code in (*filtered.kept, *cleaned.kept))]
    names = [LANGUAGE_NAMES[c] for c in languages]
    dropped = filtered.dropped + cleaned.dropped
    steps = [name for name in ("read", *STEPS) if any(step == name for _, _, step, _ in dropped)]
    by_step = {"kept": _by_language(cleaned.kept, languages)}
    for name in steps:
        counts = Counter({(source, code): 0 for source, code in cleaned.kept})
        for (source, code, step, _), n in dropped.items():
            counts[source, code] += n if step == name else 0
        by_step[name] = _by_language(counts, languages)
    sources = sorted({source for source, _ in cleaned.bytes})
    size = {s: [cleaned.bytes[s, c] for c in languages] for s in sources}
    return render(
        "corpus_report.html",
        title=f"{recipe.title or recipe.name}: {sum(cleaned.kept.values()):,} documents",
        description=recipe.description,
        warnings=_warnings(recipe, summary, filtered),
        languages=languages,
        charts={"Documents by language: kept, and dropped by which step": by_step, "Bytes kept by source": size},
        kept=_kept_rows(filtered, cleaned, languages),
        names=names,
        dropped=_dropped_rows(dropped, steps),
        sources=_source_rows(recipe, filtered, cleaned, dropped),
        tokens=_token_rows(recipe, cleaned),
        kinds=[kind.replace("_", " ") for kind in KINDS],
        notes=[(step, name, n) for (step, name), n in sorted(cleaned.notes.items())],
        samples=_chosen(samples),
    )


def estimate_tokens(size: int, language: str) -> int:
    """Tokens of so many UTF-8 bytes of text; an estimate that `corpus tokenize` replaces."""
    return round(size * TOKENS_PER_BYTE.get(language, _OTHER))


def published_tokens() -> dict[str, dict[str, float]]:
    """Billions of tokens of MMedC as published: {language: {kind of source: number}} (assets/published/README.md)."""
    with open(ASSETS / "published" / "mmedc_tokens.csv", encoding="utf-8", newline="") as f:
        return {row["language"]: {kind: float(row[f"{kind}_b"]) for kind in KINDS} for row in csv.DictReader(f)}


def _by_language(counts: Counter[tuple[str, str]], languages: list[str]) -> list[int]:
    return [sum(n for (_, code), n in counts.items() if code == language) for language in languages]


def _warnings(recipe: ConfigDict, summary: dict[str, Any], filtered: Books) -> list[str]:
    notes = [f"source {name} was not there: {recipe.source[name].path}" for name in summary["missing"]]
    bad = sum(n for (_, _, step, _), n in filtered.dropped.items() if step == "read")
    notes += [f"{bad:,} lines, rows or files could not be read: rejects.jsonl names each"] if bad else []
    indexed = "benchmarks" in summary["stages"]
    left_out = [n for n in STEPS if n not in recipe.steps or n == "decontamination" and not indexed]
    return notes + ([f"steps that did not run: {', '.join(left_out)}"] if left_out else [])


def _kept_rows(filtered: Books, cleaned: Books, languages: list[str]) -> list[tuple[Any, ...]]:
    """Language, documents that a step dropped or that are kept, share kept, characters, bytes."""
    rows = []
    for code in languages:
        kept = sum(n for (_, c), n in cleaned.kept.items() if c == code)
        gone = sum(n for books in (filtered, cleaned) for (_, c, _, _), n in books.dropped.items() if c == code)
        chars = sum(n for (_, c), n in cleaned.chars.items() if c == code)
        size = sum(n for (_, c), n in cleaned.bytes.items() if c == code)
        rows.append((LANGUAGE_NAMES[code], kept + gone, kept, f"{kept / max(1, kept + gone):.1%}", chars, size))
    return rows


def _dropped_rows(dropped: Counter[tuple[str, str, str, str]], steps: list[str]) -> list[tuple[Any, ...]]:
    """Step, reason, language, documents; in the order of the steps, most first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for (_, code, step, reason), n in dropped.items():
        counts[step, reason, code] += n
    order = sorted(counts.items(), key=lambda kv: (steps.index(kv[0][0]), -kv[1], kv[0]))
    return [(step, reason, code or "not known", n) for (step, reason, code), n in order]


def _source_rows(
    recipe: ConfigDict, filtered: Books, cleaned: Books, dropped: Counter[tuple[str, str, str, str]]
) -> list[tuple[Any, ...]]:
    """Source, kind, documents read, dropped, kept, share kept; read = dropped + kept was checked."""
    rows = []
    for source in sorted({s for s, _ in filtered.read}):
        read = sum(n for (s, _), n in filtered.read.items() if s == source)
        gone = sum(n for (s, *_), n in dropped.items() if s == source)
        kept = sum(n for (s, _), n in cleaned.kept.items() if s == source)
        kind = recipe.source[source].kind.replace("_", " ")
        rows.append((source, kind, read, gone, kept, f"{kept / max(1, read):.1%}"))
    return rows


def _token_rows(recipe: ConfigDict, cleaned: Books) -> list[tuple[Any, ...]]:
    """Language, then for each kind of source "ours / published" in billions of tokens, then both totals."""
    published, ours = published_tokens(), Counter[tuple[str, str]]()
    for (source, code), size in cleaned.bytes.items():
        ours[code, recipe.source[source].kind] += estimate_tokens(size, code)
    rows = []
    for code in recipe.languages:
        theirs = published.get(code, {})
        pairs = [(ours[code, kind] / 1e9, theirs.get(kind)) for kind in KINDS]
        total = sum(a for a, _ in pairs), sum(theirs.values()) if theirs else None
        rows.append((LANGUAGE_NAMES[code], *(_pair(*pair) for pair in (*pairs, total))))
    return rows


def _pair(ours: float, theirs: float | None) -> str:
    return f"{ours:.3g} / {'—' if theirs is None else f'{theirs:.2f}'}"


def _chosen(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few of each step, reason and language; borderline ones first."""
    held: Counter[tuple[str, str, str]] = Counter()
    chosen = []
    for sample in sorted(samples, key=lambda s: (s["step"] != "keywords", not s["borderline"], s["id"])):
        key = sample["step"], sample["reason"], sample["language"]
        held[key] += 1
        if held[key] <= _SAMPLES:
            chosen.append(sample)
    order = ["", *STEPS]
    return sorted(chosen, key=lambda s: (order.index(s["step"]), s["reason"], s["language"], s["id"]))
