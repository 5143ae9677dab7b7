"""Large weight files that stay in their bucket: of each only the ranges that are asked for are read.

In the folder of a model that was fetched, a small file of this module stands in the place of each: it says object,
generation and size. Who reads it for the weights themselves finds no safetensors file, and never zeros. A host of a pod
so reads the bytes of its own shards, in parts of PART bytes by several threads, and keeps none on its disk. What comes
is protected by the connection; a bucket knows the checksum of the whole object alone.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mmed_jax.common.buckets.bucket import Stored, open_bucket
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.places import GS, parse_place

SUFFIX = ".safetensors"
LEAST = 64 << 20  # bytes; smaller files are fetched
PART = 8 << 20
_THREADS = 8
_MAGIC = b'{"mmed_jax_object": '


class RangedFile(NamedTuple):
    """An object of a bucket, of one generation. size: bytes."""

    address: str
    generation: int
    size: int

    def read(self, begin: int, end: int) -> bytes:
        """The bytes [begin, end). Raises UserError, WorkError: the bucket refuses, does not answer, or has others."""
        bucket, key = open_bucket(parse_place(self.address))
        try:
            data = bucket.get(key, begin, end, self.generation)
        except FileNotFoundError as e:
            raise WorkError(f"{self.address}: was changed or removed while it was read; run the command again") from e
        if len(data) != end - begin:
            raise WorkError(f"{self.address}: gave {len(data):,} bytes of the {end - begin:,} from {begin:,} on")
        return data

    def blocks(self, begin: int, end: int) -> Iterator[bytes]:
        """The bytes [begin, end) in parts of PART, read ahead; at most _THREADS parts are in memory."""
        starts = range(begin, end, PART)
        with ThreadPoolExecutor(_THREADS) as pool:
            ahead: list[Future[bytes]] = []
            try:
                for start in starts:
                    ahead.append(pool.submit(self.read, start, min(end, start + PART)))
                    if len(ahead) == _THREADS:
                        yield ahead.pop(0).result()
                while ahead:
                    yield ahead.pop(0).result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def is_ranged(name: str, size: int) -> bool:
    """Whether a file of a model's folder stays in the bucket."""
    return name.endswith(SUFFIX) and is_large(size)


def is_large(size: int) -> bool:
    """Whether weights of so many bytes stay in the bucket."""
    return size >= LEAST


def write_pointer(file: Path, bucket: str, stored: Stored) -> None:
    """Puts `file` in the place of an object. Raises OSError."""
    fields = {"address": f"{GS}{bucket}/{stored.name}", "generation": stored.generation, "size": stored.size}
    file.write_bytes(_MAGIC + json.dumps(fields).encode() + b"}\n")


def open_pointer(file: Path) -> RangedFile | None:
    """The object that `file` stands for; None for any other file, or none.

    Raises:
      UserError: it begins as one and is none.
    """
    try:
        with file.open("rb") as f:
            if f.read(len(_MAGIC)) != _MAGIC:
                return None
            data = _MAGIC + f.read(1 << 16)
    except OSError:
        return None
    try:
        return RangedFile(**json.loads(data)["mmed_jax_object"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file}: is damaged; remove its folder and run the command again") from e


def read_bytes(file: Path, begin: int, end: int) -> bytes:
    """The bytes [begin, end) of a file, wherever it lies; fewer at its end. Raises OSError, UserError, WorkError."""
    if (ranged := open_pointer(file)) is not None:
        return ranged.read(begin, min(end, ranged.size)) if begin < ranged.size else b""
    stream: BinaryIO
    with file.open("rb") as stream:
        stream.seek(begin)
        return stream.read(end - begin)


def file_size(file: Path) -> int:
    """Bytes of a file, wherever it lies. Raises OSError."""
    ranged = open_pointer(file)
    return file.stat().st_size if ranged is None else ranged.size
