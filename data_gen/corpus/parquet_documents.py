"""Documents of a finished corpus as Parquet: a column of text for every key of a document, null where it has none.

Row groups are bounded in rows and in bytes, so that a reader holds little and a file can be cut between them
(parquet_reader.py). Packed with zstd as the JSON lines are. `datasets.load_dataset("parquet", ...)` reads the files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_gen.corpus.document_files import KEPT_KEYS, LEVEL
from mmed_jax.common.errors import WorkError

SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "text", *KEPT_KEYS)])
GROUP_ROWS = 10_000
GROUP_BYTES = 16_000_000  # of text
_FEW_VALUES = ["language", "source", "license", "file"]
_READ_ROWS = 512


class ParquetWriter:
    """Lines of documents (document_files.as_line) into one file; the same lines give the same bytes."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        # No smallest and greatest values: those of texts are long, and nobody looks for a range of ids.
        self._table = pyarrow.parquet.ParquetWriter(
            path,
            SCHEMA,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=_FEW_VALUES,
            write_statistics=False,
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, line: dict[str, Any]) -> None:
        """Raises OSError."""
        self._rows.append(line)
        self._bytes += len(line["text"].encode())
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pyarrow.Table.from_pylist(self._rows, SCHEMA)
            self._table.write_table(table, row_group_size=len(self._rows))
            self._rows, self._bytes = [], 0

    def __enter__(self) -> "ParquetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._table.close()


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of ParquetWriter. Raises WorkError where it is damaged."""
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(_READ_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    yield {name: value for name, value in row.items() if value is not None}
    except (pyarrow.ArrowException, ValueError) as e:
        raise WorkError(f"{path}: is damaged ({' '.join(str(e).split())[:200]})") from e
