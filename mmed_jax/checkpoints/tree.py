"""Trees on disk: any pytree as a nested dict of arrays, its leaves described and compared by path."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from mmed_jax.common.checksums import shorten
from mmed_jax.common.errors import UserError

Described = dict[str, list[Any]]  # {"layers/q/weight": [[2, 64, 64], "float32"], ...}


def _names(path: tuple) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def to_dict(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree in nested dicts named after their path.

    On disk a tuple or a named tuple becomes {"0": ...} or {"mu": ...}, so that reading needs no optimizer class.
    """
    out: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = _names(path)
        node = out
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return out


def from_dict(like: Any, nested: Mapping[str, Any]) -> Any:
    """The inverse of `to_dict`: the leaves of `nested` in the structure of `like`."""

    def find(path: tuple, _: Any) -> Any:
        node: Any = nested
        for name in _names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"layers/q/weight": leaf, ...} of a nested dict."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat.update(flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = out
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return out


def describe(nested: Mapping[str, Any]) -> Described:
    """Shape and dtype of every leaf by path, as JSON values."""
    return {path: [list(x.shape), str(jnp.dtype(x.dtype))] for path, x in flatten(nested).items()}


def compare(expected: Mapping[str, Any], saved: Described, what: str, *, dtypes: bool = True) -> None:
    """Raises UserError naming every leaf that is missing, unexpected or of another shape (or dtype).

    Args:
      expected: nested dict of arrays or ShapeDtypeStructs. saved: what the checkpoint holds. what: for the message.
    """
    wanted = describe(expected)
    problems = [f"{p} is missing" for p in wanted if p not in saved]
    problems += [f"{p} is not expected" for p in saved if p not in wanted]
    for path, (shape, dtype) in wanted.items():
        if path in saved and saved[path][0] != shape:
            problems.append(f"{path} has shape {_show(saved[path][0])}, expected {_show(shape)}")
        elif path in saved and dtypes and saved[path][1] != dtype:
            problems.append(f"{path} is {saved[path][1]}, expected {dtype}")
    if problems:
        raise UserError(f"{what}: {len(problems)} leaves differ: {shorten(problems, 100)}")


def _show(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def targets(nested: Mapping[str, Any]) -> dict[str, Any]:
    """What orbax restores into: shape, dtype and sharding of every leaf (the first device where none is said)."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first)

    return jax.tree.map(target, dict(nested))


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """{package: version} of the installed ones among `names`."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
