"""The safetensors file format, read and written piece by piece without holding a file in memory.

Format (safetensors README): 8 bytes little-endian header length, a JSON header
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, then the tensors' bytes,
row-major and little-endian, at those offsets after the header. The library's own writer wants every tensor in memory at
once, and its reader keeps a whole file mapped; both would break the memory bound of reading and writing leaf by leaf.
"""

import json
import math
import mmap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from mmed_jax.common.buckets.ranged_file import RangedFile, file_size, open_pointer, read_bytes
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import open_file
from mmed_jax.common.jsonl import BadJSON, loads

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# Bits of a value, for every dtype that the library knows (safetensors 0.8, tensor.rs).
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
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
        pages count as this process's memory, and of narrow columns only the pages they touch are read. Of a file that
        lies in a bucket the rows are read whole, in parts of a few MB.
        """
        first, last, _ = index[0].indices(self.shape[0])
        row_bytes = (self.end - self.begin) // self.shape[0]
        step = max(1, MAP_BYTES // row_bytes)
        if (ranged := open_pointer(self.file)) is not None:
            return self._read_ranged(ranged, (first, last, step, row_bytes), index, out)
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

    def _read_ranged(
        self, ranged: RangedFile, rows: tuple[int, int, int, int], index: tuple[slice, ...], out: np.ndarray
    ) -> None:
        """`read` of a file in a bucket; rows: first, last, rows at a time, bytes of one."""
        first, last, step, row_bytes = rows
        data = ranged.blocks(self.begin + first * row_bytes, self.begin + last * row_bytes)
        held = bytearray()
        for row in range(first, last, step):
            count = min(step, last - row)
            while len(held) < count * row_bytes:
                held += next(data)
            block = np.frombuffer(bytes(held[: count * row_bytes]), DTYPES[self.dtype]).reshape(count, *self.shape[1:])
            out[row - first : row - first + count] = block[(slice(None), *index[1:])]
            del held[: count * row_bytes]

    def same_bytes(self, other: "StoredTensor", block: int = 1 << 24) -> bool:
        """Whether both hold the same dtype, shape and bytes; compared in blocks."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        for at in range(0, self.end - self.begin, block):
            n = min(block, self.end - self.begin - at)
            ours, theirs = self.begin + at, other.begin + at
            if read_bytes(self.file, ours, ours + n) != read_bytes(other.file, theirs, theirs + n):
                return False
        return True


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, after checking that the file is whole and what its header says of it.

    Refused is all that the safetensors library refuses, and also: a name given twice, of which it would take the last.

    Raises:
      UserError: no regular file, a git-lfs pointer, a cut or foreign file, tensors that do not lie one after the other
        and fill the file, or entries of a wrong type; with the path.
    """
    with open_file(path):
        pass  # a regular file, that may be read
    size = file_size(path)
    prefix = read_bytes(path, 0, 8)
    if prefix == b"version " and size < 1024:
        raise UserError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder")
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > MAX_HEADER or 8 + length > size:
        raise UserError(f"{path} is not a safetensors file, or is cut short ({size} bytes); download it again")
    raw = _parse(read_bytes(path, 8, 8 + length), path)
    tensors, offset = {}, 8 + length
    for name, entry in raw.items():
        try:
            tensors[name] = _stored(entry, path, offset)
        except ValueError as e:
            raise UserError(f"{path}: malformed safetensors header: tensor {shown(name)}: {e}") from None
    at = offset
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if t.begin != at:
            what = "overlaps the one before it" if t.begin < at else f"leaves {t.begin - at:,} bytes before it unused"
            raise UserError(f"{path}: malformed safetensors header: tensor {shown(name)} {what}")
        at = t.end
    if at > size:
        raise UserError(f"{path} is cut short: {size} bytes of {at}; download it again")
    if at < size:
        raise UserError(f"{path}: {size - at:,} bytes follow the last tensor; download it again")
    return tensors


def _parse(data: bytes, path: Path) -> dict:
    """The header as {name: entry}, without __metadata__."""

    def no_duplicates(pairs: list) -> dict:
        out = dict(pairs)
        if len(out) < len(pairs):
            names = [k for k, _ in pairs]
            raise BadJSON(f"{shown(next(k for k, n in Counter(names).items() if n > 1))} is given twice")
        return out

    def no_number(name: str) -> None:
        raise BadJSON(f"{name} is no JSON")

    try:
        text = data.decode()
        # The library takes -0 for a fraction. (Offsets and sizes that are below 0 are found by their users.)
        raw = loads(
            text,
            dict,
            object_pairs_hook=no_duplicates,
            parse_constant=no_number,
            parse_int=lambda digits: -0.5 if digits == "-0" else int(digits),
        )
        if "\\u" in text:
            json.dumps(raw, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except ValueError as e:  # UnicodeError is one
        why = "not UTF-8" if isinstance(e, UnicodeError) else str(e)
        raise UserError(f"{path} is not a safetensors file: its header is not JSON that it may hold ({why})") from e
    metadata = raw.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise UserError(f"{path}: malformed safetensors header: __metadata__ must be an object of texts")
    return raw


def _stored(entry: object, path: Path, offset: int) -> StoredTensor:
    """One entry of the header, checked by itself. Raises ValueError that says what is wrong."""
    if not isinstance(entry, dict):
        raise ValueError("must be an object")
    if absent := [k for k in ("dtype", "shape", "data_offsets") if k not in entry]:
        raise ValueError(f"{absent[0]} is missing")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"dtype {shown(dtype)} is unknown")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        # type(n) is int: True is an int, too.
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 64 for n in numbers):
            raise ValueError(f"{what} {shown(numbers)}: must be a list of whole numbers from 0")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"data_offsets {shown(offsets)}: must be [begin, end]")
    count = 1
    for n in shape:
        count *= n
        if count >= 1 << 64:
            raise ValueError(f"shape {shown(shape)} is larger than any file")
    if count * BITS[dtype] != 8 * (offsets[1] - offsets[0]) or count * BITS[dtype] >= 1 << 64:
        raise ValueError(f"of {dtype} {shown(shape)} has {offsets[1] - offsets[0]} bytes")
    return StoredTensor(path, dtype, tuple(shape), offset + offsets[0], offset + offsets[1])


def shown(value: object, most: int = 80) -> str:
    """A name or value of a foreign file as it stands in messages: on one line and of at most `most` characters."""
    text = value if isinstance(value, str) else repr(value[:12] if isinstance(value, list) else value)
    return text if len(text) <= most else text[: most - 3] + "..."


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
