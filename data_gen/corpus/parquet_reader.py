"""Parquet, by row group. Values are read as bytes, so that one that is no UTF-8 costs its row alone."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_gen.corpus.lines_reader import from_values
from data_gen.corpus.readers import Cut, Fields, RawDocument, Reject

_ROWS = 512  # held at a time: documents may be long


class ParquetFile:
    """A table with a column of text. A piece is a range of row groups."""

    def cuts(self, path: Path, unit_bytes: int) -> list[Cut]:
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                metadata = table.metadata
                sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        except (pyarrow.ArrowException, ValueError, OSError) as e:
            if isinstance(e, OSError) and e.errno is not None:
                raise
            return [Cut(0, 0, path.stat().st_size)]
        cuts, start, held = [], 0, 0
        for i, size in enumerate(sizes):
            if held and held + size > unit_bytes:
                cuts.append(Cut(start, i, held))
                start, held = i, 0
            held += size
        return [*cuts, Cut(start, len(sizes), held)]

    def read(self, path: Path, cut: Cut, fields: Fields) -> Iterator[RawDocument | Reject]:
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, ValueError, OSError) as e:
            if isinstance(e, OSError) and e.errno is not None:
                raise
            yield Reject("broken_file", "", f"no Parquet file ({_short(e)})")
            return
        with table:
            names = Counter(table.schema_arrow.names)
            if fields.text not in names:
                yield Reject("no_text_column", "", f"columns: {', '.join(sorted(names))[:200]}")
                return
            for name in vars(fields).values():
                if names[name] > 1:
                    yield Reject("column_twice", "", f"{names[name]} columns are named {name}")
                    return
            columns = [n for n in dict.fromkeys(vars(fields).values()) if n in names]
            row = sum(table.metadata.row_group(i).num_rows for i in range(cut.start))
            for group in range(cut.start, cut.end):
                yield from self._group(table, group, columns, fields, row)
                row += table.metadata.row_group(group).num_rows

    def _group(
        self, table: Any, group: int, columns: list[str], fields: Fields, row: int
    ) -> Iterator[RawDocument | Reject]:
        import pyarrow

        try:
            batches = table.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False)
            for batch in batches:
                values = {name: _as_bytes(batch.column(name)) for name in batch.schema.names}
                for i in range(batch.num_rows):
                    row += 1
                    yield _document({name: column[i] for name, column in values.items()}, fields, row)
        except (pyarrow.ArrowException, ValueError, OSError) as e:
            if isinstance(e, OSError) and e.errno is not None:
                raise
            yield Reject("broken_row_group", f"row group {group}, from row {row + 1}", _short(e))


def _as_bytes(column: Any) -> list[Any]:
    """Values of a column; texts as bytes, which no encoding can spoil."""
    import pyarrow

    kinds = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    kind = kinds.get(column.type)
    return (column.cast(kind) if kind is not None else column).to_pylist()


def _document(values: dict[str, Any], fields: Fields, row: int) -> RawDocument | Reject:
    place = f"row {row}"
    for name, value in values.items():
        if isinstance(value, bytes):
            try:
                values[name] = value.decode("utf-8")
            except UnicodeDecodeError as e:
                return Reject("not_utf8", place, f"{name}: byte 0x{value[e.start]:02x} at position {e.start}")
    return from_values(values, fields, lambda: place)


def _short(e: BaseException) -> str:
    return " ".join(str(e).split())[:200]
