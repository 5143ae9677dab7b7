"""PubMedQA PQA-L (Jin et al. 2019, arXiv:1909.06146): yes/no/maybe on an abstract, with the author's conclusion.

ori_pqal.json  {pmid: {QUESTION, CONTEXTS [paragraphs], final_decision, LONG_ANSWER, YEAR, ...}}
qiaojin/PubMedQA on the hub  {pubid, question, context {contexts}, long_answer, final_decision}

The official test half is listed in test_ground_truth.json ({pmid: decision}); where that file lies beside
ori_pqal.json, rows get their split from it. The hub's one split "train" holds both halves and therefore says nothing.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mmed_jax.data.sources.raw_file import Download, files, holds
from mmed_jax.data.sources.raw_rows import json_value, objects
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, WrongForm, dialogue, make_id, mcq, origin, text

_DECISIONS = {"yes": "A", "no": "B", "maybe": "C"}


def rows(given: Download | Path) -> Iterator[Row]:
    if holds(given, ".parquet"):
        yield from objects(given, ".parquet")
        return
    found = [(file, json_value(file)) for file in files(given, ".json")]
    listed = {pmid for file, value in found if _is_key(file.name, value) for pmid in value}
    for file, value in found:
        if _is_key(file.name, value):
            continue
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise WrongForm("expected one object {pmid: {QUESTION, CONTEXTS, ...}}", place=file.label)
        for number, (pmid, item) in enumerate(value.items(), 1):
            split = file.split or (("test" if pmid in listed else "train") if listed else "")
            yield Row({"pubid": pmid, **item}, f"{file.label}: pmid {pmid}", file.name, split, number)


def _is_key(name: str, value: object) -> bool:
    """test_ground_truth.json and its like: answers alone."""
    return PurePosixPath(name).name.endswith("ground_truth.json") or (
        isinstance(value, dict) and bool(value) and all(isinstance(v, str) for v in value.values())
    )


def convert(row: Row, kind: str) -> dict | Drop:
    raw = {k.lower(): v for k, v in row.raw.items()}
    if len(raw) < len(row.raw):
        return Drop("a field is given twice")
    if not {"question", "final_decision", "long_answer"} <= set(raw):
        raise WrongForm("fields QUESTION, final_decision and LONG_ANSWER are missing", place=row.where)
    paragraphs = raw["context"]["contexts"] if "context" in raw else raw.get("contexts", [])
    abstract = "\n".join(text(p) for p in paragraphs if text(p))
    if not abstract:
        return Drop("no abstract")
    pmid = text(raw["pubid"])
    common: dict[str, Any] = {
        "ident": make_id("pubmedqa", row, pmid),
        "language": "en",
        "provenance": origin(row, pmid, f"pubmedqa:{pmid}", year=text(raw.get("year"))),
    }
    if kind == "instruction":
        question = f"{abstract}\n\n{text(raw['question'])}" if text(raw["question"]) else ""
        return dialogue("pubmedqa", "MIT", question=question, answer=raw["long_answer"], **common)
    letter = _DECISIONS.get(text(raw["final_decision"]).lower())
    options = {letter: word for word, letter in _DECISIONS.items()}
    return mcq(
        "pubmedqa",
        "MIT",
        question=raw["question"],
        options=options,
        answer=letter,
        context=abstract,
        rationale=raw["long_answer"],
        **common,
    )


PUBMEDQA = Source(
    name="pubmedqa",
    kinds=("mcq", "instruction"),
    languages=("en",),
    license="MIT",
    url="https://github.com/pubmedqa/pubmedqa",
    rows=rows,
    convert=convert,
    expects="ori_pqal.json, one object {pmid: {QUESTION, CONTEXTS, final_decision, LONG_ANSWER}}",
    hub=Hub("qiaojin/PubMedQA", configs=("pqa_labeled",), splits=False),
)
