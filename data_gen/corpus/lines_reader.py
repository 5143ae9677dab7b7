"""JSON lines and plain text, read as bytes: a bad byte or a cut line costs that line, never the file.

A piece of a plain JSONL file is a byte range: it has the lines that begin in it. Of a packed one (.gz, .zst) it is a
range of unpacked bytes, and whoever reads it unpacks what stands before. A text file is one document.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_gen.corpus.readers import Cut, Fields, RawDocument, Reject

# A longer line is no document; it is passed over without being held in memory.
MAX_LINE = 64 << 20
_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# How files of other formats begin: one reject, where their every line would be one.
_OTHERS = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"%PDF": "PDF", b"PK\x03\x04": "zip"}
_BOM = b"\xef\xbb\xbf"


class JsonLines:
    """One JSON object a line, with a text."""

    def cuts(self, path: Path, unit_bytes: int) -> list[Cut]:
        size = path.stat().st_size
        if not _is_packed(path):
            ends = [*range(unit_bytes, size, unit_bytes), size]
            return [Cut(start, end, end - start) for start, end in zip([0, *ends[:-1]], ends)]
        if size <= unit_bytes // 4:  # text shrinks to a quarter or so
            return [Cut(0, 1 << 62, size)]
        return _packed_cuts(path, unit_bytes)

    def read(self, path: Path, cut: Cut, fields: Fields) -> Iterator[RawDocument | Reject]:
        if other := _other_format(path):
            if cut.start == 0:
                yield other
            return
        line_number = _LineNumber(path, cut.start)
        lines = _lines(path, cut)
        while True:
            try:
                start, line = next(lines)
            except StopIteration:
                return
            except BrokenFile as e:
                yield Reject("broken_file", line_number(e.offset), str(e))
                return
            if line is None:
                yield Reject("line_too_long", line_number(start), f"more than {MAX_LINE >> 20} MB")
            elif line := line.removeprefix(_BOM if start == 0 else b"").strip():
                yield _document(line, fields, lambda: line_number(start))  # noqa: B023  (called before the next line)


def _other_format(path: Path) -> Reject | None:
    """What says that a file is of another format, by its first bytes; None where it may be text."""
    try:
        with open_unpacked(path) as f:
            first = f.read(4)
    except BrokenFile:
        return None
    if first.startswith(_UTF16):
        return Reject("not_utf8", "line 1", "the file looks like UTF-16")
    kind = next((kind for magic, kind in _OTHERS.items() if first.startswith(magic)), "")
    return Reject("wrong_format", "", f"the file looks like {kind}") if kind else None


class TextFile:
    """A whole file as one document."""

    def cuts(self, path: Path, unit_bytes: int) -> list[Cut]:
        size = path.stat().st_size
        return [Cut(0, size, size)]

    def read(self, path: Path, cut: Cut, fields: Fields) -> Iterator[RawDocument | Reject]:
        try:
            with open_unpacked(path) as f:
                data = f.read(MAX_LINE + 1)
        except BrokenFile as e:
            yield Reject("broken_file", "", str(e))
            return
        if len(data) > MAX_LINE:
            yield Reject("file_too_long", "", f"more than {MAX_LINE >> 20} MB")
            return
        try:
            text = data.removeprefix(_BOM).decode("utf-8")
        except UnicodeDecodeError as e:
            line = data.count(b"\n", 0, e.start) + 1
            yield Reject("not_utf8", f"line {line}", _bad_byte(e))
            return
        yield RawDocument(text) if text.strip() else Reject("empty_text")


class BrokenFile(Exception):
    """A packed file that cannot be unpacked further; `offset`: unpacked bytes before it."""

    def __init__(self, problem: str, offset: int = 0) -> None:
        super().__init__(problem)
        self.offset = offset


def _document(line: bytes, fields: Fields, place: Callable[[], str]) -> RawDocument | Reject:
    """A line's document; `place` is called where it is needed (it may count lines)."""
    import orjson

    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as bad:
            return Reject("not_utf8", place(), _bad_byte(bad))
        return Reject("broken_json", place(), e.msg)
    if not isinstance(value, dict):
        return Reject("not_an_object", place(), f"a {type(value).__name__}")
    return from_values(value, fields, place)


def from_values(value: dict[str, Any], fields: Fields, place: Callable[[], str]) -> RawDocument | Reject:
    """A document out of named values, as a line or a row holds them."""
    text = value.get(fields.text)
    if not isinstance(text, str):
        return Reject("no_text", place(), f"no text in '{fields.text}'" if text is None else f"a {type(text).__name__}")
    if not text.strip():
        return Reject("empty_text", place())
    metadata = {}
    for name in ("language", "license", "url", "date"):
        found = value.get(getattr(fields, name))
        if found not in (None, ""):
            metadata[name] = str(found)
    given = value.get(fields.id)
    return RawDocument(text, "" if given is None else str(given), "", metadata)


def _bad_byte(e: UnicodeDecodeError) -> str:
    return f"byte 0x{e.object[e.start]:02x} at position {e.start}"


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() in (".gz", ".zst")


def open_unpacked(path: Path) -> BinaryIO:
    """The unpacked bytes of a file. What cannot be unpacked raises BrokenFile on reading."""
    if not _is_packed(path):
        return open(path, "rb")
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path), _BLOCK))


class _Unpacked(io.RawIOBase):
    """gzip or zstd (several members or frames) unpacked, with one kind of error; one that ends too early is broken."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")
        self._new = _gzip_member if path.suffix.lower() == ".gz" else _zstd_frame
        self._member: Any = None
        self._packed = self._ready = b""
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._packed and not (block := self._file.read(_PACKED_BLOCK)):
                if self._member is not None:
                    raise BrokenFile("the packed file ends too early", self._offset)
                return 0
            self._unpack(self._packed or block)
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _unpack(self, packed: bytes) -> None:
        if self._member is None and not packed.strip(b"\0"):  # padding behind the last member
            self._packed = b""
            return
        self._member = self._member or self._new()
        try:
            self._ready = self._member.decompress(packed)
        except Exception as e:  # zlib.error, zstandard.ZstdError
            raise BrokenFile(f"cannot be unpacked ({e})", self._offset) from e
        self._packed = b""
        if self._member.eof:
            self._packed, self._member = self._member.unused_data, None

    def close(self) -> None:
        self._file.close()
        super().close()


def _gzip_member() -> Any:
    return zlib.decompressobj(31)


def _zstd_frame() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


def _packed_cuts(path: Path, unit_bytes: int) -> list[Cut]:
    """Ranges of unpacked bytes. Where the file is broken the last piece reaches beyond, so that reading it says so."""
    size = 0
    with open_unpacked(path) as f:
        try:
            while block := f.read(_BLOCK):
                size += len(block)
        except BrokenFile:
            size += 1
    ends = [*range(unit_bytes, size, unit_bytes), 1 << 62]
    return [Cut(start, end, min(end, size) - start) for start, end in zip([0, *ends[:-1]], ends)]


def _lines(path: Path, cut: Cut) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line) of the lines that begin in a range; None for one that is too long. Raises BrokenFile."""
    with open_unpacked(path) as f:
        position = _skip(f, cut.start - 1) if cut.start else 0
        if cut.start:  # the line that began before is another piece's
            if position < cut.start - 1:
                return
            position += _pass_line(f)
        while position < cut.end:
            line: bytes | None = f.readline(MAX_LINE + 1)
            if not line:
                return
            start, length = position, len(line)
            if length > MAX_LINE and not line.endswith(b"\n"):
                line, length = None, length + _pass_line(f)
            position += length
            yield start, line


def _skip(f: BinaryIO, size: int) -> int:
    """Moves `size` bytes on; how many there were."""
    if f.seekable():
        return f.seek(size)
    left = size
    while left and (block := f.read(min(left, _BLOCK))):
        left -= len(block)
    return size - left


def _pass_line(f: BinaryIO) -> int:
    """Reads to the end of a line; how many bytes that was."""
    size = 0
    while part := f.readline(_BLOCK):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


class _LineNumber:
    """Numbers of lines by their offset; the lines before a piece are counted when the first is asked for."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._at, self._number = 0, 1

    def __call__(self, offset: int) -> str:
        try:
            with open_unpacked(self._path) as f:
                _skip(f, self._at)
                while self._at < offset and (block := f.read(min(_BLOCK, offset - self._at))):
                    self._number += block.count(b"\n")
                    self._at += len(block)
        except BrokenFile:
            pass
        return f"line {self._number}"
