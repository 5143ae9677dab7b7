"""Running text -> samples: documents as ids with their begin and end tokens, long ones cut into pieces of a row.

A document is [begin token, where the tokenizer has one] + ids of its text + [end of text]. A piece of k + 1 ids takes k
slots; each next piece begins with the last id of the one before, so that every id but the first is a target once.
With an overlap it begins earlier, as the windows of MMedC do (2,048 ids, 1,536 apart: arXiv 2402.13963), and what
overlaps is a target twice.
"""

import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmed_jax.common.errors import UserError
from mmed_jax.data.pack import Rows, pack
from mmed_jax.data.plain_text import joins_plainly, text_end, text_start
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.samples import Samples
from mmed_jax.data.tokenizers.tokenizer import control_ids, encode_texts, text_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Document = tuple[str, str]  # id, text
LEAST_SEQ_LEN, MOST_OVERLAP = 16, 0.9
# Characters and documents that are encoded with one call.
_BATCH_CHARS, _BATCH_DOCUMENTS = 1 << 20, 512
_BYTES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class RowSettings:
    """How documents become rows.

    Attributes:
      seq_len: slots of a row. overlap: share of a piece that the next one has again, 0 to MOST_OVERLAP.
      attend_across: documents one behind the other in a single segment a row, so that attention sees across them.
    """

    seq_len: int
    overlap: float = 0.0
    attend_across: bool = False

    def check(self) -> None:
        """Raises UserError for values that make no sense."""
        if not LEAST_SEQ_LEN <= self.seq_len <= 1 << 20:
            raise UserError(f"--seq_len={self.seq_len}: must be {LEAST_SEQ_LEN} to {1 << 20:,}, for example 8192")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise UserError(f"--overlap={self.overlap:g}: must be 0 to {MOST_OVERLAP}; the paper's is 0.25")

    @property
    def stride(self) -> int:
        """Slots from the beginning of a piece to that of the next."""
        return max(1, self.seq_len - round(self.overlap * self.seq_len))


@dataclass(frozen=True)
class Packed:
    """Samples of documents, laid into rows. empty: documents of whose text the tokenizer makes nothing."""

    samples: Samples
    rows: Rows
    documents: int
    empty: int


def cut(ids: int, settings: RowSettings) -> list[slice]:
    """The pieces of a document of so many ids; none where there is no target."""
    targets = ids - 1
    if targets < 1:
        return []
    last = max(0, -(-(targets - settings.seq_len) // settings.stride))  # pieces before it do not reach the end
    return [slice(s, min(ids, s + settings.seq_len + 1)) for s in range(0, last * settings.stride + 1, settings.stride)]


def join(pieces: Sequence[np.ndarray], settings: RowSettings) -> np.ndarray:
    """The ids of a document out of its pieces: the inverse of `cut`."""
    again = settings.seq_len + 1 - settings.stride
    return np.concatenate([pieces[0], *(piece[again:] for piece in pieces[1:])])


def pack_documents(
    tok: "PreTrainedTokenizerFast",
    documents: Iterable[Document],
    settings: RowSettings,
    *,
    language: str = "",
    source: str = "",
) -> Packed:
    """Tokenizes documents of one language and source and lays them into rows; the same for the same arguments.

    Pieces of a whole row have one for themselves; the rest is packed best-fit. The order of the rows is random, by a
    fixed key. A sample is named by the document's id, the third piece of a long one with "#2" behind it; with
    attend_across by the first and the last document that it has ids of.

    Args:
        language: one of LANGUAGES, or "" for none of them.

    Raises:
        UserError: the tokenizer has no end token, or makes control tokens of ordinary text.
    """
    streams, empty = _streams(tok, documents), 0
    if settings.attend_across:
        streams = _joined(streams)
    ids: list[np.ndarray] = []
    names: list[str] = []
    lengths, text_bytes, record = array("q"), array("q"), array("q")
    count = 0
    for stream in streams:
        spans = cut(len(stream.ids), settings)
        empty += stream.is_empty
        if stream.is_empty:
            continue
        sizes = np.concatenate([[0], np.cumsum(stream.bytes, dtype=np.int64)])
        for number, span in enumerate(spans):
            ids.append(stream.ids[span])
            names.append(stream.name(span, number, len(spans)))
            lengths.append(span.stop - span.start)
            text_bytes.append(int(sizes[span.stop] - sizes[span.start + 1]))
            record.append(count)
        count += stream.documents
    samples = Samples(
        ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
        trained=None,
        offsets=np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.int64))]).astype(np.int64),
        record=np.frombuffer(record, np.int64),
        language=np.full(len(names), LANGUAGES.index(language) + 1 if language else 0, np.uint8),
        names=names,
        sources=[source] * len(names),
        kinds=["document"] * len(names),
        text_bytes=np.frombuffer(text_bytes, np.int64),
    )
    rows = pack(samples.slots, settings.seq_len, packing=not settings.attend_across)
    return Packed(samples, rows, count, empty)


@dataclass(frozen=True)
class _Stream:
    """Ids that are cut together: of one document, or of all. `bytes`: those that each id spells, int32 [ids]."""

    ids: np.ndarray  # int32
    bytes: np.ndarray
    names: Sequence[str]
    starts: np.ndarray  # int64, where each document begins
    is_empty: bool = False

    @property
    def documents(self) -> int:
        return len(self.names)

    def name(self, span: slice, number: int, pieces: int) -> str:
        if len(self.names) == 1:
            return self.names[0] if pieces == 1 else f"{self.names[0]}#{number}"
        first, last = np.searchsorted(self.starts, (span.start, span.stop - 1), "right") - 1
        return self.names[first] if first == last else f"{self.names[first]}..{self.names[last]}"


def _streams(tok: "PreTrainedTokenizerFast", documents: Iterable[Document]) -> Iterator[_Stream]:
    """Each document by itself."""
    begin, end = text_start(tok), text_end(tok)
    before, after = np.zeros(len(begin), np.int32), np.zeros(1, np.int32)
    for batch in _batches(documents):
        for (name, text), ids in zip(batch, encode_texts(tok, [text for _, text in batch])):
            content = np.array(ids, np.int32)
            sizes = np.concatenate([before, bytes_of_ids(tok, text, content), after])
            whole = np.array([*begin, *ids, end], np.int32)
            yield _Stream(whole, sizes, (name,), np.zeros(1, np.int64), is_empty=not ids)


def _joined(streams: Iterable[_Stream]) -> Iterator[_Stream]:
    """All documents as one; nothing for none."""
    kept = []
    for stream in streams:
        if stream.is_empty:
            yield stream
        else:
            kept.append(stream)
    if kept:
        ids, sizes = np.concatenate([s.ids for s in kept]), np.concatenate([s.bytes for s in kept])
        starts = np.cumsum([0, *(len(s.ids) for s in kept)])[:-1]
        yield _Stream(ids, sizes, [name for s in kept for name in s.names], starts)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document[1])
        if held >= _BATCH_CHARS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def bytes_of_ids(tok: "PreTrainedTokenizerFast", text: str, ids: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of `text` that each of its ids spells, int32 [ids]; together they are all of them.

    In a byte-level vocabulary that is the length of the token. Elsewhere it follows from the characters that a token
    stands for, and of several tokens in one character the last has its bytes.
    """
    if tok not in _BYTES:
        _BYTES[tok] = _byte_lengths(tok) if joins_plainly(tok) else None
    total, table = len(text.encode()), _BYTES[tok]
    if table is not None and (sizes := table[ids]).sum() == total:
        return sizes
    if not len(ids):
        return np.zeros(0, np.int32)
    starts = np.array([start for start, _ in text_spans(tok, text)], np.int64)
    places = np.concatenate([[0], np.cumsum([len(c.encode()) for c in text])])
    edges = np.concatenate([[0], np.maximum.accumulate(places[starts[1:]]), [total]])
    return np.diff(edges).astype(np.int32)


def _byte_lengths(tok: "PreTrainedTokenizerFast") -> np.ndarray:
    """int32 [largest id + 1]: a character of a token stands for a byte; what was added to a vocabulary is text."""
    vocab, controls = tok.get_vocab(), control_ids(tok)
    sizes = np.zeros(max(vocab.values()) + 1, np.int32)
    sizes[list(vocab.values())] = [len(token) for token in vocab]
    for number, token in tok.added_tokens_decoder.items():
        sizes[number] = 0 if number in controls else len(token.content.encode())
    return sizes
