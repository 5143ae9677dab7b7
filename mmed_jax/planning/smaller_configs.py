"""What to change in a config so that it needs less memory: first what keeps the mathematics, the cheapest in speed
first, then what does not."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.values import batch_rows, flatten, with_values
from mmed_jax.model.config import LlamaConfig

# Cheaper policies first to last: each keeps less than the one before.
_LESS_REMAT = ("none", "minimal_ctx", "minimal", "qkv", "full")
_AXIS_SIZES = (2, 4, 8)
# What an adapter learns in place of all weights, for those whose config trains all of them.
ADAPTER_RANK = 16
_BASES = {"int8": "the frozen weights are rounded to 8 bits", "nf4": "the frozen weights are rounded to 4 bits"}
_VARIED = "remat, loss_chunk, grad_accum, mesh, first moment in bfloat16, adafactor"


@dataclass(frozen=True)
class Change:
    """A change of a config: {key: value} as for the command line, the config with it (attention resolved), its mesh.

    learns: "" where only rounding differs, else what is learned otherwise.
    """

    changes: dict[str, Any]
    config: ConfigDict
    mesh: dict[str, int]
    learns: str = ""


def varied(config: ConfigDict) -> str:
    """What `smaller` varies, for those who say that nothing of it helps."""
    return _VARIED + (", frozen weights in 8 or 4 bits" if config.lora.rank else "")


def smaller(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int], platform: str) -> Iterator[Change]:
    """Changes that need less memory than the config as it is.

    Args:
      config: as the user has it (attention may be "auto"). mesh: size of every mesh axis, resolved.
      platform: "tpu", "gpu" or "cpu".
    """
    for sizes, changes, learns in _proposals(config, mesh, platform):
        if change := _change(config, cfg, sizes, platform, changes, learns):
            yield change


def adapters(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int], platform: str) -> Iterator[Change]:
    """An adapter in place of all weights, of a config that trains all of them, the one that needs least memory last.

    Never what a run should be changed to unasked: it is another training. Arguments as of `smaller`.
    """
    if config.lora.rank:
        return
    for kind in ("compute", *_BASES):
        base = {} if kind == "compute" else {"lora.base": kind}
        keys: dict[str, Any] = {"lora.rank": ADAPTER_RANK, **base}
        if config.param_dtype != "float32":
            keys["param_dtype"] = "float32"
        for s in [{}, *_settings(config, mesh)]:
            learns = f"an adapter of rank {ADAPTER_RANK} is trained, not all weights; it takes about ten times optim.lr"
            rounded = f"; {_BASES[kind]}" if kind in _BASES else ""
            if change := _change(config, cfg, mesh, platform, {**keys, **s}, learns + rounded):
                yield change


def _change(
    config: ConfigDict, cfg: LlamaConfig, sizes: dict[str, int], platform: str, changes: dict[str, Any], learns: str
) -> Change | None:
    """The config with changes on a mesh; None where that is refused."""
    from mmed_jax.training.program import attention_backend

    new = with_values(config, changes)
    if not _divides(new, cfg, sizes):
        return None
    try:
        backend = attention_backend(new, cfg, platform, sizes["context"])
    except UserError:  # a backend that was asked for by name, on a mesh that it can't work on
        return None
    return Change(changes, with_values(new, {"attention": backend}), sizes, learns)


def _proposals(
    config: ConfigDict, mesh: dict[str, int], platform: str
) -> Iterator[tuple[dict[str, int], dict[str, Any], str]]:
    """(mesh, changes, what is learned otherwise)."""
    settings = _settings(config, mesh)
    for s in settings:
        yield mesh, s, ""
    # All that a device can do without, in one.
    least = settings[-1:] or [{}]
    if platform == "tpu" and config.remat != "offload":
        yield mesh, {"remat": "offload"}, ""
        yield mesh, {**least[0], "remat": "offload"}, ""
    for axis in ("tensor", "context"):
        for size in (n for n in _AXIS_SIZES if n > mesh[axis]):
            sizes = {**mesh, axis: size}
            rest = prod(mesh.values()) // (sizes["data"] * sizes["tensor"] * sizes["context"])
            if rest * sizes["data"] * sizes["tensor"] * sizes["context"] != prod(mesh.values()):
                continue
            sizes["fsdp"] = rest
            keys: dict[str, Any] = {f"mesh.{axis}": size}
            if config.mesh.fsdp != -1:
                keys["mesh.fsdp"] = rest
            for s in [{}, *_settings(config, sizes)]:
                yield sizes, {**keys, **s}, ""
    kinds = ["compute", *_BASES]
    for kind in kinds[kinds.index(config.lora.base) + 1 :] if config.lora.rank else ():
        for s in [{}, *settings]:
            yield mesh, {**s, "lora.base": kind}, _BASES[kind]
    if config.optim.name != "adamw":
        return
    if config.optim.mu_dtype == "float32":
        for s in [{}, *settings]:
            yield mesh, {**s, "optim.mu_dtype": "bfloat16"}, "the first moment is rounded to 8 bits"
    flat = flatten(config)
    plain = {name: key.default for name, key in KEYS.items() if key.adamw_only and flat[name] != key.default}
    for s in [{}, *settings]:
        yield mesh, {**s, "optim.name": "adafactor", **plain}, "adafactor is another optimizer"


def _settings(config: ConfigDict, mesh: dict[str, int]) -> list[dict[str, Any]]:
    """Changes on a mesh that keep the mathematics, the one that needs least memory last."""
    rows = batch_rows(config) // config.grad_accum // (mesh["data"] * mesh["fsdp"])
    chunks = [{"loss_chunk": c} for c in (1024, 512) if c < config.loss_chunk]
    policies = _LESS_REMAT[_LESS_REMAT.index(config.remat) + 1 :] if config.remat in _LESS_REMAT else ()
    accumulated = [config.grad_accum * n for n in (2, 4, 8, 16, 32) if rows and rows % n == 0]
    changes: list[dict[str, Any]] = [*chunks[:1], *({"remat": p} for p in policies)]
    changes += [{"grad_accum": n} for n in accumulated]
    least: dict[str, Any] = {"remat": "full"} if policies else {}
    changes += [{**least, "grad_accum": n} for n in accumulated if least]
    if accumulated:
        least["grad_accum"] = accumulated[-1]
    changes += [{**least, **c} for c in chunks if least or c != chunks[0]]
    return changes


def check_mesh(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int]) -> None:
    """Refuses a mesh that does not divide the model, the batch or quantised frozen weights. Raises UserError."""
    from mmed_jax.model.quantized_base import check_base
    from mmed_jax.parallel import sharding

    dims = {k: getattr(cfg, k) for k in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size", "hidden_size")}
    sharding.check_divisible(mesh, dims, batch_rows(config) // config.grad_accum, config.data.seq_len)
    if config.lora.rank:
        check_base(cfg, config.lora.base, mesh, config.remat)


def _divides(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int]) -> bool:
    try:
        check_mesh(config, cfg, mesh)
    except UserError:
        return False
    return True
