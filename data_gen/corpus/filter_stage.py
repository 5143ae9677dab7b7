"""The first pass over a unit: read, licences, language, keywords, quality; and the keys that duplicates are found by.

Licences come first because they cost nothing and spare the rest its work: no later verdict depends on documents that
have no licence. One pass, so that texts of which one in a hundred is kept are never written between steps.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document

from data_gen.corpus.document_files import UNKNOWN, Ids, PartWriter
from data_gen.corpus.duplicate_stages import KEYS, write_keys
from data_gen.corpus.exact_duplicates import text_key
from data_gen.corpus.pipeline_steps import first_steps
from data_gen.corpus.readers import Fields, RawDocument, Reader, Reject, reader_of
from data_gen.corpus.stage_folder import Result
from data_gen.corpus.units import Piece, Unit, stated_language


def filter_unit(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function (stage_folder.Stage). part: a unit; context["roots"]: folder of the files, by source."""
    unit = Unit.from_dict(part)
    source = settings["sources"][unit.source]
    writer = PartWriter(folder)
    documents: Iterable[Document] = _read(unit, source, Path(context["roots"][unit.source]), writer)
    for step in first_steps(settings["steps"], source, writer.drops):
        documents = step(documents)
    text_keys: list[bytes] = []
    ids: list[str] = []
    rows = writer.write(_collect_keys(documents, text_keys, ids))
    write_keys(folder / KEYS, text_keys, ids)
    return Result(rows, writer.books.as_dict())


def _collect_keys(documents: Iterable[Document], text_keys: list[bytes], ids: list[str]) -> Iterator[Document]:
    for doc in documents:
        text_keys.append(text_key(doc.text, doc.metadata.get("language")))
        ids.append(doc.id)
        yield doc


def _read(unit: Unit, source: dict[str, Any], root: Path, writer: PartWriter) -> Iterator[Document]:
    """The documents of a unit with metadata; what cannot be read is a reject in the books."""
    fields = Fields(**source["fields"])
    for piece in unit.pieces:
        path, ids = root / piece.name, Ids(unit.source, piece.name, piece.start)
        entry = {**source, "language": stated_language(source["language"], piece.name)}
        for item in _read_piece(path, reader_of(piece.format, entry), piece, fields):
            writer.books.read[unit.source, ""] += 1
            if isinstance(item, Reject):
                writer.reject(unit.source, piece.name, item)
            else:
                yield _document(item, unit.source, entry, piece.name, ids)


def _read_piece(path: Path, reader: Reader, piece: Piece, fields: Fields) -> Iterable[RawDocument | Reject]:
    """What a reader gives; a file of no bytes, which says nothing of its format, is a reject in each."""
    return reader.read(path, piece.cut, fields) if path.stat().st_size else [Reject("empty_file")]


def _is_code(language: str) -> bool:
    """Whether that is a code or nothing, as "fr", "pt-BR", "cmn_Hani"; "unknown" names no language."""
    return not language or language != UNKNOWN and re.fullmatch(r"[A-Za-z0-9_-]{1,35}", language) is not None


def _document(item: RawDocument, name: str, source: dict[str, Any], file: str, ids: Ids) -> Document:
    metadata = {"source": name, "file": file, **item.metadata}
    if not _is_code(metadata.get("language", "")):  # "../x" or a sentence; languages become names of files
        del metadata["language"]
    for key in ("language", "license"):  # what the recipe says of the whole source, where a document says nothing
        if not metadata.get(key) and source[key]:
            metadata[key] = source[key]
    if item.id:
        metadata["original_id"] = item.id
    return Document(item.text, ids(item.id, item.text), metadata=metadata)
