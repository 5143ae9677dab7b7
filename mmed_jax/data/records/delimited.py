"""Tables as text (CSV, TSV): strict about quotation marks and widths, since a wrong one moves all cells behind it."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mmed_jax.common.errors import UserError

# No cell of a published table is that long; csv raises an error for a longer one.
csv.field_size_limit(1 << 26)
_NOTED = 1000
_KEY = re.compile(r"\d{1,9}|[A-Za-z]")


class Line(NamedTuple):
    """One row of a table: physical lines `first` to `last` (from 1); `problem` says why its cells can't be trusted."""

    first: int
    last: int
    cells: list[str]
    problem: str = ""


def read_lines(text: str, where: str, delimiter: str = ",", *, blank: bool = False) -> Iterator[Line]:
    """Every row that is not blank; with `blank` those too.

    A quotation mark that is wrong within its own line makes a row with a problem. Raises UserError, naming the line,
    where one reaches over several lines, since nobody can say then how many rows it swallowed.
    """
    lines: list[str] = []  # of the row that is being read
    reader = csv.reader(_noted(io.StringIO(text, newline=""), lines), delimiter=delimiter, strict=True)
    width = last = 0
    while True:
        first, cells, problem = last + 1, [], ""
        lines.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            last = reader.line_num
            ended = "unexpected end of data" in str(e)
            if last > first or ended:
                raise UserError(
                    f"{where}:{first}: broken CSV: a quotation mark is opened in this row and not closed rightly"
                    f"{' up to the end of the file' if ended else f' by line {last}'}; mend the quotation mark"
                ) from None
            problem = "broken CSV: a quotation mark in the wrong place"
            if "field larger" in str(e):
                problem = f"a cell of more than {csv.field_size_limit() >> 20} MB"
        last = reader.line_num
        if any(c.strip() for c in cells):
            width = width or len(cells)
            if last > first and _swallowed(lines, width, delimiter):
                raise UserError(
                    f"{where}:{first}: broken CSV: a quotation mark opened in this row is closed in line {last}, and "
                    "the lines between look like rows of their own; mend the quotation mark"
                )
        if problem or blank or any(c.strip() for c in cells):
            yield Line(first, last, cells, problem)


def _noted(lines: Iterable[str], seen: list[str]) -> Iterator[str]:
    """The lines, the first of them (since the list was emptied) noted: enough to judge a row by."""
    for line in lines:
        if len(seen) < _NOTED:
            seen.append(line)
        yield line


def _swallowed(lines: list[str], width: int, delimiter: str) -> bool:
    """Whether physical lines that quotation marks join to one row are rows each.

    Rows of their own have the table's width, and a column in which all of them hold a number, a letter or the same
    text; the lines of a long text have that by no chance worth counting.
    """
    if width < 3:
        return False
    rows = []
    for line in lines:
        line = line.rstrip("\r\n")
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            cells = []
        rows.append(cells if len(cells) == width else line.split(delimiter))
        if len(rows[-1]) != width:
            return False
    columns = [[c.strip().strip('"') for c in column] for column in zip(*rows)]
    return any(all(_KEY.fullmatch(c) for c in column) or column[0] and len(set(column)) == 1 for column in columns)


def header_of(cells: Sequence[object], where: str) -> list[str]:
    """The names of the columns; a column without one is not read. Raises UserError for a name given twice."""
    names = ["" if c is None else str(c).strip() for c in cells]
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f"{where}: two columns are named '{name}'; take one of them out or rename it")
    return names


def width_problem(cells: list[str], header: list[str]) -> str:
    """Why a row does not fit its header; "" when it does. Empty cells beyond the header are no more cells."""
    wide, named = len(cells), len(header)
    while wide > len(header) and not cells[wide - 1].strip():
        wide -= 1
    while named and not header[named - 1]:
        named -= 1  # columns without a name at the end
    if named <= wide <= len(header):
        return ""
    return f"{wide} cells where the header has {len(header)}"
