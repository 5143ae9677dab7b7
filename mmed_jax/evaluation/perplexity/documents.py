"""Documents whose probability is asked for, read from files: JSON lines, or a corpus of `data_gen corpus`.

A line is an object with `text`, and may have `language`, `source` and `id`. What it does not say is taken from the
place in a corpus (documents/LANGUAGE/SOURCE/..), else the language is "unknown", the source the file's name and the id
"FILE:LINE". Packed files (.gz, .zst) are read as they are.
"""

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import open_file, open_unpacked, what_is
from mmed_jax.common.paths import expand_home

UNKNOWN = "unknown"  # what a document's language is called where nothing says it
CORPUS = "documents"  # the folder of a finished corpus that holds its files
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FLAG = "--perplexity"
_BLOCK = 1 << 20  # packed bytes that are read at a time


@dataclasses.dataclass(frozen=True)
class Document:
    """A text with what it is counted by. id: once in all files."""

    id: str
    language: str
    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of documents. language, source: of lines that say none themselves; in_corpus: those of all its lines."""

    path: Path
    language: str
    source: str
    in_corpus: bool = False


def find_files(name: str) -> list[TextFile]:
    """The files that one name of --perplexity means: itself, a folder's, or a corpus's below documents/.

    Raises:
      UserError: nothing there, a file of another kind, or a folder without such files.
    """
    path = expand_home(name)
    if not path.is_dir():
        if not what_is(path):
            raise UserError(f"{FLAG}={name}: no such file or folder")
        if not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{FLAG}={name}: is none of {', '.join(SUFFIXES)}, nor a folder")
        return [TextFile(path, UNKNOWN, _stem(path))]
    base = path / CORPUS if (path / CORPUS).is_dir() else path
    files = sorted(p for p in base.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))
    if not files:
        raise UserError(f"{FLAG}={name}: holds no {', '.join(SUFFIXES)}, and no table.json")
    out = []
    for file in files:
        place = file.relative_to(base).parts[:-1]
        if base is not path and len(place) == 2:
            out.append(TextFile(file, *place, in_corpus=True))
        else:
            out.append(TextFile(file, UNKNOWN, _stem(file)))
    return out


def read_documents(names: Sequence[str], languages: Sequence[str] | None = None, limit: int = 0) -> list[Document]:
    """The documents of --perplexity's names, in the order of their files.

    Args:
      languages: only these; None = all. limit: at most so many of each language and source, the first; 0 = all.

    Raises:
      UserError: find_files; a line that is no document; an id that stands twice; none left.
    """
    out: list[Document] = []
    count: Counter[tuple[str, str]] = Counter()
    places: dict[str, str] = {}
    passed_over: set[str] = set()
    for file in [f for name in names for f in find_files(name)]:
        if file.in_corpus and not _wanted(file.language, file.source, languages, limit, count):
            passed_over.add(file.language)
            continue
        for where, doc in _documents(file):
            if not _wanted(doc.language, doc.source, languages, limit, count):
                passed_over.add(doc.language)
                if file.in_corpus:
                    break
                continue
            if first := places.get(doc.id):
                raise UserError(f"{where}: id '{doc.id}' stands twice, first at {first}")
            places[doc.id] = where
            count[doc.language, doc.source] += 1
            out.append(doc)
    if not out and passed_over:
        held = ", ".join(sorted(passed_over))
        raise UserError(f"--languages: no document in {', '.join(languages or ())}; the files hold {held}")
    if not out:
        raise UserError(f"{FLAG}={','.join(names)}: holds no documents")
    return out


def _wanted(language: str, source: str, languages: Sequence[str] | None, limit: int, count: Counter) -> bool:
    if languages is not None and language not in languages:
        return False
    return not limit or count[language, source] < limit


def _documents(file: TextFile) -> Iterator[tuple[str, Document]]:
    """("file:line", document) of each line. Raises UserError."""
    with _open(file.path) as stream:
        for where, line in jsonl.read_objects(stream, str(file.path)):
            ident = _field(line, "id", where) or f"{file.path.name}:{where.rpartition(':')[2]}"
            language = _field(line, "language", where) or file.language
            source = _field(line, "source", where) or file.source
            yield where, Document(ident, language, source, _text(line, where))


def _field(line: dict[str, Any], key: str, where: str) -> str:
    """What a line says of itself, "" for nothing; ids may be whole numbers."""
    value = line.get(key)
    if key == "id" and type(value) is int:
        return str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: field '{key}': must be text, is {type(value).__name__}")
    return value or ""


def _text(line: dict[str, Any], where: str) -> str:
    if "text" not in line:
        there = ", ".join(list(line)[:8]) or "nothing"
        raise UserError(f"{where}: field 'text': missing; a document has 'text', this line has {there}")
    text = line["text"]
    if not isinstance(text, str):
        raise UserError(f"{where}: field 'text': must be text, is {type(text).__name__}")
    if not text:
        raise UserError(f"{where}: field 'text': is empty")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        half = f"\\u{ord(text[e.start]):04x}"
        raise UserError(f"{where}: field 'text': character {e.start + 1} is {half}, half of a pair; no text") from None
    return text


def _stem(path: Path) -> str:
    name = path.name
    return next((name[: -len(s)] for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), name)


# ---- Packed files ---------------------------------------------------------------------------------------------------


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() != ".zst":
        return open_unpacked(path)
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path), _BLOCK))


class _Unpacked(io.RawIOBase):
    """The bytes in a zstd file of one or several frames. Raises UserError for a damaged one, or one that is cut."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: needs the package zstandard (pip install 'mmed_jax[corpus]')") from None
        self._path, self._new, self._error = path, zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
        self._file = open_file(path)
        self._frame: Any = None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._packed:
                self._packed = self._file.read(_BLOCK)
                if not self._packed:
                    if self._frame is not None:
                        raise UserError(f"{self._path}: damaged zstd file: it ends too early")
                    return 0
            self._frame = self._frame or self._new()
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._error as e:
                raise UserError(f"{self._path}: damaged zstd file ({e})") from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size
