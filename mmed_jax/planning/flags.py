"""XLA flags by chip, each with its reason: the one table, used by `train` on that chip and by `plan` for it."""

# chip -> flag -> (value, reason)
_GATHER = {
    "xla_tpu_enable_async_collective_fusion": ("true", "transfers run beside products"),
    "xla_tpu_enable_async_collective_fusion_multiple_steps": ("true", "a transfer may span several products"),
    "xla_tpu_overlap_compute_collective_tc": ("true", "the core works while a transfer runs"),
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": ("true", "hides the gathering of weights"),
    "xla_enable_async_all_gather": ("true", "hides the gathering of weights"),
}
FLAGS: dict[str, dict[str, tuple[str, str]]] = {chip: dict(_GATHER) for chip in ("v4", "v5p", "v5e", "v6e")}


def compiler_options(chip: str) -> dict[str, str]:
    """The flags of a chip as jax.jit's compiler_options; {} for a chip without."""
    return {flag: value for flag, (value, _) in FLAGS.get(chip, {}).items()}
