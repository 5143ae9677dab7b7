"""report.html of a set: one printable page with plots, tables and random rows; no external resources."""

from typing import Any

from data_gen.sets.statistics import (
    LENGTHS,
    Facts,
    answer_text,
    languages_present,
    license_rows,
    loss_rows,
    method_shown,
)
from mmed_jax.common.html_page import render
from mmed_jax.data.records.schema import LANGUAGE_NAMES

_CUT = 1200


def page(build: Any, facts: Facts) -> str:
    """The page of a finished build (data_gen.commands.build.Build)."""
    recipe = build.recipe
    codes = list(languages_present(facts))
    methods = sorted({method for _, method in facts.methods})
    sources = sorted({s for _, s in facts.sources}, key=lambda s: (-sum(facts.sources[c, s] for c in codes), s))
    return render(
        "set_report.html",
        title=f"{recipe.title or recipe.name} {recipe.version}: {facts.total:,} rows",
        description=recipe.description,
        warnings=_warnings(build, facts),
        languages=codes,
        charts={
            "Rows by language and method": {m: [facts.methods[c, m] for c in codes] for m in methods},
            "Rows by language and source": {s: [facts.sources[c, s] for c in codes] for s in sources},
            "Length of answers and rationales (characters)": _lengths(facts, codes),
        },
        splits=list(build.splits),
        split_rows=[(LANGUAGE_NAMES[c], *(facts.rows[s, c] for s in build.splits)) for c in codes],
        losses=loss_rows(build.recipe, build.inputs, build.rows, build.selection),
        licenses=license_rows(facts),
        balance=_balance(build),
        topics=facts.topics.most_common(),
        cost=build.cost_text(),
        samples=[(LANGUAGE_NAMES[c], [_sample(r) for r in facts.samples.get(c, ())]) for c in codes],
    )


def _lengths(facts: Facts, codes: list[str]) -> dict[str, list[int]]:
    names = [f"{a}–{b - 1}" for a, b in zip(LENGTHS, LENGTHS[1:])] + [f"{LENGTHS[-1]}+"]
    empty = [0] * len(names)
    return {name: [facts.lengths.get(c, empty)[i] for c in codes] for i, name in enumerate(names)}


def _warnings(build: Any, facts: Facts) -> list[str]:
    notes = [f"{name} was not read: {why}" for name, why in build.inputs.missing.items()]
    wanted = build.recipe.targets
    notes += [f"{code}: {n:,} of {wanted[code]:,} rows wanted" for code, n in build.short_of_target(facts)]
    if build.is_benchmark:
        repeats = len(build.near_duplicates)
        notes += [f"{repeats:,} test questions stand in the training split as well"] if repeats else []
    elif not build.benchmarks:
        notes += ["no benchmark was given: nothing was checked against test sets"]
    notes += [f"{build.rows.pending():,} requests have no answer yet"] if build.rows.pending() else []
    return notes


def _balance(build: Any) -> list[tuple[object, ...]]:
    return [
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


def _sample(record: dict) -> dict[str, Any]:
    """Language, facts, and the texts of a row with their names."""
    flags = record["provenance"].get("flags", ())
    if "options" in record:
        texts = [("passage", record["context"])] if record.get("context") else []
        texts += [("question", record["question"]), *record["options"].items()]
        texts += [("answer", record["answer_idx"]), ("rationale", answer_text(record) or "—")]
    else:
        texts = [(m["role"], m["content"]) for m in record["messages"]]
    return {
        "language": record["language"],
        "about": [record["id"], record["source"], method_shown(record), record["license"], *flags],
        "texts": [(name, text if len(text) <= _CUT else text[:_CUT] + " …") for name, text in texts],
    }
