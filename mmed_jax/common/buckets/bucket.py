"""Objects of one bucket: what etils.epath lacks. Conditional writes, listings with checksums, reads of a range.

Every call ends within the bucket's deadline, with the answer or with one line: what is refused (credentials, 403, no
such bucket) is a UserError, a server that does not answer in time is a WorkError. Failures that pass (429, 5xx, a lost
connection) are tried again until then; of a large object that is downloaded for a second longer for each MiB.
"""

import base64
import contextlib
import functools
import io
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.places import GS, split_bucket

DEADLINE_S = 120.0
_READ_S = 60.0  # no byte for so long: the connection is given up and the request sent again
_PART = 8 << 20  # bytes of a part of a resumable upload
_WHOLE = 8 << 20  # bytes up to which an object is one request
_SLOWEST = 1 << 20  # bytes a second of a download


@dataclass(frozen=True)
class Stored:
    """What a bucket says of an object. crc32c: of its bytes (Castagnoli). updated: unix seconds, by its clock."""

    name: str
    size: int
    crc32c: int
    generation: int
    updated: float


# In the class below, `list` is its method.
Names: TypeAlias = list[str]
Objects: TypeAlias = list[Stored]


class Refused(UserError):
    """The bucket does not exist, or it may not be read or written with these credentials."""


class NoAnswer(WorkError):
    """The bucket did not answer in time, or with failures only."""


class Damaged(WorkError):
    """What came is not what the bucket says it is."""


class PreconditionFailed(WorkError):
    """An object is of another generation than the one that was named: another process has written or removed it."""


class Bucket:
    """One bucket of Google Cloud Storage. May be used from several threads.

    Args:
      name: of the bucket. deadline_s: after which a call that got no usable answer ends as NoAnswer.

    Raises:
      Refused: no credentials are known here.
    """

    def __init__(self, name: str, deadline_s: float = DEADLINE_S):
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage

        self.name, self.deadline_s = name, deadline_s
        try:
            # Objects belong to a bucket, and that to a project: none is needed here.
            client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT") or None)
        except (DefaultCredentialsError, OSError) as e:
            raise Refused(
                f"{GS}{name}: no credentials of Google Cloud are known here ({one_line(e)[:200]}); "
                "gcloud auth application-default login, or a service account of the machine"
            ) from e
        self._bucket = client.bucket(name)

    def address(self, name: str) -> str:
        """gs://BUCKET/NAME."""
        return f"{GS}{self.name}/{name}"

    def stat(self, name: str) -> Stored | None:
        """What is known of an object; None when there is none."""
        blob = self._bucket.blob(name)
        with self._limits(name) as limits:
            try:
                blob.reload(**limits)
            except _not_found():
                return None
        return _stored(blob)

    def list(self, prefix: str = "") -> Objects:
        """All objects whose name begins with `prefix`, in order of their names (UTF-8)."""
        with self._limits(prefix) as limits:
            return [_stored(b) for b in self._bucket.list_blobs(prefix=prefix, **limits)]

    def list_folder(self, folder: str) -> tuple[Names, Objects]:
        """What lies directly in a folder: (names of its folders, its objects); both empty when there is none.

        Args:
          folder: a key without slash at its end; "" is the whole bucket.
        """
        prefix = f"{folder}/" if folder else ""
        with self._limits(prefix) as limits:
            found = self._bucket.list_blobs(prefix=prefix, delimiter="/", **limits)
            objects = [_stored(b) for b in found if b.name != prefix]
            return sorted(p[len(prefix) :].rstrip("/") for p in found.prefixes), objects

    def get(self, name: str, begin: int = 0, end: int | None = None, generation: int | None = None) -> bytes:
        """The bytes [begin, end) of an object; all from `begin` without `end`.

        Args:
          generation: of that version only.

        Raises:
          FileNotFoundError: no such object (of that generation).
        """
        if end is not None and end <= begin:
            return b""
        blob = self._bucket.blob(name, generation=generation)
        last = None if end is None else end - 1
        with self._limits(name) as limits:
            try:
                # The range is not what the stored checksum is of.
                whole = begin == 0 and end is None
                return blob.download_as_bytes(
                    start=begin or None, end=last, checksum="crc32c" if whole else None, **limits
                )
            except _not_found() as e:
                raise FileNotFoundError(f"{self.address(name)}: there is no such object") from e
            except _bad_range():
                return b""

    def download(
        self,
        name: str,
        file: Path,
        generation: int | None = None,
        size: int = 0,
        stop: threading.Event | None = None,
    ) -> None:
        """Writes an object to a file, compared with its checksum.

        Args:
          size: of the object as far as it is known: a lost connection of a large one is gone on with for longer.
          stop: once it is set the download ends with an error.

        Raises:
          FileNotFoundError: no such object (of that generation). Damaged: another checksum. OSError: of the file.
        """
        blob = self._bucket.blob(name, generation=generation)
        with self._limits(name, size / _SLOWEST) as limits, file.open("wb") as f:
            try:
                blob.download_to_file(_Stoppable(f, stop or threading.Event()), checksum="crc32c", **limits)
            except _not_found() as e:
                raise FileNotFoundError(f"{self.address(name)}: there is no such object") from e

    def put(self, name: str, data: bytes | Path, if_generation: int | None = None) -> Stored:
        """Writes an object: all of it, or nothing.

        Args:
          data: the bytes, or a file with them.
          if_generation: only when the object is of this generation; 0: only when there is none.

        Raises:
          PreconditionFailed: it is of another generation. (One that holds these very bytes is what was asked for: the
            answer of an earlier try may have been lost.)
        """
        blob = self._bucket.blob(name)
        conditions = {} if if_generation is None else {"if_generation_match": if_generation}
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if size > _WHOLE:
            blob.chunk_size = _PART
        with (
            self._limits(name) as limits,
            open(data, "rb") if isinstance(data, Path) else io.BytesIO(data) as f,
        ):
            try:
                blob.upload_from_file(f, size=size, rewind=True, checksum="crc32c", **conditions, **limits)
            except _precondition() as e:
                there = self.stat(name)
                if there is None or (there.size, there.crc32c) != (size, checksum_of(data)):
                    raise PreconditionFailed(f"{self.address(name)}: was changed by another process") from e
                return there
        return _stored(blob)

    def copy(self, source: Stored, name: str, if_generation: int) -> Stored:
        """Gives the bytes of an object, of its generation, a second name; nothing goes through this machine.

        Args:
          if_generation: as of `put`.

        Raises:
          PreconditionFailed: as of `put`. FileNotFoundError: `source` is no longer there.
        """
        blob = self._bucket.blob(name)
        token = None
        with self._limits(name) as limits:
            try:
                while True:
                    token, _, _ = blob.rewrite(
                        self._bucket.blob(source.name, generation=source.generation),
                        token,
                        if_generation_match=if_generation,
                        **limits,
                    )
                    if token is None:
                        break
            except _not_found() as e:
                raise FileNotFoundError(f"{self.address(source.name)}: there is no such object") from e
            except _precondition() as e:
                there = self.stat(name)
                if there is None or (there.size, there.crc32c) != (source.size, source.crc32c):
                    raise PreconditionFailed(f"{self.address(name)}: was changed by another process") from e
                return there
        return _stored(blob)

    def delete(self, name: str, if_generation: int | None = None) -> None:
        """Removes an object; one that is not there is none. Raises PreconditionFailed."""
        conditions = {} if if_generation is None else {"if_generation_match": if_generation}
        with self._limits(name) as limits:
            try:
                self._bucket.blob(name).delete(**conditions, **limits)
            except _not_found():
                return
            except _precondition() as e:
                raise PreconditionFailed(f"{self.address(name)}: was changed by another process") from e

    @contextlib.contextmanager
    def _limits(self, name: str, longer_s: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yields the limits of a call, and says its failures in the words of this program.

        longer_s: for which failures are tried again beyond the deadline.
        """
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption
        from google.cloud.storage.retry import DEFAULT_RETRY
        from requests.exceptions import RequestException

        deadline = self.deadline_s
        begun = time.monotonic()
        where = self.address(name)
        retry = DEFAULT_RETRY.with_timeout(deadline + longer_s)
        limits = {
            "timeout": (min(10.0, deadline), min(_READ_S, deadline)),
            "retry": retry.with_delay(initial=0.2, maximum=10.0, multiplier=2.0),
        }
        try:
            yield limits
        except (FileNotFoundError, PreconditionFailed):
            raise
        except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError) as e:
            raise Refused(f"{where}: refused by Google Cloud Storage ({_said(e)})") from e
        except exceptions.NotFound as e:
            raise Refused(f"{where}: {GS}{self.name} does not exist, or may not be seen ({_said(e)})") from e
        except (exceptions.RetryError, exceptions.ServerError, exceptions.TooManyRequests, RequestException) as e:
            cause = e.cause if isinstance(e, exceptions.RetryError) and e.cause is not None else e
            waited = time.monotonic() - begun
            raise NoAnswer(f"{where}: no usable answer from the bucket in {waited:.0f} s ({_said(cause)})") from e
        except DataCorruption as e:
            raise Damaged(f"{where}: came with another checksum than the bucket says") from e
        except exceptions.GoogleAPIError as e:
            raise WorkError(f"{where}: {_said(e)}") from e


class _Stoppable:
    """A file that is written to until `stop` is set. Raises WorkError from then on."""

    def __init__(self, file: BinaryIO, stop: threading.Event):
        self._file, self._stop = file, stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise WorkError("the download was stopped")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@functools.lru_cache(maxsize=64)
def _opened(name: str, deadline_s: float, environment: str) -> Bucket:
    return Bucket(name, deadline_s)


def open_bucket(place: str | os.PathLike, deadline_s: float = DEADLINE_S) -> tuple[Bucket, str]:
    """(the bucket, the key) of a place in a bucket; one Bucket for all that ask with the same deadline.

    Raises:
      Refused: no credentials.
    """
    bucket, key = split_bucket(place)
    return _opened(bucket, deadline_s, os.environ.get("STORAGE_EMULATOR_HOST", "")), key


def checksum_of(data: bytes | Path) -> int:
    """CRC-32C of bytes or of a file, as a bucket says it of an object. Raises OSError."""
    import google_crc32c

    if not isinstance(data, Path):
        return google_crc32c.value(data)
    checksum = google_crc32c.Checksum()
    with open(data, "rb", buffering=0) as f:
        while block := f.read(_PART):
            checksum.update(block)
    return int.from_bytes(checksum.digest(), "big")


def _stored(blob: Any) -> Stored:
    crc = int.from_bytes(base64.b64decode(blob.crc32c or ""), "big")
    return Stored(blob.name, int(blob.size or 0), crc, int(blob.generation), blob.updated.timestamp())


def _said(e: BaseException) -> str:
    return one_line(e)[:300]


def _not_found() -> type[Exception]:
    from google.api_core.exceptions import NotFound

    return NotFound


def _precondition() -> type[Exception]:
    from google.api_core.exceptions import PreconditionFailed as Failed

    return Failed


def _bad_range() -> type[Exception]:
    from google.api_core.exceptions import RequestRangeNotSatisfiable

    return RequestRangeNotSatisfiable
