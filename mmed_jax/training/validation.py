"""Validation loss during training, overall and by language."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmed_jax.data.loader import eval_batches
from mmed_jax.data.packed_table import Table
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.training.state import BatchPlacer


def by_language(nll: np.ndarray, count: np.ndarray, prefix: str) -> dict[str, float]:
    """Mean loss of each language that has supervised tokens: {"<prefix>/zh": ...}.

    Args:
      nll, count: float [1 + len(LANGUAGES)], sums by language slot; slot 0 is padding.
    """
    return {f"{prefix}/{lang}": float(nll[i] / count[i]) for i, lang in enumerate(LANGUAGES, 1) if count[i] > 0}


def validation_losses(
    eval_step: Callable[[Any, dict], dict],
    params: Any,
    table: Table,
    placer: BatchPlacer,
    limit: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Loss over the table (each row once; at most `limit` rows when not 0).

    Args:
      eval_step: (params, placed batch) -> {"nll", "count"} sums by language slot.
      placer: puts global batches of its size on the devices.
      stop: asked before every batch, on every process alike; True abandons the pass.

    Returns:
      None when abandoned: a part of the rows is no result. Else
      {"validation/loss": sum over all supervised tokens / their number, "validation/loss/zh": ..., ...,
       "validation/tokens": supervised tokens}.
    """
    total: dict[str, jax.Array] | None = None
    before: dict[str, jax.Array] | None = None
    for host_batch in eval_batches(table, placer.batch_size, local_rows=placer.rows, limit=limit):
        if stop():
            return None
        # One batch waits on the devices, not all of them: they could not be called back.
        jax.block_until_ready(before)
        before = total
        sums = eval_step(params, placer(host_batch))
        total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    sums = jax.device_get(total)
    nll, count = np.asarray(sums["nll"], np.float64), np.asarray(sums["count"], np.float64)
    tokens = count.sum()
    return {
        "validation/loss": float(nll.sum() / max(tokens, 1.0)),
        **by_language(nll, count, "validation/loss"),
        "validation/tokens": float(tokens),
    }
