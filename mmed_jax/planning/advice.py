"""What to change when a program does not fit: tried by arithmetic first, then checked by compiling."""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError
from mmed_jax.config.values import as_flags, flatten, with_values
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel.chips import GIB, GPUS_A_NODE, TPUS
from mmed_jax.planning.memory import memory_terms, total
from mmed_jax.planning.plan_result import PlanResult
from mmed_jax.planning.planner import GPU_ROOM, mesh_sizes, plan
from mmed_jax.planning.smaller_configs import adapters, smaller, varied
from mmed_jax.planning.topology import Topology, parse

# Configurations that are compiled to find one that fits.
TRIES = 3


@dataclass(frozen=True)
class Advice:
    """changes: config keys and values that make it fit, as for the command line; {} when nothing that was tried does.

    learns: what is learned otherwise with them, "" if only rounding differs. checked: the compiler agrees; slice: the
    smallest that fits with the config as it is (by arithmetic), "" if none. tried: what was varied, in words.
    adapter: the same of an adapter in place of all weights (by arithmetic), {} where none is needed or none fits.
    """

    changes: dict[str, Any]
    needed_bytes: float
    checked: bool
    slice: str
    learns: str = ""
    tried: str = ""
    adapter: dict[str, Any] = field(default_factory=dict)
    adapter_bytes: float = 0.0
    adapter_learns: str = ""

    def lines(self) -> list[str]:
        """The advice as text."""
        out = []
        if self.changes:
            evidence = "compiled" if self.checked else "by arithmetic"
            out.append(
                f"next       {as_flags(self.changes)}   ({self.needed_bytes / GIB:.1f} GiB a chip, {evidence}"
                + (f"; {self.learns})" if self.learns else ")")
            )
        else:
            out.append(f"next       nothing that was tried fits on this slice: {self.tried}")
        if self.adapter:
            out.append(
                f"or         {as_flags(self.adapter)}   ({self.adapter_bytes / GIB:.1f} GiB a chip, by arithmetic; "
                f"{self.adapter_learns})"
            )
        if self.slice:
            out.append(f"or         a larger slice: --topology={self.slice} (by arithmetic)")
        return out


def advise(
    config: ConfigDict,
    cfg: LlamaConfig,
    topology: Topology,
    result: PlanResult,
    *,
    verify: bool = True,
    **plan_options: Any,
) -> Advice:
    """The smallest change after which a configuration that does not fit does (smaller_configs.smaller, in its order).

    The arithmetic is scaled by what it was off for the configurations that did not fit, as the compiler said. Where all
    weights are trained, an adapter that fits is named besides, by arithmetic: it is never what is advised alone.

    Args:
      result: of `plan`, not fitting. verify: compile the candidates (TPUs only) until one fits; after TRIES the next
        is taken unchecked.
      plan_options: as for `plan`.
    """
    ran = with_values(config, {"attention": result.settings["attention"]})
    factor = off_by(ran, cfg, result)
    advice, tries = Advice({}, 0.0, False, larger_slice(ran, cfg, topology, factor), tried=varied(config)), 0
    for change in adapters(config, cfg, result.mesh, topology.kind):
        needed = bytes_needed(change.config, cfg, change.mesh, factor)
        if needed <= room(topology):
            advice = replace(advice, adapter=change.changes, adapter_bytes=needed, adapter_learns=change.learns)
            break
    for change in smaller(config, cfg, result.mesh, topology.kind):
        needed = bytes_needed(change.config, cfg, change.mesh, factor)
        if needed > room(topology):
            continue
        if not verify or topology.kind != "tpu" or tries == TRIES:
            return replace(advice, changes=change.changes, needed_bytes=needed, learns=change.learns)
        tries += 1
        checked = plan(with_values(config, change.changes), cfg, topology, **plan_options)
        if checked.fits:
            compiled = checked.needed_bytes
            return replace(advice, changes=change.changes, needed_bytes=compiled, checked=True, learns=change.learns)
        factor = max(factor, off_by(change.config, cfg, checked))
    return advice


def off_by(config: ConfigDict, cfg: LlamaConfig, result: PlanResult) -> float:
    """What the compiler wants for a step over what the arithmetic says; 1 for a plan by arithmetic.

    What lives always is known exactly; only the rest is scaled.
    """
    terms = memory_terms(config, cfg, result.mesh)
    wanted = result.needed_bytes - total(terms, "state")
    return max(0.5, wanted / total(terms, "step")) if wanted > 0 else 1.0


def bytes_needed(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int], factor: float) -> float:
    """Bytes of a chip by arithmetic, what a step takes times `factor` (off_by)."""
    terms = memory_terms(config, cfg, mesh)
    return total(terms, "state") + factor * total(terms, "step")


def room(topology: Topology) -> float:
    """Bytes of a chip that a configuration may take by arithmetic to be tried."""
    return topology.hbm_bytes * (0.97 if topology.kind == "tpu" else GPU_ROOM)


def larger_slice(config: ConfigDict, cfg: LlamaConfig, topology: Topology, factor: float = 1.0) -> str:
    """The smallest larger slice of the same chips that holds the config as it is, by arithmetic; "" if none does."""
    if topology.kind == "tpu":
        names = [f"{topology.chip}-{n}" for n in TPUS[topology.chip].shapes]
    else:
        names = [f"gpu:{n}x{topology.chip}" for n in (1, 2, 4, *(GPUS_A_NODE * k for k in (1, 2, 4, 8, 16)))]
    for name in names:
        candidate = parse(name)
        if candidate.chips <= topology.chips:
            continue
        try:
            mesh = mesh_sizes(config, cfg, candidate)
        except UserError:  # the batch or the model does not divide there
            continue
        if bytes_needed(config, cfg, mesh, factor) <= 0.9 * candidate.hbm_bytes:
            return name
    return ""


def next_line(
    config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int], platform: str, capacity: float, factor: float = 1.0
) -> str:
    """What to try next after devices ran out of memory, in a line. Arithmetic only.

    Args:
      mesh: size of every mesh axis. platform: of the devices. capacity: bytes of a device, 0 = not known. factor: what
        a step really takes over what arithmetic says (off_by), where the compiler told.
    """
    from mmed_jax.training.program import attention_backend

    ran = with_values(config, {"attention": attention_backend(config, cfg, platform, mesh["context"])})
    needed = bytes_needed(ran, cfg, mesh, factor)
    flat = flatten(config)
    for change in itertools.chain(smaller(config, cfg, mesh, platform), adapters(config, cfg, mesh, platform)):
        new = bytes_needed(change.config, cfg, change.mesh, factor)
        if new < 0.85 * needed and (not capacity or new < 0.85 * capacity):
            was = ", ".join(f"{k} is {flat[k]}" for k in change.changes)
            learns = f"; {change.learns}" if change.learns else ""
            return f"next       {as_flags(change.changes)}   (about {new / GIB:.2f} GiB; now {was}{learns})"
    return f"next       more devices, or a smaller model: nothing that was tried fits ({varied(config)})"
