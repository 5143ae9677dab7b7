"""Places for results: looked at before the work that fills them, written whole or not at all."""

import contextlib
import csv
import glob
import io
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_files import write_bytes
from mmed_jax.common.places import Place, is_bucket


def check_file(path: str | os.PathLike, flag: str) -> Path:
    """Refuses a file that cannot be written; what is there stays as it is.

    Args:
      flag: what it was named by, as "--json".

    Returns:
      the file itself, where `path` is a link to it.

    Raises:
      UserError: no such folder, a folder or a device of that name, or no file can be made there.
    """
    file = expand_home(path)
    try:
        file = file.resolve()
        parent = file.parent
        if not parent.is_dir():
            raise UserError(f"{flag}={path}: there is no folder {parent}")
        if file.is_dir():
            raise UserError(f"{flag}={path}: is a folder; name a file")
        if file.exists() and not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{flag}={path}: is not a regular file")
        _probe(parent)
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links; a zero byte in the name
        raise UserError(f"{flag}={path}: can't be written ({getattr(e, 'strerror', None) or e})") from e
    return file


def check_folder(path: str | os.PathLike, flag: str) -> Path:
    """Makes a folder and refuses one that cannot be written; `flag` as in check_file.

    Raises:
      UserError: a file of that name, or no file can be made there.
    """
    folder = expand_home(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag}={path}: is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
    except (OSError, ValueError) as e:
        raise UserError(f"{flag}={path}: can't be written ({getattr(e, 'strerror', None) or e})") from e
    return folder


def _probe(folder: Path) -> None:
    """Makes a small file and removes it: rights alone say too little (root, /proc, a full disk). Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".write_test.") as f:
        f.write(b"x" * 4096)


@contextlib.contextmanager
def put_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; when the block ends without error, what is there takes its place.

    A reader sees the old file or the whole new one, and a failure of any kind leaves nothing behind. What a killed
    process leaves, `.NAME.PROCESS.tmp`, is no part of a checkpoint's manifest. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # gone to its place, or never made
            temporary.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file whole or not at all, through links. Raises OSError."""
    with put_file(expand_home(path).resolve()) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Place, value: object) -> None:
    """Writes `value` as JSON to `path`, of a disk or a bucket, whole or not at all, and on to the disk.

    Raises:
      WorkError: it cannot be written, with the file and the reason.
    """
    try:
        if is_bucket(path):
            write_bytes(path, json.dumps(value, ensure_ascii=False, indent=1).encode())
            return
        with put_file(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=False, indent=1)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise WorkError(f"{path}: cannot be written ({e.strerror or e})") from e


@contextlib.contextmanager
def put_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder beside `folder` to write files into; when the block ends without error they are put there.

    A new folder gets its name when it is whole. In one that is there already, each file that is missing or differs is
    replaced whole; a kill leaves the old or the new one, never a part. Only one process may do this at a time.

    Raises:
      WorkError: naming the folder, when it cannot be written.
    """
    stage = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):  # of a killed process
            shutil.rmtree(left)
        stage.mkdir()
        yield stage
        for file in stage.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        if not folder.is_dir():
            stage.rename(folder)
            return
        for file in sorted(stage.iterdir()):
            there = folder / file.name
            if not there.is_file() or there.read_bytes() != file.read_bytes():
                file.replace(there)
    except OSError as e:
        raise WorkError(f"{folder}: cannot be written ({e.strerror or e})") from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def csv_text(head: Iterable, rows: Iterable[Iterable], end: str = "\n") -> str:
    """A table as CSV (RFC 4180, which ends lines with "\\r\\n")."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=end)
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()


def check_writable(folder: Path) -> None:
    """Writes, reads and removes a small file in `folder`. Raises OSError."""
    probe = folder / f".write_test.{socket.gethostname()}.{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
        if probe.stat().st_size != 4096:
            raise OSError("a file came back shorter than it was written")
    finally:
        probe.unlink(missing_ok=True)
