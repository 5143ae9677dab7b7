"""Tokenized samples, laid end to end: in memory, or with their ids in a file without a name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmed_jax.data.flat_file import FlatFile


@dataclass
class Samples:
    """n tokenized samples. Sample i has ids[offsets[i]:offsets[i+1]] and takes one slot less than it has ids."""

    ids: "np.ndarray | FlatFile"  # int32 [total]
    trained: "np.ndarray | FlatFile | None"  # bool [total]; None: all are
    offsets: np.ndarray  # int64 [n + 1]
    record: np.ndarray  # int64 [n], index of the record or document it was made from
    language: np.ndarray  # uint8 [n], LANGUAGES.index + 1; 0: none of them
    names: Sequence[str]  # record id, and ":rationale" or ":direct" behind it for multiple choice
    sources: Sequence[str]
    kinds: Sequence[str]  # "instruction", "rationale", "direct", "document"
    text_bytes: np.ndarray  # int64 [n], UTF-8 bytes of the text that the trained targets spell
    supervised: np.ndarray = None  # type: ignore[assignment]  # int64 [n], trained targets (the first id is none)
    left_out: Counter = field(default_factory=Counter)  # samples by reason (tokenize.LEFT_OUT)
    shortened: int = 0  # samples whose prompt was cut

    def __post_init__(self) -> None:
        if self.supervised is None:
            self.supervised = self.slots if self.trained is None else trained_targets(self.trained, self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def slots(self) -> np.ndarray:
        """int64 [n], positions each sample takes in a row."""
        return np.diff(self.offsets) - 1


def trained_targets(trained: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 [n], trained targets of samples that lie behind one another; none of them is empty."""
    total = np.concatenate([[0], np.cumsum(trained, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]] - trained[offsets[:-1]]
