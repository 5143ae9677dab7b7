"""The second pass over a unit: duplicates out by their ids, test questions out of the text, personal data replaced."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_gen.corpus.decontamination import BenchmarkIndex
from data_gen.corpus.document_files import Drops, PartWriter, read_documents
from data_gen.corpus.duplicate_stages import KEYS, removed_among
from data_gen.corpus.pipeline_steps import last_steps
from data_gen.corpus.stage_folder import Result, StageFolder
from data_gen.sets.inputs import read_benchmarks

# Step of the books -> reason.
REMOVALS = {"exact_duplicates": "exact duplicate", "near_duplicates": "near duplicate"}
# Figures that datatrove keeps of each step, which the books have already.
_OF_EVERY_STEP = ("total", "forwarded", "dropped", "doc_len")


def clean_unit(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function. part["unit"]: which part of the filter stage. context: folders of the stages before."""
    source = StageFolder(Path(context["filter"])).part(part["unit"])
    writer = PartWriter(folder)
    documents: Iterable[Document] = _counted(read_documents(source), writer)
    for step, stage in context["removals"].items():
        gone = removed_among(np.load(source / KEYS)[:, 4:], StageFolder(Path(stage)))
        documents = _without(documents, gone, REMOVALS[step], writer.drops(step))
    steps = last_steps(settings["steps"], context["benchmarks"], writer.drops)
    for rewriter in steps.values():
        documents = rewriter(documents)
    rows = writer.write(documents)
    for step, rewriter in steps.items():
        for name, count in rewriter.stats.stats.items():
            if count.total and name not in _OF_EVERY_STEP and not name.startswith("dropped_"):
                writer.books.notes[step, name] += int(count.total)
    return Result(rows, writer.books.as_dict())


def index_benchmarks(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: the index of all test items below context["folder"]. Raises UserError."""
    index = BenchmarkIndex()
    counts = read_benchmarks(context["folder"], index)  # type: ignore[arg-type]  # it calls `add` alone
    index.save(folder)
    return Result(len(index), {"items": counts, "too_short": dict(index.unfindable)})


def _counted(documents: Iterable[Document], writer: PartWriter) -> Iterator[Document]:
    for doc in documents:
        writer.books.read[doc.metadata["source"], doc.metadata.get("language") or ""] += 1
        yield doc


def _without(documents: Iterable[Document], gone: dict[str, str], reason: str, drops: Drops) -> Iterator[Document]:
    """Drops the documents whose id is in `gone`, naming the one that stays."""
    for doc in documents:
        kept = gone.get(doc.id)
        if kept is None:
            yield doc
        else:
            doc.metadata.update(filter_reason=reason, duplicate_of=kept)
            drops.write(doc)
