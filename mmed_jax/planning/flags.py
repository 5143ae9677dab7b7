"""XLA flags by chip, each with its reason: the one table, used by `train` on that chip and by `plan` for it.

The evidence, with what was tried and left out, is in docs/collectives.md.
"""

_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"

# flag -> (value, reason)
_SPARSE_CORES = {
    _OFFLOAD + "all_gather": ("true", "SparseCores gather weights while the TensorCore computes"),
    _OFFLOAD + "2d_all_gather": ("true", "gathers over two torus axes are taken over too"),
    _OFFLOAD + "3d_all_gather": ("true", "gathers over three torus axes are taken over too"),
    _OFFLOAD + "reduce_scatter": ("true", "SparseCores sum gradients while the TensorCore computes"),
    _OFFLOAD + "nd_reduce_scatter": (
        "true", "keeps the reduce-scatter of gradients over a whole torus, which else becomes an all-reduce of twice "
        "the bytes"),
    _OFFLOAD + "all_reduce": ("true", "what stays an all-reduce runs beside the TensorCore too"),
}  # fmt: skip
# For chips without such SparseCores.
_ASYNCHRONOUS = {"xla_enable_async_all_gather": ("true", "hides the gathering of weights")}
# Transfers are fused with matrix products. libtpu 0.0.50 refuses that on other chips than v5e, for it may give wrong
# results there.
_FUSED = {
    **_ASYNCHRONOUS,
    "xla_tpu_enable_async_collective_fusion": ("true", "transfers run beside products"),
    "xla_tpu_enable_async_collective_fusion_multiple_steps": ("true", "a transfer may span several products"),
    "xla_tpu_overlap_compute_collective_tc": ("true", "the core works while a transfer runs"),
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": ("true", "hides the gathering of weights"),
}
_VMEM = {
    "xla_tpu_scoped_vmem_limit_kib": (
        "98304", "larger tiles: a backward product of the MLP of an 8B takes 2.3 ms instead of 3.6"),
}  # fmt: skip

# chip -> flag -> (value, reason)
FLAGS: dict[str, dict[str, tuple[str, str]]] = {
    "v4": _ASYNCHRONOUS,
    "v5p": {**_SPARSE_CORES, **_VMEM},
    "v5e": _FUSED,
    "v6e": {**_SPARSE_CORES, **_VMEM},
}


def compiler_options(chip: str) -> dict[str, str]:
    """The flags of a chip as jax.jit's compiler_options; {} for a chip without."""
    return {flag: value for flag, (value, _) in FLAGS.get(chip, {}).items()}
