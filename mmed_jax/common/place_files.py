"""Small files at a place, be it a folder of a file system or a bucket: read and written as a disk does it.

What a bucket refuses or does not answer is the OSError that a disk would give: callers know one kind of failure.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.places import Place, is_bucket


def read_bytes(place: Place) -> bytes:
    """The bytes of a file or object. Raises OSError (FileNotFoundError: there is none)."""
    if not is_bucket(place):
        return place.read_bytes()
    from mmed_jax.common.buckets.bucket import open_bucket

    with as_os_error(place):
        bucket, key = open_bucket(place)
        return bucket.get(key)


def is_there(place: Place) -> bool:
    """Whether there is a file or object of this name; False also where that cannot be asked on a disk.

    Raises:
      OSError: the bucket refuses or does not answer.
    """
    if not is_bucket(place):
        return place.is_file()
    from mmed_jax.common.buckets.bucket import open_bucket

    with as_os_error(place):
        bucket, key = open_bucket(place)
        return bucket.stat(key) is not None


def write_bytes(place: Place, data: bytes) -> None:
    """Writes an object of a bucket: whole or not at all. (Files: output_files.put_file.) Raises OSError."""
    from mmed_jax.common.buckets.bucket import open_bucket

    with as_os_error(place):
        bucket, key = open_bucket(place)
        bucket.put(key, data)


@contextlib.contextmanager
def as_os_error(place: Place) -> Iterator[None]:
    """What a bucket raises as the error of a disk."""
    from mmed_jax.common.buckets.bucket import NoAnswer, Refused

    try:
        yield
    except Refused as e:
        raise PermissionError(errno.EACCES, one_line(e), os.fspath(place)) from e
    except NoAnswer as e:
        raise TimeoutError(errno.ETIMEDOUT, one_line(e), os.fspath(place)) from e
    except (WorkError, UserError) as e:
        raise OSError(errno.EIO, one_line(e), os.fspath(place)) from e
