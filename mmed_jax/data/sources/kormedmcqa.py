"""KorMedMCQA (Kweon et al. 2024, arXiv:2403.01469): Korean licence exams of doctors, nurses, pharmacists, dentists.

Parquet or CSV files SUBJECT/SPLIT-*.parquet: subject, year, period, q_number, question, A, B, C, D, E, answer 1-5 and,
in the few-shot split, cot. Numbers count from 1 in all publications.
"""

from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.answer_keys import key_at, same_base
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, lettered, make_id, mcq, need, origin, text

_SUBJECTS = ("doctor", "nurse", "pharm", "dentist")


def rows(given: Download | Path) -> Iterator[Row]:
    return numbered(objects(given, ".parquet", ".csv", ".jsonl", ".json"))


def numbered(found: Iterator[Row]) -> Iterator[Row]:
    """The rows of files that number their answers from 1; UserError for one that does not."""
    return same_base(found, "kormedmcqa", lambda raw: ([raw["answer"]], 1, 5))


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "subject", "year", "period", "q_number", "question", "answer", *"ABCDE")
    original = "-".join(text(raw[name]) for name in ("subject", "year", "period", "q_number"))
    return mcq(
        "kormedmcqa",
        "CC BY-NC 2.0",
        ident=make_id("kormedmcqa", row, original),
        language="ko",
        question=raw["question"],
        options=lettered(raw[letter] for letter in "ABCDE"),
        answer=key_at([raw["answer"]], 1),
        rationale=raw.get("cot"),
        provenance=origin(row, original, subject=text(raw["subject"]), year=text(raw["year"])),
    )


KORMEDMCQA = Source(
    name="kormedmcqa",
    kinds=("mcq",),
    languages=("ko",),
    license="CC BY-NC 2.0",
    url="https://huggingface.co/datasets/sean0042/KorMedMCQA",
    rows=rows,
    convert=convert,
    unfold=numbered,
    expects="parquet or CSV with subject, year, period, q_number, question, A to E, answer 1-5",
    hub=Hub("sean0042/KorMedMCQA", configs=_SUBJECTS),
)
