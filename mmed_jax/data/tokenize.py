"""Records -> tokenized samples in flat arrays; every record that gives no sample is counted with its reason."""

import contextlib
import gc
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mmed_jax.common.progress import counting_bar
from mmed_jax.data.chat import Piece, chat_pieces, encode_arrays, shorten
from mmed_jax.data.multiple_choice import mcq_pieces
from mmed_jax.data.records.schema import LANGUAGES, kind_of

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


@dataclass
class Samples:
    """n tokenized samples. Sample i has ids[offsets[i]:offsets[i+1]] and takes one slot less than it has ids."""

    ids: np.ndarray  # int32 [total]
    trained: np.ndarray  # bool [total]
    offsets: np.ndarray  # int64 [n + 1]
    record: np.ndarray  # int64 [n], index of the record it was made from
    language: np.ndarray  # uint8 [n], LANGUAGES.index + 1
    names: list[str]  # record id, and ":rationale" or ":direct" behind it for multiple choice
    sources: list[str]
    kinds: list[str]  # "instruction", "rationale", "direct"
    left_out: Counter = field(default_factory=Counter)  # samples by reason (LEFT_OUT)
    shortened: int = 0  # samples whose prompt was cut

    def __len__(self) -> int:
        return len(self.names)

    @property
    def slots(self) -> np.ndarray:
        """int64 [n], positions each sample takes in a row."""
        return np.diff(self.offsets) - 1

    @property
    def supervised(self) -> np.ndarray:
        """int64 [n], trained targets of each sample (the first id is never a target)."""
        return trained_targets(self.trained, self.offsets)


def trained_targets(trained: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 [n], trained targets of samples that lie behind one another; none of them is empty."""
    total = np.concatenate([[0], np.cumsum(trained, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]] - trained[offsets[:-1]]


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


@_heap_at_rest()
def build_samples(
    tok, records: Sequence[dict], settings: RenderSettings, *, which: Sequence[int] | None = None, progress: str = ""
) -> Samples:
    """Renders and tokenizes records, in their order.

    Args:
        records: checked records (schema.validate_record).
        which: indices of the records to use; None = all.
        progress: label of a progress bar, shown only on a terminal; "" = none.

    A sample longer than settings.seq_len is left out, or with overlong "truncate_prompt" loses the beginning of its
    user text (of the passage in multiple choice, so question and options stay whole); the answer is never cut. What
    still does not fit, has nothing to train on or needs an image is counted in Samples.left_out.
    """
    which = range(len(records)) if which is None else which
    flat, trained, lengths = [], [], []
    out = Samples(None, None, None, None, None, [], [], [])
    indices, languages = [], []
    bar = counting_bar(progress, len(which), unit="rec", show=bool(progress))
    starts = range(0, len(which), CHUNK)
    chunks = ([(int(i), records[i]) for i in which[start : start + CHUNK]] for start in starts)
    batches = (list(drafts(tok, part, settings, out.left_out)) for part in chunks)
    for batch, (flat_ids, flat_trained, offsets) in _encoded(tok, batches):
        supervised = trained_targets(flat_trained, offsets).tolist()
        for i, (index, record, kind, pieces) in enumerate(batch):
            span = slice(offsets[i], offsets[i + 1])
            sample_ids, sample_trained, targets = flat_ids[span], flat_trained[span], supervised[i]
            if len(sample_ids) - 1 > settings.seq_len:
                short = shorten(tok, pieces, settings.seq_len) if settings.overlong == "truncate_prompt" else None
                if short is None:
                    out.left_out["too_long"] += 1
                    continue
                out.shortened += 1
                sample_ids, sample_trained = np.array(short.ids, np.int32), np.array(short.trained, bool)
                targets = sample_trained[1:].sum()
            if not targets:
                out.left_out["nothing_trained"] += 1
                continue
            flat.append(sample_ids)
            trained.append(sample_trained)
            lengths.append(len(sample_ids))
            indices.append(index)
            languages.append(LANGUAGES.index(record["language"]) + 1)
            out.names.append(record["id"] if kind == "instruction" else f"{record['id']}:{kind}")
            out.sources.append(record["source"])
            out.kinds.append(kind)
        bar.update(min(CHUNK, bar.total - bar.n))
    bar.close()
    out.ids = np.concatenate(flat) if flat else np.zeros(0, np.int32)
    out.trained = np.concatenate(trained) if trained else np.zeros(0, bool)
    out.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    out.record = np.array(indices, np.int64)
    out.language = np.array(languages, np.uint8)
    return out
