"""Rows on disk while a set is built: appended once, read by number; memory is eight bytes a row."""

import contextlib
import glob
import json
import os
import re
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import WorkError


def remove_left(folder: Path, pattern: str, number: str) -> None:
    """Removes what killed processes left in `folder`: entries like `pattern` whose name has the id of a process that
    is no more where the regular expression `number` finds it (its first group)."""
    for path in folder.glob(pattern) if folder.is_dir() else ():
        found = re.search(number, path.name)
        try:
            os.kill(int(found[1]) if found else os.getpid(), 0)
        except (ProcessLookupError, OverflowError):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        except PermissionError:  # alive, another user's
            pass


def remove_temporaries(path: Path) -> None:
    """Removes half-written versions of `path` that killed processes left (mmed_jax.common.jsonl.write_lines)."""
    remove_left(path.parent, f".{glob.escape(path.name)}.*.tmp", r"\.(\d+)\.tmp$")


class RowBuffer:
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
        with jsonl.naming(self.path):
            self._file.write(line)
        self._offsets.append(self._end)
        self._end += len(line)
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> dict:
        if self._dirty:
            with jsonl.naming(self.path):
                self._file.flush()
            self._dirty = False
        self._file.seek(self._offsets[number])
        return json.loads(self._file.readline().decode("utf-8"))

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def close(self) -> None:
        """Closes and deletes the file."""
        with contextlib.suppress(OSError):  # of what no longer fits; nobody reads it again
            self._file.close()
        self.path.unlink(missing_ok=True)
