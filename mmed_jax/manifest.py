"""Sizes and checksums of a checkpoint's files, so that a flipped bit or a truncated file is found when it is read.

The manifest lies inside the checkpoint (`<step>/manifest.json`) and is written before the checkpoint gets its final
name, so a finished checkpoint has one, and it travels with a copied folder. Format:
`{"version": 1, "files": {"params/d/0a1b...": [bytes, crc32], ...}}`. CRC-32 (zlib) runs at several GB/s per core and
releases the interpreter lock; it guards against accidents, not against forgery.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.json"
# Written or changed by orbax after the manifest, and not needed to restore.
_NOT_COVERED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"})
_BLOCK = 1 << 22
_THREADS = 8


def write_json(path: Path, value: object) -> None:
    """Writes `value` as JSON to `path` atomically: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=False, indent=1)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(folder: Path) -> None:
    """Writes the manifest of every file under `folder`. Raises OSError."""
    names = sorted(_covered(folder))
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = dict(zip(names, pool.map(lambda name: _measure(folder / name), names)))
    write_json(folder / MANIFEST, {"version": 1, "files": entries})


def verify_manifest(folder: Path, under: str = "", part: tuple[int, int] = (0, 1)) -> list[str] | None:
    """Compares the files of `folder` with its manifest.

    Args:
      folder: one checkpoint.
      under: only files whose name starts with this ("params/").
      part: (i, n): check only every n-th file starting at the i-th, so that n processes share the reading.

    Returns:
      What is wrong, one phrase per file (empty: all good), or None when there is no manifest to compare with.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(k): (int(v[0]), int(v[1])) for k, v in manifest["files"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        return [f"{MANIFEST} is unreadable ({type(e).__name__})"]
    names = [n for n in sorted(files) if n.startswith(under)][part[0] :: part[1]]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _compare(folder / name, files[name]), names)
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
            # Only at the top: an item's own files of these names are data like any other.
            if relative not in _NOT_COVERED and not (relative.startswith(".") and relative.endswith(".tmp")):
                yield relative


def _measure(path: Path) -> tuple[int, int]:
    size = crc = 0
    with open(path, "rb", buffering=0) as f:
        while block := f.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def _compare(path: Path, expected: tuple[int, int]) -> str:
    """What is wrong with one file, or "" when it is as recorded."""
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"has {size} bytes instead of {expected[0]}"
        return "" if _measure(path) == expected else "has another checksum than when it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as e:
        return f"cannot be read ({e.strerror or e})"
