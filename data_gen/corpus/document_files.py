"""Documents between stages and in the finished corpus: zstd-packed JSON lines, one object a document.

    {"id": "9f3c...", "text": "...", "language": "fr", "source": "fineweb2", "license": "ODC-By", "url": "...", ...}

An id is the first 16 bytes (32 hex digits) of a SHA-256 over source, name of the file, the piece of it, the id that
came with the document, its text, and how many like it stood before it in the piece. So each id stands once in a corpus,
and depends neither on the order of files nor on tasks.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard
from datatrove.data import Document

from data_gen.corpus.accounting import Books
from data_gen.corpus.readers import Reject
from data_gen.corpus.stage_folder import open_file
from mmed_jax.common.errors import WorkError

DOCUMENTS, DROPPED, SAMPLES = "documents.jsonl.zst", "dropped.jsonl.zst", "samples.json"
REJECTS = "rejects.jsonl"  # what could not be read: file, place, reason
LEVEL = 3
UNKNOWN = "unknown"  # instead of a language in names of files; no document states it
# Of metadata, what a finished document keeps, in this order; what steps leave for each other goes.
KEPT_KEYS = ("language", "source", "license", "url", "date", "original_id", "file", "pages", "ocr_pages")
SAMPLES_EACH = 2  # of a part, for each step, reason and language
SAMPLE_CHARS = 500


class LinesWriter:
    """JSON lines into one zstd frame with a checksum; the same lines give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        self._packed = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).stream_writer(self._file)
        self._buffered = io.BufferedWriter(self._packed, 1 << 20)  # type: ignore[arg-type]

    def write(self, value: dict[str, Any]) -> None:
        """Raises OSError."""
        self._buffered.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))

    def __enter__(self) -> "LinesWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._buffered.close()
        self._file.close()


def read_lines(part: Path, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a file of a finished part. Raises WorkError where it is damaged."""
    with open_file(part, name) as f:
        yield from unpacked_lines(f, part / name)


def unpacked_lines(f: IO[bytes], path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of LinesWriter. Raises WorkError where it is damaged."""
    with zstandard.ZstdDecompressor().stream_reader(f) as unpacked:
        try:
            for line in io.BufferedReader(unpacked, 1 << 20):  # type: ignore[type-var]
                yield orjson.loads(line)
        except (zstandard.ZstdError, orjson.JSONDecodeError) as e:
            raise WorkError(f"{path}: is damaged ({e}); remove its folder and run the same command again") from e


def as_line(doc: Document) -> dict[str, Any]:
    """A document as its line holds it."""
    return {"id": doc.id, "text": doc.text} | {k: doc.metadata[k] for k in KEPT_KEYS if doc.metadata.get(k)}


def as_document(line: dict[str, Any]) -> Document:
    """The inverse of `as_line`."""
    return Document(line.pop("text"), line.pop("id"), metadata=line)


def read_documents(part: Path) -> Iterator[Document]:
    """The documents of a finished part, in order. Raises WorkError where it is damaged."""
    yield from map(as_document, read_lines(part, DOCUMENTS))


class Ids:
    """Gives the documents of a piece of a file their ids."""

    def __init__(self, source: str, file: str, start: int) -> None:
        self._place = f"{source}\0{file}\0{start}\0".encode()
        self._seen: Counter[bytes] = Counter()

    def __call__(self, given: str, text: str) -> str:
        digest = hashlib.sha256(self._place + given.encode() + b"\0" + text.encode()).digest()[:16]
        self._seen[digest] += 1
        if (copy := self._seen[digest]) > 1:
            digest = hashlib.sha256(digest + copy.to_bytes(8, "big")).digest()[:16]
        return digest.hex()


class Drops:
    """Where a step's dropped documents go: the books, a list, samples. What datatrove calls an exclusion writer."""

    def __init__(self, step: str, books: Books, dropped: LinesWriter, samples: "Samples") -> None:
        self.step, self._books, self._dropped, self._samples = step, books, dropped, samples

    def __enter__(self) -> "Drops":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, doc: Document, rank: int = 0, **_: Any) -> None:
        """Counts and lists a document; metadata has `filter_reason`."""
        reason = str(doc.metadata.pop("filter_reason", "")) or "dropped"
        source, language = doc.metadata["source"], doc.metadata.get("language") or ""
        self._books.dropped[source, language, self.step, reason] += 1
        self._samples.add(self.step, reason, doc)
        about = {k: v for k, v in doc.metadata.items() if k not in ("source", "language") and v not in (None, "")}
        line = {"source": source, "language": language, "step": self.step, "reason": reason, "id": doc.id}
        self._dropped.write(line | about)


class Samples:
    """A few documents of every step, reason and language: borderline ones first, then by id, which is a hash."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], list[tuple[tuple[bool, str], dict[str, Any]]]] = {}

    def add(self, step: str, reason: str, doc: Document) -> None:
        """`step` and `reason` "" of a document that is kept."""
        key = step, reason, doc.metadata.get("language") or ""
        chosen = self._kept.setdefault(key, [])
        rank = not doc.metadata.get("borderline", False), doc.id
        if len(chosen) < SAMPLES_EACH or rank < chosen[-1][0]:
            about = {k: v for k, v in doc.metadata.items() if isinstance(v, str | int | float) and v != ""}
            chosen.append((rank, {"id": doc.id, "about": about, "text": doc.text[:SAMPLE_CHARS]}))
            chosen.sort(key=lambda pair: pair[0])
            del chosen[SAMPLES_EACH:]

    def as_list(self) -> list[dict[str, Any]]:
        """[{"step", "reason", "language", "id", "about", "text", "borderline"}], in a fixed order."""
        return [
            {"step": step, "reason": reason, "language": language, "borderline": not rank[0], **sample}
            for (step, reason, language), chosen in sorted(self._kept.items())
            for rank, sample in chosen
        ]


class PartWriter:
    """Writes what a per-document stage leaves: documents, the list of dropped ones, samples, books."""

    def __init__(self, folder: Path) -> None:
        self.books, self.samples = Books(), Samples()
        self._folder = folder
        self._documents, self.dropped = LinesWriter(folder / DOCUMENTS), LinesWriter(folder / DROPPED)
        self._rejects: list[bytes] = []

    def drops(self, step: str) -> Drops:
        """The exclusion writer of a step."""
        return Drops(step, self.books, self.dropped, self.samples)

    def reject(self, source: str, file: str, reject: Reject) -> None:
        """Counts and lists what could not be read."""
        self.books.dropped[source, "", "read", reject.reason] += 1
        about = {"source": source, "file": file, "place": reject.place, "reason": reject.reason}
        self._rejects.append(orjson.dumps(about | {"detail": reject.detail}))

    def write(self, documents: Iterable[Document]) -> int:
        """Writes all documents that come through; how many. Ends the files."""
        rows = 0
        with self._documents, self.dropped:
            for doc in documents:
                place = doc.metadata["source"], doc.metadata.get("language") or ""
                self.books.kept[place] += 1
                self.books.chars[place] += len(doc.text)
                self.books.bytes[place] += len(doc.text.encode())
                if doc.metadata.get("borderline"):
                    self.samples.add("", "", doc)
                self._documents.write(as_line(doc))
                rows += 1
        (self._folder / REJECTS).write_bytes(b"".join(line + b"\n" for line in self._rejects))
        (self._folder / SAMPLES).write_bytes(orjson.dumps(self.samples.as_list()))
        return rows
