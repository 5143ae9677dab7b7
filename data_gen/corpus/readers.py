"""What turns a piece of an input file into documents, chosen by the file's suffix. One class a format, declared below.

A reader gives RawDocument or Reject, one for each document that the file holds or should hold: a line that cannot be
read is one Reject with file and line, and reading goes on behind it. Nothing is raised for what a file contains.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmed_jax.common.errors import UserError, nearest


@dataclass(frozen=True)
class Fields:
    """Names of the columns or keys of an input. Those that a file lacks are empty; `text` must be there."""

    text: str = "text"
    id: str = "id"
    language: str = "language"
    license: str = "license"
    url: str = "url"
    date: str = "date"


@dataclass
class RawDocument:
    """A document as it stands in a file. `place`: "line 12", "row 7", "page 3" or "" (the file itself)."""

    text: str
    id: str = ""
    place: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    """What could not be read as a document. `reason` is what books count, `detail` a few words for people."""

    reason: str
    place: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Cut:
    """A piece of a file: [start, end) in the reader's own measure, and about how many bytes of it that is."""

    start: int
    end: int
    bytes: int


class Reader(Protocol):
    """A format."""

    def cuts(self, path: Path, unit_bytes: int) -> list[Cut]:
        """The pieces of a file, each of about `unit_bytes` at most; together, and in order, the whole file.

        A file that cannot be opened as its format is one piece, so that `read` gives the Reject that says so.
        """

    def read(self, path: Path, cut: Cut, fields: Fields) -> Iterator[RawDocument | Reject]:
        """The documents of a piece, in the order of the file. Raises OSError where the disk fails, nothing else."""


# Suffixes (of the name without .gz or .zst) -> "module:class". A format of its own is a line here and a class there.
FORMATS = {
    "jsonl": ((".jsonl", ".ndjson", ".json"), "data_gen.corpus.lines_reader:JsonLines"),
    "text": ((".txt", ".text", ".md"), "data_gen.corpus.lines_reader:TextFile"),
    "parquet": ((".parquet",), "data_gen.corpus.parquet_reader:ParquetFile"),
    "html": ((".html", ".htm", ".xhtml"), "data_gen.corpus.html_reader:HtmlFile"),
    "warc": ((".warc",), "data_gen.corpus.warc_reader:WarcFile"),
    "pdf": ((".pdf",), "data_gen.corpus.pdf_reader:PdfFile"),
}
# Modules that readers start as programs instead of importing them.
PROGRAMS = ("data_gen.corpus.pdf_server",)
# Packed forms of jsonl, text, html and warc.
PACKED = (".gz", ".zst")


def format_of(name: str) -> str:
    """The format that a file's name says; "" for none of FORMATS."""
    stem = Path(name.lower())
    if stem.suffix in PACKED:
        stem = stem.with_suffix("")
    return next((kind for kind, (suffixes, _) in FORMATS.items() if stem.suffix in suffixes), "")


def reader_of(kind: str, source: Mapping[str, Any] | None = None) -> Reader:
    """The reader of a format. Raises UserError for none of FORMATS, and where what it needs is not installed.

    source: the source's entry in the recipe, for readers with settings there (their class has `of_source`). Without
    it a reader has its neutral settings, which is enough for `cuts`.
    """
    if kind not in FORMATS:
        raise UserError(f"format '{kind}' is not known{nearest(kind, FORMATS)}")
    module, _, name = FORMATS[kind][1].partition(":")
    try:
        reader = getattr(importlib.import_module(module), name)
        return reader.of_source(source) if source is not None and hasattr(reader, "of_source") else reader()
    except ModuleNotFoundError as e:
        raise UserError(f"format '{kind}': {e.name} not installed", hint='; pip install "mmed_jax[corpus]"') from e
