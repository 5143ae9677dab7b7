"""A file or folder of a bucket as a path of this machine: fetched once a host, whole or not at all.

What is fetched lies in ~/.cache/mmed_jax/buckets (MMED_JAX_BUCKETS names another folder), under a hash of its address
and the generations of its objects: another version is another folder, and what is there is never asked for again. One
process of a host fetches, the others wait for it. Every object is compared with the bucket's CRC-32C; what a killed
process left is gone on with. Nothing is removed: the folder may be deleted whenever no command runs.

Of a model's folder the large weight files are not fetched: ranged_file.py reads of them what is asked for. Nor are the
weights of a run's checkpoint, if they are large: checkpoints/restore.py reads them where they lie.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from mmed_jax.common.buckets.bucket import Bucket, Damaged, Stored, checksum_of, open_bucket
from mmed_jax.common.buckets.ranged_file import is_large, is_ranged, write_pointer
from mmed_jax.common.errors import UserError, WorkError, nearest
from mmed_jax.common.output_files import write_json
from mmed_jax.common.paths import expand_home, resolve_path
from mmed_jax.common.place_flags import InputPlace, ModelPlace, SheetPlace
from mmed_jax.common.places import is_bucket, parse_place
from mmed_jax.common.progress import counting_bar

FOLDER = "~/.cache/mmed_jax/buckets"
VARIABLE = "MMED_JAX_BUCKETS"
ADDRESS = "address.json"  # beside what was fetched: where it came from
_THREADS = 8
_TRIES = 3  # of an object that came with another checksum
# Of a run: a step that is finished, and what marks one that could not be read (checkpoints/bucket_run.py).
CHECKPOINTS, COMMITTED, SET_ASIDE = "checkpoints/", "commit_success.txt", ".corrupt.json"
WEIGHTS = "params/"
# Of a run, and of a checkpoint in it, what no model needs; a report that is made anew costs no second copy of weights.
_NOT_OF_A_MODEL = ("tensorboard/", "plots/", "profile/", "wandb/", "metrics/", "metrics.jsonl", "report.html", ".lock")
_NOT_OF_WEIGHTS = "opt_state/"
# Of a corpus or a table of documents that was built there: what is made on the way, and what says that it is whole.
WORK, _BUILT = "work", {"corpus.json", "table.json"}
# The lock changes every few seconds while one builds.
_PART_OF_WORK, _LOCK = re.compile(r"work/\w+-[0-9a-f]{16}/parts/"), re.compile(r"work/lock(\.clock\.[0-9a-f]{32})?")


@dataclass(frozen=True)
class Found:
    """What stands at an address: objects by their names below it; of a file "", and what files beside it have more."""

    address: str
    bucket: Bucket
    key: str
    objects: dict[str, Stored]

    @property
    def is_file(self) -> bool:
        """Whether it is one object."""
        return "" in self.objects

    def path_of(self, place: Path, name: str) -> Path:
        """Where an object lies, with the file or folder itself at `place`."""
        return place.with_name(f"{place.name}{name}") if self.is_file else place / name


def open_input(text: str | os.PathLike, flag: str = "", kind: type = InputPlace, step: int | None = None) -> Path:
    """What a user's text names, as a path of this machine: `resolve_path` of a path, and a copy of a gs:// address.

    Args:
      text: a path or gs://BUCKET/KEY, of records with an optional :SPLIT behind it, which the result then has too.
      flag: what it was given to, for messages. kind: ModelPlace for the folder of a model. step: of a run's checkpoint.

    Raises:
      UserError: nothing is there, the bucket refuses, no room on the disk. WorkError: the bucket does not answer.
    """
    place = parse_place(text, flag)
    if not is_bucket(place):
        return resolve_path(str(text))
    address = str(text).rstrip("/")
    try:
        return fetch(look(address, flag, kind), kind, step)
    except NotThere:
        head, colon, split = address.rpartition(":")
        if not colon or head in ("gs", "") or "/" in split:
            raise
        whole = fetch(look(head, flag), kind, step)
        return whole.with_name(f"{whole.name}:{split}")


def fetch_model(path: str | os.PathLike, step: int | None = None, flag: str = "") -> str | os.PathLike:
    """The folder of a model: `path`, of a gs:// address a copy; of a run also of its checkpoints/, or one step in it.

    Raises:
      UserError, WorkError: as open_input.
    """
    if not is_bucket(str(path)):
        return path
    run = re.fullmatch(r"(.+)/checkpoints(?:/([0-9]+))?/*", str(path))
    if run is not None and run[2] is None:  # without a step it is no run's: nothing beside it is fetched
        bucket, key = open_bucket(parse_place(path, flag))
        run = run if any(name.isdigit() for name in bucket.list_folder(key)[0]) else None
    if run is None:
        return open_input(path, flag, ModelPlace, step)
    return open_input(run[1], flag, ModelPlace, int(run[2]) if run[2] else step) / CHECKPOINTS / (run[2] or "")


class NotThere(UserError):
    """No object has this name, or begins with it as a folder."""


def look(address: str, flag: str = "", kind: type = InputPlace) -> Found:
    """What stands at a gs:// address. Raises NotThere; Refused and NoAnswer of Bucket."""
    bucket, key = open_bucket(parse_place(address, flag))
    start = f"{flag}={address}" if flag else address
    if key and (stored := bucket.stat(key)) is not None:
        beside = bucket.list(f"{key}.") if issubclass(kind, SheetPlace) else []
        return Found(address, bucket, key, {o.name[len(key) :]: o for o in (stored, *beside)})
    prefix = f"{key}/" if key else ""
    objects = {o.name[len(prefix) :]: o for o in bucket.list(prefix) if not o.name.endswith("/")}
    if not objects:
        parent = key.rpartition("/")[0]
        folders, files = bucket.list_folder(parent)
        names = [*folders, *(o.name.rpartition("/")[2] for o in files)]
        raise NotThere(f"{start}: nothing is there{nearest(key.rpartition('/')[2], names)}")
    for name in objects:
        if {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{start}: holds an object that can't be a file of this machine: {name!r}")
    return Found(address, bucket, key, objects)


def fetch(found: Found, kind: type = InputPlace, step: int | None = None) -> Path:
    """The copy of `found` on this machine. Raises UserError, WorkError as open_input."""
    objects = found.objects
    as_model = issubclass(kind, ModelPlace) and not found.is_file
    if as_model:
        objects = _of_model(found, step)
        objects = _without_large_weights(objects)
    objects = _without_work(objects, found.address)
    ranged = [name for name, o in objects.items() if as_model and is_ranged(name, o.size)]
    listed = [[name, o.generation, name in ranged] for name, o in sorted(objects.items())]
    digest = hashlib.sha256(json.dumps([found.address, listed]).encode()).hexdigest()[:20]
    parts = [found.bucket.name, *filter(None, found.key.split("/"))]
    folder = cache_folder() / found.bucket.name / digest
    # Language, split and cache key come from the names of a file and of its folder: both stay.
    place = folder.joinpath(parts[-2] if len(parts) > 1 else "bucket", parts[-1])
    if folder.is_dir():
        return place
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, found.address):
            if not folder.is_dir():
                part = folder.with_name(f"{digest}.part")
                _fill(part / place.relative_to(folder), found, objects, ranged)
                write_json(part / ADDRESS, {"address": found.address})
                part.rename(folder)
    except OSError as e:
        raise UserError(
            f"{found.address}: cannot be fetched to {folder.parent} ({e.strerror or e}); {VARIABLE} names another "
            "folder"
        ) from e
    return place


def cache_folder() -> Path:
    """The folder of all that was fetched, and of what is to be uploaded."""
    return expand_home(os.environ.get(VARIABLE) or FOLDER).absolute()


def address_of(path: str | os.PathLike) -> str:
    """The gs:// address that `path` is the copy of, or lies in the copy of; "" for any other path."""
    try:
        root, real = cache_folder(), Path(path).absolute()
        parts = real.relative_to(root).parts if real.is_relative_to(root) else ()
        if len(parts) < 4:
            return ""
        address = json.loads(root.joinpath(*parts[:2], ADDRESS).read_bytes())["address"]
        return "/".join((address, *parts[4:]))
    except (OSError, ValueError, KeyError, UserError):  # no cache folder is known where no home is
        return ""


class _alone:
    """Held by one process of this host while it fetches; a context manager. Raises OSError."""

    def __init__(self, folder: Path, address: str):
        self._path, self._address = folder.with_name(f"{folder.name}.lock"), address

    def __enter__(self) -> None:
        self._file = open(self._path, "w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process of this host that fetches {self._address}", file=sys.stderr, flush=True)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _fill(place: Path, found: Found, objects: dict[str, Stored], ranged: Sequence[str]) -> None:
    """Fetches what is not there yet. Raises OSError, UserError, WorkError."""
    wanted = {name: o for name, o in objects.items() if not found.path_of(place, name).is_file()}
    fetched = {name: o for name, o in wanted.items() if name not in ranged}
    place.parent.mkdir(parents=True, exist_ok=True)
    total, free = sum(o.size for o in fetched.values()), shutil.disk_usage(place.parent).free
    if total > free:
        raise UserError(
            f"{found.address}: is {total / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {cache_folder()}; "
            f"{VARIABLE} names another folder"
        )
    for name in ranged:
        file = found.path_of(place, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_pointer(file, found.bucket.name, objects[name])
    label, stop = f"fetching {found.address}", threading.Event()
    with (
        counting_bar(label, total, unit="B", unit_scale=True, in_logs=True, delay=2) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):

        def one(name: str) -> None:
            fetch_object(found.bucket, fetched[name], found.path_of(place, name), stop)
            bar.update(fetched[name].size)

        wait_for_all(pool, [pool.submit(one, name) for name in fetched], stop)


def wait_for_all(pool: ThreadPoolExecutor, futures: Iterable[Future], stop: threading.Event | None = None) -> None:
    """Waits for all; the first failure, or Ctrl-C, sets `stop` and lets the others that have not begun be.

    Raises what they raised.
    """
    try:
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    except BaseException:
        if stop is not None:
            stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def fetch_object(bucket: Bucket, stored: Stored, file: Path, stop: threading.Event | None = None) -> None:
    """Fetches an object, of its generation, into a file, compared with its checksum.

    Raises:
      UserError, WorkError: of Bucket.download; it was changed, or comes with another checksum. OSError: of the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.fetched")
    try:
        for _ in range(_TRIES):
            try:
                bucket.download(stored.name, temporary, stored.generation, stored.size, stop)
            except Damaged:
                continue
            except FileNotFoundError as e:
                raise WorkError(
                    f"{bucket.address(stored.name)}: was changed or removed while it was fetched; run the command again"
                ) from e
            if (temporary.stat().st_size, checksum_of(temporary)) == (stored.size, stored.crc32c):
                temporary.replace(file)
                return
    finally:
        temporary.unlink(missing_ok=True)
    raise WorkError(f"{bucket.address(stored.name)}: came {_TRIES} times with another checksum than the bucket says")


def _without_large_weights(objects: dict[str, Stored]) -> dict[str, Stored]:
    """Of a run all but its weights, if they are large; its manifest and commit_success.txt are of them alone."""
    weights = [n for n in objects if re.match(f"{CHECKPOINTS}[0-9]+/{WEIGHTS}", n)]
    if not is_large(sum(objects[n].size for n in weights)):
        return objects
    return {name: o for name, o in objects.items() if name not in weights}


def _without_work(objects: dict[str, Stored], address: str) -> dict[str, Stored]:
    """Of a corpus or a table what was finished. Raises UserError where it is not."""
    left = {name: o for name, o in objects.items() if not _LOCK.fullmatch(name)}
    if left and not any(_PART_OF_WORK.match(name) for name in left):
        return left
    if not _BUILT & objects.keys():
        raise UserError(
            f"{address}: is not finished (no {' or '.join(sorted(_BUILT))}); run its build again to the end"
        )
    return {name: o for name, o in left.items() if not name.startswith(f"{WORK}/")}


def _of_model(found: Found, step: int | None) -> dict[str, Stored]:
    """Of a run the weights of one finished checkpoint and what lies beside; of any other folder all."""
    saved: dict[int, bool] = {}
    for name in found.objects:
        number, _, rest = name.removeprefix(CHECKPOINTS).partition("/")
        if name.startswith(CHECKPOINTS) and number.isdigit():
            saved[int(number)] = saved.get(int(number), False) or rest == COMMITTED
    whole = [n for n, finished in saved.items() if finished and f"{CHECKPOINTS}{n}{SET_ASIDE}" not in found.objects]
    if not saved:
        return found.objects
    if not whole:
        raise UserError(f"{found.address}: has no finished checkpoint; one is finished by its {COMMITTED}")
    if step is not None and step not in whole:
        there = ", ".join(map(str, sorted(whole)))
        raise UserError(f"{found.address}: has no checkpoint of step {step}; there are {there}")
    kept = f"{CHECKPOINTS}{step if step is not None else max(whole)}/"
    return {
        name: o
        for name, o in found.objects.items()
        if (
            name.startswith(kept) and not name.startswith(kept + _NOT_OF_WEIGHTS)
            if name.startswith(CHECKPOINTS)
            else not name.startswith(_NOT_OF_A_MODEL)
        )
    }
