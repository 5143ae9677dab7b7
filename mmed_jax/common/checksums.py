"""Sizes and checksums of a checkpoint's files, so that a flipped bit or a truncated file is found when it is read.

The manifest lies inside the checkpoint (`<step>/manifest.json`) and is written before the checkpoint gets its final
name, so a finished checkpoint has one, and it travels with a copied folder. Format:
`{"version": 1, "files": {"params/d/0a1b...": [bytes, crc32], ...}}`. CRC-32 (zlib) runs at several GB/s per core and
releases the interpreter lock; it guards against accidents, not against forgery.

A bucket says size and CRC-32C (Castagnoli) of every object, so that there nothing is read back: the manifest, with
`"checksum": "crc32c"`, holds what its listing says. A copy of such a checkpoint on a disk is read and compared by that.
"""

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from mmed_jax.common.errors import WorkError
from mmed_jax.common.input_files import what_is
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.output_files import write_json
from mmed_jax.common.place_files import as_os_error, read_bytes
from mmed_jax.common.places import Place, is_bucket

MANIFEST = "manifest.json"
# Written or changed by orbax after the manifest, and not needed to restore.
_NOT_COVERED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"})
_BLOCK = 1 << 22
_CRC32C = "crc32c"
Measure: TypeAlias = Callable[[Path], tuple[int, int]]  # bytes and checksum of a file
_THREADS = 8
# What the system says of a file that is not there or is no file. Every other error (no permission, EIO, ESTALE, too
# many open files, ...) tells nothing of the bytes: the next try may read them.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})


class CannotRead(WorkError):
    """A file of a checkpoint cannot be read now; whether its bytes are good is not known."""


def is_gone(e: OSError) -> bool:
    """Whether an error says that a file is missing or no file, which is damage, and not that reading failed."""
    return e.errno in _GONE


def cannot_read(path: Place | str, e: BaseException) -> CannotRead:
    """The error of a file that cannot be read now, in one line."""
    why = getattr(e, "strerror", None) or e
    return CannotRead(
        f"{path}: cannot be read now ({why}); this is no damage and nothing was changed: mend the access and run the "
        "same command again"
    )


def write_manifest(folder: Place) -> None:
    """Writes the manifest of every file under `folder`. Raises OSError or WorkError."""
    if is_bucket(folder):
        entries = _stored(folder)
        write_json(folder / MANIFEST, {"version": 1, "checksum": _CRC32C, "files": entries})
        return
    names = sorted(_covered(folder))
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = dict(zip(names, pool.map(lambda name: _measure(folder / name), names)))
    write_json(folder / MANIFEST, {"version": 1, "files": entries})


def verify_manifest(
    folder: Place, under: str | tuple[str, ...] = "", part: tuple[int, int] = (0, 1)
) -> list[str] | None:
    """Compares the files of `folder` with its manifest.

    Args:
      folder: one checkpoint.
      under: only files whose name starts with this, or with one of these ("params/").
      part: (i, n): check only every n-th file starting at the i-th, so that n processes share the reading.

    Returns:
      What is wrong, one phrase per file (empty: all good), or None when there is no manifest to compare with (a link
      to a file that is not there is none).

    Raises:
      CannotRead: a file is there and cannot be read now; that is no damage.
    """
    if not is_bucket(folder) and (kind := _endless(folder / MANIFEST)):
        return [f"{MANIFEST} is {kind}"]
    try:
        manifest = loads(read_bytes(folder / MANIFEST), dict)
        files = {str(k): (int(v[0]), int(v[1])) for k, v in manifest["files"].items()}
    except FileNotFoundError:
        return None
    except OSError as e:
        if not is_gone(e):
            raise cannot_read(folder / MANIFEST, e) from e
        return [f"{MANIFEST} is no file ({e.strerror})"]
    except BadJSON as e:
        return [f"{MANIFEST} is unreadable ({e})"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as e:
        return [f"{MANIFEST} is unreadable ({type(e).__name__})"]
    names = [n for n in sorted(files) if n.startswith(under)][part[0] :: part[1]]
    if is_bucket(folder):
        return _compare_stored(folder, {n: files[n] for n in names}, manifest.get("checksum") == _CRC32C)
    measure = _measure_crc32c if manifest.get("checksum") == _CRC32C else _measure
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _compare(folder / name, files[name], measure), names)
        return [f"{name} {problem}" for name, problem in zip(names, found) if problem]


def shorten(problems: Iterable[str], limit: int = 3) -> str:
    """The first `limit` problems on one line, and how many more there are."""
    problems = list(problems)
    more = f" and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more


def _covered(folder: Path) -> Iterator[str]:
    for root, _, files in os.walk(folder):
        for name in files:
            relative = (Path(root) / name).relative_to(folder).as_posix()
            if _is_covered(relative):
                yield relative


def _is_covered(name: str) -> bool:
    # Only at the top: an item's own files of these names are data like any other.
    return name not in _NOT_COVERED and not (name.startswith(".") and name.endswith(".tmp"))


def _stored(folder: Place) -> dict[str, tuple[int, int]]:
    """{name below `folder`: (bytes, CRC-32C)} of what a manifest covers, by the bucket's listing. Raises OSError."""
    from mmed_jax.common.buckets.bucket import open_bucket

    with as_os_error(folder):
        bucket, key = open_bucket(folder)
        objects = bucket.list(f"{key}/")
    found = {o.name[len(key) + 1 :]: (o.size, o.crc32c) for o in objects}
    # A name that ends with a slash is how some tools show a folder.
    return {name: state for name, state in found.items() if _is_covered(name) and not name.endswith("/")}


def _compare_stored(folder: Place, files: dict[str, tuple[int, int]], crc32c: bool) -> list[str]:
    """What is wrong with the objects of a checkpoint; without CRC-32C (of one that was copied there) by their sizes."""
    try:
        there = _stored(folder)
    except OSError as e:
        raise cannot_read(folder, e) from e
    problems = []
    for name, expected in files.items():
        if name not in there:
            problems.append(f"{name} is missing")
        elif there[name][0] != expected[0]:
            problems.append(f"{name} has {there[name][0]} bytes instead of {expected[0]}")
        elif crc32c and there[name] != expected:
            problems.append(f"{name} has another checksum than when it was written")
    return problems


def _measure(path: Path) -> tuple[int, int]:
    size = crc = 0
    with open(path, "rb", buffering=0) as f:
        while block := f.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def _measure_crc32c(path: Path) -> tuple[int, int]:
    try:
        from mmed_jax.common.buckets.bucket import checksum_of

        return path.stat().st_size, checksum_of(path)
    except ImportError as e:
        raise CannotRead(
            f"{path}: this checkpoint was saved in a bucket; its checksums need pip install 'mmed_jax[gcs]' ({e})"
        ) from e


def _endless(path: Path) -> str:
    """ "a named pipe" or the like where reading would wait without end; "" for files, folders and what is not there."""
    kind = what_is(path)
    return kind if kind.endswith(("pipe", "device", "socket")) else ""


def _compare(path: Path, expected: tuple[int, int], measure: Measure) -> str:
    """What is wrong with one file, or "" when it is as recorded. Raises CannotRead."""
    try:
        if kind := _endless(path):
            return f"is {kind}"
        size = path.stat().st_size
        if size != expected[0]:
            return f"has {size} bytes instead of {expected[0]}"
        return "" if measure(path) == expected else "has another checksum than when it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as e:
        if not is_gone(e):
            raise cannot_read(path, e) from e
        return f"is no file ({e.strerror})"
