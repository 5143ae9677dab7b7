"""Results of compiling, kept in files by a hash of all that decides them."""

import ast
import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from ml_collections import ConfigDict

from mmed_jax.common import jsonl
from mmed_jax.common.output_files import write_text
from mmed_jax.model.config import LlamaConfig
from mmed_jax.planning.compile_keys import relevant
from mmed_jax.planning.topology import Topology

if TYPE_CHECKING:
    from mmed_jax.planning.planner import PlanResult

# Our own sources that decide a result, relative to the package.
SOURCES = (
    "model/*.py",
    "step.py",
    "loss.py",
    "optim.py",
    "adafactor.py",
    "placement.py",
    "sharding.py",
    "flops.py",
    "planning/planner.py",
    "planning/program.py",
    "planning/flags.py",
    "planning/topology.py",
    "planning/memory.py",
    "planning/hlo*.py",
    "planning/links.py",
    "planning/schedule.py",
)
# What is known before anything is compiled.
_BEFORE = ("topology", "mesh", "settings", "parameters", "tokens_per_step", "terms", "model_flops")


def cache_key(config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> str:
    """A hash of everything that decides the result: settings, model, topology, flags, compiler, and our own sources."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for source in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        digest.update(code_of(source.read_text(encoding="utf-8")))
    versions = {}
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    facts = [relevant(config), dataclasses.asdict(cfg), dataclasses.asdict(topology), versions, digest.hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()[:24]


def code_of(source: str) -> bytes:
    """What a Python source does, without comments and docstrings: other words are no reason to compile again."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return ast.dump(tree).encode()


def keep(path: Path, result: "PlanResult", say: Callable[[str], None]) -> None:
    """Keeps a result for the next call. A folder that can't be written costs that call its time, not this one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(result)))
    except OSError as e:
        say(f"warning    this result is not kept: {path.parent}: {e.strerror}")


def read(path: Path, begun: "PlanResult") -> "PlanResult | None":
    """A result that was kept; None when there is none, or none that is whole and of what was begun.

    Args:
      begun: the result as it is before anything is compiled.
    """
    known = json.loads(json.dumps(dataclasses.asdict(begun)))
    kinds = {f.name: f.type for f in dataclasses.fields(begun)}
    try:
        found = jsonl.loads(path.read_bytes(), dict)
        if found.keys() != kinds.keys():
            return None
        if any(found[name] != known[name] for name in _BEFORE):
            return None
        if not all(_is(value, kinds[name]) for name, value in found.items()):
            return None
    except (OSError, ValueError, OverflowError):  # OverflowError: a whole number that no float holds
        return None
    return dataclasses.replace(begun, **found | {"cached": True})


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
