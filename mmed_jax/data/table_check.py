"""Whether a packed table is as it was written: every shard read, its size and checksum compared."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmed_jax.common.checksums import shorten
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.packed_table import COUNTS, TABLE, make_part, read_info

_THREADS = 4


def open_table(folder: Path, flag: str) -> dict[str, Any]:
    """table.json of a finished table. Raises UserError where there is none, WorkError where it cannot be read."""
    if not folder.is_dir():
        raise UserError(f"{flag}={folder}: no such folder")
    if not (folder / TABLE).is_file():
        begun, is_corpus = (folder / "work").is_dir(), (folder / "corpus.json").is_file()
        hint = "; it is not finished: run `data_gen corpus tokenize` again to the end" if begun else ""
        hint = "; it is a corpus: `data_gen corpus tokenize` makes a table of it" if is_corpus else hint
        raise UserError(f"{flag}={folder}: no packed table (no {TABLE})", hint=hint)
    return read_info(folder)


def check_table(folder: Path, info: dict[str, Any], progress: Callable[[int], object] = lambda size: None) -> int:
    """Reads all shards and compares them with table.json.

    Args:
      progress: told the bytes of each shard that is done.

    Returns:
      The bytes that were read.

    Raises:
      WorkError: naming up to three shards that are missing or damaged, or sums that do not agree.
    """
    shards = []
    for split, part in info["splits"].items():
        groups = [(g["name"], g["language"], g["source"]) for g in part["groups"]]
        again = make_part([(*g, [s for s in part["shards"] if s["group"] == i]) for i, g in enumerate(groups)])
        for own, sums in zip(part["groups"], again["groups"], strict=True):
            if info["kind"] == "document" and (wrong := [c for c in COUNTS if own[c] != sums[c]]):
                raise WorkError(f"{folder / TABLE}: {split}, {own['name']}: {wrong[0]} is not the sum of its shards")
        shards += part["shards"]
    with ThreadPoolExecutor(_THREADS) as pool:
        problems = []
        for shard, problem in zip(shards, pool.map(lambda shard: _problem(folder, shard), shards)):
            progress(shard["size"])
            problems += [f"{shard['path']} {problem}"] if problem else []
    if problems:
        raise WorkError(f"{folder}: {shorten(problems)}")
    return sum(shard["size"] for shard in shards)


def _problem(folder: Path, shard: dict[str, Any]) -> str:
    """What is wrong with a shard; "" where it is as it was written."""
    path = folder / shard["path"]
    try:
        size = path.stat().st_size
        if size != shard["size"]:
            return f"has {size:,} bytes instead of {shard['size']:,}"
        with open(path, "rb") as f:
            same = hashlib.file_digest(f, "sha256").hexdigest() == shard["sha256"]
    except FileNotFoundError:
        return "is missing"
    except OSError as e:
        return f"cannot be read ({e.strerror or e})"
    return "" if same else "has another checksum than when it was written"
