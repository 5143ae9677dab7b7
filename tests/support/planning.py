"""What the tests of planning share: small models by command line, and a compiler made of arithmetic."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax

from mmed_jax import plan
from mmed_jax.planning import planner, step_time
from mmed_jax.planning.memory import memory_terms, total
from tests.support.training import Outcome, call

# Configuration of jax: the compiler looks for a fast schedule no longer than it must, in a third of the time where a
# step is large. Memory, products and what is sent stay as they are; the schedule's seconds do not. jax 0.12 has them no
# more and compiles as it does for users.
LEAST_EFFORT = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}

# One head of 128: what the TPU kernel takes as it is, and compiles in seconds.
SMALL = {
    "model.hidden_size": 128,
    "model.intermediate_size": 256,
    "model.num_heads": 1,
    "model.num_kv_heads": 1,
    "model.head_dim": 128,
    "model.vocab_size": 512,
    "model.num_layers": 2,
    "model.max_position_embeddings": 4096,
    "data.seq_len": 128,
    "batch_size": 4,
    "mesh.devices": 0,
    "compute_dtype": "bfloat16",
    "xla_flags": "none",
}


def run_plan(topology: str, *flags: str, config: str = "stage1", cache: Path | None = None, **keys: object) -> Outcome:
    """The command in this process. Keys have `__` for the dots of config keys; cache: folder of kept results."""
    given = [f"--config.{k.replace('__', '.')}={v}" for k, v in keys.items()]
    with mock.patch.object(plan, "CACHE", cache):
        return call(plan.main, f"--config={config}", f"--topology={topology}", *given, *flags)


def small(**keys: object) -> dict[str, object]:
    """SMALL with other values, as keyword arguments of run_plan."""
    return {k.replace(".", "__"): v for k, v in SMALL.items()} | keys


@contextlib.contextmanager
def least_effort() -> Iterator[None]:
    """What is compiled within is compiled with LEAST_EFFORT; where memory and products matter, not seconds."""
    names = {f"jax_{name}": value for name, value in LEAST_EFFORT.items() if hasattr(jax.config, f"jax_{name}")}
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for name, value in names.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextlib.contextmanager
def arithmetic_compiler(off: float = 1.2) -> Iterator[list[dict]]:
    """In place of the compiler: arithmetic memory, what a step takes times `off`, and arithmetic speed; no libtpu.

    Yields:
      the settings that were compiled.
    """
    compiled = []

    def by_compiler(result, config, cfg, topology, mesh):
        compiled.append(result.settings | result.mesh)
        terms = memory_terms(config, cfg, mesh)
        result.argument_bytes, result.temporary_bytes = total(terms, "state"), off * total(terms, "step")
        result.needed_bytes = result.summed_bytes = result.argument_bytes + result.temporary_bytes
        result.fits = result.needed_bytes <= result.capacity_bytes
        for name, value in vars(step_time.speed(config, cfg, topology, mesh)).items():
            setattr(result, name, value)

    with mock.patch.object(planner, "_by_compiler", by_compiler):
        yield compiled
