"""Files that grow while a command runs, for a bucket, whose objects cannot be appended to.

They are written to a folder of this machine. What was appended to the log since the last time goes up as an object of
its own that is never changed, a segment: whole lines, so that a kill loses at most what one interval holds and never
tears a line. `read_segments` gives the log back. Other files of the folder go up whole where they changed.

    metrics/00002-000017.jsonl      the 17th segment of the second start
"""

import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmed_jax.common.buckets.bucket import Bucket, checksum_of, open_bucket
from mmed_jax.common.errors import UserError, WorkError, one_line, warn
from mmed_jax.common.places import Place

INTERVAL_S = 60.0
_LARGEST = 64 << 20  # bytes of a segment
_THREADS = 8  # a run of ten days has 14,400 segments; the client keeps ten connections
_SEGMENT = re.compile(r"(\d{5,})-(\d{6,})\.\w+")


class GrowingFiles:
    """A folder of this machine whose files go to a folder in a bucket. May be used from several threads.

    Only one at a time may write to a place, which a lock sees to (lease.py): the number of this start comes from the
    segments that are there.

    Args:
      place: the folder in the bucket.
      log: name of the file that is appended to ("metrics.jsonl"); its segments lie in the folder of its stem.
      interval_s: after which what was appended goes up.
    """

    def __init__(self, place: Place, log: str, interval_s: float = INTERVAL_S):
        self.place, self.folder = place, Path(tempfile.mkdtemp(prefix="mmed_jax_growing."))
        self._log, self._interval = self.folder / log, interval_s
        self._start, self._segments = 0, 0
        self._sent = self._until = 0  # bytes that are up, and the end of the segment on its way
        self._sums: dict[str, tuple[int, int]] = {}
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="growing files")
        self._thread.start()

    def flush(self, everything: bool = False) -> None:
        """Sends what was appended; with `everything` the other files as well.

        Raises:
          WorkError, UserError: of the bucket. What was not sent goes with the next call.
        """
        with self._sending:
            bucket, key = open_bucket(self.place)
            self._send_log(bucket, key)
            if everything:
                upload_folder(self.folder, self.place, self._sums, without=(self._log.name,))

    def close(self) -> None:
        """Sends all and removes the folder. Raises as flush; then the folder stays, and the error names it."""
        self._over.set()
        try:
            self.flush(everything=True)
        except KeyboardInterrupt:
            warn(f"what was not uploaded to {self.place} lies in {self.folder}")
            raise
        except (WorkError, UserError) as e:
            raise e.with_hint(f"; what was not uploaded lies in {self.folder}") from e
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send_log(self, bucket: Bucket, key: str) -> None:
        if not self._log.exists():
            return
        prefix = "/".join(filter(None, (key, self._log.stem)))
        while True:
            if self._until == self._sent:
                with open(self._log, "rb") as f:
                    f.seek(self._sent)
                    data = f.read(_LARGEST)
                self._until += data.rfind(b"\n") + 1
            if self._until == self._sent:
                return
            if not self._start:
                there = bucket.list(f"{prefix}/")
                self._start = 1 + max((number for number, _ in _numbers(o.name for o in there)), default=0)
            with open(self._log, "rb") as f:
                f.seek(self._sent)
                data = f.read(self._until - self._sent)
            # One whose answer was lost is sent again with the same bytes, however many have come since.
            name = f"{prefix}/{self._start:05}-{self._segments + 1:06}{self._log.suffix}"
            bucket.put(name, data, if_generation=0)
            self._segments += 1
            self._sent = self._until

    def _follow(self) -> None:
        silent = False
        while not self._over.wait(self._interval):
            try:
                self.flush()
                silent = False
            except (WorkError, UserError, OSError) as e:
                if not silent and not self._over.is_set():
                    line = f"warning: {self._log.name} is not uploaded now, it is tried again ({one_line(e)})"
                    print(line, file=sys.stderr, flush=True)
                silent = True


def read_segments(place: Place, log: str) -> bytes:
    """All that was appended to `log` of a folder in a bucket, over all starts. b"" when there is nothing.

    An object that is called like the log comes first: of a folder that was copied from a disk.

    Raises:
      WorkError, UserError: of the bucket.
    """
    bucket, key = open_bucket(place)
    stem, _, _ = log.partition(".")
    prefix, whole = ("/".join(filter(None, (key, name))) for name in (stem, log))
    names = {n: o.name for o in bucket.list(f"{prefix}/") for n in _numbers([o.name])}
    copied = bucket.get(whole) if bucket.stat(whole) is not None else b""
    if copied and not copied.endswith(b"\n"):
        copied += b"\n"
    with ThreadPoolExecutor(_THREADS) as pool:
        return copied + b"".join(pool.map(bucket.get, (names[n] for n in sorted(names))))


def segments_version(place: Place, log: str) -> str:
    """A text that changes when more of `log` has come up; nothing is fetched.

    Raises:
      WorkError, UserError: of the bucket.
    """
    bucket, key = open_bucket(place)
    objects = bucket.list("/".join(filter(None, (key, log.partition(".")[0]))))
    return f"{len(objects)}-{sum(o.size for o in objects)}"


def upload_folder(
    folder: Path, place: Place, known: dict[str, tuple[int, int]] | None = None, without: tuple[str, ...] = ()
) -> None:
    """Puts the files of a folder, and of those in it, into a bucket: each whole, and none that is there already.

    Args:
      known: sizes and checksums of what was sent before, kept by the caller; None = the bucket is asked.
      without: files that are left out.

    Raises:
      WorkError, UserError: of the bucket. OSError: of the folder.
    """
    bucket, key = open_bucket(place)
    prefix = f"{key}/" if key else ""
    if known is None:
        known = {o.name[len(prefix) :]: (o.size, o.crc32c) for o in bucket.list(prefix)}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if name in without or (file.name.startswith(".") and file.name.endswith(".tmp")):
            continue
        try:
            state = file.stat().st_size, checksum_of(file)
            if known.get(name) != state:
                stored = bucket.put(prefix + name, file)
                known[name] = stored.size, stored.crc32c
        except FileNotFoundError:  # one of a library that has removed it again
            continue


def _numbers(names: Iterable[str]) -> list[tuple[int, int]]:
    """(start, number) of the names that are segments."""
    found = (_SEGMENT.fullmatch(name.rpartition("/")[2]) for name in names)
    return [(int(m[1]), int(m[2])) for m in found if m]
