"""Records -> tokenized samples in flat arrays; every record that gives no sample is counted with its reason."""

import contextlib
import gc
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from mmed_jax.common.progress import counting_bar
from mmed_jax.data.chat import Piece, chat_pieces, encode_arrays, shorten
from mmed_jax.data.flat_file import FlatFile
from mmed_jax.data.multiple_choice import mcq_pieces
from mmed_jax.data.records.schema import LANGUAGES, kind_of
from mmed_jax.data.samples import Samples, trained_targets

# Records that are tokenized with one call; large enough for the encoder's threads, small enough for steady progress.
CHUNK = 1024
# Calls under way while others are rendered and assembled.
AHEAD = 2

Draft = tuple[int, dict, str, list[Piece]]  # record index, record, kind, pieces

LEFT_OUT = {
    "needs_image": "need an image",
    "no_rationale": "no rationale to train on",
    "too_long": "too long",
    "nothing_trained": "no token to train on",
}


@dataclass(frozen=True)
class RenderSettings:
    """How records become samples; the fields are those of config.data."""

    seq_len: int
    overlong: str = "truncate_prompt"
    modes: tuple[str, ...] = ("rationale", "direct")
    prompt_family: str = "llama3"
    system_prompt: str = ""


def drafts(tok, records: Iterable[tuple[int, dict]], settings: RenderSettings, left_out: Counter) -> Iterator[Draft]:
    """Yields (record index, record, kind, pieces): one sample of an instruction, one per mode of a question."""
    for index, record in records:
        if record.get("needs_image"):
            left_out["needs_image"] += 1
        elif kind_of(record) == "instruction":
            messages = record["messages"]
            if settings.system_prompt and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": settings.system_prompt}, *messages]
            yield index, record, "instruction", chat_pieces(tok, messages)
        else:
            for mode in settings.modes:
                if mode == "rationale" and not record["rationale"].strip():
                    left_out["no_rationale"] += 1
                    continue
                family, system = settings.prompt_family, settings.system_prompt
                yield index, record, mode, mcq_pieces(tok, record, mode, family, system_prompt=system)


def _encoded(tok, batches: Iterable[list[Draft]]) -> Iterator[tuple[list[Draft], tuple[np.ndarray, ...]]]:
    """Each batch with its arrays (chat.encode_arrays), in order.

    Two batches are under way in threads: the encoder does not hold the interpreter, so the next batch is rendered and
    the last one assembled meanwhile.
    """
    with ThreadPoolExecutor(AHEAD) as threads:
        waiting: deque = deque()
        for batch in batches:
            waiting.append((batch, threads.submit(encode_arrays, tok, [pieces for *_, pieces in batch])))
            if len(waiting) > AHEAD:
                batch, future = waiting.popleft()
                yield batch, future.result()
        for batch, future in waiting:
            yield batch, future.result()


@contextlib.contextmanager
def _heap_at_rest() -> Iterator[None]:
    """Garbage collection passes over what is there already: all libraries' objects and the records, again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Assembly:
    """Samples as they come, one behind the other; their ids go to files where a folder is named."""

    def __init__(self, folder: Path | None) -> None:
        self._in_files = folder is not None
        self._ids: list[np.ndarray] | FlatFile = [] if folder is None else FlatFile(folder, np.int32)
        self._trained: list[np.ndarray] | FlatFile = [] if folder is None else FlatFile(folder, bool)
        self._lengths, self._record = array("q"), array("q")
        self._supervised, self._text_bytes, self._language = array("q"), array("q"), array("B")
        self._sources: list[str] = []
        self._kinds: list[str] = []
        self.left_out: Counter = Counter()
        self.shortened = 0

    def add(self, draft: Draft, ids: np.ndarray, trained: np.ndarray, supervised: int) -> None:
        index, record, kind, pieces = draft
        self._ids.append(ids)
        self._trained.append(trained)
        self._lengths.append(len(ids))
        self._record.append(index)
        self._language.append(LANGUAGES.index(record["language"]) + 1)
        self._supervised.append(supervised)
        self._text_bytes.append(sum(len(p.text.encode()) for p in pieces if p.trained))
        self._sources.append(sys.intern(record["source"]))
        self._kinds.append(kind)

    def samples(self, id_of: Callable[[int], str]) -> Samples:
        """All of them; id_of gives the id of a record by its index."""
        flat, trained = self._ids, self._trained
        if isinstance(flat, list):
            flat = np.concatenate(flat) if flat else np.zeros(0, np.int32)
        if isinstance(trained, list):
            trained = np.concatenate(trained) if trained else np.zeros(0, bool)
        record = np.frombuffer(self._record, np.int64)
        names = SampleNames(id_of, record, self._kinds)
        return Samples(
            ids=flat,
            trained=trained,
            offsets=np.concatenate([[0], np.cumsum(np.frombuffer(self._lengths, np.int64))]).astype(np.int64),
            record=record,
            language=np.frombuffer(self._language, np.uint8),
            names=names if self._in_files else list(names),
            sources=self._sources,
            kinds=self._kinds,
            text_bytes=np.frombuffer(self._text_bytes, np.int64),
            supervised=np.frombuffer(self._supervised, np.int64),
            left_out=self.left_out,
            shortened=self.shortened,
        )


class SampleNames(Sequence[str]):
    """Names of samples: the id of the record, and ":rationale" or ":direct" behind that of a question."""

    def __init__(self, id_of: Callable[[int], str], record: np.ndarray, kinds: Sequence[str]) -> None:
        self._id_of, self._record, self._kinds = id_of, record, kinds

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, sample: int) -> str: ...
    @overload
    def __getitem__(self, sample: slice) -> list[str]: ...
    def __getitem__(self, sample: int | slice) -> str | list[str]:
        if isinstance(sample, slice):
            return [self[i] for i in range(*sample.indices(len(self)))]
        name, kind = self._id_of(int(self._record[sample])), self._kinds[sample]
        return name if kind == "instruction" else f"{name}:{kind}"


@_heap_at_rest()
def build_samples(
    tok,
    records: Sequence[dict],
    settings: RenderSettings,
    *,
    which: Sequence[int] | np.ndarray | None = None,
    progress: str = "",
    folder: Path | None = None,
    id_of: Callable[[int], str] | None = None,
) -> Samples:
    """Renders and tokenizes records, in their order.

    Args:
        records: checked records (schema.validate_record).
        which: indices of the records to use; None = all.
        progress: label of a progress bar, shown only on a terminal; "" = none.
        folder: where a file without a name holds the ids, so that memory does not grow with them; None = in memory.
        id_of: the id of a record by its index; None = as the record says.

    A sample longer than settings.seq_len is left out, or with overlong "truncate_prompt" loses the beginning of its
    user text (of the passage in multiple choice, so question and options stay whole); the answer is never cut. What
    still does not fit, has nothing to train on or needs an image is counted in Samples.left_out.

    Raises:
        WorkError: the file cannot be written.
    """
    which = range(len(records)) if which is None else which
    out = _Assembly(folder)
    bar = counting_bar(progress, len(which), unit="rec", show=bool(progress))
    starts = range(0, len(which), CHUNK)
    chunks = ([(int(i), records[int(i)]) for i in which[start : start + CHUNK]] for start in starts)
    batches = (list(drafts(tok, part, settings, out.left_out)) for part in chunks)
    for batch, (flat_ids, flat_trained, offsets) in _encoded(tok, batches):
        supervised = trained_targets(flat_trained, offsets).tolist()
        for i, draft in enumerate(batch):
            span = slice(offsets[i], offsets[i + 1])
            sample_ids, sample_trained, targets = flat_ids[span], flat_trained[span], supervised[i]
            if len(sample_ids) - 1 > settings.seq_len:
                short = shorten(tok, draft[-1], settings.seq_len) if settings.overlong == "truncate_prompt" else None
                if short is None:
                    out.left_out["too_long"] += 1
                    continue
                out.shortened += 1
                sample_ids, sample_trained = np.array(short.ids, np.int32), np.array(short.trained, bool)
                targets = int(sample_trained[1:].sum())
            if not targets:
                out.left_out["nothing_trained"] += 1
                continue
            out.add(draft, sample_ids, sample_trained, targets)
        bar.update(min(CHUNK, bar.total - bar.n))
    bar.close()
    return out.samples(id_of or (lambda index: records[index]["id"]))
