"""Long arrays and many texts in files that have no name and go with their process.

Read with pread and not mapped: what is mapped counts as memory of the process until the system takes it back.
"""

import os
import tempfile
from array import array
from pathlib import Path

import numpy as np

from mmed_jax.common.errors import WorkError


class FlatFile:
    """A one-dimensional array that grows at its end and is read back by slices.

    Args:
      folder: on the disk that has room for it.
    """

    def __init__(self, folder: Path, dtype: np.typing.DTypeLike) -> None:
        """Raises WorkError where no file can be made in `folder`."""
        self._dtype, self._folder, self._size = np.dtype(dtype), folder, 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)
        except OSError as e:
            raise self._failure(e) from e

    def append(self, values: np.ndarray | bytes) -> None:
        """Raises WorkError when the disk is full."""
        data = memoryview(values if isinstance(values, bytes) else np.ascontiguousarray(values, self._dtype)).cast("B")
        try:
            self._file.write(data)
        except OSError as e:
            raise self._failure(e) from e
        self._size += len(data) // self._dtype.itemsize

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> np.ndarray:
        """Values start .. stop - 1. Raises WorkError."""
        return np.frombuffer(self.read(*span.indices(self._size)[:2]), self._dtype)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of values start .. stop - 1. Raises WorkError."""
        width = self._dtype.itemsize
        try:
            self._file.flush()
            data = os.pread(self._file.fileno(), (stop - start) * width, start * width)
            while len(data) < (stop - start) * width and (
                more := os.pread(self._file.fileno(), (stop - start) * width - len(data), start * width + len(data))
            ):
                data += more
        except OSError as e:
            raise self._failure(e) from e
        return data

    def _failure(self, e: OSError) -> WorkError:
        return WorkError(f"{self._folder}: a temporary file cannot be written or read ({e.strerror or e})")


class BytesFile:
    """Many strings of bytes, one behind the other; 8 bytes of memory each."""

    def __init__(self, folder: Path) -> None:
        """Raises WorkError as FlatFile does."""
        self._bytes, self._ends = FlatFile(folder, np.uint8), array("q", [0])

    def append(self, data: bytes) -> None:
        """Raises WorkError when the disk is full."""
        self._bytes.append(data)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        """Raises WorkError."""
        return self._bytes.read(self._ends[index], self._ends[index + 1])
