"""Records of a WARC file (ISO 28500), plain or a gzip member each, with their offsets; what is broken costs itself.

Where a record begins is found by reading the file through: a gzip member's length stands nowhere. Behind one that
cannot be unpacked the next member that begins with "WARC/" is looked for, in a plain file the next blank line with
"WARC/" behind it. What is found from an offset on depends on the bytes from there on alone, so that pieces of a file
give the records of the whole.
"""

import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

_BLOCK = 1 << 16
_MAGIC = b"\x1f\x8b\x08"
_MAX_HEADER = 1 << 16
_BEGINNING = b"WARC/"
_NEXT = re.compile(rb"\r?\n\r?\n(?=WARC/\d)")


@dataclass
class Record:
    """A record.

    Attributes:
      offset: where it begins, or the gzip member that has it. number: of those in that member, from 1.
      headers: by lower-case name. block: what it holds, None where that was not wanted or is too long.
      size: bytes of the record, unpacked. problem: why it cannot be read; then nothing else is known.
    """

    offset: int
    number: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    block: bytes | None = None
    size: int = 0
    problem: str = ""

    @property
    def place(self) -> str:
        return f"offset {self.offset}" + (f", record {self.number}" if self.number > 1 else "")


class _Broken(Exception):
    """A record or a gzip member that cannot be read."""


def read_records(
    path: Path, start: int, end: int, wanted: Callable[[dict[str, str]], bool], max_block: int
) -> Iterator[Record]:
    """The records that begin in [start, end); `start` is 0 or an offset that this gave before.

    Args:
      wanted: of the headers: whether the block is to be read. max_block: bytes of a block that are held at most.

    Raises OSError where the disk fails, nothing else.
    """
    with open(path, "rb") as f:
        iterate = _packed if path.suffix.lower() == ".gz" else _plain
        yield from iterate(f, start, min(end, path.stat().st_size), wanted, max_block)


def _plain(f: BinaryIO, start: int, end: int, wanted: Callable[[dict[str, str]], bool], limit: int) -> Iterator[Record]:
    offset = start
    while offset < end:
        f.seek(offset)
        try:
            record = _read_record(f, offset, wanted, limit)
        except _Broken as e:
            yield Record(offset, size=1, problem=str(e))
            offset = _next_plain(f, offset + 1, end)
            continue
        if record is None:
            return
        offset += record.size
        yield record


def _packed(
    f: BinaryIO, start: int, end: int, wanted: Callable[[dict[str, str]], bool], limit: int
) -> Iterator[Record]:
    offset = start
    while offset < end:
        member = _Member(f, offset)
        stream = cast(BinaryIO, io.BufferedReader(cast(Any, member), _BLOCK))
        number, problem = 1, ""
        try:
            while (record := _read_record(stream, offset, wanted, limit)) is not None:
                record.number = number
                yield record
                number += 1
        except _Broken as e:
            problem = str(e)
        if not problem or member.problem == "":
            try:
                while stream.read(_BLOCK):  # the rest of a member whose record is broken
                    pass
            except _Broken as e:
                problem = problem or str(e)
        if problem and not (number == 1 and _only_padding(f, offset)):
            yield Record(offset, number, size=1, problem=problem)
        offset = _next_member(f, offset + 1) if member.problem else member.end


class _Member(io.RawIOBase):
    """The unpacked bytes of the gzip member at an offset; raises _Broken. `end`: where it ends, once it is read."""

    def __init__(self, f: BinaryIO, offset: int) -> None:
        self._file, self._at, self._unpack = f, offset, zlib.decompressobj(31)
        self._waiting = b""
        self.end, self.problem = offset, ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpack.eof:
            if self.problem:
                raise _Broken(self.problem)
            if not self._waiting:
                self._file.seek(self._at)
                self._waiting = self._file.read(_BLOCK // 4)
                self._at += len(self._waiting)
            try:
                if not self._waiting:
                    raise _Broken("the file ends within it")
                data = self._unpack.decompress(self._waiting, len(buffer))
            except (zlib.error, _Broken) as e:
                self.problem = str(e) if isinstance(e, _Broken) else f"cannot be unpacked ({e})"
                raise _Broken(self.problem) from e
            self._waiting = self._unpack.unconsumed_tail
            if self._unpack.eof:
                self.end = self._at - len(self._unpack.unused_data)
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


def _read_record(f: BinaryIO, offset: int, wanted: Callable[[dict[str, str]], bool], limit: int) -> Record | None:
    """The record that begins here, None at the end. Raises _Broken."""
    line, size = f.readline(_MAX_HEADER), 0
    while line in (b"\r\n", b"\n"):
        size += len(line)
        line = f.readline(_MAX_HEADER)
    if not line:
        return None
    if not line.startswith(_BEGINNING):
        raise _Broken(f"no WARC record begins here ({line[:20]!r})")
    size += len(line)
    headers: dict[str, str] = {}
    name, end = "", size + _MAX_HEADER
    while (line := f.readline(_MAX_HEADER)) not in (b"\r\n", b"\n"):
        size += len(line)
        if not line.endswith(b"\n") or size > end:
            raise _Broken("its header does not end")
        text = line.decode("utf-8", "replace").rstrip()
        if line[:1] in b" \t" and name:
            headers[name] += " " + text.strip()
        else:
            name, _, value = text.partition(":")
            name = name.strip().lower()
            headers[name] = value.strip()
    size += len(line)
    length = headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        raise _Broken(f"Content-Length is {length!r}")
    block = _read_block(f, int(length), limit if wanted(headers) else 0)
    size += int(length)
    for line in (f.readline(3), f.readline(3)):  # a file may end without
        if line not in (b"\r\n", b"\n", b""):
            raise _Broken("it is longer or shorter than it says")
        size += len(line)
    return Record(offset, 1, headers, block, size)


def _read_block(f: BinaryIO, length: int, limit: int) -> bytes | None:
    """A block, passed over where it is longer than `limit`. Raises _Broken where there is less of it."""
    if length <= limit:
        block = f.read(length)
        if len(block) < length:
            raise _Broken("the file ends within it")
        return block
    while length:
        passed = len(f.read(min(length, _BLOCK)))
        if not passed:
            raise _Broken("the file ends within it")
        length -= passed
    return None


def _only_padding(f: BinaryIO, offset: int) -> bool:
    """Whether nothing but zero bytes is left."""
    f.seek(offset)
    while block := f.read(_BLOCK):
        if block.strip(b"\0"):
            return False
    return True


def _next_member(f: BinaryIO, start: int) -> int:
    """Offset of the next gzip member that begins with a record; the file's end without one."""

    def begins(place: int) -> bool:
        f.seek(place)
        try:
            return zlib.decompressobj(31).decompress(f.read(1024), len(_BEGINNING)) == _BEGINNING
        except zlib.error:
            return False

    return _search(f, start, re.compile(re.escape(_MAGIC)), begins)


def _next_plain(f: BinaryIO, start: int, end: int) -> int:
    """Offset of the next record of a plain file; the file's end without one."""
    return _search(f, start, _NEXT, lambda place: True)


def _search(f: BinaryIO, start: int, pattern: re.Pattern[bytes], fits: Callable[[int], bool]) -> int:
    """Where the first match that fits begins, or for a pattern that looks ahead ends."""
    overlap = 16
    while True:
        f.seek(start)
        block = f.read(_BLOCK + overlap)
        for match in pattern.finditer(block):
            place = start + (match.end() if pattern is _NEXT else match.start())
            if match.start() < _BLOCK and fits(place):
                return place
        if len(block) <= _BLOCK:
            return start + len(block)
        start += _BLOCK
