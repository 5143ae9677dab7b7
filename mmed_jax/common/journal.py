"""Results appended as they come: a JSON-lines file that a stopped command continues and another one cannot damage.

Beside NAME.jsonl lies NAME.settings.json with everything that decides the results. A file of other settings is refused,
a line torn by a kill is dropped and made again, and two processes never write one file.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.input_files import check_file
from mmed_jax.common.output_files import write_json


class Journal:
    """An append-only file of results; a context manager.

    Args:
      path: the .jsonl file. settings: JSON values that decide the results; None = not known yet, and not compared.
      key: fields that identify a result. flag: what the user calls `path`, for messages.

    Attributes:
      done: {key values: record} of what is in the file.
      settings: as given, with what was not known taken from the file.

    Raises:
      UserError: the file holds results of other settings, is in use, or can't be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any], key: tuple[str, ...] = ("id",), flag: str = "--output"):
        self.path, self.key, self._flag = path, key, flag
        self.done: dict[tuple, dict] = {}
        self.settings = json.loads(json.dumps(settings, default=str))
        self._file: IO[bytes]  # from __enter__ on
        self._torn = False
        self.settings_path = path.with_name(path.name.removesuffix(".jsonl") + ".settings.json")
        self.check()

    def check(self) -> None:
        """Reads what is there and refuses results of other settings; writes nothing."""
        folder = next(p for p in self.path.parents if p.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{self._flag}={self.path}: cannot be written: {folder} is not a folder one may write to")
        self.done = self._read()
        # A torn line alone is ours if settings lie beside it, which are written first; else it is somebody's file.
        if not self.done and (not self._torn or self.settings_path.exists()):
            return
        try:
            saved = jsonl.loads(self.settings_path.read_bytes(), dict)
        except (OSError, ValueError) as e:
            state = "does not" if isinstance(e, FileNotFoundError) else f"cannot be read ({e})"
            raise UserError(
                f"{self._flag}={self.path}: exists and {self.settings_path.name} {state}, so nobody knows what it "
                "holds; name another output"
            ) from None
        now = self.settings = {k: saved.get(k) if v is None else v for k, v in self.settings.items()}
        differing = [k for k in {**now, **saved} if now.get(k) != saved.get(k)]
        if differing:
            shown = "; ".join(f"{k}: {_short(saved.get(k))} there, {_short(now.get(k))} now" for k in differing[:3])
            raise UserError(
                f"{self._flag}={self.path}: holds {len(self.done)} results of other settings ({shown}); "
                "name another output"
            )

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+")
        except OSError as e:
            raise UserError(f"{self._flag}={self.path}: cannot be written ({e.strerror or e})") from e
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{self._flag}={self.path}: another process is writing it") from None
        except OSError:
            pass  # a file system without locks
        self.check()
        write_json(self.settings_path, self.settings)
        self._drop_torn_line()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written is tried once more, in vain; that failure is already on its way
            if kind is None:
                raise

    def append(self, record: dict) -> None:
        """Writes one result; it is in the file when this returns. Raises WorkError when it cannot be."""
        try:
            self._file.write(jsonl.dump_line(record).encode() + b"\n")
            self._file.flush()
        except OSError as e:
            raise WorkError(
                f"{self.path}: cannot be written ({e.strerror or e}); its {len(self.done)} results are safe, and the "
                "same command makes the others"
            ) from e
        self.done[self._key(record)] = record

    def arrange(self, order: Iterable[tuple]) -> list[dict]:
        """Rewrites the finished file in the given order of keys, others after them, and returns the ordered records.

        The same results then give the same bytes, in whatever order they came.
        """
        keys = list(order)
        records = [self.done[k] for k in keys]
        known = set(keys)
        others = [r for k, r in self.done.items() if k not in known]
        jsonl.write_lines(self.path, map(jsonl.dump_line, records + others))
        return records

    def _key(self, record: dict) -> tuple:
        return tuple(record[k] for k in self.key)

    def _read(self) -> dict[tuple, dict]:
        done: dict[tuple, dict] = {}
        check_file(self.path, f"{self._flag}={self.path}")
        check_file(self.settings_path, f"{self._flag}: {self.settings_path}")
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return done
        except OSError as e:
            raise UserError(f"{self._flag}={self.path}: cannot be read ({e.strerror or e})") from e
        self._torn = bool(lines[-1])  # what follows the last line end
        for number, line in enumerate(lines[:-1], 1):
            try:
                record = jsonl.loads(line, dict)
                done[self._key(record)] = record
            except (ValueError, KeyError, TypeError):  # TypeError: a key that is a list
                raise UserError(
                    f"{self._flag}={self.path}:{number}: is not a result of this command; name another output"
                ) from None
        return done

    def _drop_torn_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        self._file.truncate(self._file.read(end).rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
