"""The safetensors file format, read and written piece by piece without holding a file in memory.

Format (safetensors README): 8 bytes little-endian header length, a JSON header
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, then the tensors' bytes,
row-major and little-endian, at those offsets after the header. The library's own writer wants every tensor in memory at
once, and its reader keeps a whole file mapped; both would break the memory bound of reading and writing leaf by leaf.
"""

import json
import math
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from mmed_jax.errors import UserError

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # the library's own limit
MAP_BYTES = 1 << 25


class StoredTensor(NamedTuple):
    """One tensor in a file: dtype is the format's code ("BF16"), begin and end are byte offsets in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Copies `tensor[index]` (slices of step 1, one a dimension) into `out`, cast to `out`'s dtype.

        A block of rows at a time is mapped, and only while it is copied: of a large tensor no more than MAP_BYTES of
        pages count as this process's memory, and of narrow columns only the pages they touch are read.
        """
        first, last, _ = index[0].indices(self.shape[0])
        row_bytes = (self.end - self.begin) // self.shape[0]
        step = max(1, MAP_BYTES // row_bytes)
        with self.file.open("rb") as f:
            for row in range(first, last, step):
                rows = min(step, last - row)
                begin = self.begin + row * row_bytes
                start = begin - begin % mmap.ALLOCATIONGRANULARITY
                length = begin - start + rows * row_bytes
                with mmap.mmap(f.fileno(), length, offset=start, access=mmap.ACCESS_READ) as view:
                    flat = np.frombuffer(view, DTYPES[self.dtype], rows * math.prod(self.shape[1:]), begin - start)
                    block = flat.reshape(rows, *self.shape[1:])
                    out[row - first : row - first + rows] = block[(slice(None), *index[1:])]
                    del flat, block  # an open view would keep the map from closing

    def same_bytes(self, other: "StoredTensor", block: int = 1 << 24) -> bool:
        """Whether both hold the same dtype, shape and bytes; compared in blocks."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        with self.file.open("rb") as a, other.file.open("rb") as b:
            a.seek(self.begin)
            b.seek(other.begin)
            left = self.end - self.begin
            while left:
                n = min(block, left)
                if a.read(n) != b.read(n):
                    return False
                left -= n
        return True


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, after checking that the file is whole.

    Raises:
      UserError: a git-lfs pointer, a cut or foreign file, or offsets that do not fit; with the path.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            prefix = f.read(8)
            if prefix == b"version " and size < 1024:
                raise UserError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder")
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > MAX_HEADER or 8 + length > size:
                raise UserError(f"{path} is not a safetensors file, or is cut short ({size} bytes); download it again")
            raw = json.loads(f.read(length))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e
    except ValueError as e:
        raise UserError(f"{path} is not a safetensors file: its header is not JSON") from e
    tensors = {}
    try:
        raw.pop("__metadata__", None)
        for name, t in raw.items():
            begin, end = t["data_offsets"]
            shape = tuple(int(n) for n in t["shape"])
            tensors[name] = StoredTensor(path, t["dtype"], shape, 8 + length + begin, 8 + length + end)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: malformed safetensors header ({type(e).__name__}: {e})") from e
    for name, t in tensors.items():
        if t.end > size:
            needed = max(t.end for t in tensors.values())
            raise UserError(f"{path} is cut short: {size} bytes of {needed}; download it again")
        wrong = t.dtype in DTYPES and t.end - t.begin != math.prod(t.shape) * DTYPES[t.dtype].itemsize
        if wrong or t.begin < 8 + length or t.end < t.begin:
            raise UserError(f"{path}: tensor {name} of {t.dtype} {list(t.shape)} has {t.end - t.begin} bytes")
    return tensors


def write_header(f: BinaryIO, tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]]) -> None:
    """Writes length and header for tensors whose bytes will follow in this order, without gaps.

    `__metadata__` says {"format": "pt"}, which transformers asks for. Data begins at a multiple of 8 bytes.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)


def write_tensor(f: BinaryIO, array: np.ndarray) -> None:
    """Appends the bytes of `array`, row-major."""
    f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
