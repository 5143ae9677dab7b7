"""What to change when a program does not fit: tried by arithmetic first, then checked by compiling."""

import copy
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.config import flatten
from mmed_jax.model.config import LlamaConfig
from mmed_jax.planning.memory import memory_terms, smaller, total
from mmed_jax.planning.planner import PlanResult, mesh_sizes, plan
from mmed_jax.planning.topology import GPUS_A_NODE, SHAPES, Topology, parse

GIB = 2**30
# Configurations that are compiled to find one that fits.
TRIES = 3


@dataclass(frozen=True)
class Advice:
    """changes: config keys and values that make it fit, as for the command line; {} when only another slice helps.

    checked: the compiler agrees; slice: the smallest that fits with the config as it is (by arithmetic), "" if none.
    """

    changes: dict[str, Any]
    alloc_bytes: float
    checked: bool
    slice: str

    def lines(self) -> list[str]:
        """The advice as text."""
        out = []
        if self.changes:
            how = "compiled" if self.checked else "by arithmetic"
            out.append(f"next       {as_flags(self.changes)}   ({self.alloc_bytes / GIB:.1f} GiB a chip, {how})")
        else:
            out.append("next       no setting makes it fit on this slice")
        if self.slice:
            out.append(f"or         a larger slice: --topology={self.slice} (by arithmetic)")
        return out


def as_flags(changes: dict[str, Any]) -> str:
    """Changes as command-line flags."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy of the config with other values, in the types it has."""
    out = ConfigDict(copy.deepcopy(config.to_dict()))
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = out
        for parent in parents:
            node = node[parent]
        node[leaf] = value
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
    """The smallest change after which a configuration that does not fit does.

    The arithmetic is shifted by what it was off for the configuration that failed, as far as the compiler said so.

    Args:
      result: of `plan`, not fitting. verify: compile the candidates (TPUs only) until one fits, at most TRIES.
      plan_options: as for `plan`.
    """
    mesh = result.mesh
    state = total(memory_terms(config, cfg, mesh), "state")
    step = total(memory_terms(config, cfg, mesh), "step")
    # What is kept is known exactly; what a step takes is scaled by what the compiler said of this one.
    factor = max(0.5, (result.alloc_bytes - state) / step) if result.alloc_bytes > state else 1.0
    room = topology.hbm_bytes * (0.97 if topology.kind == "tpu" else 0.92)

    tries = 0
    for changes in smaller(config, mesh):
        new = changed(config, changes)
        terms = memory_terms(new, cfg, mesh)
        needed = total(terms, "state") + factor * total(terms, "step")
        if needed > room:
            continue
        if not verify or topology.kind != "tpu":
            return Advice(changes, needed, False, larger_slice(config, cfg, topology, factor))
        tries += 1
        if tries > TRIES:
            break
        checked = plan(new, cfg, topology, **plan_options)
        if checked.fits:
            return Advice(changes, checked.alloc_bytes, True, larger_slice(config, cfg, topology, factor))
    return Advice({}, 0.0, False, larger_slice(config, cfg, topology, factor))


def larger_slice(config: ConfigDict, cfg: LlamaConfig, topology: Topology, factor: float = 1.0) -> str:
    """The smallest larger slice of the same chips that holds the config as it is, by arithmetic; "" if none does."""
    if topology.kind == "tpu":
        names = [f"{topology.chip}-{n}" for n in SHAPES[topology.chip]]
    else:
        names = [f"gpu:{n}x{topology.chip}" for n in (1, 2, 4, *(GPUS_A_NODE * k for k in (1, 2, 4, 8, 16)))]
    for name in names:
        candidate = parse(name)
        if candidate.chips <= topology.chips:
            continue
        try:
            mesh = mesh_sizes(config, cfg, candidate)
        except Exception:  # the batch does not divide there
            continue
        terms = memory_terms(config, cfg, mesh)
        if total(terms, "state") + factor * total(terms, "step") <= 0.9 * candidate.hbm_bytes:
            return name
    return ""


def out_of_memory(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int], capacity: float) -> list[str]:
    """Lines for a run that ran out of memory: the biggest terms, and what to try next. Arithmetic only.

    Args:
      mesh: size of every mesh axis. capacity: bytes of a device, 0 = not known.
    """
    terms = memory_terms(config, cfg, mesh)
    needed = total(terms)
    of = f" of {capacity / GIB:.1f}" if capacity else ""
    lines = [f"memory     about {needed / GIB:.2f}{of} GiB a device by arithmetic"]
    lines += [f"             {t.bytes / GIB:8.2f} GiB  {t.name}" for t in terms[:6]]
    flat = flatten(config)
    for changes in smaller(config, mesh):
        new = total(memory_terms(changed(config, changes), cfg, mesh))
        if new < 0.85 * needed and (not capacity or new < 0.85 * capacity):
            was = ", ".join(f"{k} is {flat[k]}" for k in changes)
            lines.append(f"next       {as_flags(changes)}   (about {new / GIB:.2f} GiB; now {was})")
            break
    else:
        lines.append("next       more devices, or a smaller model")
    return lines
