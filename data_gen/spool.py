"""Rows on disk while a set is built: appended once, read by number; memory is eight bytes a row."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data import jsonl
from mmed_jax.errors import WorkError


class Spool:
    """A file of JSON lines with the offset of each. Not for two processes; the file goes when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = array("Q")
        try:
            self._file = path.open("w+b")
        except OSError as e:
            raise WorkError(f"{path}: cannot be written ({e.strerror or e})") from e
        self._end = 0
        self._dirty = False

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, row: dict) -> int:
        """Appends a row; returns its number."""
        line = jsonl.dump_line(row).encode("utf-8") + b"\n"
        if not self._dirty:
            self._file.seek(0, 2)
            self._dirty = True
        try:
            self._file.write(line)
        except OSError as e:
            raise WorkError(f"{self.path}: cannot be written ({e.strerror or e})") from e
        self._offsets.append(self._end)
        self._end += len(line)
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> dict:
        if self._dirty:
            self._file.flush()
            self._dirty = False
        self._file.seek(self._offsets[number])
        return json.loads(self._file.readline())

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def close(self) -> None:
        """Closes and deletes the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)
