"""A file or folder of a bucket that a command writes: written on this machine, then put up so that no half is seen.

The command gets a place in a folder of its own that shows what the bucket holds: small files whole, large ones as empty
files of their size (all whole of an output that is continued or updated), so that "is there already" is said as of a
disk. When the command has ended, what it wrote anew goes up and what it removed is removed. Objects that hold the very
bytes already are left. Every write is by generation: another process that writes there as well is an error.

What ends with one of FIRST goes up first (without it nobody could go on with what a cut upload left) and LAST last:
while the upload is under way a folder that is replaced has none of LAST, so that no reader takes it for whole. One that
is updated keeps them: each of its files fits to those that were there before.
"""

import contextlib
import os
import re
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmed_jax.common.buckets.bucket import NoAnswer, PreconditionFailed, Stored, checksum_of, open_bucket
from mmed_jax.common.buckets.download import VARIABLE, cache_folder, wait_for_all
from mmed_jax.common.errors import ReportedError, UserError, WorkError, one_line, warn
from mmed_jax.common.place_flags import OutputPlace, ResumedOutput, UpdatedOutput
from mmed_jax.common.places import parse_place

EVERY_S = 60.0  # between uploads of an output that is continued
FIRST = ("mmed_jax_export.json", ".settings.json")
# What says that a folder is whole, or of which kind; the last name is looked for first.
LAST = (
    "results.json",
    "draw.json",
    "build.json",
    "table.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "manifest.json",
)
_SMALL = 16 << 20  # bytes of a file that is fetched, to be looked at
_THREADS = 8
_UNFINISHED = re.compile(r"(^|/)\.[^/]*\.(tmp|partial)(/|$)|\.(tmp|old)-[^/]*(/|$)|(^|/)\.build-|(^|/)\.write_test\.")
State = dict[str, tuple[int, int]]  # {name: (size, mtime_ns)}


class Upload:
    """The output at a gs:// address.

    Args:
      address: of a file or folder. flag: what it was given to. kind: OutputPlace or one of its kinds.

    Attributes:
      path: where the command writes.

    Raises:
      UserError: the bucket refuses. WorkError: the bucket does not answer.
    """

    def __init__(self, address: str, flag: str, kind: type = OutputPlace):
        self.address = address.rstrip("/")
        self._bucket, self._key = open_bucket(parse_place(address, flag))
        if not self._key:
            raise UserError(f"{flag}={address}: name something in the bucket, gs://BUCKET/NAME")
        self._resumed, self._updated = issubclass(kind, ResumedOutput), issubclass(kind, UpdatedOutput)
        parent, _, self._name = self._key.rpartition("/")
        self._prefix = f"{parent}/" if parent else ""
        self._uploaded: dict[str, Stored] = {}  # what the bucket holds, by name below the parent
        self._unanswered: dict[str, tuple[int, int]] = {}  # sizes and checksums that may have arrived
        self._before: State = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._spool: Path  # these two from `open` on
        self.path: Path

    def open(self) -> Path:
        """Shows what the bucket holds and returns `path`; of a continued output a thread uploads from now on.

        Raises:
          UserError: the bucket refuses, or the cache folder cannot be written. WorkError: the bucket does not answer.
        """
        try:
            outputs = cache_folder() / "outputs"
            outputs.mkdir(parents=True, exist_ok=True)
            self._spool = Path(tempfile.mkdtemp(prefix=f"{self._name}.", dir=outputs))
        except OSError as e:
            raise UserError(f"{cache_folder()}: cannot be written ({e.strerror or e}); {VARIABLE} names another") from e
        self.path = self._spool / self._name
        try:
            self._list()
            # As the probe of a folder does: rights are known before the work.
            probe = f"{self._key}.write_test.{os.getpid()}"
            self._bucket.put(probe, b"x")
            self._bucket.delete(probe)
            for name, stored in self._uploaded.items():
                self._show(self._spool / name, stored)
            self._before = self._state()
        except BaseException:
            shutil.rmtree(self._spool, ignore_errors=True)
            raise
        if self._resumed:
            self._thread = threading.Thread(target=self._upload_regularly, name="upload", daemon=True)
            self._thread.start()
        return self.path

    def close(self, failed: bool = False) -> None:
        """Uploads what was written; `failed`: the command did not end well, so that only what is continued goes up.

        Raises:
          WorkError: it could not be uploaded, and where it lies.
        """
        self._end.set()
        if self._resumed or not failed:
            try:
                if self._thread is not None:
                    self._thread.join()
                self._sync()
            except KeyboardInterrupt:
                warn(f"{self.address}: was not uploaded to its end; it lies in {self.path}")
                raise
            except (OSError, ReportedError) as e:
                raise WorkError(
                    f"{self.address}: could not be uploaded ({one_line(e)}); it lies in {self.path}: copy it from there"
                ) from e
        shutil.rmtree(self._spool, ignore_errors=True)

    def _list(self) -> None:
        """Fills `_uploaded`: the object, what lies below it, and files beside it whose names begin alike."""
        objects = self._bucket.list(f"{self._key}/")
        stem = f"{self._prefix}{_stem(self._name)}"
        objects += [o for o in self._bucket.list(f"{stem}.") if "/" not in o.name[len(self._prefix) :]]
        if stem == self._key and (plain := self._bucket.stat(self._key)) is not None:
            objects.append(plain)
        self._uploaded = {o.name[len(self._prefix) :]: o for o in objects if not o.name.endswith("/")}

    def _show(self, file: Path, stored: Stored) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if self._resumed or self._updated or stored.size <= _SMALL:
            self._bucket.download(stored.name, file, stored.generation, stored.size)
        else:
            with file.open("wb") as f:
                f.truncate(stored.size)

    def _upload_regularly(self) -> None:
        failing = False
        while not self._end.wait(EVERY_S):
            try:
                self._sync()
                failing = False
            except (OSError, ReportedError) as e:
                if not failing:
                    warn(f"{self.address}: could not be uploaded yet ({one_line(e)})")
                failing = True

    def _sync(self) -> None:
        with self._lock:
            now = self._state()
            changed = {n for n, state in now.items() if self._before.get(n) != state and not self._is_there(n)}
            removed = {n for n in self._before if n not in now and n in self._uploaded}
            last = {n for n in changed | removed if _base(n) in LAST}
            if changed - last and not self._updated:
                if not self._resumed:  # the same config.json over other weights has to go for that time too
                    last |= {n for n in now if _base(n) in LAST and self._is_there(n)}
                for name in last & self._uploaded.keys():
                    self._delete(name)
            for name in changed:
                if name.endswith(FIRST):
                    self._put(name)
            with ThreadPoolExecutor(_THREADS) as pool:
                futures = [pool.submit(self._put, n) for n in changed - last if not n.endswith(FIRST)]
                futures += [pool.submit(self._delete, n) for n in removed - last]
                wait_for_all(pool, futures)
            for name in sorted(last & now.keys(), key=lambda n: LAST.index(_base(n))):
                self._put(name)
            self._before = now

    def _put(self, name: str) -> None:
        """Uploads one file. Raises WorkError: another process writes there."""
        file, there = self._spool / name, self._uploaded.get(name)
        data: bytes | Path = file
        if self._resumed:
            data = file.read_bytes()
            if name.endswith(".jsonl"):  # a line may be under way, or torn
                data = data[: data.rfind(b"\n") + 1]
        key, generation = self._prefix + name, there.generation if there else 0
        try:
            if (ours := self._unanswered.get(name)) and (found := self._bucket.stat(key)) is not None:
                if (found.size, found.crc32c) == ours:
                    generation = found.generation
            self._uploaded[name] = self._bucket.put(key, data, generation)
            self._unanswered.pop(name, None)
        except NoAnswer:
            self._unanswered[name] = len(data) if isinstance(data, bytes) else data.stat().st_size, checksum_of(data)
            raise
        except PreconditionFailed as e:
            raise WorkError(f"{self._bucket.address(key)}: another process writes there as well") from e

    def _is_there(self, name: str) -> bool:
        """Whether the object holds the bytes of the file."""
        file, there = self._spool / name, self._uploaded.get(name)
        return there is not None and (file.stat().st_size, checksum_of(file)) == (there.size, there.crc32c)

    def _delete(self, name: str) -> None:
        if (there := self._uploaded.get(name)) is not None:
            self._bucket.delete(self._prefix + name, there.generation)
            del self._uploaded[name]

    def _state(self) -> State:
        state: State = {}
        for file in self._spool.rglob("*"):
            name = file.relative_to(self._spool).as_posix()
            if not _UNFINISHED.search(name) and file.is_file():
                with contextlib.suppress(FileNotFoundError):  # replaced at this moment
                    status = file.stat()
                    state[name] = status.st_size, status.st_mtime_ns
        return state


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    """The name of a file without its endings: what files beside it begin with."""
    for suffix in (".jsonl.gz", ".jsonl.zst", ".jsonl", ".json", ".xlsx", ".csv", ".py"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
