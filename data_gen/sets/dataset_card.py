"""README.md of a set: a dataset card as the hub reads it, made from counted facts."""

import json
from typing import Any

from data_gen.sets import mmedbench_card
from data_gen.sets.markdown_table import table
from data_gen.sets.statistics import Facts, languages_present, license_rows, loss_rows, method_shown, prompt_rows
from mmed_jax.data.records.schema import LANGUAGE_NAMES

__all__ = ["card", "method_shown"]
_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(build: Any, facts: Facts) -> str:
    """The card of a finished build (data_gen.commands.build.Build): YAML head for the hub, tables, limits."""
    recipe = build.recipe
    benchmark = recipe.format == "mmedbench"
    parts = [
        _head(recipe, facts, build.splits),
        f"# {recipe.title or recipe.name}",
        recipe.description,
        "**For research. Not for clinical use.** Nothing here has been validated for the care of patients.",
        mmedbench_card.counts(build, facts) if benchmark else _counts(facts, build.splits),
        _methods_and_sources(recipe, facts),
        _licenses(facts),
        _losses(build),
        mmedbench_card.questions(build) if benchmark else _contamination(build),
        _cost(build, facts),
        mmedbench_card.fields(recipe) if benchmark else _fields(recipe),
        _limits(recipe, build, facts),
        f"## Citation\n\n```bibtex\n{recipe.citation.strip()}\n```" if recipe.citation else "",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _head(recipe: Any, facts: Facts, splits: list[str]) -> str:
    size = next((name for limit, name in _SIZES if facts.total < limit), "n>1M")
    paths = {
        s: f"{s.capitalize()}/*.jsonl" if recipe.format == "mmedbench" else f"parquet/{s}-*.parquet" for s in splits
    }
    files = "".join(f"\n      - split: {s}\n        path: {path}" for s, path in paths.items())
    languages = "".join(f"\n  - {code}" for code in languages_present(facts))
    task = "question-answering" if recipe.kind == "instruction" else "multiple-choice"
    return (
        f"---\npretty_name: {json.dumps(recipe.title or recipe.name)}\nlanguage:{languages}\nlicense: other\n"
        f"license_name: per-row\ntask_categories:\n  - {task}\ntags:\n  - medical\n  - synthetic\n"
        f"size_categories:\n  - {size}\nconfigs:\n  - config_name: default\n    data_files:{files}\n---"
    )


def _counts(facts: Facts, splits: list[str]) -> str:
    rows = [
        (f"{LANGUAGE_NAMES[c]} ({c})", *(facts.rows[s, c] for s in splits), sum(facts.rows[s, c] for s in splits))
        for c in languages_present(facts)
    ]
    of_split = (sum(n for (s, _), n in facts.rows.items() if s == split) for split in splits)
    rows.append(("**all**", *of_split, facts.total))
    return "## Rows\n\n" + table(("language", *splits, "all"), rows)


def _methods_and_sources(recipe: Any, facts: Facts) -> str:
    codes = list(languages_present(facts))
    methods = sorted({method for _, method in facts.methods})
    sources = sorted({source for _, source in facts.sources})
    by_method = [
        (method, *(facts.methods[c, method] for c in codes), sum(facts.methods[c, method] for c in codes))
        for method in methods
    ]
    by_source = [(s, *(facts.sources[c, s] for c in codes), sum(facts.sources[c, s] for c in codes)) for s in sources]
    text = "## How they were made\n\n" + table(("method", *codes, "all"), by_method)
    text += "\n\n## Sources\n\n" + table(("source", *codes, "all"), by_source)
    if recipe.kind == "mcq":
        text += f"\n\n{facts.rationales:,} rows have a rationale, {facts.several:,} have several right answers."
    return text


def _licenses(facts: Facts) -> str:
    licenses = license_rows(facts)
    rows = [(text, n, f"**{kind}**" if kind != "open" else kind, note) for text, n, kind, note in licenses]
    text = "## Licences\n\nEvery row keeps the licence of its source, also when it was derived from it.\n\n"
    text += table(("licence", "rows", "kind", "note"), rows)
    closed = sum(n for _, n, kind, _ in licenses if kind not in ("open", "share-alike"))
    if closed:
        text += f"\n\n**{closed:,} rows are not for commercial use, or their terms are not verified** (see the table)."
    return text


def _losses(build: Any) -> str:
    rows = loss_rows(build.recipe, build.inputs, build.rows, build.selection)
    text = "## Not in the set\n\n"
    text += table(("stage", "part", "reason", "rows"), rows) if rows else "Nothing was left out."
    missing = [f"- `{name}`: {why}" for name, why in build.inputs.missing.items()]
    return text + ("\n\nSources that were not at hand:\n\n" + "\n".join(missing) if missing else "")


def _contamination(build: Any) -> str:
    if not build.benchmarks:
        return "## Benchmarks\n\n**No benchmark was given, so no row was checked against a test set.**"
    rows = [(name, n, build.hits_by_benchmark()[name]) for name, n in build.benchmarks.items()]
    text = "## Benchmarks\n\nEvery row was checked against these test items: by id, parents, family, text, and by "
    text += f"n-grams (at least {build.recipe.contamination:.0%} of an item's weight). Rows with a hit and their whole "
    text += "families are out; `contaminated.jsonl` lists them.\n\n"
    return text + table(("benchmark", "items", "rows or inputs that give one away"), rows)


def _cost(build: Any, facts: Facts) -> str:
    rows = [(version, n) for version, n in prompt_rows(facts)]
    text = "## Requests\n\n" + build.cost_text()
    if rows:
        text += "\n\n" + table(("prompt, version", "requests behind the rows"), rows)
        text += "\n\nModels: " + ", ".join(sorted(m for m in facts.models if m)) + "."
    return text


def _fields(recipe: Any) -> str:
    own = {
        "instruction": [("messages", "turns of system, user, assistant; the last is the answer")],
        "mcq": [
            ("context", "a passage the question is about, or empty"),
            ("question", "without the options"),
            ("options", "text by letter"),
            ("answer_idx", "right letters, `A` or `A,C`"),
            ("rationale", "why these; empty where there is none"),
            ("human_checked, human_check_passed", "of MMedBench's rationales"),
        ],
    }[recipe.kind]
    rows = [
        ("id", "unique"),
        ("language", "ISO 639-1"),
        *own,
        ("source, license", "of the row or of what it was made from"),
        ("method", "original, answer_expanding, qa_generation, translation or handcrafted"),
        ("group", "shared by all versions of one question; no group is in two splits"),
        ("flags", "soft findings of the gates"),
        ("provenance", "JSON: parent, model, prompt version, request key, parameters, earlier steps"),
    ]
    return "## Fields\n\n" + table(("field", "meaning"), rows)


def _limits(recipe: Any, build: Any, facts: Facts) -> str:
    skewed = [b for b in build.selection.balance if b.skewed]
    lines = [
        "Generated rows were checked by rules (language, numbers, options, key, facts, duplicates), not by physicians.",
        "Not for diagnosis or treatment; some answers are dated or hold for one country only.",
        "Contamination by rewording or by translation outside a known family can't be found by text.",
        *(f"Right answers, {b.source} {b.language}, {b.options} options: {b.letter} in {b.share:.0%}." for b in skewed),
        *(f"{code}: {n:,} of {recipe.targets[code]:,} rows wanted." for code, n in build.short_of_target(facts)),
    ]
    if facts.flags:
        lines.append("Flags: " + ", ".join(f"{name} {n:,}" for name, n in facts.flags.most_common()) + ".")
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in lines)
