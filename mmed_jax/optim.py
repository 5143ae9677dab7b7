"""Learning-rate schedules and AdamW by optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mmed_jax.errors import UserError


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

    A tied output head is the embedding and is treated as one; an untied head is a matrix.
    """

    def decays(path: tuple, _: Any) -> bool:
        names = [k.key for k in path]
        if names[-1] == "bias" or any("norm" in n for n in names):
            return False
        return embeddings if names[0] == "embed" else True

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(optim: ConfigDict, total_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping by global norm, then AdamW (arXiv 1711.05101). Returns (transformation, schedule)."""
    schedule = make_schedule(optim, total_steps)
    steps = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    steps.append(
        optax.adamw(
            schedule,
            b1=optim.b1,
            b2=optim.b2,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            mask=lambda params: decay_mask(params, embeddings=optim.decay_embeddings),
            mu_dtype=jnp.dtype(optim.mu_dtype),
        )
    )
    return optax.chain(*steps), schedule
