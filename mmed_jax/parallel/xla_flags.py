"""XLA flags by chip, each with its reason: the one table, used by `train` on that chip and by `plan` for it.

The evidence, with what was tried and left out, is in docs/collectives.md.
"""

import re

from mmed_jax.config.checks import parse_xla_flags

_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"

# flag -> (value, reason)
_SPARSE_CORES = {
    _OFFLOAD + "all_gather": ("true", "SparseCores gather weights while the TensorCore computes"),
    _OFFLOAD + "2d_all_gather": ("true", "gathers over two torus axes are taken over too"),
    _OFFLOAD + "3d_all_gather": ("true", "gathers over three torus axes are taken over too"),
    _OFFLOAD + "reduce_scatter": ("true", "SparseCores sum gradients while the TensorCore computes"),
    _OFFLOAD + "nd_reduce_scatter": (
        "true",
        "keeps the reduce-scatter of gradients over a whole torus, which else becomes an all-reduce of twice the bytes",
    ),
    _OFFLOAD + "all_reduce": ("true", "what stays an all-reduce runs beside the TensorCore too"),
}
# For chips without such SparseCores, where it is no default.
_ASYNCHRONOUS = {"xla_enable_async_all_gather": ("true", "hides the gathering of weights")}
# There too; both are needed.
_ASYNCHRONOUS_SUMS = {
    "xla_enable_async_all_reduce": ("true", "sums of gradients may run beside products"),
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": (
        "true",
        "fuses such a sum with the products behind it: 82 ms less of 3,335 to wait for, 8B on v5e-64",
    ),
}
# The partitioner's own choice on up to 32 chips is to cut every product with gathered weights into as many pieces as
# there are chips and pass the weights round between them: hidden, but the pieces are too small for the chip's tiles.
_WHOLE_PRODUCTS = {
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": (
        "1000000",
        "products are not cut into one piece a chip: a layer of an 8B takes half the time on v5e-32",
    ),
}


def _vmem(kib: int, reason: str) -> dict[str, tuple[str, str]]:
    return {"xla_tpu_scoped_vmem_limit_kib": (str(kib), f"larger tiles: {reason}")}


# chip -> flag -> (value, reason)
FLAGS: dict[str, dict[str, tuple[str, str]]] = {
    "v4": {**_WHOLE_PRODUCTS, **_ASYNCHRONOUS},
    "v5p": {
        **_WHOLE_PRODUCTS,
        **_SPARSE_CORES,
        **_vmem(98304, "a backward product of the MLP of an 8B takes 2.3 ms instead of 3.6"),
    },
    # Gathers run beside products by the compiler's defaults there.
    "v5e": {
        **_WHOLE_PRODUCTS,
        **_ASYNCHRONOUS_SUMS,
        **_vmem(65536, "a layer of an 8B takes 15 ms less for 4,096 tokens, forward and backward"),
    },
    "v6e": {**_WHOLE_PRODUCTS, **_SPARSE_CORES, **_vmem(98304, "as on v5p")},
}


def compiler_options(chip: str, setting: str = "auto") -> dict[str, str | bool]:
    """The flags of a chip as jax.jit's compiler_options; {} for a chip without.

    Args:
      setting: config.xla_flags: "auto" = the table, "none" = {}, or flag=value,flag=value in place of the table.
    """
    if setting == "auto":
        return {flag: value for flag, (value, _) in FLAGS.get(chip, {}).items()}
    given = {} if setting == "none" else parse_xla_flags(setting)
    # Compilers for CPU and GPU take no "true" for True.
    return {flag: {"true": True, "false": False}.get(value.lower(), value) for flag, value in given.items()}


def scatters_gradients(chip: str, setting: str = "auto") -> bool:
    """Whether gradients leave a chip in reduce-scatters (docs/collectives.md); otherwise TPUs all-reduce them, which
    takes twice the bytes."""
    return compiler_options(chip, setting).get(_OFFLOAD + "nd_reduce_scatter") in ("true", True)


def refusal(message: str, setting: str) -> str:
    """The compiler's complaint about flags that were asked for by name, as a line; "" for any other message."""
    complaints = "No such compile option|While setting option|Failed to parse .* into flag"
    if setting in ("auto", "none") or not re.search(complaints, message):
        return ""
    return f"config.xla_flags={setting}: the compiler refuses it: {' '.join(message.split())[:300]}"
