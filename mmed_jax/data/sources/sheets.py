"""Rows of xlsx workbooks and parquet files. Whatever is wrong with one is one line; a sheet's size is bounded."""

import io
import warnings
import zipfile
from collections.abc import Iterator

from mmed_jax.common.errors import UserError, one_line
from mmed_jax.data.records.delimited import header_of
from mmed_jax.data.sources.raw_file import RawFile, shown, split_of
from mmed_jax.data.sources.source import Row

# The parts of a workbook, unpacked.
_MOST_UNPACKED = 2 << 30


def xlsx_rows(file: RawFile) -> Iterator[Row]:
    """Rows of the first sheet of a workbook with a header, and of further sheets that have the same one.

    Rows of other sheets are handed on as lost. Raises UserError for a workbook that can't be read.
    """
    header: list[str] | None = None
    for title, cells in _sheets(file):
        start, first = next(cells, (0, ()))
        if not first:
            continue
        label = file.label if header is None else f"{file.label}[{shown(title)}]"
        names = header_of(list(first), f"{label}:{start}") if header is None or _same(first, header) else None
        header = header or names
        for number, row in cells:
            where = f"{label}:{number}"
            if names is None:
                file.lose(where, number, "on another sheet, with another header")
            else:
                value = {name: cell for name, cell in zip(names, row) if name}
                yield Row(value, where, file.name, file.split or split_of(title), number)


def _same(cells: tuple, header: list[str]) -> bool:
    found = sorted(str(c).strip() for c in cells if c is not None and str(c).strip())
    return found == sorted(name for name in header if name)


def _sheets(file: RawFile) -> Iterator[tuple[str, Iterator[tuple[int, tuple]]]]:
    """(title, rows that are not blank) of each sheet."""
    import openpyxl

    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > _MOST_UNPACKED:
            raise UserError(f"{file.label}: unpacks to more than {_MOST_UNPACKED >> 30} GiB; no published file does")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # styles openpyxl does not know
            book = openpyxl.load_workbook(io.BytesIO(file.data), read_only=True, data_only=True)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # some writers state a wrong sheet size
            yield sheet.title, _cells(file, sheet)
    except (UserError, GeneratorExit):
        raise
    except Exception as e:  # openpyxl raises whatever its parts do: BadZipFile, KeyError, ParseError, zlib.error, ...
        raise _unreadable(file, e) from None


def _cells(file: RawFile, sheet) -> Iterator[tuple[int, tuple]]:
    """(number, cells) of the rows that are not blank; no wider than the header, which is the first of them."""
    try:
        whole = enumerate(sheet.iter_rows(values_only=True), 1)
        start, header = next(((n, cells) for n, cells in whole if any(c is not None for c in cells)), (0, ()))
        if not header:
            return
        width = max(i for i, c in enumerate(header, 1) if c is not None)
        yield start, header[:width]
        # A new pass, no wider than the header: one cell far to the right makes a row of 16,384.
        for number, cells in enumerate(sheet.iter_rows(values_only=True, max_col=width), 1):
            if number > start and any(c is not None for c in cells):
                yield number, cells
    except (UserError, GeneratorExit):
        raise
    except Exception as e:
        raise _unreadable(file, e) from None


def _unreadable(file: RawFile, error: Exception) -> UserError:
    return UserError(f"{file.label}: not a readable xlsx file: {type(error).__name__}: {one_line(error)[:120]}")


def parquet_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(row number, row as an object) of a parquet file, as hub repositories hold them."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(file.data))
        header_of(table.schema_arrow.names, file.label)
        number = 0
        for batch in table.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield number, value
    except (UserError, GeneratorExit):
        raise
    except Exception as e:  # arrow's own kinds, OSError, UnicodeDecodeError
        raise UserError(f"{file.label}: not a readable parquet file: {one_line(e)[:160]}") from None
