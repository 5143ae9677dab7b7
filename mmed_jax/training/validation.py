"""Validation during training: loss, perplexity and bits per byte, overall and by language.

Bits per byte are the nats of the trained targets over ln 2 and the UTF-8 bytes of the text that these spell. They do
not depend on the tokenizer, and are comparable between languages as far as their bytes are.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mmed_jax.data.loader import eval_batches, eval_rows
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
    """Loss, perplexity and bits per byte over the table (each row once; at most `limit` rows when not 0).

    Args:
      eval_step: (params, placed batch) -> {"nll", "count"} sums by language slot.
      placer: puts global batches of its size on the devices.
      stop: asked before every batch, on every process alike; True abandons the pass.

    Returns:
      None when abandoned: a part of the rows is no result. Else
      {"validation/loss": sum over all supervised tokens / their number, "validation/perplexity": its exponential,
       "validation/bits_per_byte": left out where no text is spelt; each also with "/zh", ... for the languages that
       are there; "validation/tokens": supervised tokens}.
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
    # Of all rows on every process, while the devices are busy with the last ones.
    size = _text_bytes(table, limit)
    sums = jax.device_get(total)
    nll, count = np.asarray(sums["nll"], np.float64), np.asarray(sums["count"], np.float64)
    tokens = count.sum()
    losses = {"": float(nll.sum() / max(tokens, 1.0)), **by_language(nll, count, "")}
    nats = {"": nll.sum() / max(size.sum(), 1), **by_language(nll, size, "")}
    return {
        **{f"validation/loss{k}": v for k, v in losses.items()},
        **{f"validation/perplexity{k}": math.inf if v > 700 else math.exp(v) for k, v in losses.items()},
        **({f"validation/bits_per_byte{k}": float(v / math.log(2)) for k, v in nats.items()} if size.any() else {}),
        "validation/tokens": float(tokens),
    }


@functools.lru_cache(maxsize=8)
def _text_bytes(table: Table, limit: int) -> np.ndarray:
    """int64 [1 + len(LANGUAGES)], bytes of the text of the rows that are validated on; the same at every step."""
    return table.text_bytes(eval_rows(table, limit).tolist())


def describe_losses(losses: dict[str, float]) -> str:
    """The line of a validation: "validation loss 2.3, perplexity 10, 0.91 bits/byte  en 2.1, 0.85  zh 2.5, 0.95"."""
    parts = []
    for name in losses:
        _, is_loss, language = name.partition("validation/loss")
        if is_loss:
            bits = losses.get(f"validation/bits_per_byte{language}")
            more = "" if language else f", perplexity {losses['validation/perplexity']:.5g}"
            more += "" if bits is None else f", {bits:.4f}" + ("" if language else " bits/byte")
            parts.append(f"{language[1:] or 'validation loss'} {losses[name]:.4f}{more}")
    return "  ".join(parts)


def newest_numbers(losses: Mapping[str, float]) -> dict[str, float]:
    """What the line of every step says of the newest validation: {"val": 2.3}, and its accuracy where one was taken."""
    names = {"val": "validation/loss", "acc": "validation/accuracy"}
    return {short: losses[name] for short, name in names.items() if name in losses}
