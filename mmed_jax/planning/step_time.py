"""Seconds of a training step by arithmetic, without a compiler: for GPUs, and to prune a search before it compiles.

Computing: the model's FLOPs (mmed_jax.training.flops) and what the remat policy computes again, at a share of the peak.
With an adapter also what its thin products and the decoding of quantised weights move through the chip's memory.
Transfers: what a device sends under FSDP (arXiv 1910.02054) and tensor parallelism (arXiv 1909.08053), in rings.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from mmed_jax.config.values import batch_rows
from mmed_jax.model.config import LlamaConfig, num_params
from mmed_jax.parallel.xla_flags import scatters_gradients
from mmed_jax.planning.collective_time import link_rate
from mmed_jax.planning.frozen_weights import FrozenWeights, frozen_weights
from mmed_jax.planning.topology import Topology
from mmed_jax.training.flops import adapter_matmul_params, train_flops_per_token

# Share of the peak FLOP/s that a step's products reach, low and high. GPUs: published runs of 8B models have 33 to 51 %
# MFU (JAX-Toolbox, torchtitan). TPUs: the compiler's schedules of 8B steps for v5p and v5e.
EFFICIENCY = {"gpu": (0.40, 0.65), "tpu": (0.55, 0.72)}
# FLOPs computed again, as a share of full fine-tuning's, in which the forward pass is a third.
RECOMPUTED = {"none": 0.0, "minimal_ctx": 0.0, "minimal": 0.02, "qkv": 0.22, "full": 1 / 3, "offload": 1 / 3}


@dataclass(frozen=True)
class Speed:
    """FLOPs and bytes sent of a chip in a step, and seconds; fields as in planner.PlanResult."""

    hlo_flops: float
    compute_s: float
    ici_s: float
    dcn_s: float
    low_s: float
    schedule_s: float
    high_s: float
    collective_bytes: dict[str, float]


def speed(config: ConfigDict, cfg: LlamaConfig, topology: Topology, mesh: dict[str, int]) -> Speed:
    """The estimate of one optimizer step. low_s: best efficiency, transfers hidden; high_s: worst, none hidden;
    schedule_s: the middle.

    Args:
      mesh: size of every mesh axis, resolved.
    """
    tokens = batch_rows(config) * config.data.seq_len
    frozen = frozen_weights(config, cfg, mesh)
    flops = (_model_flops(config, cfg) + RECOMPUTED[config.remat] * _unfrozen_flops(config, cfg)) * tokens
    flops /= topology.device_count
    own = tokens / (mesh["data"] * mesh["fsdp"] * mesh["context"])
    if frozen is None:
        # Every chunk of the loss reads and writes the head's gradient, float32.
        moved = max(1, own / config.loss_chunk) * 12 * cfg.vocab_size * cfg.hidden_size / mesh["tensor"]
        moved_slow = moved
    else:
        moved = _decoding_bytes(config, cfg, frozen)
        # At best the adapter's products ride with the large ones.
        moved_slow = moved + own * _thin_product_bytes(config, frozen)
    sent, ici_s, dcn_s, waits_s = _transfers(config, cfg, topology, mesh)
    slow_share, fast_share = EFFICIENCY[topology.kind]
    slow = flops / topology.peak_flops / slow_share + moved_slow / topology.hbm_bandwidth
    fast = flops / topology.peak_flops / fast_share + moved / topology.hbm_bandwidth
    low, high = max(fast + waits_s, ici_s, dcn_s), slow + ici_s + dcn_s
    return Speed(flops, fast, ici_s, dcn_s, low, (low + high) / 2, high, sent)


def _model_flops(config: ConfigDict, cfg: LlamaConfig) -> float:
    from mmed_jax.model.lora import lora_spec

    return train_flops_per_token(cfg, config.data.seq_len, lora_spec(config.lora, cfg))


def _unfrozen_flops(config: ConfigDict, cfg: LlamaConfig) -> float:
    """FLOPs a token were all weights trained, adapters beside them: three forward passes."""
    from mmed_jax.model.lora import lora_spec

    spec = lora_spec(config.lora, cfg)
    adapter = 6.0 * adapter_matmul_params(spec, cfg) if spec else 0.0
    return train_flops_per_token(cfg, config.data.seq_len) + adapter


def _decoding_bytes(config: ConfigDict, cfg: LlamaConfig, frozen: FrozenWeights) -> float:
    """Bytes that decoding moves in a step: codes are read and weights written, for the forward and the backward pass
    of every micro-batch."""
    if not frozen.quantised:
        return 0.0
    decoded = frozen.layer_params * _width(config)
    return 2 * config.grad_accum * cfg.num_layers * (frozen.layer_codes + decoded)


def _thin_product_bytes(config: ConfigDict, frozen: FrozenWeights) -> float:
    """Bytes a token of products of their own for A and B: each pass over a module's input or output again.

    Forward, x is read for A, and y read and written for B; backward, dy is read twice (dB and its way down), x read for
    dA, and dx read and written.
    """
    forward = frozen.values_in + 2 * frozen.values_out
    again = forward if RECOMPUTED[config.remat] > 0.1 else 0.0
    return (forward + again + 3 * frozen.values_in + 2 * frozen.values_out) * _width(config)


def _width(config: ConfigDict) -> int:
    return 2 if config.compute_dtype == "bfloat16" else 4


def _transfers(
    config: ConfigDict, cfg: LlamaConfig, topology: Topology, mesh: dict[str, int]
) -> tuple[dict[str, float], float, float, float]:
    """({kind: bytes a chip sends within its slice or node}, seconds there, seconds between slices or nodes, seconds of
    the first that nothing hides: partial sums of tensor parallelism are waited for)."""
    width, frozen = _width(config), frozen_weights(config, cfg, mesh)
    # What is gathered, and what has gradients.
    weights = frozen.gathered_weights if frozen else num_params(cfg) / mesh["tensor"] * width
    trained = frozen.whole_adapter * width if frozen else weights
    shards, tensor = mesh["fsdp"] * mesh["context"], mesh["tensor"]
    per_slice = topology.devices_a_slice
    sent: dict[str, float] = {}
    # Weights are gathered for the forward and the backward pass of every micro-batch. Gradients are reduce-scattered on
    # GPUs and, with our flags, on v5p and v6e; elsewhere the TPU compiler all-reduces them (docs/collectives.md, 2 and
    # 3), which takes twice the bytes.
    times = (shards - 1) / shards * config.grad_accum
    # Of an adapter, half of the matrices are whole on every chip.
    scattered = topology.kind != "tpu" or scatters_gradients(topology.chip, config.xla_flags)
    scattered = scattered and frozen is None
    sent["all-gather"] = 2 * weights * times
    sent["reduce-scatter" if scattered else "all-reduce"] = (1 if scattered else 2) * trained * times
    # A ring over several nodes enters each of them once, through the network cards of all its devices.
    spans = shards * tensor > per_slice
    rate = link_rate(topology, min(shards, per_slice))
    if spans:
        rate = min(rate, topology.dcn_bandwidth * per_slice)
    ici_s, waits_s = sum(sent.values()) / rate, 0.0
    if tensor > 1:
        # Twice forward and twice backward a layer; what is computed again sends again.
        tokens = batch_rows(config) * config.data.seq_len / (mesh["data"] * shards)
        sums = 4 + 2 * (RECOMPUTED[config.remat] > 0.1)
        partial = sums * cfg.num_layers * tokens * cfg.hidden_size * width * 2 * (tensor - 1) / tensor
        sent["all-reduce"] = sent.get("all-reduce", 0.0) + partial
        waits_s = partial / link_rate(topology, tensor)
        ici_s += waits_s
    dcn_s = 0.0
    if mesh["data"] > 1:
        copies = mesh["data"]
        reduced = 2 * (copies - 1) / copies * (frozen.adapter * width if frozen else weights / shards)
        if shards * tensor * copies > per_slice:
            dcn_s = reduced / topology.dcn_bandwidth
        else:
            sent["all-reduce"] = sent.get("all-reduce", 0.0) + reduced
            ici_s += reduced / link_rate(topology, copies)
    return {kind: n for kind, n in sent.items() if n}, ici_s, dcn_s, waits_s
