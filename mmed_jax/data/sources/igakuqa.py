"""IgakuQA (Kasai et al. 2023, arXiv:2303.18027): the Japanese medical licensing exam, 2018 to 2022.

data/2022/116-A.jsonl: {problem_id, problem_text, choices [texts], text_only, answer ["a", "c"], points}; beside each a
machine translation 116-A_translate.jsonl, which is left aside. No licence is stated: use it at your own risk.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.answer_keys import letter_of
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Row, Source, lettered, make_id, mcq, need, origin, text


def rows(given: Download | Path) -> Iterator[Row]:
    return objects(given, ".jsonl")


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "problem_id", "problem_text", "choices", "answer")
    if "_translate" in row.file:
        return Drop("machine translation of the same problem")
    answer = [letter_of(a) or text(a) for a in raw["answer"] or () if text(a)]
    if not raw["choices"] and any(re.search(r"\d", a) for a in answer):
        return Drop("number answer without options")
    year = re.search(r"(?:^|/)(20\d\d)/", row.file)
    return mcq(
        "igakuqa",
        "none stated",
        ident=make_id("igakuqa", row, raw["problem_id"]),
        language="ja",
        question=raw["problem_text"],
        options=lettered(raw["choices"]),
        answer=answer,
        needs_image=raw.get("text_only") is False,
        provenance=origin(row, raw["problem_id"], year=year.group(1) if year else ""),
    )


IGAKUQA = Source(
    name="igakuqa",
    kinds=("mcq",),
    languages=("ja",),
    license="none stated",
    url="https://github.com/jungokasai/IgakuQA",
    rows=rows,
    convert=convert,
    latin=True,
    expects="JSON lines with problem_id, problem_text, choices, answer, text_only",
)
