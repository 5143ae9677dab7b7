"""CasiMedicos (Goenaga et al. 2023, arXiv:2312.00567): Spanish MIR exams explained by doctors, in parallel languages.

joined form     {id "train-0", lang, split, type, question, options {"1": ...}, answer "4", rationale}
published form  {id, lang, year, question_id_specific, full_question, options {"1": ...}, correct_option, full_answer,
                 full_answer_no_ref, type}      HiTZ/casimedicos-exp on the hub and ixa-ehu/antidote-casimedicos

The doctors speak of "option 4" or "la 4": the instruction record therefore keeps the numbers 1 to 5 in its question,
while the multiple-choice record has letters, as everywhere. The exam is HEAD-QA's source as well; the texts differ
slightly, so overlaps are not found by question_key.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmed_jax.data.sources.answer_keys import by_name, key_by_name, named_numbering, same_base
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import (
    Drop,
    Hub,
    Row,
    Source,
    dialogue,
    make_id,
    mcq,
    need,
    origin,
    text,
)

_LANGUAGES = ("en", "es", "fr")


def rows(given: Download | Path) -> Iterator[Row]:
    return numbered(objects(given, ".jsonl", ".parquet"))


def numbered(found: Iterator[Row]) -> Iterator[Row]:
    """The rows of files whose answers are the numbers of their options; UserError for one that counts otherwise."""
    return same_base(found, "casimedicos", _numbering)


def _numbering(raw: dict) -> tuple[Iterable[object], int, int]:
    options = {name: _option(option) for name, option in raw["options"].items()}
    return named_numbering([raw["answer" if "rationale" in raw else "correct_option"]], options)


def _option(value: object) -> object:
    """Years with four options have the text "nan" for the fifth."""
    return "" if text(value) == "nan" else value


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    joined = "rationale" in raw
    need(row, "id", "lang", "options", *(("question", "answer") if joined else ("full_question", "correct_option")))
    language = text(raw["lang"])
    if language not in _LANGUAGES:
        return Drop(f"language not supported ({language})")
    question = text(raw["question" if joined else "full_question"])
    rationale = raw["rationale"] if joined else raw.get("full_answer_no_ref") or raw.get("full_answer")
    row = row._replace(split=row.split or text(raw.get("split")).replace("dev", "validation"))
    original = text(raw["id"])
    parts = [original] if joined else [original, text(raw.get("year")), text(raw.get("question_id_specific"))]
    group = "casimedicos:" + "-".join(p for p in parts if p)
    plain = (re.sub(r"^(train|dev|test)-", "", p) for p in parts)
    ident = make_id("casimedicos", row, language, *plain)
    about = origin(row, original, group, type=text(raw.get("type")), year=text(raw.get("year")))
    named = by_name({name: _option(option) for name, option in raw["options"].items()})
    options, names = (named, {}) if isinstance(named, Drop) else named
    common: dict[str, Any] = {"ident": ident, "language": language, "provenance": about}
    if kind == "mcq":
        answer = key_by_name([raw["answer" if joined else "correct_option"]], names)
        return mcq(
            "casimedicos", "CC BY 4.0", question=question, options=options, answer=answer, rationale=rationale, **common
        )
    if isinstance(options, Drop):
        return options
    listed = "\n".join(f"{name}. {options[letter]}" for name, letter in names.items())
    return dialogue("casimedicos", "CC BY 4.0", question=f"{question}\n{listed}", answer=rationale, **common)


CASIMEDICOS = Source(
    name="casimedicos",
    kinds=("mcq", "instruction"),
    languages=_LANGUAGES,
    license="CC BY 4.0",
    url="https://github.com/ixa-ehu/antidote-casimedicos",
    rows=rows,
    convert=convert,
    unfold=numbered,
    expects="JSON lines with id, lang, options {1: ...} and question, answer, rationale (or full_question, "
    "correct_option, full_answer)",
    hub=Hub("HiTZ/casimedicos-exp", configs=_LANGUAGES),
)
