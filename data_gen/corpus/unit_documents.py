"""The documents of a unit with the language of each, for the stages that make a packed table of a corpus."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_gen.corpus.readers import Fields, Reject, reader_of
from data_gen.corpus.units import Unit
from mmed_jax.data.documents import Document
from mmed_jax.data.records.schema import LANGUAGES

UNKNOWN = "unknown"  # of documents in none of LANGUAGES


def read_unit(unit: Unit, roots: Mapping[str, str], language: str) -> Iterator[tuple[str, Document] | Reject]:
    """(language, (id, text)) of the documents of a unit; UNKNOWN for what is none of LANGUAGES.

    Args:
      language: of documents that say none.
    """
    for piece in unit.pieces:
        path = Path(roots[unit.source]) / piece.name
        for found in reader_of(piece.format).read(path, piece.cut, Fields()):
            if isinstance(found, Reject):
                place = f"{piece.name}, {found.place}" if found.place else piece.name
                yield Reject(found.reason, place, found.detail)
                continue
            code = found.metadata.get("language") or language
            ident = found.id or hashlib.sha256(found.text.encode()).hexdigest()[:32]
            yield (code if code in LANGUAGES else UNKNOWN), (ident, found.text)
