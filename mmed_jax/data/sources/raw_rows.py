"""Rows of published files, by what their names end in: JSON, JSON lines, CSV, xlsx, parquet.

Lenient where publications are (NaN in JSON is null), strict where leniency would move a key or lose a row: a name given
twice, a CSV row of another width. Never silent: a file that can't be read is an error naming file and line, a row that
can't be is counted by whoever reads (Download.lost).
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import suffix
from mmed_jax.data.records.delimited import header_of, read_lines, width_problem
from mmed_jax.data.sources.raw_file import RANK, Download, RawFile, files, shown, split_of
from mmed_jax.data.sources.sheets import parquet_objects, xlsx_rows
from mmed_jax.data.sources.source import Row, WrongForm


def _loads(text: str, place: str) -> object:
    """JSON of a publication: NaN is null, a name given twice an error, as for records (jsonl.parse_json)."""

    def once(pairs: list) -> dict:
        out = dict(pairs)
        if len(out) < len(pairs):
            twice = jsonl.given_twice(pairs)
            begins = shown(", ".join(f"{k}: {str(v)[:30]}" for k, v in pairs[:2]))
            at = place.removesuffix(":LINE")
            raise UserError(f"{at}: field '{shown(twice)}' is given twice in one object (it begins {begins})")
        return out

    try:
        return jsonl.loads(text, object_pairs_hook=once, parse_constant=lambda _: None)
    except jsonl.BadJSON as e:
        raise WrongForm(e, place=place.replace(":LINE", f":{e.line}" if e.line else "")) from None


def json_value(file: RawFile) -> object:
    """The whole file as one JSON value."""
    return _loads(file.text(), f"{file.label}:LINE")


def json_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(number, object) of a file of JSON lines or of one JSON array, whatever its name ends in."""
    content = file.text()
    values: Iterator[tuple[int, object]]
    if re.match(r"\s*\[", content):
        values = enumerate(_loads(content, f"{file.label}:LINE"), 1)
    else:
        values = _json_lines(file, content)
    for number, value in values:
        if not isinstance(value, dict):
            raise WrongForm(f"expected an object, got {type(value).__name__}", place=f"{file.label}:{number}")
        yield number, value


def _json_lines(file: RawFile, content: str) -> Iterator[tuple[int, object]]:
    start = number = 0
    while start < len(content):
        end = content.find("\n", start)
        end = len(content) if end < 0 else end
        number += 1
        if end - start > jsonl.MAX_LINE:
            size = f"{(end - start) >> 20} MiB, more than {jsonl.MAX_LINE >> 20}"
            raise WrongForm(f"a line of {size}", place=f"{file.label}:{number}", hint="; no row is that long")
        line, start = content[start:end], end + 1
        if line.strip():
            yield number, _loads(line, f"{file.label}:{number}")


def csv_lists(file: RawFile) -> Iterator[tuple[int, list[str]]]:
    """(line number where it ends, cells) of each CSV row that is not blank; rows that are broken go to `lost`."""
    for line in read_lines(file.text(), file.label):
        if line.problem:
            file.lose(f"{file.label}:{line.first}", line.last, line.problem)
        else:
            yield line.last, line.cells


def csv_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(line number, row as an object) of a CSV file with a header; rows of another width go to `lost`."""
    header: list[str] | None = None
    for line in read_lines(file.text(), file.label):
        where = f"{file.label}:{line.first}"
        if header is None:
            if line.problem:
                raise UserError(f"{where}: {line.problem}, in the header")
            header = header_of(line.cells, where)
            continue
        problem = line.problem or width_problem(line.cells, header)
        row = {name: cell for name, cell in zip(header, line.cells) if name}
        if problem:
            file.lose(where, line.last, problem, row)
        else:
            yield line.last, row


def rows_of(file: RawFile, numbered: Iterable[tuple[int, dict]]) -> Iterator[Row]:
    """Numbered objects of a file as rows, each with its split."""
    for number, value in numbered:
        yield Row(value, f"{file.label}:{number}", file.name, split_in(file.split, value.get("split")), number)


def split_in(split: str, field: object) -> str:
    """The split of a row in a file of `split` ("" unknown), whose own field `split` may say one too."""
    own = split_of(field) if isinstance(field, str) else ""
    return min((s for s in (split, own) if s), key=lambda s: RANK.get(s, 2), default="")


def objects(given: Download | Path, *suffixes: str) -> Iterator[Row]:
    """Rows of every file with one of these suffixes below a path, read by what the name ends in."""
    readers = {".json": json_objects, ".jsonl": json_objects, ".csv": csv_objects, ".parquet": parquet_objects}
    for file in files(given, *suffixes):
        kind = suffix(file.name)
        if kind == ".xlsx":
            yield from xlsx_rows(file)
        else:
            yield from rows_of(file, readers[kind](file))
