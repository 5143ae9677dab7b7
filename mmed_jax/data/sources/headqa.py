"""HEAD-QA (Vilares and Gómez-Rodríguez 2019, arXiv:1906.04701): Spanish specialisation exams, and their English copy.

train_HEAD.json (Spanish), train_HEAD_EN.json (machine translation):
    {version, language, exams {EXAM: {name, year, category, data [{qid, qtext, ra, answers [{aid, atext}], image}]}}}
EleutherAI/headqa on the hub: the rows of `data` with name, year, category.

`ra` is the `aid` of the right answer. A row with an image keeps its record and is flagged. The two languages of a
question share a group.
"""

from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.base import (
    Drop,
    Hub,
    Row,
    Source,
    WrongForm,
    lettered,
    letters_at,
    make_id,
    mcq,
    need,
    origin,
    text,
)
from mmed_jax.data.sources.raw import files, json_value, objects


def rows(path: Path) -> Iterator[Row]:
    if path.suffix in (".parquet", ".jsonl") or path.is_dir() and any(path.rglob("*.parquet")):
        yield from objects(path, ".parquet", ".jsonl")
        return
    for file in files(path, ".json"):
        value = json_value(file)
        if not isinstance(value, dict) or not isinstance(value.get("exams"), dict):
            raise WrongForm(f"{file.label}: expected one object with 'exams'")
        language = "en" if "_EN" in file.name or value.get("language") == "en" else "es"
        number = 0
        for exam, content in value["exams"].items():
            for item in content["data"]:
                number += 1
                raw = {**item, "name": exam, "language": language, "category": content.get("category")}
                yield Row(raw, f"{file.label}: {exam} {item.get('qid')}", file.name, file.split, number)


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "name", "qid", "qtext", "ra", "answers")
    language = raw.get("language") or "es"
    ids = [text(a["aid"]) for a in raw["answers"]]
    right, image = text(raw["ra"]), raw.get("image")
    answer = letters_at([ids.index(right)], 0) if right in ids else None
    return mcq(
        "headqa", "MIT", ident=make_id("headqa", row, language, raw["name"], raw["qid"]), language=language,
        question=raw["qtext"], options=lettered(a["atext"] for a in raw["answers"]), answer=answer,
        needs_image=any(image.values()) if isinstance(image, dict) else bool(image),
        provenance=origin(
            row, raw["qid"], f"headqa:{raw['name']}:{text(raw['qid'])}", exam=raw["name"], category=raw.get("category"),
        ),
    )  # fmt: skip


HEADQA = Source(
    name="headqa", kinds=("mcq",), languages=("es", "en"), license="MIT", url="https://github.com/aghie/head-qa",
    rows=rows, convert=convert, expects="train_HEAD.json and its like: one object with 'exams'",
    hub=Hub("EleutherAI/headqa", configs=("es", "en")),
)  # fmt: skip
