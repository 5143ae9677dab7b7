"""MMedBench (Qiu et al. 2024, arXiv:2402.13963): six languages, with rationales written by GPT-4.

MMedBench.zip, or the folder in it: Train/ and Test/, each English.jsonl, Chinese.jsonl, Japanese.jsonl, French.jsonl,
Russian.jsonl, Spanish.jsonl with question, options {A: ...}, answer_idx "A" | "A,C", rationale, human_checked,
human_check_passed. Training and evaluation read these files as they are; converting drops and counts rows that break
the schema instead of stopping at the first.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmed_jax.data.records.reading import language_of
from mmed_jax.data.records.schema import LANGUAGES, mmedbench_record
from mmed_jax.data.sources.raw_file import Download, files
from mmed_jax.data.sources.raw_rows import json_objects, rows_of
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, WrongForm, need


def rows(given: Download | Path) -> Iterator[Row]:
    for file in files(given, ".jsonl"):
        if language_of(file.name) is None:
            raise WrongForm("MMedBench's files are named by language, English.jsonl and so on", place=file.label)
        yield from rows_of(file, json_objects(file))


def convert(row: Row, kind: str) -> dict | Drop:
    need(row, "question", "options", "answer_idx")
    name = PurePosixPath(row.file).name
    language = language_of(name)
    return mmedbench_record(row.raw, language=language, file=name, line=row.number, split=row.split or None)


MMEDBENCH = Source(
    name="mmedbench",
    kinds=("mcq",),
    languages=LANGUAGES,
    license="CC BY-NC 4.0",
    url="https://huggingface.co/datasets/Henrychur/MMedBench",
    rows=rows,
    convert=convert,
    latin=True,
    expects="MMedBench.zip or its folder, with Train/English.jsonl and so on",
    hub=Hub("Henrychur/MMedBench", files=("MMedBench.zip",)),
)
