"""The folder of a bucket that a long build makes: built on this machine, put up so that no half is taken for whole.

What the build writes lies below cache_folder() under a hash of the address, and stays there, so that the same command
goes on after any end. `path` is the finished folder, which goes up when the build is done; `work` holds what is made on
the way, for which `store` is the address (who makes it puts it up). One process builds at an address at a time, on
whatever host: a lease (lease.py) beside the work.

A finished file that the work holds already (size and CRC-32C are equal) is copied within the bucket. While files change
the folder has not its last one, by which readers know a whole one; it is written when a listing has shown all others. A
download of the folder leaves the work out (download.py).
"""

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from mmed_jax.common.buckets.bucket import PreconditionFailed, Stored, checksum_of, open_bucket
from mmed_jax.common.buckets.download import VARIABLE, WORK, cache_folder, wait_for_all
from mmed_jax.common.buckets.lease import Lease
from mmed_jax.common.buckets.local_places import naming_addresses
from mmed_jax.common.errors import ReportedError, UserError, WorkError, one_line
from mmed_jax.common.places import parse_place

_THREADS = 8


class BuiltFolder:
    """The folder at a gs:// address.

    Args:
      address: of it. flag: what it was given to. folders: names of the folders in it that the build makes anew.
      files: names of the files in it, the one that is written last at the end.

    Attributes:
      path, work: folders of this machine. store: the address of `work`.

    Raises:
      UserError: no folder is named, or the bucket refuses.
    """

    def __init__(self, address: str, flag: str, folders: Sequence[str], files: Sequence[str]):
        self.address, self._flag = address.rstrip("/"), flag
        self._bucket, self._key = open_bucket(parse_place(address, flag))
        if not self._key:
            raise UserError(f"{flag}={address}: name something in the bucket, gs://BUCKET/NAME")
        self._folders, self._files = tuple(folders), tuple(files)
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:20]
        self._root = cache_folder() / "builds" / self._bucket.name / digest
        self.path, self.work = self._root / "output" / self._key.rpartition("/")[2], self._root / WORK
        self.store = f"{self.address}/{WORK}"
        self._lease = Lease(self._bucket, f"{self._key}/{WORK}/lock", f"{flag}={self.address}")
        self._locked: IO[str] | None = None

    def open(self) -> None:
        """Takes the lock and shows in `path` what lies in the folder: the files of the build whole, all else empty.

        Raises:
          UserError: another process builds there, a file has that name, or the cache folder cannot be written.
          WorkError: no answer.
        """
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._locked = open(self._root / "lock", "w")
        except OSError as e:
            raise UserError(f"{cache_folder()}: cannot be written ({e.strerror or e}); {VARIABLE} names another") from e
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._locked.close()
            raise UserError(
                f"{self._flag}={self.address}: another process of this host builds there; wait for it, or name another"
            ) from None
        try:
            if self._bucket.stat(self._key) is not None:
                raise UserError(f"{self._flag}={self.address}: is a file, not a folder")
            self._lease.take()
            self._show()
        except OSError as e:
            self.close()
            raise UserError(f"{self._flag}={self.address}: cannot be shown in {self.path} ({one_line(e)})") from e
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back."""
        self._lease.release()
        if self._locked is not None:
            self._locked.close()

    def publish(self) -> None:
        """Makes the folder of the bucket what `path` is; what is there already is left.

        Raises:
          WorkError, UserError: it could not be put up, or not to its end; the same command goes on.
        """
        try:
            self._publish()
        except (OSError, ReportedError) as e:
            kind = UserError if isinstance(e, UserError) else WorkError
            raise kind(
                f"{self.address}: could not be uploaded to its end ({one_line(e)}); the same command goes on"
            ) from e

    def _show(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)
        folders, objects = self._bucket.list_folder(self._key)
        if folders or objects:
            self.path.mkdir(parents=True)
        if not self._bucket.list_folder(f"{self._key}/{WORK}")[0]:  # our own lock alone
            folders = [name for name in folders if name != WORK]
        for name in folders:
            (self.path / name).mkdir(exist_ok=True)
        for stored in objects:
            name = stored.name.rpartition("/")[2]
            if name in self._files:
                self._bucket.download(stored.name, self.path / name, stored.generation, stored.size)
            else:
                (self.path / name).touch()

    def _publish(self) -> None:
        prefix, last = f"{self._key}/", self._files[-1]
        made = {name: self.path / name for name in self._names()}
        states = {name: (file.stat().st_size, checksum_of(file)) for name, file in made.items()}
        there, work = self._list()
        changed = [n for n in states if n not in there or _state(there[n]) != states[n]]
        removed = there.keys() - made.keys()
        if not changed and not removed:
            return
        self._lease.renew()  # asks the bucket: this process may have stood still

        def put(name: str) -> None:
            generation = there[name].generation if name in there else 0
            if (same := work.get(states[name])) is not None:
                self._bucket.copy(same, prefix + name, generation)
            else:
                self._bucket.put(prefix + name, made[name], generation)

        def delete(name: str) -> None:
            self._bucket.delete(prefix + name, there[name].generation)

        try:
            if last in there and (changed != [last] or removed):
                delete(last)
                del there[last]
            with ThreadPoolExecutor(_THREADS) as pool:
                futures = [pool.submit(put, n) for n in changed if n != last]
                futures += [pool.submit(delete, n) for n in removed - {last}]
                wait_for_all(pool, futures)
            self._lease.renew()
            found = {name: _state(stored) for name, stored in self._list()[0].items() if name != last}
            if differing := sorted(n for n, _ in found.items() ^ states.items() if n != last):
                raise WorkError(f"{self._bucket.address(prefix + differing[0])}: another process writes there as well")
            put(last)
        except PreconditionFailed as e:
            raise WorkError("another process writes there as well") from e

    def _list(self) -> tuple[dict[str, Stored], dict[tuple[int, int], Stored]]:
        """(objects of the finished folder by name, those of the work by size and checksum)."""
        there: dict[str, Stored] = {}
        work: dict[tuple[int, int], Stored] = {}
        for stored in self._bucket.list(f"{self._key}/"):
            name = stored.name.removeprefix(f"{self._key}/")
            if name.startswith(f"{WORK}/"):
                work[_state(stored)] = stored
            elif (name in self._files or name.partition("/")[0] in self._folders) and not name.endswith("/"):
                there[name] = stored
        return there, work

    def _names(self) -> Iterator[str]:
        yield from (name for name in self._files if (self.path / name).is_file())
        for folder in self._folders:
            for file in sorted((self.path / folder).rglob("*")):
                if file.is_file():
                    yield file.relative_to(self.path).as_posix()


def _state(stored: Stored) -> tuple[int, int]:
    return stored.size, stored.crc32c


@contextlib.contextmanager
def built_folder(address: str, flag: str, folders: Sequence[str], files: Sequence[str]) -> Iterator[BuiltFolder]:
    """Yields an open BuiltFolder, which is put up when the block ends well. What is printed and raised in the block
    names the address in the place of its `path`.

    Raises:
      UserError, WorkError: see BuiltFolder.
    """
    built = BuiltFolder(address, flag, folders, files)
    built.open()
    try:
        with naming_addresses({str(built.path): built.address}):
            yield built
        built.publish()
    finally:
        built.close()
    print(f"uploaded   {built.address}", flush=True)
