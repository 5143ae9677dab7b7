"""Paths as users write them."""

import os
from pathlib import Path

from mmed_jax.common.errors import UserError


def expand_home(path: str | os.PathLike) -> Path:
    """`path` with a leading ~ or ~NAME replaced by that home directory.

    Raises:
      UserError: it begins with one, and no such home is known (containers with a user id of their own, no HOME).
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise UserError(f"{os.fspath(path)}: no home directory is known; set HOME or write the path out") from e
