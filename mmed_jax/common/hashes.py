"""Names for contents: a file's bytes, a JSON value whatever the order of its keys. Of code: code_hash.py."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from mmed_jax.common.input_files import open_file


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 (hex) of a file's bytes. Raises UserError as `open_file` does."""
    with open_file(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def json_hash(value: Any, digits: int, default: Callable[[Any], Any] | None = None) -> str:
    """The first `digits` hex digits of the SHA-256 of a JSON value with its keys sorted.

    Args:
      default: what stands for a part that is no JSON value; without it that is a TypeError.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=default)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
