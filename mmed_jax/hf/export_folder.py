"""An output folder that is whole or not there: where it may be, its files on the disk, its final name.

Everything goes to `<path>.tmp-<n>` beside the output and is renamed when whole, so a folder with the final name is
complete, and a failure leaves nothing behind.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, WorkError, one_line, warn
from mmed_jax.common.paths import expand_home
from mmed_jax.parallel.barriers import on_main

MARKER = "mmed_jax_export.json"  # says that a folder is an export of this program, and of what
README = "README.md"
PROVENANCE = "provenance"  # key in the marker (hf.provenance.provenance_of)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT)


def output_folder(path: str | os.PathLike) -> Path:
    """`path` with links and ~ resolved, so that the temporary folder lies on the same disk."""
    return expand_home(path).resolve()


def check_output(path: Path, overwrite: bool = False, needed: int = 0) -> None:
    """Refuses an output folder that is taken or cannot be written; asks nothing of any device.

    Args:
      path: from `output_folder`.
      overwrite: allow an earlier export in its place, if nothing was added to it.
      needed: bytes that must be free.

    Raises:
      UserError: saying what is there and what to do.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--output={path}: is a file; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        marker = path / MARKER
        if not marker.is_file():
            raise UserError(f"--output={path}: is not empty and is no export of this program; name a new folder")
        if not overwrite:
            raise UserError(f"--output={path}: holds an earlier export; add --overwrite to replace it")
        try:
            sizes = jsonl.loads(marker.read_bytes(), dict)["files"]
            ours = {MARKER, *sizes}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"--output={path}: {MARKER} in it is unreadable; name a new folder") from e
        if added := sorted({p.name for p in path.iterdir()} - ours):
            raise UserError(f"--output={path}: was added to the earlier export: {', '.join(added)}; move it away first")
        # The card is the file that its author goes on writing.
        card = path / README
        if card.is_file() and card.stat().st_size != sizes[README]:
            raise UserError(f"--output={path}: {README} was changed since; move it away first")
    above = next(p for p in path.parents if p.exists())
    if not above.is_dir():
        raise UserError(f"--output={path}: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--output={path}: {above} cannot be written")
    free = shutil.disk_usage(above).free
    if needed > free:
        raise UserError(f"--output={path}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")


def say_leftovers(path: Path) -> None:
    """Warns of what a killed export left beside `path`; removes nothing, since another may be at work."""
    beside = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.")] if path.parent.is_dir() else []
    for left in sorted(beside):
        if left.name.startswith(f"{path.name}.tmp-"):
            warn(f"{left} is what an interrupted export left; remove it when none is running")
        elif left.name.startswith(f"{path.name}.old-"):
            warn(f"{left} is the earlier export, which an interrupted --overwrite moved away; remove it or keep it")


@contextlib.contextmanager
def synced(file: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when it is closed without error."""
    with file.open("xb") as f:
        yield f
        f.flush()
        os.fsync(f.fileno())


def publish(stage: Path, path: Path) -> None:
    """Gives the finished folder its name; an earlier export goes only after the new one stands."""
    old = path.with_name(f"{path.name}.old-{stage.name.rpartition('-')[2]}")
    replaced = path.is_dir() and any(path.iterdir())
    if replaced:
        path.rename(old)
    elif path.is_dir():
        path.rmdir()
    try:
        stage.rename(path)
    except BaseException:  # a signal as well
        if replaced and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(file: Path, value: dict) -> None:
    """Writes a JSON file of the folder, indented."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_on_main(path: Path, work: Callable[[], object]) -> None:
    """`work` on process 0; its OSError becomes one line, the user's (a wrong folder) or the work's (a full disk)."""

    def guarded() -> None:
        try:
            work()
        except OSError as e:
            raise failure(describe_failure(e, path)) from e

    on_main(guarded)


def describe_failure(e: OSError, path: Path) -> str:
    """What went wrong, as text that processes can exchange: "u" (the user's) or "w" (the work's), then the line."""
    where = path.name.partition(".tmp-")[0]
    if e.errno in _FULL:
        return f"wthe disk is full: writing {where} failed ({e.strerror}); nothing was left behind"
    return f"{'u' if e.errno in _REFUSED else 'w'}{where} cannot be written ({e.strerror or one_line(e)})"


def failure(problem: str) -> UserError | WorkError:
    """The error that a text of `describe_failure` tells of."""
    return (UserError if problem[0] == "u" else WorkError)(problem[1:])
