"""What is scored, as rows for the model: documents read from files, cut into windows and packed.

A set of texts has: `documents`, what is counted (Entry); `info` for results.json; `settings`, what decides the numbers;
`batches`, rows of some of its documents; `begin(index)`, the first words of one. table_texts.TableTexts is the other.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmed_jax.common.errors import UserError
from mmed_jax.common.progress import counting_bar
from mmed_jax.data.batch import Batch, empty_batch
from mmed_jax.data.pack import best_fit
from mmed_jax.data.plain_text import text_end, text_start
from mmed_jax.data.tokenizers.tokenizer import encode_texts
from mmed_jax.evaluation.perplexity.documents import Document
from mmed_jax.evaluation.perplexity.windows import Window, cut_windows
from mmed_jax.inference.slots import size_class

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SEQ_LEN = 2048  # default of --seq_len, or the model's positions where they are fewer
_AT_ONCE = 1000  # documents that are tokenized together
_BATCHES = 8  # of windows that are packed together: what a stopped command loses at most
Owners = list[list[int]]  # for each row of a batch the document of every segment


@dataclasses.dataclass(frozen=True)
class Entry:
    """A document as it is counted. bytes: UTF-8 bytes of the text; tokens: those that are scored."""

    id: str
    language: str
    source: str
    bytes: int
    tokens: int


def window_sizes(seq_len: int | None, stride: int | None, positions: int) -> tuple[int, int]:
    """(seq_len, stride) of the flags, or their defaults: at most SEQ_LEN, and half of that.

    Args:
      positions: max_position_embeddings of the model.

    Raises:
      UserError: a seq_len that the model has no positions for, or a stride that is not 1 .. seq_len.
    """
    if seq_len is not None and not 2 <= seq_len <= positions:
        raise UserError(f"--seq_len={seq_len}: must be 2 to {positions}, the model's max_position_embeddings")
    length = min(SEQ_LEN, positions) if seq_len is None else seq_len
    if stride is not None and not 1 <= stride <= length:
        raise UserError(f"--stride={stride}: must be 1 to {length}, the tokens of a window (--seq_len)")
    return length, length // 2 if stride is None else stride


class FileTexts:
    """Documents of files as windows, packed into rows; every document is scored after one begin token.

    Where the tokenizer has no begin token, the one that ends texts stands there, as in lm-eval.
    """

    def __init__(self, tok: "PreTrainedTokenizerFast", documents: Sequence[Document], seq_len: int, stride: int):
        """Raises UserError: a document of which the tokenizer makes nothing."""
        self._documents, self.seq_len, self.stride = documents, seq_len, stride
        begin = (text_start(tok) or (text_end(tok),))[-1:]
        self._ids: list[np.ndarray] = []
        with counting_bar("tokenizing", len(documents), unit="documents") as bar:
            for at in range(0, len(documents), _AT_ONCE):
                encoded = encode_texts(tok, [d.text for d in documents[at : at + _AT_ONCE]])
                self._ids += [np.array((*begin, *ids), np.int32) for ids in encoded]
                bar.update(len(encoded))
        for doc, ids in zip(documents, self._ids):
            if len(ids) < 2:
                raise UserError(f"document {doc.id}: the tokenizer makes no tokens of it")
        self.documents = [
            Entry(d.id, d.language, d.source, len(d.text.encode()), len(ids) - 1)
            for d, ids in zip(documents, self._ids)
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers: windows, and a SHA-256 over the documents."""
        digest = hashlib.sha256()
        for doc in self._documents:
            digest.update("\0".join((doc.id, doc.language, doc.source, doc.text)).encode() + b"\0\0")
        return {"seq_len": self.seq_len, "stride": self.stride, "texts_sha256": digest.hexdigest()}

    @property
    def info(self) -> dict[str, Any]:
        """What results.json says of the texts."""
        windows = f"windows of {self.seq_len} tokens, each ending {self.stride} after the one before"
        return {"kind": "files", "rule": f"a begin token, then the text; {windows}; no end token is scored"}

    def begin(self, index: int, size: int) -> str:
        """The first `size` characters of a document."""
        return self._documents[index].text[:size]

    def batches(self, wanted: Sequence[int], rows_for: Callable[[int], int]) -> Iterator[tuple[Owners, Batch]]:
        """Rows of the documents `wanted`, in their order, a few batches of them packed at a time.

        Args:
          rows_for: how many rows a batch has where so many are to be scored.
        """
        windows = [(i, w) for i in wanted for w in cut_windows(len(self._ids[i]) - 1, self.seq_len, self.stride)]
        length = size_class(max(w.stop - w.start for _, w in windows))
        total = sum(w.stop - w.start for _, w in windows)
        count = rows_for(-(-total // length))
        for block in _blocks(windows, count * length * _BATCHES):
            row_of = best_fit(np.array([w.stop - w.start for _, w in block]), length)
            rows: list[list[tuple[int, Window]]] = [[] for _ in range(int(row_of.max()) + 1)]
            for row, item in zip(row_of.tolist(), block):
                rows[row].append(item)
            for at in range(0, len(rows), count):
                yield self._batch(rows[at : at + count], count, length)

    def _batch(self, rows: Sequence[list[tuple[int, Window]]], count: int, length: int) -> tuple[Owners, Batch]:
        batch = empty_batch(count, length)
        for row, items in enumerate(rows):
            at = 0
            for number, (i, w) in enumerate(items, 1):
                size = w.stop - w.start
                here = row, slice(at, at + size)
                batch["tokens"][here] = self._ids[i][w.start : w.stop]
                batch["targets"][here] = self._ids[i][w.start + 1 : w.stop + 1]
                batch["segment_ids"][here] = number
                batch["positions"][here] = np.arange(size)
                batch["loss_mask"][row, at + size - w.scored : at + size] = 1
                at += size
        return [[i for i, _ in items] for items in rows], batch


def _blocks(windows: Sequence[tuple[int, Window]], tokens: int) -> Iterator[list[tuple[int, Window]]]:
    """Windows that follow each other, together about so many tokens."""
    block: list[tuple[int, Window]] = []
    held = 0
    for item in windows:
        block.append(item)
        held += item[1].stop - item[1].start
        if held >= tokens:
            yield block
            block, held = [], 0
    if block:
        yield block
