"""MMLU's medical subjects (Hendrycks et al. 2021, arXiv:2009.03300) and their Japanese translation JMMLU.

MMLU    SUBJECT_test.csv or test_SUBJECT.csv without header: question, A, B, C, D, letter; cais/mmlu on the hub:
        {question, subject, choices [4], answer 0-3}
JMMLU   SUBJECT.csv, with or without a header, the same columns; the hub has them in JMMLU.zip

Files of other subjects are read and counted as dropped. Here "dev" (the five few-shot examples) and "validation" are
two splits. JMMLU translates MMLU's test questions: never train on one and test on the other.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.data.sources.answer_keys import key_at, same_base
from mmed_jax.data.sources.raw_file import Download, files, holds
from mmed_jax.data.sources.raw_rows import csv_lists, objects
from mmed_jax.data.sources.source import (
    Drop,
    Hub,
    Row,
    Source,
    WrongForm,
    fingerprint,
    lettered,
    make_id,
    mcq,
    origin,
    text,
)

SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "human_aging",
    "medical_genetics",
    "nutrition",
    "professional_medicine",
    "virology",
)

_HEADER = ("question", "a", "b", "c", "d", "answer")


def rows(given: Download | Path) -> Iterator[Row]:
    return numbered(_all_rows(given))


def numbered(found: Iterator[Row]) -> Iterator[Row]:
    """The rows of files whose answers, where they are numbers, count from 0; UserError for one that does not."""
    return same_base(found, "MMLU", lambda raw: ([raw["answer"]], 0, len(raw["choices"])))


def _all_rows(given: Download | Path) -> Iterator[Row]:
    if holds(given, ".parquet"):
        yield from objects(given, ".parquet")
        return
    for file in files(given, ".csv"):
        words = PurePosixPath(file.name).name.split(".")[0].lower()
        subject = re.sub(r"^(dev|val|validation|test)_|_(dev|val|validation|test)$", "", words)
        is_dev = "dev" in re.split(r"[^a-z]+", file.name.lower())
        order: Sequence[int] | None = None
        for number, cells in csv_lists(file):
            where = f"{file.label}:{number}"
            if len(cells) != 6:
                raise WrongForm(f"expected 6 columns (question, A, B, C, D, letter), got {len(cells)}", place=where)
            if order is None:
                order = _columns(cells, where)
                if order is not None:
                    continue  # the header that JMMLU's zip has
                order = range(6)
            question, *choices, answer = (cells[i] for i in order)
            raw = {"subject": subject, "question": question, "choices": choices, "answer": answer}
            yield Row(raw, where, file.name, "dev" if is_dev else file.split, number)


def _columns(cells: list[str], where: str) -> Sequence[int] | None:
    """Where question, A, B, C, D and the key stand, when these cells are a header, else None. Raises WrongForm."""
    names = [cell.strip().lower() for cell in cells]
    if sorted(names) == sorted(_HEADER):
        return [names.index(name) for name in _HEADER]
    if names[-1] != "answer":
        return None
    if names[1:5] != list("abcd") and all(len(name) == 1 for name in names[1:5]):
        raise WrongForm(f"the columns are {', '.join(names)}", place=where, hint=f"; expected {', '.join(_HEADER)}")
    return range(6)


def _convert(name: str, language: str, license: str, row: Row) -> dict | Drop:
    raw = row.raw
    if not {"question", "choices", "answer", "subject"} <= set(raw):
        raise WrongForm(
            "expected question, subject, choices, answer", place=row.where, hint=f"; found: {', '.join(map(str, raw))}"
        )
    subject = text(raw["subject"])
    if subject not in SUBJECTS:
        return Drop("not one of the nine medical subjects")
    # The two sets share one form: the wrong adapter would give records of the wrong language and licence.
    spoken = " ".join([text(raw["question"]), *map(text, raw["choices"])])
    if bool(re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", spoken)) != (language == "ja"):
        raise WrongForm(f"not in {LANGUAGE_NAMES[language]}", place=row.where)
    answer = key_at([raw["answer"]], 0)
    options = lettered(raw["choices"])
    texts = options.values() if isinstance(options, dict) else ()
    return mcq(
        name,
        license,
        ident=make_id(name, row, subject, fingerprint(text(raw["question"]), *texts)),
        language=language,
        question=raw["question"],
        options=options,
        answer=answer,
        provenance=origin(row, row.number, subject=subject),
    )


MMLU_MEDICAL = Source(
    name="mmlu_medical",
    kinds=("mcq",),
    languages=("en",),
    license="MIT",
    url="https://github.com/hendrycks/test",
    rows=rows,
    unfold=numbered,
    convert=lambda row, kind: _convert("mmlu_medical", "en", "MIT", row),
    expects="CSV files SUBJECT_test.csv without header: question, A, B, C, D, letter",
    hub=Hub("cais/mmlu", SUBJECTS),
)
JMMLU_MEDICAL = Source(
    name="jmmlu_medical",
    kinds=("mcq",),
    languages=("ja",),
    license="CC BY-SA 4.0",
    url="https://github.com/nlp-waseda/JMMLU",
    rows=rows,
    unfold=numbered,
    convert=lambda row, kind: _convert("jmmlu_medical", "ja", "CC BY-SA 4.0", row),
    expects="CSV files SUBJECT.csv: question, A, B, C, D, letter",
    hub=Hub("nlp-waseda/JMMLU", files=("JMMLU.zip",)),
)
