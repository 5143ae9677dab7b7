"""Paths as users write them, and where this program lies."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from mmed_jax.common.errors import UserError

# The checkout, or the folder in which the package is installed.
REPO = Path(__file__).resolve().parents[2]
ASSETS = REPO / "mmed_jax" / "assets"


def expand_home(path: str | os.PathLike) -> Path:
    """`path` with a leading ~ or ~NAME replaced by that home directory.

    Raises:
      UserError: it begins with one, and no such home is known (containers with a user id of their own, no HOME); or it
        is an address in a bucket, of which a path would make a folder "gs:" here.
    """
    if os.fspath(path).startswith("gs:/"):
        raise UserError(f"{os.fspath(path)}: is no place in a bucket: name a path of this machine (docs/pods.md)")
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise UserError(f"{os.fspath(path)}: no home directory is known; set HOME or write the path out") from e


def resolve_path(path: str) -> Path:
    """A path of a config: as given (home expanded) when it exists, else relative to the checkout, else as given."""
    p = expand_home(path)
    if not p.exists() and not p.is_absolute() and (REPO / p).exists():
        return REPO / p
    return p


def tail_names(paths: Sequence[PurePath]) -> list[str]:
    """For each path as much of its end as tells it from the others, "stage1" or "a/stage1"."""

    def name(path: PurePath) -> str:
        for n in range(1, len(path.parts)):
            tail = path.parts[-n:]
            if sum(other.parts[-n:] == tail for other in paths) == 1:
                return "/".join(tail)
        return str(path)

    return [name(path) for path in paths]
