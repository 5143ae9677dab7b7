"""Question-answer pairs from passages, grounded in them: every pair quotes the words of the passage that prove it.

A pair whose quotation does not stand in the passage, or that asks or answers nothing new, is left out and counted in
a flag of its siblings; where none is left, the row is rejected.
Passages: see data_gen.passages; records are taken for their passage (`context`) or answer.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from data_gen.gates import TEXT as TEXT_GATES
from data_gen.gates import faithfulness
from data_gen.methods.flags import LONGEST_PASSAGE, ORIGIN, Flag
from data_gen.methods.method import TEXT, GenerationMethod, Skip, checked_language, provenance, source_flags
from mmed_jax.common.errors import UserError
from mmed_jax.llm_api.prompt_guard import neutralise
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job, Reject

PAIR = object_schema({"question": TEXT, "answer": TEXT, "evidence": TEXT})
SCHEMA = object_schema({"pairs": {"type": "array", "items": PAIR}})
_NOT_WORD = re.compile(r"[\W_]+")
_SHORTEST_EVIDENCE = 6  # characters without spaces and punctuation; less proves nothing


class QA(GenerationMethod):
    """`pairs` pairs a passage, in its language or in `language`; passages below `min_chars` are left out."""

    name = "qa_generation"
    command, summary = "qa", "question-answer pairs from passages, tables and documents"
    usage = """\
Question-answer pairs from passages: text, tables (.csv, .tsv, .xlsx), JSON lines, records with a passage.

python -m data_gen qa --input=rumeddanet.jsonl --pairs=3 --output=rumeddanet_qa.jsonl
python -m data_gen qa --input=drugs.xlsx --from_language=ko --language=en --license="KOGL 1" --output=drugs_en.jsonl
"""
    inputs = "passage"
    flags = (
        Flag("pairs", "pairs a passage (default 3)", default=3, type=int, metavar="N"),
        Flag("language", "of the pairs; default: the passage's own", metavar="CODE"),
        *ORIGIN,
        Flag("min_chars", "shorter passages are left out", default=80, type=int, metavar="N"),
        LONGEST_PASSAGE,
    )
    gates = (*TEXT_GATES, faithfulness.facts)
    shortest, longest = 8, 4000
    pairs: int
    language: str | None
    min_chars: int

    def __init__(self, **options: Any):
        super().__init__(**options)
        if not 1 <= self.pairs <= 20:
            raise UserError(f"qa: {self.pairs} pairs a passage; valid: 1 to 20")
        if self.language is not None:
            checked_language(self.language)
        self.rows_per_input, self.max_tokens = self.pairs, 384 * self.pairs + 128
        self._seen: set[bytes] = set()

    def jobs(self, inputs: Iterable[dict], settings) -> Iterator[Job]:
        self._seen = set()
        return super().jobs(inputs, settings)

    def languages_for(self, parent: dict) -> tuple[str, ...]:
        return (self.language or parent["language"],)

    def job_for(self, parent: dict, language: str, settings) -> Job:
        text = passage_text(parent)
        if not text:
            raise Skip("holds no passage")
        if len(text) * (3 if parent["language"] in ("zh", "ja", "ko") else 1) < self.min_chars:
            raise Skip("the passage is too short")
        digest = hashlib.blake2b(f"{language}\n{text}".encode(), digest_size=8).digest()
        if digest in self._seen:  # several questions of a source share a passage
            raise Skip("the same passage again")
        self._seen.add(digest)
        data = {"title": parent["title"], "passage": text} if parent.get("title") else {"passage": text}
        row_id = parent["id"] + (f"@{language}" if language != parent["language"] else "")
        target = {"language": language, "pairs": self.pairs, "passage": text}
        return self.new_job(row_id, parent, target, settings, data, SCHEMA, pairs=self.pairs)

    def answer_schema(self, job: Job) -> dict:
        return SCHEMA

    def records_of(self, job: Job, answer: dict) -> list[dict]:
        parent, passage = job.parent, job.target["passage"]
        pairs = answer["pairs"][: job.target["pairs"]]
        if not pairs:
            raise Reject("refusal", "the model finds no fact to ask for")
        kept, seen = [], set()
        for pair in pairs:
            key = _bare(pair["question"])
            new = key and key not in seen and _bare(pair["answer"]) not in ("", key)
            if new and grounded(pair["evidence"], passage):
                seen.add(key)
                kept.append(pair)
        if not kept:
            raise Reject("facts", f"none of {len(pairs)} pairs has a quotation that stands in the passage")
        flags = source_flags(passage)
        if len(kept) < len(pairs):
            flags.append(f"pairs_left_out:{len(pairs) - len(kept)}")
        return [
            {
                "id": f"{job.row_id}#{number}",
                "language": job.target["language"],
                "messages": [
                    {"role": "user", "content": pair["question"]},
                    {"role": "assistant", "content": pair["answer"]},
                ],
                "source": parent["source"],
                "license": parent["license"],
                "method": "qa_generation",
                "provenance": provenance(job, flags, evidence=pair["evidence"]),
            }
            for number, pair in enumerate(kept, 1)
        ]


def passage_text(parent: dict) -> str:
    """The passage of an input: `text` of a passage, `context` of an mcq record, the answer of an instruction record."""
    if "text" in parent:
        return parent["text"].strip()
    if "messages" in parent:
        return parent["messages"][-1]["content"].strip()
    return parent.get("context", "").strip()


def grounded(evidence: str, passage: str) -> bool:
    """Whether a quotation stands in the passage: the same letters and digits in the same order, each part of "a ... b"
    for itself; spaces, punctuation and case are free."""
    text = _bare_passage(passage)
    parts = [_bare(part) for part in re.split(r"\.{3,}|…+", neutralise(evidence))]
    parts = [p for p in parts if p]
    return sum(map(len, parts)) >= _SHORTEST_EVIDENCE and all(p in text for p in parts)


@lru_cache(maxsize=8)
def _bare_passage(passage: str) -> str:
    """Of the passage as the prompt showed it; its pairs come one after another."""
    return _bare(neutralise(passage))


def _bare(text: str) -> str:
    return _NOT_WORD.sub("", unicodedata.normalize("NFKC", text).casefold())
