"""Toyhom's Chinese medical dialogues: patients' questions with doctors' answers, by department.

CSV in GB18030 (GBK): department, title, ask, answer; ticoAg/Chinese-medical-dialogue on the hub has the same as
{instruction, input, output}. The question is title and text; a text of "无" (none) and a title that the text repeats
are left out.
"""

from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, dialogue, fingerprint, make_id, need, origin, text


def rows(given: Download | Path) -> Iterator[Row]:
    return objects(given, ".csv", ".json", ".jsonl", ".parquet")


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    if "output" in raw:
        raw = {"title": raw.get("instruction"), "ask": raw.get("input"), "answer": raw["output"], **raw}
    need(row._replace(raw=raw), "title", "ask", "answer")
    title, ask = text(raw["title"]), text(raw["ask"])
    if ask in ("", "无"):
        question = title
    else:
        question = ask if not title or title in ask else f"{title}\n{ask}"
    return dialogue(
        "toyhom",
        "MIT",
        ident=make_id("toyhom", row, fingerprint(question, text(raw["answer"]))),
        language="zh",
        question=question,
        answer=raw["answer"],
        provenance=origin(row, row.number, department=text(raw.get("department"))),
    )


TOYHOM = Source(
    name="toyhom",
    kinds=("instruction",),
    languages=("zh",),
    license="MIT",
    url="https://github.com/Toyhom/Chinese-medical-dialogue-data",
    rows=rows,
    convert=convert,
    gb18030=True,
    expects="CSV (GB18030 or UTF-8) with department, title, ask, answer",
    hub=Hub("ticoAg/Chinese-medical-dialogue"),
)
