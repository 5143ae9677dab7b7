"""RuMedDaNet (Blinov et al. 2022, arXiv:2201.06499): yes/no questions on a Russian medical passage.

train_v1.jsonl, dev_v1.jsonl, test_v1.jsonl: {pairID, context, question, answer "да" | "нет"}

Options are A: да, B: нет as in MMedBench; the passage is kept in `context` (MMedBench leaves it out). Several questions
share a passage: they are one group.
"""

from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Row, Source, fingerprint, make_id, mcq, need, origin, text

_KEY = {"да": "A", "нет": "B"}


def rows(given: Download | Path) -> Iterator[Row]:
    return objects(given, ".jsonl")


def convert(row: Row, kind: str) -> dict | Drop:
    need(row, "pairID", "context", "question")
    passage = text(row.raw["context"])
    letter = _KEY.get(text(row.raw.get("answer")).lower())
    return mcq(
        "rumeddanet",
        "Apache-2.0",
        ident=make_id("rumeddanet", row, row.raw["pairID"]),
        language="ru",
        question=row.raw["question"],
        options={"A": "да", "B": "нет"},
        answer=letter,
        context=passage,
        provenance=origin(row, row.raw["pairID"], f"rumeddanet:{fingerprint(passage)}"),
    )


RUMEDDANET = Source(
    name="rumeddanet",
    kinds=("mcq",),
    languages=("ru",),
    license="Apache-2.0",
    url="https://github.com/sb-ai-lab/MedBench",
    rows=rows,
    convert=convert,
    expects="JSON lines with pairID, context, question, answer (да or нет)",
)
