"""Memory of the machine when a run computes on its CPUs: what stays, what a step takes, what a save takes besides."""

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from mmed_jax.config.values import with_values
from mmed_jax.model.config import LlamaConfig
from mmed_jax.planning.memory import FROZEN, memory_terms, total
from mmed_jax.planning.plan_report import size

if TYPE_CHECKING:
    from jax.sharding import Mesh

# Python with jax, transformers and the compiled programs, before the first array.
PROGRAMS_BYTES = 0.7 * 2**30
# A save holds a copy of the state until it is written, and beside it what is packed and on its way to the disk.
SAVE_SHARE = 1.5


def estimate(config: ConfigDict, cfg: LlamaConfig, mesh: "Mesh") -> dict[str, float]:
    """{what: bytes} that this process takes at its fullest moment, a save beside a running step; by arithmetic.

    Args:
      mesh: of CPU devices; those of this process share its memory.
    """
    import jax

    from mmed_jax.training.program import attention_backend

    backend = attention_backend(config, cfg, "cpu", dict(mesh.shape)["context"])
    terms = memory_terms(with_values(config, {"attention": backend}), cfg, dict(mesh.shape))
    own = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
    state = total(terms, "state") * own
    # A save has what is trained, not the weights beneath an adapter.
    saved = total([t for t in terms if t.name != FROZEN], "state") * own
    return {
        "programs": PROGRAMS_BYTES,
        "state": state,
        "a step": total(terms, "step") * own,
        "a save": SAVE_SHARE * saved,
    }


def describe(parts: dict[str, float]) -> str:
    """One line: the sum and its parts."""
    return f"about {size(sum(parts.values()))} of this host: " + ", ".join(f"{k} {size(n)}" for k, n in parts.items())
