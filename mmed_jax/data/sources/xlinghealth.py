"""XLingHealth (Jin et al. 2024, arXiv:2310.13132): English health questions and answers with machine translations.

HealthQA.xlsx, LiveQA.xlsx, MedicationQA.xlsx: id, label, answer_ids, question_LANGUAGE, answer_LANGUAGE for English,
Chinese, Spanish (Hindi is left aside). Only label 1 is a true pair; 0 are wrong answers made for another task. One row
of the sheet is read as one row per language; the languages share a group.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, dialogue, make_id, need, origin, text

_LANGUAGES = ("en", "zh", "es")
# What MedicationQA's annotators wrote where they found nothing; the other languages have it translated.
_NOTHING = ("no answer", "no answers", "unanswerable")


def rows(given: Download | Path) -> Iterator[Row]:
    return by_language(objects(given, ".xlsx", ".csv", ".parquet"))


def by_language(found: Iterator[Row]) -> Iterator[Row]:
    """One row per language of each sheet row."""
    for row in found:
        need(row, "id", "label", "question_English", "answer_English")
        nothing = text(row.raw["answer_English"]).casefold().rstrip(".") in _NOTHING
        for language in _LANGUAGES:
            name = LANGUAGE_NAMES[language]
            answer = "" if nothing else row.raw.get(f"answer_{name}")
            part = {"question": row.raw.get(f"question_{name}"), "answer": answer}
            yield row._replace(raw={"id": row.raw["id"], "label": row.raw["label"], "language": language, **part})


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    if text(raw["label"]) not in ("1", "1.0", "True"):
        return Drop("wrong pairing (label 0)")
    part = PurePosixPath(row.file).name.split(".")[0]
    return dialogue(
        "xlinghealth",
        "Apache-2.0",
        ident=make_id("xlinghealth", row, part, raw["language"], raw["id"]),
        language=raw["language"],
        question=raw["question"],
        answer=raw["answer"],
        provenance=origin(row, raw["id"], f"xlinghealth:{part}:{raw['id']}", part=part),
    )


XLINGHEALTH = Source(
    name="xlinghealth",
    kinds=("instruction",),
    languages=_LANGUAGES,
    license="Apache-2.0",
    url="https://github.com/claws-lab/XLingEval",
    rows=rows,
    convert=convert,
    unfold=by_language,
    expects="LiveQA.xlsx, MedicationQA.xlsx, HealthQA.xlsx with label, question_English, answer_English, ...",
    hub=Hub("claws-lab/XLingHealth", splits=False),
)
