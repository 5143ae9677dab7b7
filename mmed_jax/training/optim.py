"""Learning-rate schedules, AdamW and Adafactor."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError
from mmed_jax.training.adafactor import scale_by_adafactor


def warmup_steps(optim: ConfigDict, total_steps: int) -> int:
    """Steps of linear warm-up: optim.warmup_steps, or warmup_ratio of the run (at least 1 when the ratio is not 0)."""
    if optim.warmup_steps:
        return optim.warmup_steps
    return max(1, round(optim.warmup_ratio * total_steps)) if optim.warmup_ratio else 0


def make_schedule(optim: ConfigDict, total_steps: int) -> optax.Schedule:
    """The learning rate at the update from step to step + 1.

    Linear warm-up from lr / warmup to lr, so that the first update already moves; then
      constant  lr
      linear    straight to lr * end_lr_ratio at the last step
      cosine    half a cosine to lr * end_lr_ratio (arXiv 1608.03983, without restarts)
      wsd       lr until the last decay_ratio of the run, then linear to lr * end_lr_ratio (arXiv 2404.06395)

    Raises:
      UserError: the warm-up is longer than the run.
    """
    warmup = warmup_steps(optim, total_steps)
    if warmup >= total_steps and total_steps > 1:
        raise UserError(
            f"config.optim: warm-up of {warmup} steps does not end within the run of {total_steps}; "
            f"set warmup_steps below {total_steps} or warmup_ratio=0.03"
        )
    after = max(1, total_steps - warmup)
    end = optim.lr * optim.end_lr_ratio
    if optim.schedule == "constant":
        main = optax.constant_schedule(optim.lr)
    elif optim.schedule == "linear":
        main = optax.linear_schedule(optim.lr, end, after)
    elif optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(optim.lr, after, alpha=optim.end_lr_ratio)
    elif optim.schedule == "wsd":
        decay = min(after, max(1, round(optim.decay_ratio * total_steps)))
        main = optax.linear_schedule(optim.lr, end, decay, transition_begin=after - decay)
    else:
        raise UserError(f"config.optim.schedule={optim.schedule!r}: not one of cosine, linear, wsd, constant")
    if not warmup:
        return main
    ramp = optax.linear_schedule(optim.lr / warmup, optim.lr, max(1, warmup - 1))
    return optax.join_schedules([ramp, main], [warmup])


def decay_mask(params: Any, *, embeddings: bool = False) -> Any:
    """True for the leaves that weight decay applies to: matrices; no norms, no biases, no embeddings unless asked.

    Of an adapter both factors, but no magnitudes (they stand for the lengths of weights, not for a change of them).

    A tied output head is the embedding and is treated as one; an untied head is a matrix.
    """

    def decays(path: tuple, _: Any) -> bool:
        names = [k.key for k in path]
        if names[-1] in ("bias", "magnitude") or any("norm" in n for n in names):
            return False
        return embeddings if names[0] == "embed" else True

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    optim: ConfigDict, total_steps: int, *, b_lr_ratio: float = 1.0
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run. Returns (transformation, schedule).

    Args:
      b_lr_ratio: LoRA+ (arXiv 2402.12354): the learning rate of an adapter's B as a multiple of the schedule's. Not of
        an embedding's adapter, where A is what starts at zero.

    Both divide gradients by the root of their second moment and share everything else:
      gradient -> clip by global norm -> AdamW's or Adafactor's scaling -> + weight_decay x parameter -> x -lr
    Decay is decoupled (arXiv 1711.05101) and follows the schedule. Adafactor takes no first moment and no scaling by
    the size of the parameter: an update then has a root mean square of at most lr, and a learning rate means what it
    means for AdamW. (optax.adafactor's own weight decay is not multiplied by the learning rate.)

    Moments are float32 (AdamW's first: mu_dtype), whatever the dtype of the parameters: in bfloat16 a second moment
    could not take a step smaller than 1/256 of itself and would stand still with b2 near 1.
    """
    schedule = make_schedule(optim, total_steps)
    if optim.name == "adamw":
        scale = _float32_moments(optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=jnp.dtype(optim.mu_dtype)))
    elif optim.name == "adafactor":
        scale = scale_by_adafactor(optim.b2)
    else:
        raise UserError(f"config.optim.name={optim.name!r}: not one of adamw, adafactor")
    clip = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    # Nested as optax.adamw is: the state's paths, by which checkpoints are read, are those of its chain.
    scaled = optax.chain(
        scale,
        optax.add_decayed_weights(optim.weight_decay, lambda p: decay_mask(p, embeddings=optim.decay_embeddings)),
        optax.scale_by_learning_rate(schedule),
    )
    # None where it changes nothing, so that the state of other runs keeps its paths.
    faster = [optax.stateless(lambda updates, _: _scale_b(updates, b_lr_ratio))] if b_lr_ratio != 1.0 else []
    return optax.chain(*clip, scaled, *faster), schedule


def _scale_b(updates: Any, ratio: float) -> Any:
    def scaled(path: tuple, update: jax.Array) -> jax.Array:
        names = [k.key for k in path]
        return update * ratio if names[-1] == "lora_b" and names[0] != "embed" else update

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _float32_moments(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.GradientTransformation(lambda params: tx.init(optax.tree.cast(params, jnp.float32)), tx.update)
