"""HEAD-QA (Vilares and Gómez-Rodríguez 2019, arXiv:1906.04701): Spanish specialisation exams, and their English copy.

train_HEAD.json (Spanish), train_HEAD_EN.json (machine translation):
    {version, language, exams {EXAM: {name, year, category, data [{qid, qtext, ra, answers [{aid, atext}], image}]}}}
EleutherAI/headqa on the hub: the rows of `data` with name, year, category.

`ra` is the `aid` of the right answer. A row with an image keeps its record and is flagged. The two languages of a
question share a group.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LETTERS
from mmed_jax.data.sources.answer_keys import UNREADABLE, number_of, same_base
from mmed_jax.data.sources.raw_file import Download, as_download, files, holds
from mmed_jax.data.sources.raw_rows import json_value, objects
from mmed_jax.data.sources.source import (
    Drop,
    Hub,
    Row,
    Source,
    WrongForm,
    lettered,
    make_id,
    mcq,
    need,
    origin,
    text,
)

_WORDS = {"en": {"en", "eng", "english"}, "es": {"es", "esp", "spa", "spanish", "espanol", "español"}}


def rows(given: Download | Path) -> Iterator[Row]:
    return numbered(_all_rows(as_download(given)))


def numbered(found: Iterator[Row]) -> Iterator[Row]:
    """The rows of files whose `ra` is the `aid` of an option; UserError for one that counts otherwise."""
    return same_base(found, "headqa", _numbering)


def _numbering(raw: dict) -> tuple[list, int, int]:
    aids = [number_of(a["aid"]) for a in raw["answers"] if text(a["atext"])]
    return [raw["ra"]], min(aids), len(aids)


def _all_rows(given: Download) -> Iterator[Row]:
    if not holds(given, ".json") or holds(given, ".parquet"):
        for row in objects(given, ".parquet", ".jsonl"):
            told = _code(row.raw.get("language")) or language_of(row.file, given.path)
            yield row._replace(raw={**row.raw, "language": told})
        return
    for file in files(given, ".json"):
        value = json_value(file)
        if not isinstance(value, dict) or not isinstance(value.get("exams"), dict):
            raise WrongForm("expected one object with 'exams'", place=file.label)
        language = _code(value.get("language")) or language_of(file.name, given.path)
        # Spanish is what the publication's names leave unsaid: train_HEAD.json, and train_HEAD_EN.json beside it.
        language = language or ("es" if re.search(r"(?i)HEAD\.json", file.name) else "")
        number = 0
        for exam, content in value["exams"].items():
            for item in content["data"]:
                number += 1
                raw = {**item, "name": exam, "language": language, "category": content.get("category")}
                yield Row(raw, f"{file.label}: {exam} {item.get('qid')}", file.name, file.split, number)


def _code(field: object) -> str:
    """What a field calls the language, as its code where it is one of the two."""
    told = str(field or "").strip()
    return next((code for code, names in _WORDS.items() if told.lower() in names), told)


def language_of(name: str, path: Path) -> str:
    """The language that the path of a file tells, the innermost folder first; "" for none.

    Words count, so that "es/test-00000.parquet" and "test_HEAD_EN.json" tell one and "test.parquet" does not.
    """
    own = (path.parent.name, path.name) if path.is_file() else (path.name,)
    for part in reversed((*own, *PurePosixPath(name).parts)):
        words = set(re.split(r"[^a-z]+", part.lower()))
        found = {code for code, names in _WORDS.items() if words & names}
        if len(found) == 1:
            return found.pop()
    return ""


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "name", "qid", "qtext", "ra", "answers")
    language, image = text(raw.get("language")), raw.get("image")
    if not language:
        raise UserError(
            f"{row.where}: the language can't be told, from a field 'language' nor from the file's path; put the files "
            "into folders es/ and en/"
        )
    if language not in ("es", "en"):
        return Drop(f"language not supported ({language})")
    # The key names an option, so it moves along with it, whatever the numbers are.
    ids = [number_of(a["aid"]) for a in raw["answers"]]
    if len(set(ids)) < len(ids):
        return Drop("an option's name is given twice")
    right = number_of(raw["ra"])
    answer: list[str] | Drop | None = (
        [LETTERS[ids.index(right)]] if right in ids[: len(LETTERS)] and right is not None else None
    )
    if right is None and text(raw["ra"]):
        answer = UNREADABLE
    return mcq(
        "headqa",
        "MIT",
        ident=make_id("headqa", row, language, raw["name"], raw["qid"]),
        language=language,
        question=raw["qtext"],
        options=lettered(a["atext"] for a in raw["answers"]),
        answer=answer,
        needs_image=any(image.values()) if isinstance(image, dict) else bool(image),
        provenance=origin(
            row,
            raw["qid"],
            f"headqa:{raw['name']}:{text(raw['qid'])}",
            exam=raw["name"],
            category=raw.get("category"),
        ),
    )


HEADQA = Source(
    name="headqa",
    kinds=("mcq",),
    languages=("es", "en"),
    license="MIT",
    url="https://github.com/aghie/head-qa",
    rows=rows,
    convert=convert,
    unfold=numbered,
    expects="train_HEAD.json and its like: one object with 'exams'",
    hub=Hub("EleutherAI/headqa", configs=("es", "en")),
)
