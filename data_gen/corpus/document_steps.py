"""What the filters' steps have in common: datatrove's steps around functions that judge or rewrite one document."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.typeshelper import StatHints


class _Lazy:
    """Leaves attributes out of pickles: automata, identifiers, indexes, which every process makes for itself."""

    _lazy: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name in self._lazy else value for name, value in self.__dict__.items()}


class DocumentFilter(_Lazy, BaseFilter):
    """Keeps the documents that `judge` has nothing against; what it returns is counted as dropped_<reason>."""

    @abstractmethod
    def judge(self, doc: Document) -> str | None:
        """Why the document is dropped, None where it is kept."""

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        reason = self.judge(doc)
        return True if reason is None else (False, reason)


class DocumentRewriter(_Lazy, PipelineStep, ABC):
    """Changes the texts of documents; one of which too little is left is dropped.

    `rewrite` returns (text, counts, reason): the counts go into the step's figures, a reason drops the document.
    """

    def __init__(self, exclusion_writer=None) -> None:
        super().__init__()
        self.exclusion_writer = exclusion_writer

    @abstractmethod
    def rewrite(self, doc: Document) -> tuple[str, dict[str, int], str | None]:
        """The document's new text, what was done how often, and why it is dropped (None: kept)."""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with self.exclusion_writer or nullcontext() as writer:
            for doc in data:
                self.stat_update(StatHints.total)
                with self.track_time():
                    text, counts, reason = self.rewrite(doc)
                for what, number in counts.items():
                    self.stat_update(what, value=number)
                if reason is None:
                    doc.text = text
                    self.stat_update(StatHints.forwarded)
                    self.update_doc_stats(doc)
                    yield doc
                    continue
                self.stat_update(StatHints.dropped, f"dropped_{reason}")
                if writer:
                    doc.metadata["filter_reason"] = reason
                    writer.write(doc, rank)
