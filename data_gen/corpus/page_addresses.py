"""Where pages in a folder come from: a file urls.csv, urls.tsv or urls.jsonl beside them or in a folder above.

    file,url,date,license,language
    a/fever.html,https://example.org/fever,2026-01-31,CC BY 4.0,en

`file` is the page's name below the folder of the table. `url` must be there; date, license and language may be left
out or empty. The table is a setting of its pages, not an input: its contents count in the name of their stage.
"""

import csv
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.jsonl import BadJSON, loads

NAMES = ("urls.csv", "urls.tsv", "urls.jsonl")
COLUMNS = ("file", "url", "date", "license", "language")
_LEVELS = 8  # folders above a page that are looked into


def table_of(page: Path) -> Path | None:
    """The nearest table in the page's folder or one above it."""
    for folder in page.parents[:_LEVELS]:
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    return None


def address_of(page: Path) -> dict[str, str]:
    """What the nearest table says of a page: of url, date, license and language those that it has.

    Raises UserError where the table is wrong.
    """
    table = table_of(page)
    if table is None:
        return {}
    stat = table.stat()
    rows = _read(table, stat.st_mtime_ns, stat.st_size)
    return rows.get(page.relative_to(table.parent).as_posix(), {})


def tables_of(pages: Iterable[Path]) -> list[Path]:
    """All tables that pages have, sorted. Raises UserError where one is wrong."""
    nearest_ones = {table_of(folder / "page") for folder in {page.parent for page in pages}}
    tables = sorted(table for table in nearest_ones if table is not None)
    for table in tables:
        address_of(table.parent / "page")
    return tables


@functools.lru_cache(maxsize=4)
def _read(table: Path, mtime_ns: int, size: int) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for line, row in _rows(table):
        file = row.pop("file", "").removeprefix("./")
        if not file or not row.get("url"):
            raise UserError(f"{table}: line {line}: has no {'url' if file else 'file'}")
        if file in rows:
            raise UserError(f"{table}: line {line}: names {file} a second time")
        rows[file] = {name: value for name, value in row.items() if value}
    return rows


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: value}) of a table."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as f:
            if table.suffix == ".jsonl":
                for line, text in enumerate(f, 1):
                    if text.strip():
                        yield line, _known(table, line, loads(text))
                return
            reader = csv.DictReader(f, delimiter="\t" if table.suffix == ".tsv" else ",", restkey="", restval="")
            _known(table, 1, dict.fromkeys(reader.fieldnames or (), ""))
            for row in reader:
                yield reader.line_num, {name: value.strip() for name, value in row.items() if name}
    except (UnicodeDecodeError, csv.Error, BadJSON) as e:
        raise UserError(f"{table}: cannot be read ({e})") from e


def _known(table: Path, line: int, row: object) -> dict[str, str]:
    """The row as texts. Raises UserError for what is no object, or a column that is not known."""
    if not isinstance(row, dict):
        raise UserError(f"{table}: line {line}: no object")
    for name in row:
        if name not in COLUMNS:
            raise UserError(f"{table}: line {line}: column '{name}'{nearest(str(name), COLUMNS)}")
    return {name: "" if value is None else str(value).strip() for name, value in row.items()}
