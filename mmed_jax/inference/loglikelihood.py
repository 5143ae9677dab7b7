"""Log-likelihoods of given continuations: prompts read in groups, the choices of each in one row behind it."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from mmed_jax.inference import steps
from mmed_jax.inference.loaded_model import LoadedModel
from mmed_jax.inference.scheduler import check_nan
from mmed_jax.inference.slots import CacheRows


def score_choices(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    on_done: Callable[[int, list[float]], None] | None,
) -> list[list[float]]:
    """One call of Engine.loglikelihood, on its mesh."""
    rows = CacheRows(model, prompts)
    with rows.device_memory():
        return _score(model, rows, prompts, choices, on_done)


def _score(model, rows, prompts, choices, on_done) -> list[list[float]]:
    out: list[list[float]] = [[] for _ in prompts]
    free = 0
    while rows.pending:
        chosen = rows.take()
        sizes = [sum(map(len, choices[i])) for i in chosen]
        rows.reserve(max(len(prompts[i]) + n for i, n in zip(chosen, sizes)))
        # Rows are taken in turns: what others hold stays there as long as it can.
        entry = rows.entry(chosen, [(free + n) % rows.count for n in range(len(chosen))])
        free = (free + len(chosen)) % rows.count
        choice, offset, branch = _side_by_side([choices[i] for i in chosen], rows.group, _width(max(sizes)))
        rows.cache, values = steps.score(
            model.params,
            rows.cache,
            entry,
            choice,
            offset,
            branch,
            cfg=model.cfg,
            dtype=model.dtype,
            chunk=rows.chunk,
            single=not offset.any(),
        )
        values = jax.device_get(values)
        for n, i in enumerate(chosen):
            # In order, in float32: the same sum whatever stands beside it.
            ends = np.cumsum([len(c) for c in choices[i]])
            parts = np.split(values[n, : ends[-1]], ends[:-1])
            out[i] = [float(np.add.accumulate(p, dtype=np.float32)[-1]) for p in parts]
            check_nan(np.isnan(out[i]).any())
            if on_done:
                on_done(i, out[i])
    return out


def _width(tokens: int) -> int:
    """Room for the choices of a row: LOGITS times a power of two, so that few programs are compiled."""
    size = steps.LOGITS
    while size < tokens:
        size *= 2
    return size


def _side_by_side(choices: Sequence[Sequence[Sequence[int]]], group: int, width: int) -> tuple[np.ndarray, ...]:
    """int32 [G, W], of each row's choices: token ids, place in its choice, number of its choice (-1 = padding)."""
    choice, offset = np.zeros((group, width), np.int32), np.zeros((group, width), np.int32)
    branch = np.full((group, width), -1, np.int32)
    for n, continuations in enumerate(choices):
        at = 0
        for number, ids in enumerate(continuations):
            choice[n, at : at + len(ids)], offset[n, at : at + len(ids)] = ids, range(len(ids))
            branch[n, at : at + len(ids)] = number
            at += len(ids)
    return choice, offset, branch
