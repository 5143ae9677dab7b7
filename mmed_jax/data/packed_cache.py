"""The cache of packed tables: folders named by a hash of everything that went into them.

In a bucket a table is whole when its manifest is there, which is written last and only where there is none.
"""

import contextlib
import functools
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.buckets.bucket import Bucket, PreconditionFailed, open_bucket
from mmed_jax.common.buckets.download import cache_folder, open_input
from mmed_jax.common.checksums import MANIFEST, CannotRead, verify_manifest, write_manifest
from mmed_jax.common.code_hash import code_hash
from mmed_jax.common.errors import UserError, WorkError, warn
from mmed_jax.common.hashes import file_hash, json_hash
from mmed_jax.common.output_files import write_json
from mmed_jax.common.places import Place, is_bucket
from mmed_jax.data.packed_table import TABLE
from mmed_jax.data.records.reading import locate

# What makes a table of records; of what it imports neither how failures are shown nor configs, whose values are in the
# key, nor how tables are mixed as they are read.
ENTRIES = ("mmed_jax.data.prepare",)
LEAVE_OUT = (
    "mmed_jax.common.buckets",
    "mmed_jax.common.console",
    "mmed_jax.common.errors",
    "mmed_jax.common.place_flags",
    "mmed_jax.common.places",
    "mmed_jax.config",
    "mmed_jax.data.corpus_table",
    "mmed_jax.data.prepared",
)
_THREADS = 8
SET, _LEVELS = "build.json", 5  # what lies in a set's folder, and how far below it record files may lie
_POLL_S = 5.0  # between looks into a bucket for a table that another process makes
_ABANDONED_AFTER_S = 24 * 3600


def content_hash(path: str | os.PathLike) -> list[list[str]]:
    """[[name, SHA-256], ...] of a record file, or of all files below a folder; PATH:SPLIT names the split as well.

    Names count (language and split may come from them), places do not: a moved checkout finds its tables again.
    Raises UserError when nothing is there.
    """
    found, split = locate(path)
    if found.is_dir():
        files = sorted(p for p in found.rglob("*") if p.is_file())
        listed = [[p.relative_to(found).as_posix(), file_hash(p)] for p in files]
    else:
        listed = [[found.name, file_hash(found)]]
    return [[f"{found.resolve().parent.name}/{found.name}", split or ""], *listed]


def listing_hash(listed: list[list[str]]) -> str:
    """One SHA-256 (hex) for what content_hash gives: a lone file's own, else over the JSON of names and hashes."""
    files = listed[1:]
    return files[0][1] if len(files) == 1 else json_hash(files, 64)


def describe_files(
    key: str, names: Sequence[str], paths: Sequence[str], listed: Sequence[list[list[str]]]
) -> list[dict[str, str]]:
    """What a checkpoint keeps of the record files of config.data.KEY, for an audit. JSON values.

    Args:
      names: as the config has them. paths: on this machine. listed: content_hash of each.

    Returns:
      {"key", "path", "sha256"} of each, and of one that lies in a set of data_gen the SHA-256 of its build.json, "set".
    """
    found = []
    for name, path, files in zip(names, paths, listed, strict=True):
        build = set_summary(locate(path)[0])
        belongs = {"set": file_hash(build)} if build else {}
        found.append({"key": key, "path": name, "sha256": listing_hash(files), **belongs})
    return found


def set_summary(path: Path) -> Path | None:
    """build.json of the set of data_gen that a file or folder lies in; None where it lies in none."""
    above = [path.resolve(), *path.resolve().parents][:_LEVELS]
    return next((folder / SET for folder in above if (folder / SET).is_file()), None)


@functools.cache
def table_code() -> str:
    """Hash of all code that decides what a table holds: one made by other code is never used."""
    return code_hash(ENTRIES, leave_out=LEAVE_OUT)


def key_of(inputs: dict) -> str:
    """A name for `inputs` (JSON values): the first 20 hex digits of the SHA-256 of their canonical JSON."""
    return json_hash(inputs, 20)


def problem_of(folder: Path, key: str) -> str | None:
    """Why the table in `folder` may not be used, None when it is whole and of this key."""
    if not folder.is_dir():
        return "does not exist"
    try:
        problems = verify_manifest(folder)
    except CannotRead as e:  # a table is made anew in a minute; a checkpoint could not
        return str(e)
    if problems is None:
        return f"{MANIFEST} is missing"
    if problems:
        return "; ".join(problems[:3])
    try:
        found = jsonl.loads((folder / TABLE).read_bytes(), dict)["key"]
    except (OSError, ValueError, KeyError) as e:
        return f"{TABLE} is unreadable ({type(e).__name__})"
    return None if found == key else f"was made for another key, {found}"


def obtain(
    cache_dir: Place,
    key: str,
    build: Callable[[Path], dict],
    *,
    is_writer: bool,
    timeout_s: float,
    say: Callable[[str], None],
) -> tuple[Path, bool]:
    """The folder of a whole table for `key`: found, or built, or waited for.

    Args:
        cache_dir: a folder, or an address in a bucket; then the folder returned is one of this machine, to which the
            table is fetched once a host.
        build: writes the files into an empty folder and returns the contents of table.json.
        is_writer: builds what is missing; otherwise another process does and this one waits up to `timeout_s` seconds.
            Several writers at once are harmless: each builds under a name of its own and the first to finish counts.

    Returns:
        (folder, whether it was there before).

    Raises:
        UserError: cache_dir cannot be written. WorkError: waited in vain. Whatever `build` raises.
    """
    if is_bucket(cache_dir):
        return _obtain_in_bucket(cache_dir, key, build, is_writer=is_writer, timeout_s=timeout_s, say=say)
    folder = cache_dir / key
    problem = problem_of(folder, key)
    if problem is None:
        return folder, True
    if is_writer:
        if folder.exists():
            print(f"warning: packed table {folder}: {problem}; made anew", file=sys.stderr, flush=True)
        _build(folder, key, build)
        return folder, False
    say(f"waiting for the first process to make the packed table {folder}")
    waiting_since = time.monotonic()
    while problem is not None:
        if time.monotonic() - waiting_since > timeout_s:
            raise WorkError(
                f"packed table {folder}: {problem}, after {timeout_s:.0f} s of waiting; did the first process fail, or "
                "is config.data.cache_dir not a folder that all processes share?"
            )
        time.sleep(min(1.0, timeout_s / 10))
        problem = problem_of(folder, key)
    return folder, True


def _obtain_in_bucket(
    cache_dir: Place,
    key: str,
    build: Callable[[Path], dict],
    *,
    is_writer: bool,
    timeout_s: float,
    say: Callable[[str], None],
) -> tuple[Path, bool]:
    """`obtain` where cache_dir is an address in a bucket."""
    address, here = f"{cache_dir}/{key}", cache_folder() / "packed"
    bucket, prefix = open_bucket(address)
    waiting_since = None
    while True:
        problem: str | None = "is not there"
        if bucket.stat(f"{prefix}/{MANIFEST}") is not None:
            if problem_of(here / key, key) is None:  # made by this machine
                return here / key, True
            folder = open_input(address, "config.data.cache_dir")
            problem = problem_of(folder, key)
            if problem is None:
                return folder, True
        if is_writer:
            break
        if waiting_since is None:
            waiting_since = time.monotonic()
            say(f"waiting for the first process to make the packed table {address}")
        if time.monotonic() - waiting_since > timeout_s:
            raise WorkError(
                f"packed table {address}: {problem}, after {timeout_s:.0f} s of waiting; did the first process fail?"
            )
        time.sleep(min(_POLL_S, timeout_s / 10))
    if problem != "is not there":
        warn(f"packed table {address}: {problem}; made anew")
        bucket.delete(f"{prefix}/{MANIFEST}")
    folder, _ = obtain(here, key, build, is_writer=True, timeout_s=timeout_s, say=say)
    _upload(folder, bucket, prefix)
    return folder, False


def _upload(folder: Path, bucket: Bucket, prefix: str) -> None:
    """Puts a table into a bucket, its manifest last. Raises UserError, WorkError: the bucket refuses or is silent."""
    files = [p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST]

    def put(file: Path) -> None:
        name = f"{prefix}/{file.relative_to(folder).as_posix()}"
        # The same inputs make the same bytes: whoever was faster has put up this very file, which may be read by now.
        try:
            bucket.put(name, file, if_generation=0)
        except PreconditionFailed:  # it has other bytes: what was left of a damaged table
            bucket.put(name, file)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(put, files))
    with contextlib.suppress(PreconditionFailed):
        bucket.put(f"{prefix}/{MANIFEST}", folder / MANIFEST, if_generation=0)


def _build(folder: Path, key: str, build: Callable[[Path], dict]) -> None:
    temporary = folder.with_name(f".{key}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        _remove_abandoned(folder.parent, key)
        temporary.mkdir(parents=True)
    except OSError as e:
        raise UserError(f"config.data.cache_dir: {folder.parent} cannot be written: {e.strerror or e}") from e
    try:
        with jsonl.naming(folder):
            write_json(temporary / TABLE, {**build(temporary), "key": key})
            write_manifest(temporary)
        problem = problem_of(temporary, key)
        if problem:
            raise WorkError(f"packed table {temporary}: {problem}, right after it was written")
        if problem_of(folder, key) is not None:  # another writer may have been faster
            _replace(temporary, folder)
        problem = problem_of(folder, key)
        if problem:
            raise WorkError(f"packed table {folder}: {problem}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, folder: Path) -> None:
    """Puts `temporary` in the place of `folder`, which is absent or damaged."""
    damaged = temporary.with_name(temporary.name + ".damaged")
    try:
        if folder.exists():
            folder.rename(damaged)
        temporary.rename(folder)
    except OSError as e:
        # A writer that was faster put its own table there; the caller checks it.
        if not folder.is_dir():
            raise WorkError(f"packed table {folder} cannot get its name: {e.strerror or e}") from e
    finally:
        shutil.rmtree(damaged, ignore_errors=True)


def _remove_abandoned(cache_dir: Path, key: str) -> None:
    """Removes what killed builds of this table left over a day ago."""
    for path in cache_dir.glob(f".{key}.*.tmp*") if cache_dir.is_dir() else ():
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)
