"""Results of compiling, kept in files by a hash of all that decides them."""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, get_args, get_origin

from ml_collections import ConfigDict

from mmed_jax.common import jsonl
from mmed_jax.common.code_hash import code_hash
from mmed_jax.common.hashes import json_hash
from mmed_jax.common.output_files import write_text
from mmed_jax.config.values import compile_settings
from mmed_jax.model.config import LlamaConfig
from mmed_jax.planning.plan_result import PlanResult
from mmed_jax.planning.topology import Topology

# What plans; of what it imports neither what reads, writes and says, nor configs: the keys and sizes that decide a
# result are part of its key or of what is known before.
ENTRIES = ("mmed_jax.planning.planner",)
LEAVE_OUT = ("mmed_jax.common", "mmed_jax.config")
# What is known before anything is compiled.
_BEFORE = (
    "topology",
    "mesh",
    "settings",
    "parameters",
    "trained_parameters",
    "tokens_per_step",
    "terms",
    "model_flops",
)


def cache_key(config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> str:
    """A hash of everything that decides the result: settings, model, topology, flags, compiler, and our own sources."""
    versions = {}
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    facts = [compile_settings(config), dataclasses.asdict(cfg), dataclasses.asdict(topology), versions, plan_code()]
    return json_hash(facts, 24, default=list)


@functools.cache
def plan_code() -> str:
    """Hash of all our code that decides a result: other words in it are no reason to compile again."""
    return code_hash(ENTRIES, leave_out=LEAVE_OUT)


def keep(path: Path, result: PlanResult, say: Callable[[str], None]) -> None:
    """Keeps a result for the next call. A folder that can't be written costs that call its time, not this one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(result)))
    except OSError as e:
        say(f"warning    this result is not kept: {path.parent}: {e.strerror}")


def read(path: Path, begun: PlanResult) -> PlanResult | None:
    """A result that was kept; None when there is none, or none that is whole and of what was begun.

    Args:
      begun: the result as it is before anything is compiled.
    """
    known = json.loads(json.dumps(dataclasses.asdict(begun)))
    kinds = {f.name: f.type for f in dataclasses.fields(begun)}
    try:
        kept = jsonl.loads(path.read_bytes(), dict)
        if kept.keys() != kinds.keys():
            return None
        if any(kept[name] != known[name] for name in _BEFORE):
            return None
        if not all(_is(value, kinds[name]) for name, value in kept.items()):
            return None
    except (OSError, ValueError, OverflowError):  # OverflowError: a whole number that no float holds
        return None
    return dataclasses.replace(begun, **kept | {"cached": True})


def _is(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of an annotated type; numbers must be finite."""
    inner = get_args(kind)
    if kind is Any:
        return True
    if get_origin(kind) is types.UnionType:
        return any(_is(value, k) for k in inner)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(v, inner[1]) for v in value.values())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(v, inner[0]) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)
