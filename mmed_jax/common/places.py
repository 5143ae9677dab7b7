"""Places as users write them: a path of a file system, or gs://BUCKET/KEY. Every text becomes one here, or an error.

A path costs nothing new: no library of Google's is imported before a gs:// is named.
"""

import os
import re
from pathlib import Path, PurePath
from typing import Any

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.paths import expand_home

GS = "gs://"
# A scheme has two letters or more; C:\x is none.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)")
_WITHOUT_SLASHES = re.compile(r"gs:(?=[^/:\s]+/)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")

# A Path, or an etils.epath.Path (a PurePosixPath): both know /, name, parent and str().
Place = Any


def parse_place(text: str | os.PathLike, flag: str = "") -> Place:
    """A user's text as a place: the one function before any Path.

    Args:
      text: a path (a leading ~ is expanded), gs://BUCKET[/KEY], or a place already.
      flag: what it was given to, "--output" or "config.run_dir", for the error.

    Returns:
      a pathlib.Path, or an etils.epath.Path of the bucket.

    Raises:
      UserError: another scheme (s3://, https://), a mangled address (gs:/b), gs:// without a bucket or with an odd
        key, or gs:// where the extra [gcs] is not installed.
    """
    given = os.fspath(text)
    start = f"{flag}={given}: " if flag else f"{given}: "
    scheme = _SCHEME.match(given)
    if isinstance(text, str) and _WITHOUT_SLASHES.match(given):
        raise UserError(f"{start}a bucket is written with two slashes, gs://{given[3:]}")
    if scheme is None or isinstance(text, Path):
        return expand_home(text)
    if isinstance(text, PurePath) and given.startswith(GS):  # an epath.Path
        return text
    name, slashes = scheme.groups()
    if name != "gs" or slashes != "//":
        rest = given[scheme.end() :].lstrip("/")
        if slashes == "//":
            raise UserError(
                f"{start}places of {name}:// are not supported; name a path, or gs://BUCKET/..."
                + (f"{nearest(name, ['gs'])}" if name.lower() in ("gs", "gcs", "gss") else "")
            )
        if name == "gs":
            raise UserError(f"{start}a bucket is written with two slashes, gs://{rest}")
        return expand_home(text)
    bucket, _, key = given[len(GS) :].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{start}name a bucket, gs://BUCKET/...; its name is 3 to 222 of a-z 0-9 . _ -")
    if key and ({"", ".", ".."} & set(key.rstrip("/").split("/")) or re.search("[\x00-\x1f\x7f#\\[\\]*?]", key)):
        raise UserError(f"{start}a key in a bucket has no empty part, no . or .., and none of # [ ] * ?")
    return _bucket_path(given.rstrip("/"), start)


def is_bucket(place: str | os.PathLike) -> bool:
    """Whether a place that parse_place gave lies in a bucket."""
    return not isinstance(place, Path) and os.fspath(place).startswith(GS)


def split_bucket(place: str | os.PathLike) -> tuple[str, str]:
    """(bucket, key without slashes at its ends) of a place in a bucket."""
    bucket, _, key = os.fspath(place).removeprefix(GS).partition("/")
    return bucket, key.strip("/")


def _bucket_path(text: str, start: str) -> Place:
    # Asks no further service for the kind of a bucket, which would take another permission.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import gcsfs  # noqa: F401
        import google.cloud.storage  # noqa: F401
        from etils import epath
    except ImportError as e:
        raise UserError(f"{start}needs the libraries of Google Cloud Storage: pip install 'mmed_jax[gcs]' ({e})") from e
    return epath.Path(text)
