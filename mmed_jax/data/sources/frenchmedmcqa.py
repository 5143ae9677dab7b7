"""FrenchMedMCQA (Labrak et al. 2022, arXiv:2304.04280): French pharmacy diploma, one to five right answers.

train.json, dev.json, test.json: [{id, question, answers {a: ...}, correct_answers ["c"], subject_name, type}]
hub form: answer_a .. answer_e, correct_answers as class numbers from 0 = a
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed_jax.data.sources.answer_keys import by_name, key_at, key_by_name, named_numbering, number_of, same_base
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, make_id, mcq, need, origin, text


def rows(given: Download | Path) -> Iterator[Row]:
    return numbered(objects(given, ".json", ".jsonl", ".parquet"))


def numbered(found: Iterator[Row]) -> Iterator[Row]:
    """The rows of files whose answers, where they are numbers, count from 0; UserError for one that does not."""
    return same_base(found, "frenchmedmcqa", _numbering)


def _numbering(raw: dict) -> tuple[Iterable[object], int, int]:
    answers = _answers(raw)
    if all(number_of(name) is not None for name in answers):
        return named_numbering(_right(raw), answers)
    return _right(raw), 0, max(n for n, option in enumerate(answers.values(), 1) if text(option))


def _answers(raw: dict) -> dict:
    return raw.get("answers") or {c: raw.get(f"answer_{c}") for c in "abcde"}


def _right(raw: dict) -> list:
    right = raw["correct_answers"]
    if isinstance(right, str):
        right = re.findall(r"[^\W_]", right) if not right.strip().isdigit() else [right]
    return list(right) if isinstance(right, list | tuple) else [] if right is None else [right]


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "id", "question", "correct_answers")
    if "answers" not in raw:
        need(row, *(f"answer_{c}" for c in "abcde"))
    named, right = by_name(_answers(raw)), _right(raw)
    options, names = (named, {}) if isinstance(named, Drop) else named
    by_number = all(number_of(c) is not None for c in right) and "0" not in names and "1" not in names
    answer = key_at(right, 0) if by_number else key_by_name(right, names)
    return mcq(
        "frenchmedmcqa",
        "Apache-2.0",
        ident=make_id("frenchmedmcqa", row, raw["id"]),
        language="fr",
        question=raw["question"],
        options=options,
        answer=answer,
        provenance=origin(row, raw["id"], subject_name=raw.get("subject_name")),
    )


FRENCHMEDMCQA = Source(
    name="frenchmedmcqa",
    kinds=("mcq",),
    languages=("fr",),
    license="Apache-2.0",
    url="https://github.com/qanastek/FrenchMedMCQA",
    rows=rows,
    convert=convert,
    unfold=numbered,
    expects="train.json, dev.json or test.json: a list of {id, question, answers {a: ...}, correct_answers}",
    hub=Hub("Dr-BERT/FrenchMedMCQA", files=("data.zip",)),
)
