"""Passages for question-answer generation, from text, tables, JSON lines and record files.

A passage is {"id", "language", "text", "source", "license", "provenance"} and perhaps "title". Ids are
"<file name>-<line, row or paragraph number>[-<part>]", so they are stable while the file's order is.

    .txt .md        paragraphs, joined up to max_chars
    .csv .tsv .xlsx one passage a row, "header: value" lines; empty cells are left out
    .jsonl(.gz)     records (their passage or answer), or objects with a text field
    folder, zip     record sets as mmed_jax.data.records.reading.read_records reads them
"""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest, one_line
from mmed_jax.common.input_files import check_file, is_packed, open_file, open_unpacked, suffix
from mmed_jax.data.records.delimited import header_of, read_lines, width_problem
from mmed_jax.data.records.reading import locate, read_records
from mmed_jax.data.records.schema import LANGUAGES, validate_record

TEXT_FIELDS = ("text", "passage", "context", "abstract", "content", "body")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])|\n+")


def read_passages(
    path: str,
    *,
    language: str | None = None,
    license: str | None = None,
    field: str | None = None,
    max_chars: int = 4000,
) -> Iterator[dict]:
    """Passages of one file or folder, in order, streaming.

    Args:
      language: of files that do not say it; one of the seven codes. Required for text and tables.
      license: of files that do not say it; "unspecified" otherwise.
      field: the text field of JSON objects, or the columns of a table, with commas; all columns otherwise.
      max_chars: longer passages are cut at sentence ends into parts with ids of their own.
    Raises UserError for files that can't be read this way.
    """
    file, _ = locate(path)
    if language is not None and language not in LANGUAGES:
        raise UserError(f"--from_language={language}: not supported{nearest(language, LANGUAGES)}")
    common = {"source": file.name.partition(".")[0], "license": license or "unspecified", "language": language}
    kind = suffix(file)
    if file.is_dir() or kind == ".zip":
        passages: Iterator[dict] = read_records(path)
    elif kind == ".jsonl":
        passages = _objects(file, field, common)
    elif kind in (".csv", ".tsv", ".xlsx") and not is_packed(file):
        passages = _table(file, kind, field, common)
    elif kind in (".txt", ".md", "") and not is_packed(file):
        passages = _paragraphs(file, common, max_chars)
    else:
        kinds = ".txt .md .csv .tsv .xlsx .jsonl .jsonl.gz, a folder or zip of records"
        raise UserError(f"{path}: unknown kind of file; valid: {kinds}")
    for passage in passages:
        if not passage.get("language"):
            raise UserError(f"{path}: no language in the file; give --from_language, one of {', '.join(LANGUAGES)}")
        yield from _parts(passage, max_chars)


def split_text(text: str, max_chars: int) -> list[str]:
    """`text` in parts of at most `max_chars` characters, cut at ends of sentences, else of words, else anywhere."""
    parts, current = [], ""
    for sentence in _SENTENCE.split(text):
        while len(sentence) > max_chars:
            cut = sentence.rfind(" ", max_chars // 2, max_chars)
            cut = cut if cut > 0 else max_chars
            parts += [current, sentence[:cut]]
            current, sentence = "", sentence[cut:].lstrip()
        joined = f"{current} {sentence}".strip() if current[-1:] not in "。！？" else current + sentence
        if len(joined) > max_chars:
            parts.append(current)
            current = sentence
        else:
            current = joined
    return [p for p in map(str.strip, [*parts, current]) if p]


def _parts(passage: dict, max_chars: int) -> Iterator[dict]:
    text = passage.get("text", "")
    if len(text) <= max_chars:
        yield passage
        return
    for number, part in enumerate(split_text(text, max_chars), 1):
        group = {"group": passage.get("provenance", {}).get("group") or passage["id"]}
        provenance = {**passage.get("provenance", {}), **group}
        yield {**passage, "id": f"{passage['id']}-{number}", "text": part, "provenance": provenance}


def _objects(file: Path, field: str | None, common: dict) -> Iterator[dict]:
    with open_unpacked(file) as stream:
        for where, value in jsonl.read_objects(stream, str(file)):
            if field is None and ("messages" in value or "question" in value):
                yield validate_record({"language": common["language"], **value}, where)
                continue
            name = field or next((f for f in TEXT_FIELDS if isinstance(value.get(f), str)), None)
            if name is None or not isinstance(value.get(name), str):
                known = ", ".join(list(value)[:12])
                raise UserError(f"{where}: no text in field '{name or 'text'}' (found {known}); name it with --field")
            number = where.rpartition(":")[2]
            ident = str(value.get("id") or f"{common['source']}-{number}")
            given = {k: value[k] for k in ("language", "source", "license", "title") if isinstance(value.get(k), str)}
            origin = value["provenance"] if isinstance(value.get("provenance"), dict) else {"file": file.name}
            yield {**common, **given, "id": ident, "text": value[name].strip(), "provenance": origin}


def _table(file: Path, kind: str, field: str | None, common: dict) -> Iterator[dict]:
    rows = _sheet(file) if kind == ".xlsx" else _csv(file, "\t" if kind == ".tsv" else ",")
    header = header_of(next(rows, []), f"{file}:1")
    wanted = [c.strip() for c in field.split(",")] if field else header
    for column in wanted:
        if column not in header:
            raise UserError(f"{file}:1: no column '{column}'{nearest(column, header)}")
    for number, row in enumerate(rows, 2):
        cells = {h: str(c).strip() for h, c in zip(header, row) if h and c is not None and str(c).strip()}
        lines = [f"{h}: {cells[h]}" for h in wanted if h in cells]
        if lines:
            origin = {"file": file.name, "row": number}
            yield {**common, "id": f"{common['source']}-{number}", "text": "\n".join(lines), "provenance": origin}


def _csv(file: Path, delimiter: str) -> Iterator[list]:
    """The rows. Raises UserError for one that is broken or of another width than the header."""
    header: list[str] | None = None
    with open_file(file) as stream:
        text = jsonl.decode(stream.read(), str(file))
    for line in read_lines(text, str(file), delimiter, blank=True):
        full = header is not None and any(c.strip() for c in line.cells)
        problem = line.problem or (width_problem(line.cells, header) if full else "")
        if problem:
            raise UserError(f"{file}:{line.first}: {problem}; mend the row (a text with a {delimiter!r} needs quotes)")
        header = line.cells if header is None else header
        yield line.cells


def _sheet(file: Path) -> Iterator[tuple]:
    """The rows of the first sheet, read as a stream."""
    import openpyxl

    check_file(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # styles openpyxl does not know
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        with contextlib.closing(book):
            book.worksheets[0].reset_dimensions()  # some writers state a wrong sheet size
            yield from book.worksheets[0].iter_rows(values_only=True)
    except (UserError, GeneratorExit):
        raise
    except Exception as e:  # openpyxl raises whatever its parts do: BadZipFile, KeyError, ParseError, zlib.error, ...
        raise UserError(f"{file}: not a readable .xlsx file: {type(e).__name__}: {one_line(e)[:120]}") from None


def _paragraphs(file: Path, common: dict, max_chars: int) -> Iterator[dict]:
    """Paragraphs (blank line between) joined while they fit; the number is the first one's."""
    with open_file(file) as stream:
        text = jsonl.decode(stream.read(), str(file)).replace("\r\n", "\n").replace("\r", "\n")
    paragraphs = [p.strip() for p in re.split(r"\n[ \t]*\n", text) if p.strip()]
    start, joined = 1, ""
    for number, paragraph in enumerate([*paragraphs, ""], 1):
        if joined and (not paragraph or len(joined) + 2 + len(paragraph) > max_chars):
            origin = {"file": file.name, "paragraph": start}
            yield {**common, "id": f"{common['source']}-{start}", "text": joined, "provenance": origin}
            joined = ""
        start = start if joined else number
        joined = f"{joined}\n\n{paragraph}" if joined else paragraph
