"""FrenchMedMCQA (Labrak et al. 2022, arXiv:2304.04280): French pharmacy diploma, one to five right answers.

train.json, dev.json, test.json: [{id, question, answers {a: ...}, correct_answers ["c"], subject_name, type}]
hub form: answer_a .. answer_e, correct_answers as class numbers from 0 = a
"""

from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.base import Drop, Hub, Row, Source, lettered, letters_at, make_id, mcq, need, origin
from mmed_jax.data.sources.raw import objects


def rows(path: Path) -> Iterator[Row]:
    return objects(path, ".json", ".jsonl", ".parquet")


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "id", "question", "correct_answers")
    if "answers" not in raw:
        need(row, *(f"answer_{c}" for c in "abcde"))
    answers = raw.get("answers") or {c: raw.get(f"answer_{c}") for c in "abcde"}
    right = [str(c) for c in raw["correct_answers"] or ()]
    answer = letters_at(right, 0) if all(c.isdigit() for c in right) else [c.upper() for c in right]
    return mcq(
        "frenchmedmcqa", "Apache-2.0", ident=make_id("frenchmedmcqa", row, raw["id"]), language="fr",
        question=raw["question"], options=lettered(answers[c] for c in sorted(answers)), answer=answer,
        provenance=origin(row, raw["id"], subject_name=raw.get("subject_name")),
    )  # fmt: skip


FRENCHMEDMCQA = Source(
    name="frenchmedmcqa", kinds=("mcq",), languages=("fr",), license="Apache-2.0",
    url="https://github.com/qanastek/FrenchMedMCQA", rows=rows, convert=convert,
    expects="train.json, dev.json or test.json: a list of {id, question, answers {a: ...}, correct_answers}",
    hub=Hub("Dr-BERT/FrenchMedMCQA", files=("data.zip",)),
)  # fmt: skip
