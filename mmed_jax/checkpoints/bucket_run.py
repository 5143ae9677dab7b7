"""A run directory in a bucket.

    .lock                           common/buckets/lease.py
    checkpoints/STEP/               written in its place; finished by its last object, STEP/commit_success.txt
    checkpoints/STEP.corrupt.json   STEP could not be read: it is kept, and not used
    metrics/, tensorboard/, ...     common/buckets/growing_files.py

Objects have no rename, and a folder is no more than what names begin with.
"""

import contextlib
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.checkpoints.metrics_file import METRICS_FILE
from mmed_jax.checkpoints.run_storage import CHECKPOINTS, LOCK_FILE, STEP, RunStorage
from mmed_jax.common.buckets.bucket import Bucket, open_bucket
from mmed_jax.common.buckets.download import COMMITTED, SET_ASIDE
from mmed_jax.common.buckets.growing_files import GrowingFiles, upload_folder
from mmed_jax.common.buckets.lease import Lease
from mmed_jax.common.errors import UserError, WorkError, one_line, warn
from mmed_jax.common.output_files import write_json
from mmed_jax.common.places import Place


class BucketRun(RunStorage):
    """See RunStorage."""

    def __init__(self, place: Place):
        self.place = place
        self._lease: Lease | None = None
        self._growing: GrowingFiles | None = None

    def _open(self, *parts: str) -> tuple[Bucket, str]:
        """The bucket, and the name of an object or folder of the run."""
        bucket, key = open_bucket(self.place)
        return bucket, "/".join(filter(None, (key, *parts)))

    def exists(self) -> bool:
        bucket, key = self._open()
        folders, objects = bucket.list_folder(key)
        return bool(folders or objects)

    def check(self, files: tuple[str, ...]) -> None:
        bucket, probe = self._open(f".write_test.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        data = b"x" * 4096
        bucket.put(probe, data)
        there = bucket.get(probe)
        bucket.delete(probe)
        if there != data:
            raise UserError(f"run_dir={self.place}: an object came back other than it was written")

    def named_steps(self) -> dict[int, tuple[Place, str]]:
        bucket, folder = self._open(CHECKPOINTS)
        aside = {name.removesuffix(SET_ASIDE) for name in self.all_set_aside()}
        steps = [int(name) for name in bucket.list_folder(folder)[0] if STEP.fullmatch(name) and name not in aside]
        finished = [s for s in sorted(steps) if bucket.stat(f"{folder}/{s}/{COMMITTED}") is not None]
        return {s: (self.checkpoints / str(s), "") for s in finished}

    def lock(self) -> None:
        if self._lease is None:
            bucket, name = self._open(LOCK_FILE)
            lease = Lease(bucket, name, f"run_dir={self.place}")
            lease.take()
            self._lease = lease

    def lock_holder(self) -> tuple[str, bool]:
        bucket, name = self._open(LOCK_FILE)
        return Lease(bucket, name, f"run_dir={self.place}").holder()

    def unlock(self) -> None:
        """Brings what has grown to the bucket first. Raises WorkError, UserError where that fails."""
        growing, self._growing = self._growing, None
        lease, self._lease = self._lease, None
        failing = sys.exc_info()[0] is not None  # what is on its way says more than what is said here
        try:
            if growing is not None:
                growing.close()
        except (WorkError, UserError) as e:
            if not failing:
                raise
            warn(one_line(e))
        finally:
            if lease is not None:
                lease.release()

    def check_lock(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def being_written(self, step: int) -> Place | None:
        bucket, folder = self._open(CHECKPOINTS, str(step))
        return self.checkpoints / str(step) if bucket.list_folder(folder)[0] else None

    def before_commit(self) -> None:
        """A step that is finished has its numbers in the bucket, and was finished by the holder of the lock."""
        self.flush()
        if self._lease is not None:
            self._lease.renew()

    def set_aside(self, step: int) -> str:
        name = f"{step}{SET_ASIDE}"
        what = "could not be read; it is kept until this step is saved again, and not used"
        write_json(self.checkpoints / name, {"step": step, "why": what})
        return f"marked by {name}"

    def all_set_aside(self) -> list[str]:
        bucket, folder = self._open(CHECKPOINTS)
        names = (o.name.rpartition("/")[2] for o in bucket.list_folder(folder)[1])
        return sorted(name for name in names if name.endswith(SET_ASIDE))

    def aside_in_place(self) -> list[int]:
        names = (name.removesuffix(SET_ASIDE) for name in self.all_set_aside())
        return sorted(int(name) for name in names if STEP.fullmatch(name))

    def forget_aside(self, step: int) -> None:
        bucket, name = self._open(CHECKPOINTS, f"{step}{SET_ASIDE}")
        bucket.delete(name)

    @contextlib.contextmanager
    def put_folder(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="mmed_jax.") as folder:
            yield Path(folder)
            self._upload(Path(folder), self.place / name)

    @contextlib.contextmanager
    def put_files(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="mmed_jax.") as folder:
            yield Path(folder)
            self._upload(Path(folder), self.place)

    def _upload(self, folder: Path, place: Place) -> None:
        try:
            upload_folder(folder, place)
        except OSError as e:
            raise WorkError(f"{place}: cannot be written ({e.strerror or e})") from e

    @property
    def growing(self) -> Path:
        if self._growing is None:
            self._growing = GrowingFiles(self.place, METRICS_FILE)
        return self._growing.folder

    def flush(self) -> None:
        if self._growing is not None:
            self._growing.flush(everything=True)
