"""What the card of a benchmark says that others do not: published counts, repeats, images, letters, keys."""

from collections import Counter
from typing import Any

from data_gen.sets.markdown_table import table
from data_gen.sets.mmedbench_format import EXTRA
from data_gen.sets.statistics import Facts, languages_present
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.benchmarks.registry import ENTRIES

_MEANINGS = {
    "question": "without the options",
    "options": "text by letter",
    "answer_idx": "right letters, `A` or `A,C`",
    "rationale": "why these; empty where there is none",
    "human_checked": "whether two people have checked the rationale",
    "human_check_passed": "whether both said yes to all three criteria",
}
_EXTRA_MEANINGS = {
    "id": "unique",
    "topic": "one of MMedBench's 21 topics or Other, by a model",
    "source": "the data set of the question",
    "license": "of the question",
    "needs_image": "whether an image belongs to the question, which is not in the set",
    "flags": "soft findings of the gates",
    "provenance": "where the question and its rationale come from",
}
assert set(_EXTRA_MEANINGS) == set(EXTRA)


def published_counts() -> dict[tuple[str, str], int]:
    """{(split, language): questions} as published: MMedBench's six languages, and Korean by KorMedMCQA's own splits."""
    counts = {(split, code): n for split, cells in ENTRIES["mmedbench"].counts.items() for code, n in cells.items()}
    korean = ENTRIES["kormedmcqa"].counts
    return counts | {(split, "ko"): sum(korean[split].values()) for split in ("train", "test")}


def count_rows(build: Any, facts: Facts) -> list[tuple[str, str, int, int]]:
    """(language, split, questions here, questions published) of every language of the recipe.

    Nothing is published, 0, of a recipe without published sources.
    """
    adapters = any(build.recipe.source[name].adapter for name in build.recipe.sources)
    published = published_counts() if adapters else {}
    return [
        (code, split, facts.rows[split, code], published.get((split, code), 0))
        for code in build.recipe.languages
        for split in ("train", "test")
    ]


def counts(build: Any, facts: Facts) -> str:
    """The section on rows, beside the published numbers."""
    rows = [(f"{LANGUAGE_NAMES[c]} ({c})", split, n, there or "") for c, split, n, there in count_rows(build, facts)]
    text = "## Rows\n\n" + table(("language", "split", "here", "published"), rows)
    return text + "\n\nPublished: the counts of arXiv 2402.13963; of Korean, which it has not, those of KorMedMCQA."


def questions(build: Any) -> str:
    """The section on what is wrong with questions and was left as published."""
    repeats = Counter(line["language"] for line in build.near_duplicates)
    text = (
        "## Questions\n\nAll questions are kept as published. Test questions that the training split also has, equal "
        f"or with at least {build.recipe.near_duplicates:.0%} of their n-grams (`near_duplicates.ndjson` lists them), "
        "and questions to which an image belongs:\n\n"
    )
    codes = build.recipe.languages
    rows = [(LANGUAGE_NAMES[c], repeats[c], build.images["train", c], build.images["test", c]) for c in codes]
    text += table(("language", "test questions also in train", "images: train", "images: test"), rows)
    places = [
        (b.source, b.language, b.options, *(" ".join(f"{k} {n}" for k, n in b.counts.items()),), f"{b.share:.0%}")
        for b in build.selection.balance
    ]
    text += "\n\nLetters of single right answers" + (", options shuffled" if build.recipe.shuffle_options else "")
    return text + ":\n\n" + table(("source", "language", "options", "letters", "most"), places)


def fields(recipe: Any) -> str:
    """The section on the keys of a line."""
    rows = list(_MEANINGS.items()) + [(name, _EXTRA_MEANINGS[name]) for name in recipe.extra]
    text = "## Fields\n\n`Train/` and `Test/`, a file a language:\n\n" + table(("key", "meaning"), rows)
    return text + "\n\n`records/` has the same questions in the same order with everything that is known of them."


def summary(build: Any, facts: Facts) -> dict:
    """What build.json says beside what it says of every set."""
    return {
        "published": {f"{split}/{c}": n for c, split, _, n in count_rows(build, facts)},
        "near_duplicates": dict(Counter(line["language"] for line in build.near_duplicates)),
        "needs_image": {f"{split}/{c}": n for (split, c), n in sorted(build.images.items())},
        "letters": [
            {"source": b.source, "language": b.language, "options": b.options, "counts": b.counts, "skewed": b.skewed}
            for b in build.selection.balance
        ],
        "languages": list(languages_present(facts)),
    }


def notes(build: Any, facts: Facts, output: str) -> list[str]:
    """What the command says at the end: where questions are not as many as published, and what to do next."""
    lines = [
        f"{split}/{code}: {n:,} questions, {published:,} published"
        for code, split, n, published in count_rows(build, facts)
        if published and n != published
    ]
    for text, n in sorted(build.inputs.licenses.items()):
        flag = f'--recipe.licenses_also="{text}"'
        lines.append(f"{n:,} questions left out for their licence '{text}': {flag} lets them in")
    repeats = len(build.near_duplicates)
    return [
        *lines,
        f"{repeats:,} test questions stand in train as well: {output}/near_duplicates.ndjson",
        f"written: {output} (Train/, Test/, records/, README.md, report.html)",
        f"next: python -m data_gen check sheet --input={output} --items=200 --output=sheets",
    ]
