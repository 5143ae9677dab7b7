"""Exact and near duplicates within one set, in bounded memory.

Signatures are MinHashes of the datasketch library (Broder 1997) over character n-grams; its own LSH index keeps a
Python set per bucket (5.8 kB a row, 1.2 GB at 200,000), so the banding is done here, on arrays: 640 bytes a
row for the signatures and 12 bytes a row and band while searching, 250 MiB at 200,000 rows. A candidate counts when the
signatures agree in at least `threshold` of their places (standard error 0.035 at Jaccard 0.8) and the answers are alike
as well: two questions on one long case, or the same options under another question, are not duplicates.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from data_gen.gates.ngrams import mix64, shingles, text_key
from mmed_jax.data.records.schema import LANGUAGES, kind_of

if TYPE_CHECKING:
    from datasketch import MinHash

NUM_PERM = 128
THRESHOLD = 0.85
# The same for the answers alone; fewer places suffice, since this only breaks off what the first let pass.
ANSWER_PERM = 32
ANSWER_THRESHOLD = 0.6
# n-gram lengths for alphabets, and for Han, kana and hangul.
SIZE, DENSE_SIZE = 8, 4
_GROWTH = 4096


def content(record: dict) -> str:
    """What makes two records one: all of question, passage, options, key and rationale; or every message."""
    if kind_of(record) == "mcq":
        options = [f"{text}" for text in record["options"].values()]
        return "\n".join([record.get("context", ""), record["question"], *options, record["rationale"]])
    return "\n".join(m["content"] for m in record["messages"])


def answer(record: dict) -> str:
    """The assistant's texts; of multiple choice the right options and the rationale."""
    if kind_of(record) == "mcq":
        right = [record["options"][letter] for letter in record["answer_idx"].split(",")]
        return "\n".join([*right, record["rationale"]])
    return "\n".join(m["content"] for m in record["messages"] if m["role"] == "assistant")


def content_key(record: dict) -> bytes:
    """16 bytes, equal for records that are the same in language, text (normalised) and key."""
    return text_key(record["language"], content(record), record.get("answer_idx", ""))


class Deduplicator:
    """Takes records one by one with `add`, then `duplicates` names each row that repeats an earlier one.

    The earlier row stays; rows of different languages are never duplicates. `threshold` is the Jaccard similarity of
    the n-gram sets from which two rows are near duplicates; 0 looks for exact ones only.
    """

    def __init__(self, threshold: float = THRESHOLD, num_perm: int = NUM_PERM, seed: int = 1) -> None:
        from datasketch import MinHash  # with scipy behind it; every command of data_gen imports this module

        self.threshold = threshold
        self._whole = MinHash(num_perm=num_perm, seed=seed, hashfunc=int)
        self._answer = MinHash(num_perm=ANSWER_PERM, seed=seed, hashfunc=int)
        self._signatures = np.empty((0, num_perm), np.uint32)
        self._answers = np.empty((0, ANSWER_PERM), np.uint32)
        self._languages = np.empty(0, np.uint8)
        self._first: dict[bytes, int] = {}
        self._exact: dict[int, int] = {}
        self.count = 0
        # The check of the signatures follows, so candidates may be many: bands for a lower threshold miss less than one
        # pair in a hundred at the one asked for.
        self.bands, self.rows = _bands(0.88 * threshold, num_perm) if threshold else (0, 0)

    def __len__(self) -> int:
        return self.count

    def add(self, record: dict) -> int | None:
        """Takes one record; returns the number of the earlier row it is an exact copy of, else None."""
        row, self.count = self.count, self.count + 1
        if self.threshold and row == len(self._languages):
            grown = max(_GROWTH, row // 2)
            self._signatures = _grown(self._signatures, grown)
            self._answers = _grown(self._answers, grown)
            self._languages = _grown(self._languages, grown)
        earlier = self._first.setdefault(content_key(record), row)
        if earlier != row:
            self._exact[row] = earlier
            return earlier
        if self.threshold:
            self._signatures[row] = _signature(self._whole, content(record))
            self._answers[row] = _signature(self._answer, answer(record))
            self._languages[row] = LANGUAGES.index(record["language"]) + 1
        return None

    def duplicates(self) -> Iterator[tuple[int, int, float]]:
        """Yields (row, the earlier row that stays, similarity) in order of row; similarity 1.0 for exact copies.

        Rows are compared with rows that stay, so of a chain a ~ b ~ c with a and c different, c stays.
        """
        gone = np.zeros(self.count, bool)
        gone[list(self._exact)] = True
        near = dict(self._near(gone)) if self.threshold and self.count > 1 else {}
        for row in sorted({*self._exact, *near}):
            yield (row, self._exact[row], 1.0) if row in self._exact else (row, *near[row])

    def _near(self, gone: np.ndarray) -> Iterator[tuple[int, tuple[int, float]]]:
        signatures = self._signatures[: self.count]
        orders = np.empty((self.bands, self.count), np.int32)  # rows by bucket, ascending within one
        places = np.empty((self.bands, self.count), np.int32)  # where a row stands in `orders`
        starts = np.empty((self.bands, self.count), np.int32)  # where its bucket starts
        shared = np.zeros(self.count, bool)
        for band in range(self.bands):
            keys = self._languages[: self.count].astype(np.uint64) << np.uint64(8)
            keys[gone] = np.arange(np.count_nonzero(gone), dtype=np.uint64) << np.uint64(16)
            for column in range(band * self.rows, (band + 1) * self.rows):
                keys = mix64(keys ^ signatures[:, column])
            order = np.argsort(keys, kind="stable")
            fresh = np.ones(self.count, bool)
            fresh[1:] = keys[order[1:]] != keys[order[:-1]]
            first = np.maximum.accumulate(np.where(fresh, np.arange(self.count), 0))
            shared[order] |= first != np.arange(self.count)
            orders[band], places[band, order], starts[band, order] = order, np.arange(self.count), first
        for row in np.flatnonzero(shared & ~gone):
            buckets = [o[s[row] : p[row]] for o, p, s in zip(orders, places, starts)]
            others = np.unique(np.concatenate(buckets))
            others = others[~gone[others]]
            if not len(others):
                continue
            alike = np.count_nonzero(signatures[others] == signatures[row], axis=1) / signatures.shape[1]
            same = np.count_nonzero(self._answers[others] == self._answers[row], axis=1) / ANSWER_PERM
            alike[same < ANSWER_THRESHOLD] = 0
            best = int(np.argmax(alike))
            if alike[best] >= self.threshold:
                gone[row] = True
                yield int(row), (int(others[best]), float(alike[best]))


def _bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows a band) from datasketch's optimiser, weighted for recall."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=num_perm, weights=(0.1, 0.9))
    return index.b, index.r


def _signature(blank: "MinHash", text: str) -> np.ndarray:
    """MinHash of the text's n-grams, uint32 [num_perm]."""
    sketch = blank.copy()
    sketch.update_batch((shingles(text, SIZE, DENSE_SIZE) & np.uint64(0xFFFFFFFF)).tolist())
    return sketch.hashvalues


def _grown(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((rows, *array.shape[1:]), array.dtype)])
