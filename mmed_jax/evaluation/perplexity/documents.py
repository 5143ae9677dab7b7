"""Documents whose probability is asked for, read from files: JSON lines, or a corpus of `data_gen corpus`.

A line is an object with `text`, and may have `language`, `source` and `id`. What it does not say is taken from the
place in a corpus (documents/LANGUAGE/SOURCE/..), else the language is "unknown", the source the file's name and the id
"FILE:LINE". Packed files (.gz, .zst) are read as they are.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import open_unpacked, what_is
from mmed_jax.common.paths import expand_home
from mmed_jax.data.document_cache import check_finished

UNKNOWN = "unknown"  # what a document's language is called where nothing says it
CORPUS = "documents"  # the folder of a finished corpus that holds its files
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FLAG = "--perplexity"


@dataclasses.dataclass(frozen=True)
class Document:
    """A text with what it is counted by. id: once in all files."""

    id: str
    language: str
    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of documents. language, source: of lines that say none themselves; in_corpus: those of all its lines.
    name: of ids of lines that have none, its place below the folder that was named."""

    path: Path
    language: str
    source: str
    in_corpus: bool = False
    name: str = ""


def find_files(name: str) -> list[TextFile]:
    """The files that one name of --perplexity means: itself, a folder's, or a corpus's below documents/.

    Raises:
      UserError: nothing there, a file of another kind, a folder without such files, or a corpus that is not finished.
    """
    path = expand_home(name)
    if not path.is_dir():
        if not what_is(path):
            raise UserError(f"{FLAG}={name}: no such file or folder")
        if not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{FLAG}={name}: is none of {', '.join(SUFFIXES)}, nor a folder")
        return [TextFile(path, UNKNOWN, _stem(path), name=path.name)]
    check_finished(path)
    base = path / CORPUS if (path / CORPUS).is_dir() else path
    files = sorted(p for p in base.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))
    if not files:
        raise UserError(f"{FLAG}={name}: holds no {', '.join(SUFFIXES)}, and no table.json")
    out = []
    for file in files:
        place, below = file.relative_to(base).parts[:-1], file.relative_to(base).as_posix()
        if base is not path and len(place) == 2:
            out.append(TextFile(file, *place, in_corpus=True, name=below))
        else:
            out.append(TextFile(file, UNKNOWN, _stem(file), name=below))
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
    with open_unpacked(file.path) as stream:
        for where, line in jsonl.read_objects(stream, str(file.path)):
            ident = _field(line, "id", where) or f"{file.name}:{where.rpartition(':')[2]}"
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
    return jsonl.whole_text(value or "", f"{where}: field '{key}'")


def _text(line: dict[str, Any], where: str) -> str:
    if "text" not in line:
        there = ", ".join(list(line)[:8]) or "nothing"
        raise UserError(f"{where}: field 'text': missing; a document has 'text', this line has {there}")
    text = line["text"]
    if not isinstance(text, str):
        raise UserError(f"{where}: field 'text': must be text, is {type(text).__name__}")
    if not text:
        raise UserError(f"{where}: field 'text': is empty")
    return jsonl.whole_text(text, f"{where}: field 'text'")


def _stem(path: Path) -> str:
    name = path.name
    return next((name[: -len(s)] for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), name)
