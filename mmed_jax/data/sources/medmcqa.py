"""MedMCQA (Pal et al. 2022, arXiv:2203.14371): Indian entrance exams, English, half of the rows with an explanation.

{question, opa, opb, opc, opd, cop, exp, choice_type, subject_name, topic_name, id}

`cop` is the right option's number, and two publications number differently: medmcqa/medmcqa on GitHub (and MIRAGE) from
1, openlifescienceai/medmcqa on the hub from 0. Reading one as the other shifts every answer without any error, so the
numbering is decided over a whole file: a 0 says from 0, a 4 says from 1, both is an error, neither (a small excerpt) is
an error that asks. choice_type "multi" does not mean several right answers: `cop` is a single number.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LETTERS
from mmed_jax.data.sources.answer_keys import key_at, number_of
from mmed_jax.data.sources.figures import needs_figure
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import (
    Drop,
    Hub,
    Row,
    Source,
    UnknownNumbering,
    dialogue,
    lettered,
    make_id,
    mcq,
    need,
    origin,
    text,
)

_OPTIONS = ("opa", "opb", "opc", "opd")
# Shorter ones say "Ans. C" and nothing more: no answer to learn from.
_MIN_EXPLANATION = 30


def rows(given: Download | Path, answer_base: int | None = None) -> Iterator[Row]:
    return with_base(objects(given, ".jsonl", ".json", ".csv", ".parquet"), answer_base)


def with_base(found: Iterator[Row], answer_base: int | None = None) -> Iterator[Row]:
    """Adds "answer_base" (0, 1 or None for unclear) to every row, decided file by file. Raises UserError."""
    for label, group in groupby(found, key=lambda row: row.where.rpartition(":")[0]):
        whole = list(group)
        need(whole[0], "question", "cop", *_OPTIONS)
        numbers = {number_of(row.raw.get("cop")) for row in whole}
        base = _decide(label, numbers, answer_base)
        for row in whole:
            yield row._replace(raw={**row.raw, "answer_base": base})


def _decide(label: str, numbers: set[int | None], told: int | None) -> int | None:
    """The number of the first option; None when the file does not show it."""
    known = {n for n in numbers if n is not None and n >= 0}
    if 0 in known and 4 in known:
        raise UserError(f"{label}: field 'cop' holds both 0 and 4; a file numbers its answers 0 to 3 or 1 to 4")
    seen = 0 if 0 in known else 1 if 4 in known else None
    if told is not None and seen is not None and told != seen:
        raise UserError(
            f"{label}: --answer_base={told}, but field 'cop' holds {4 if seen else 0}: it counts from {seen}"
        )
    return seen if told is None else told


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "question", "cop", *_OPTIONS)
    options = lettered(raw[name] for name in _OPTIONS)
    explanation = text(raw.get("exp"))
    ident = make_id("medmcqa", row, raw.get("id") or row.number)
    subjects = {name: text(raw.get(name)) for name in ("subject_name", "topic_name", "choice_type")}
    about = origin(row, raw.get("id"), **subjects)
    if isinstance(options, Drop):
        return options
    figure = needs_figure("en", text(raw["question"]), options)
    if kind == "mcq":
        number = number_of(raw["cop"])
        if number is not None and number >= 0 and raw["answer_base"] is None:
            raise UnknownNumbering(
                "field 'cop' holds neither 0 nor 4: answers may count from 0 (as on the hub) or 1 (the official files)",
                place=row.where.rpartition(":")[0],
                hint="; add --answer_base=0 or --answer_base=1",
            )
        answer = key_at([raw["cop"]], raw["answer_base"] or 0)
        return mcq(
            "medmcqa",
            "MIT",
            ident=ident,
            language="en",
            question=raw["question"],
            options=options,
            answer=answer,
            rationale=explanation,
            needs_image=figure,
            provenance=about,
        )
    if len(explanation) < _MIN_EXPLANATION:
        return Drop("no explanation" if not explanation else f"explanation under {_MIN_EXPLANATION} characters")
    listed = "\n".join(f"{letter}. {options[letter]}" for letter in LETTERS if letter in options)
    return dialogue(
        "medmcqa",
        "MIT",
        ident=ident,
        language="en",
        question=f"{text(raw['question'])}\n{listed}",
        answer=explanation,
        needs_image=figure,
        provenance=about,
    )


MEDMCQA = Source(
    name="medmcqa",
    kinds=("mcq", "instruction"),
    languages=("en",),
    license="MIT",
    url="https://github.com/medmcqa/medmcqa",
    rows=rows,
    convert=convert,
    unfold=with_base,
    answer_base=True,
    expects="JSON lines with question, opa to opd, cop, exp",
    hub=Hub("openlifescienceai/medmcqa"),
)
