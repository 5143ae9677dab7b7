"""Reads published files as they are: JSON, JSON lines, CSV, xlsx, parquet; single, in folders, gzipped or zipped.

Lenient where publications are: NaN in JSON is null, GB18030 is recognised when a file is not UTF-8. Never silent: a
file that can't be read is an error naming file and line.
"""

import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmed_jax.data.files import SPLIT_NAMES, members
from mmed_jax.data.sources.base import Row, WrongForm
from mmed_jax.errors import UserError

_SPLITS = {**SPLIT_NAMES, "training": "train", "fewshot": "fewshot"}
# Files that come with every download and are never rows.
_IGNORED = {"provenance.json", "dataset_info.json", "dataset_infos.json", "package.json", "state.json"}
csv.field_size_limit(1 << 27)


@dataclass(frozen=True)
class RawFile:
    """One file of a download: `label` for messages, `name` its path below the input, `data` its unpacked bytes."""

    label: str
    name: str
    data: bytes

    @property
    def split(self) -> str:
        """The split its name speaks of, last word first: "data/val/anatomy_val.csv" -> "validation"; "" for none."""
        words = re.split(r"[^a-z]+", self.name.lower())
        return next((_SPLITS[w] for w in reversed(words) if w in _SPLITS), "")

    def text(self) -> str:
        """The file as text, UTF-8 or else GB18030. Raises UserError when it is neither."""
        for encoding in ("utf-8-sig", "gb18030"):
            try:
                return self.data.decode(encoding)
            except UnicodeDecodeError:
                continue
        raise UserError(f"{self.label}: neither UTF-8 nor GB18030 text")


def files(path: Path, *suffixes: str) -> Iterator[RawFile]:
    """The files below `path` (a file, folder or zip) with one of these suffixes, sorted; .gz is unpacked.

    Raises WrongForm when there is none, UserError when one is damaged.
    """
    found = [m for m in members(path, *suffixes) if PurePosixPath(m.name).name.lower() not in _IGNORED]
    if not found:
        problem = "is no" if path.is_file() else "holds no"
        raise WrongForm(f"{path}: {problem} {' or '.join(suffixes)} file")
    for member in found:
        try:
            with member.open() as stream:
                data = stream.read()
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as e:
            raise UserError(f"{member.label}: damaged: {e}") from None
        yield RawFile(member.label, member.name, data)


def json_value(file: RawFile) -> object:
    """The whole file as one JSON value."""
    try:
        return json.loads(file.text(), parse_constant=lambda _: None)
    except json.JSONDecodeError as e:
        raise WrongForm(f"{file.label}:{e.lineno}: broken JSON: {e.msg}") from None


def json_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(number, object) of a file of JSON lines or of one JSON array, whatever its name ends in."""
    content = file.text()
    if content.lstrip().startswith("["):
        values = enumerate(json_value(file), 1)
    else:
        values = _json_lines(file, content)
    for number, value in values:
        if not isinstance(value, dict):
            raise WrongForm(f"{file.label}:{number}: expected an object, got {type(value).__name__}")
        yield number, value


def _json_lines(file: RawFile, content: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line, parse_constant=lambda _: None)
            except json.JSONDecodeError as e:
                raise WrongForm(f"{file.label}:{number}: broken JSON at column {e.colno}: {e.msg}") from None


def csv_lists(file: RawFile) -> Iterator[tuple[int, list[str]]]:
    """(line number where it ends, cells) of each CSV row that is not blank."""
    reader = csv.reader(io.StringIO(file.text(), newline=""))
    try:
        for cells in reader:
            if any(c.strip() for c in cells):
                yield reader.line_num, cells
    except csv.Error as e:
        raise UserError(f"{file.label}:{reader.line_num}: broken CSV: {e}") from None


def csv_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(line number, row as an object) of a CSV file with a header."""
    rows = csv_lists(file)
    _, header = next(rows, (0, []))
    for number, cells in rows:
        yield number, dict(zip(header, cells))


def xlsx_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(row number, row as an object) of the first sheet of an xlsx file with a header."""
    import warnings

    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # styles openpyxl does not know
            sheet = openpyxl.load_workbook(io.BytesIO(file.data), read_only=True, data_only=True).worksheets[0]
    except (zipfile.BadZipFile, KeyError, ValueError) as e:
        raise UserError(f"{file.label}: not a readable xlsx file: {e}") from None
    sheet.reset_dimensions()  # some writers state a wrong sheet size
    rows = enumerate(sheet.iter_rows(values_only=True), 1)
    _, header = next(rows, (0, ()))
    for number, cells in rows:
        if any(c is not None for c in cells):
            yield number, {str(k): v for k, v in zip(header, cells) if k is not None}


def parquet_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(row number, row as an object) of a parquet file, as hub repositories hold them."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(file.data))
    except pyarrow.ArrowInvalid as e:
        raise UserError(f"{file.label}: not a readable parquet file: {e}") from None
    number = 0
    for batch in table.iter_batches():
        for value in batch.to_pylist():
            number += 1
            yield number, value


_READERS = {
    ".json": json_objects, ".jsonl": json_objects, ".csv": csv_objects, ".xlsx": xlsx_objects,
    ".parquet": parquet_objects,
}  # fmt: skip


def objects(path: Path, *suffixes: str) -> Iterator[Row]:
    """Rows of every file with one of these suffixes below `path`, read by what the name ends in."""
    for file in files(path, *suffixes):
        reader = _READERS[PurePosixPath(file.name.removesuffix(".gz")).suffix.lower()]
        yield from rows_of(file, reader(file))


def rows_of(file: RawFile, numbered: Iterable[tuple[int, dict]]) -> Iterator[Row]:
    """Numbered objects of a file as rows."""
    for number, value in numbered:
        yield Row(value, f"{file.label}:{number}", file.name, file.split, number)
