"""What of a record a method has written, beside what it was written from."""

from typing import NamedTuple

from mmed_jax.data.records.schema import kind_of
from mmed_jax.llm_api.types import Job


class Part(NamedTuple):
    """A generated text: its name in messages, the language it should be in, and the text it replaces ("" if none)."""

    name: str
    text: str
    language: str
    source: str


class Parts(NamedTuple):
    """`all` generated texts; `long` those that are prose (no options), never empty; `sources` what was shown to the
    model."""

    all: list[Part]
    long: list[Part]
    sources: list[str]


def parts_of(job: Job, record: dict) -> Parts:
    """The generated texts of `record`, by the job's method.

    answer_expanding: the last answer. rationale: the rationale, in the job's language. qa_generation: question and
    answer. translation: everything, each text beside its source. Originals: everything, beside nothing.
    """
    parent, language = job.parent, job.target.get("language", record["language"])
    sources = [text for _, text in named_texts(parent)]
    if job.method == "rationale":
        part = Part("rationale", record["rationale"], language, "")
        return Parts([part], [part], sources)
    if job.method == "answer_expanding":
        given = job.target.get("given", [])
        part = Part("answer", record["messages"][-1]["content"], language, " ".join(given))
        return Parts([part], [part], sources)
    theirs = dict(named_texts(parent)) if job.method == "translation" else {}
    texts = [Part(name, text, language, theirs.get(name, "")) for name, text in named_texts(record)]
    return Parts(texts, [p for p in texts if not p.name.startswith("option")], sources)


def named_texts(record: dict) -> list[tuple[str, str]]:
    """(name, text) of every text of a record, empty ones left out; of a passage its title and text."""
    if "messages" in record:
        return [(f"{m['role']} {i}", m["content"]) for i, m in enumerate(record["messages"], 1)]
    if "question" not in record or kind_of(record) != "mcq":
        return [(name, record[name]) for name in ("title", "text") if record.get(name)]
    options = [(f"option {letter}", text) for letter, text in record["options"].items()]
    found = [("passage", record.get("context", "")), ("question", record["question"]), *options]
    return [(name, text) for name, text in [*found, ("rationale", record.get("rationale", ""))] if text]
