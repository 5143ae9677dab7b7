"""What a checkpoint's stores really hold, and paths that the libraries which write them cannot misread."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import tensorstore as ts

from mmed_jax.checkpoints.tree import Described
from mmed_jax.common.errors import UserError
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.places import Place, is_bucket, split_bucket

# Letters and digits of any script, and signs that mean nothing to glob, TensorStore's paths or a URL.
_HARMLESS = re.compile(r"(?:gs://)?[\w ./+=,@~-]*")
_ALIAS = re.compile(r"/proc/self/fd/\d+/?")


@contextlib.contextmanager
def plain_path(folder: Place) -> Iterator[Place]:
    """A name for an existing folder in which no character has a meaning, good until the block ends.

    Orbax looks for its own files with glob, where "lr=[1e-5]" is a set of characters, and TensorStore takes a backslash
    for a slash: both write elsewhere or find nothing, without an error. The kernel's name for the opened folder leads
    to the same files.

    Raises:
      UserError: the name has such characters, and this system has no other name for a folder.
    """
    folder = folder if is_bucket(folder) else folder.resolve()
    if _HARMLESS.fullmatch(str(folder)):
        yield folder
        return
    if is_bucket(folder):
        raise _odd_name(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        alias = Path(f"/proc/self/fd/{descriptor}")
        if not alias.is_dir() or not alias.samefile(folder):
            raise _odd_name(folder)
        yield alias
    finally:
        os.close(descriptor)


def _odd_name(folder: Place) -> UserError:
    odd = sorted(set(_HARMLESS.sub("", str(folder))))
    return UserError(
        f"{folder}: checkpoints cannot lie in a folder whose path holds {' '.join(map(repr, odd))}; "
        "use another --config.run_dir"
    )


def without_alias(text: str) -> str:
    """A message in which names of `plain_path` are gone; what is left is the path below the folder."""
    return _ALIAS.sub("", text)


def stored_problems(folder: Place, leaves: Mapping[str, Described]) -> list[str]:
    """Compares what was written with what a checkpoint of this state holds, without reading an array.

    Every leaf must be in its item's store with its shape and dtype, and with all its chunks: each process writes its
    own part, and only their merged store is asked here.

    Args:
      folder: the checkpoint, under any name. leaves: {"params": ..., "opt_state": ...} (checkpoint_tree.describe).

    Returns:
      What is wrong, one phrase per leaf; empty: all there.
    """
    problems = []
    for item, described in leaves.items():
        with plain_path(folder / item) as path:
            store = ts.KvStore.open({"driver": "ocdbt", "base": _kvstore(path)}).result()
            keys = {bytes(k).decode() for k in store.list().result()}
            heads = {p: f"{p.replace('/', '.')}/.zarray" for p in described}
            found = {p: store.read(key) for p, key in heads.items() if key in keys}
            chunks: dict[str, int] = {}
            for key in keys:
                name = key.rpartition("/")[0]
                chunks[name] = chunks.get(name, 0) + (not key.endswith("/.zarray"))
            for leaf, wanted in described.items():
                head = found[leaf].result().value if leaf in found else None
                wrong = _problem(head, chunks.get(leaf.replace("/", "."), 0), wanted)
                problems += [f"{item}/{leaf} {wrong}"] if wrong else []
    return problems


def _kvstore(folder: Place) -> dict[str, str]:
    """A folder as TensorStore names it."""
    if is_bucket(folder):
        bucket, key = split_bucket(folder)
        return {"driver": "gcs", "bucket": bucket, "path": f"{key}/"}
    return {"driver": "file", "path": f"{folder}/"}


def _problem(head: bytes | None, chunks: int, wanted: list) -> str:
    """What is wrong with one leaf, given its Zarr header and how many of its chunks there are."""
    if head is None:
        return "is missing"
    shape, dtype = wanted
    try:
        header = loads(head, dict)
        found, parts = [int(n) for n in header["shape"]], [max(1, int(n)) for n in header["chunks"]]
        kind = str(jnp.dtype(header["dtype"]))
    except (BadJSON, KeyError, TypeError, ValueError) as e:
        return f"has no readable header ({e})"
    if found != list(shape):
        return f"has shape {found} instead of {list(shape)}"
    if kind != dtype:
        return f"is {kind} instead of {dtype}"
    expected = math.prod(-(-n // c) for n, c in zip(found, parts, strict=True))
    return "" if chunks == expected else f"has {chunks} of its {expected} parts"
