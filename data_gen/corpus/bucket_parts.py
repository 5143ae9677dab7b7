"""Parts of a stage that are kept in a bucket as well, where another machine goes on with them.

    gs://BUCKET/KEY/work/STAGE-3f2a.../parts/000017/...      the files of a part; whole with marker.json, its last

A part has the same bytes whoever makes it and never changes, so two that put up one at the same time are in nobody's
way. Its maker puts it up once it is on the disk; what it could not put up, `sync_parts` does.
"""

import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmed_jax.common.buckets.bucket import Bucket, PreconditionFailed, Stored, open_bucket
from mmed_jax.common.buckets.download import fetch_object, wait_for_all
from mmed_jax.common.errors import WorkError, warn
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.progress import counting_bar

MARKER = "marker.json"
_THREADS = 8


def upload_part(store: str, part: Path, names: Iterable[str]) -> None:
    """Puts up files of a part that is on the disk, its marker last.

    Args:
      store: address of the stage. part: folder of the part.

    Raises:
      UserError, WorkError: the bucket refuses, or does not answer. OSError: of the disk.
    """
    bucket, prefix = open_bucket(store)
    for name in (*sorted({*names} - {MARKER}), MARKER):
        key = f"{prefix}/parts/{part.name}/{name}"
        try:
            bucket.put(key, part / name, if_generation=0)
        except PreconditionFailed:  # other bytes: what was left of a part that was damaged there
            bucket.put(key, part / name)


def sync_parts(store: str, parts: Path, here: Mapping[str, Iterable[str]], names: Iterable[str]) -> None:
    """Fetches parts that the bucket alone has and puts up those that it lacks. One that is damaged there is none.

    Args:
      store: address of the stage. parts: folder of all parts. here: of each part in it, its files. names: of all parts.

    Raises:
      UserError, WorkError: the bucket refuses, or does not answer; no room on the disk.
    """
    bucket, prefix = open_bucket(store)
    there: dict[str, dict[str, Stored]] = {part: {} for part in names}
    for stored in bucket.list(f"{prefix}/parts/"):
        part, _, name = stored.name.removeprefix(f"{prefix}/parts/").partition("/")
        if part in there and name and "/" not in name:
            there[part][name] = stored
    wanted = {part: objects for part, objects in there.items() if part not in here and MARKER in objects}
    lacking = {part: {MARKER, *files} - there[part].keys() for part, files in here.items()}
    total = sum(o.size for objects in wanted.values() for o in objects.values())
    with (
        counting_bar(f"fetching {parts.parent.name}", total, unit="B", unit_scale=True, in_logs=True, delay=2) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):

        def fetch(part: str) -> None:
            _fetch_part(parts / part, bucket, wanted[part])
            bar.update(sum(o.size for o in wanted[part].values()))

        futures = [pool.submit(fetch, part) for part in wanted]
        futures += [pool.submit(upload_part, store, parts / part, files) for part, files in lacking.items() if files]
        try:
            wait_for_all(pool, futures)
        except OSError as e:
            raise WorkError(f"{parts}: cannot be written ({e.strerror or e})") from e


def _fetch_part(part: Path, bucket: Bucket, objects: dict[str, Stored]) -> None:
    temporary = part.with_name(f".{part.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name in (MARKER, *sorted(objects.keys() - {MARKER})):
            fetch_object(bucket, objects[name], temporary / name)
            if problem := _problem(temporary / MARKER, objects) if name == MARKER else _differs(temporary, name):
                warn(f"{bucket.address(objects[MARKER].name)}: {problem}; the part is made anew")
                bucket.delete(objects[MARKER].name, objects[MARKER].generation)
                return
        try:
            temporary.rename(part)
        except OSError:
            if not (part / MARKER).is_file():  # else a task that outlived its build has made it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _differs(part: Path, name: str) -> str:
    """Why a fetched file is not the one that the marker beside it describes; "" where it is."""
    with (part / name).open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    entry = loads((part / MARKER).read_bytes(), dict)["files"][name]
    return "" if digest == entry[1] else f"{name} has another checksum than it says"


def _problem(marker: Path, objects: dict[str, Stored]) -> str:
    """Why the objects are not the part that its marker describes; "" where they are."""
    try:
        sizes = {name: size for name, (size, _) in loads(marker.read_bytes(), dict)["files"].items()}
    except (BadJSON, KeyError, AttributeError, TypeError, ValueError):
        return "cannot be read"
    there = {name: stored.size for name, stored in objects.items() if name != MARKER}
    differing = sorted(sizes.items() ^ there.items())
    return f"{differing[0][0]} is not as it says" if differing else ""
