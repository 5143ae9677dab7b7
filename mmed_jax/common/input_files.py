"""Files that somebody else made, before they are opened: only regular files are read.

A named pipe or a terminal would be waited for without end, a link to /dev/zero never ends, and a link to nowhere looks
like a file that is not there.
"""

import gzip
import io
import os
import stat
from io import BufferedReader
from pathlib import Path, PurePath
from typing import BinaryIO, cast

from mmed_jax.common.errors import UserError
from mmed_jax.common.zstd_file import ZstdFile

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def what_is(path: str | os.PathLike) -> str:
    """What stands at `path`: "file", "a folder", "a named pipe", "a link to X, which is not there", ...; "" = nothing.

    Links are followed; nothing is opened.
    """
    path = Path(path)
    try:
        mode = stat.S_IFMT(path.stat().st_mode)
    except OSError:
        try:
            return f"a link to {os.readlink(path)}, which is not there"
        except OSError:
            return ""
    if mode == stat.S_IFREG:
        return "file"
    kind = _KINDS.get(mode, "no file")
    return f"a link to {kind}" if path.is_symlink() and mode != stat.S_IFDIR else kind


def suffix(name: str | os.PathLike) -> str:
    """What a file is by its name, in small letters: ".jsonl" of "X.JSONL" and of "X.Jsonl.GZ"; "" without one."""
    path = PurePath(name)
    return PurePath(path.stem if is_packed(path) else path.name).suffix.lower()


def is_packed(name: str | os.PathLike) -> bool:
    """Whether a name says gzip, in letters of any size."""
    return PurePath(name).suffix.lower() == ".gz"


def stem(name: str | os.PathLike, *suffixes: str) -> str:
    """The last part of a path without .gz and then without one of `suffixes`, whatever the size of their letters."""
    text = PurePath(name).name
    for ending in (".gz", *suffixes):
        if text.lower().endswith(ending):
            text = text[: -len(ending)]
    return text


def open_unpacked(path: Path) -> BinaryIO:
    """`open_file`, unpacked when the name says so (.gz, .zst).

    Raises:
      UserError: see `open_file`; of .zst also on reading, see ZstdFile.
    """
    stream = open_file(path)
    if path.suffix.lower() == ".zst":
        return cast(BinaryIO, io.BufferedReader(ZstdFile(stream, path), 1 << 20))
    return cast(BinaryIO, gzip.open(stream)) if is_packed(path) else stream


def check_file(path: str | os.PathLike, label: str | None = None) -> None:
    """Refuses what is there and no regular file; says nothing of a path where nothing is.

    Args:
      label: what messages call it; None = the path.

    Raises:
      UserError: a folder, pipe, socket, device, or a link to one of them or to nowhere.
    """
    kind = what_is(path)
    if kind not in ("", "file"):
        raise UserError(f"{label or path}: is {kind}; a regular file is needed")


def open_file(path: str | os.PathLike, label: str | None = None) -> BufferedReader:
    """A regular file, opened for reading bytes.

    Raises:
      UserError: see `check_file`; also a file that is not there or may not be read.
    """
    check_file(path, label)
    try:
        return open(path, "rb")
    except OSError as e:
        raise UserError(f"{label or path}: cannot be read ({e.strerror or e})") from e
