"""Tokenized samples, laid end to end: in memory, or with their ids in a file without a name."""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmed_jax.common.errors import WorkError


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


class FlatFile:
    """A long array in a file that has no name and goes with its process; read back by slices.

    Read with pread and not mapped: what is mapped counts as memory of the process until the system takes it back.
    """

    def __init__(self, folder: Path, dtype: np.typing.DTypeLike) -> None:
        """Raises WorkError where no file can be made in `folder`."""
        self._dtype, self._folder, self._size = np.dtype(dtype), folder, 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115  (closed with this object)
        except OSError as e:
            raise self._failure(e) from e

    def append(self, values: np.ndarray) -> None:
        """Raises WorkError when the disk is full."""
        try:
            self._file.write(np.ascontiguousarray(values, self._dtype).data)
        except OSError as e:
            raise self._failure(e) from e
        self._size += len(values)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> np.ndarray:
        """Values start .. stop - 1. Raises WorkError."""
        start, stop, _ = span.indices(self._size)
        width = self._dtype.itemsize
        try:
            self._file.flush()
            data = os.pread(self._file.fileno(), (stop - start) * width, start * width)
        except OSError as e:
            raise self._failure(e) from e
        return np.frombuffer(data, self._dtype)

    def _failure(self, e: OSError) -> WorkError:
        return WorkError(f"{self._folder}: a temporary file cannot be written or read ({e.strerror or e})")
