"""CMB-Clin (Wang et al. 2023, arXiv:2308.08833): Chinese textbook cases with two to four questions each.

CMB-Clin-qa.json: [{id, title, description, QA_pairs [{question, answer}]}]

One record per question, the case description before it; the title names the diagnosis and is left out. The questions of
a case are one group. An evaluation set by its authors' intention.
"""

from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, dialogue, make_id, need, origin, text


def rows(given: Download | Path) -> Iterator[Row]:
    return by_question(objects(given, ".json", ".jsonl", ".parquet"))


def by_question(cases: Iterator[Row]) -> Iterator[Row]:
    """One row per question of each case."""
    for case in cases:
        need(case, "id", "description", "QA_pairs")
        for number, pair in enumerate(case.raw["QA_pairs"], 1):
            raw = {"id": case.raw["id"], "description": case.raw["description"], "part": number, **pair}
            yield case._replace(raw=raw, where=f"{case.where} question {number}")


def convert(row: Row, kind: str) -> dict | Drop:
    need(row, "question", "answer")
    raw, question = row.raw, text(row.raw["question"])
    return dialogue(
        "cmb_clin",
        "Apache-2.0",
        ident=make_id("cmb_clin", row, raw["id"], raw["part"]),
        language="zh",
        question=question and f"{text(raw['description'])}\n\n{question}",
        answer=raw["answer"],
        provenance=origin(row, f"{raw['id']}-{raw['part']}", f"cmb_clin:{raw['id']}"),
    )


CMB_CLIN = Source(
    name="cmb_clin",
    kinds=("instruction",),
    languages=("zh",),
    license="Apache-2.0",
    url="https://github.com/FreedomIntelligence/CMB",
    rows=rows,
    convert=convert,
    unfold=by_question,
    expects="CMB-Clin-qa.json: a list of {id, title, description, QA_pairs}",
    hub=Hub("FreedomIntelligence/CMB", configs=("CMB-Clin",)),
)
