"""What the engine runs on the device: four jitted functions of arrays.

Shape suffixes: b rows of the cache, g prompts that enter together, c tokens of a chunk, d hidden, v vocabulary.
`draw` is {"seed": random key, "temperature", "top_p", "top_k"}; `kind` see sampling.Sampling.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmed_jax.inference.sampling import row_keys, sample
from mmed_jax.model import llama
from mmed_jax.sharding import constrain

Cache = dict[str, jax.Array]

# Decoding steps of one dispatch; the loop ends earlier when rows have to be refilled.
STEPS = 64


def cast(params: llama.Params, dtype: Any) -> llama.Params:
    """Weights in the compute dtype; norms stay as they are, as in training."""

    def leaf(path: tuple, x: jax.Array) -> jax.Array:
        norm = any("norm" in str(getattr(p, "key", p)) for p in path)
        return x if norm else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _placed(cache: Cache) -> Cache:
    """On a mesh: rows over data and fsdp, heads over tensor."""
    return {n: constrain(x, None, "batch", None, "act_kv_heads", None) for n, x in cache.items()}


@partial(jax.jit, static_argnames=("cfg", "rows", "length", "dtype"))
def init(*, cfg, rows, length, dtype) -> Cache:
    """An empty cache."""
    return _placed(llama.init_cache(cfg, rows, length, dtype))


@partial(jax.jit, static_argnames=("length",))
def grow(cache: Cache, *, length: int) -> Cache:
    """The cache with `length` slots a row; the new ones are zero and unseen until written."""
    wider = {n: jnp.pad(x, [(0, 0), (0, 0), (0, length - x.shape[2]), (0, 0), (0, 0)]) for n, x in cache.items()}
    return _placed(wider)


@partial(jax.jit, static_argnames=("cfg", "dtype", "kind"), donate_argnames=("cache", "last_gd"))
def prefill(params, cache, last_gd, tokens_gc, offset, lengths_g, rows_g, items_g, draw, *, cfg, dtype, kind):
    """One chunk of G prompts: tokens at positions offset .. offset + C - 1, into rows_g of the cache.

    A row number past the end stands for no prompt. last_gd [G, D] collects the hidden state of each prompt's last
    token, in whichever chunk it lies; after the last chunk the tokens drawn from it are the first of each answer.

    Returns:
      cache, last_gd, tokens [G], whether a prompt's logits are NaN [G].
    """
    g, c = tokens_gc.shape
    slots = cache["k"].shape[2]
    positions = offset + jnp.broadcast_to(jnp.arange(c, dtype=jnp.int32), (g, c))
    positions = jnp.where(positions < lengths_g[:, None], positions, slots)  # padding is not written
    part = _placed({n: x.at[:, rows_g].get(mode="clip") for n, x in cache.items()})
    hidden, part = llama.forward(params, cfg, tokens_gc, positions_bt=positions, compute_dtype=dtype, cache=part)
    cache = _placed({n: x.at[:, rows_g].set(part[n], mode="drop") for n, x in cache.items()})
    at = lengths_g - 1 - offset
    here = jnp.take_along_axis(hidden, jnp.clip(at, 0, c - 1)[:, None, None], axis=1)[:, 0]
    last_gd = constrain(jnp.where(((at >= 0) & (at < c))[:, None], here, last_gd), None, None)
    token, nan = _next(params, last_gd, items_g, lengths_g, draw, cfg=cfg, kind=kind)
    return cache, last_gd, constrain(token, None), constrain(nan, None)


@partial(jax.jit, static_argnames=("cfg", "dtype", "kind"), donate_argnames=("cache",))
def decode(params, cache, token_b, position_b, left_b, items_b, stops, limit, keep, draw, *, cfg, dtype, kind):
    """Decodes until `limit` steps are done or at most `keep` rows are still running.

    Args:
      token_b: the newest token of each row, not yet in the cache; position_b: its position.
      left_b: tokens the row may still produce; 0 = the row is free.
      stops: ids [K] that end a row.

    Returns:
      cache, tokens [STEPS, B] (-1 where a row did not run), whether a running row met NaN.
    """
    slots = cache["k"].shape[2]

    def running(carry):
        i, _, _, _, left, _, _ = carry
        return (i < limit) & ((left > 0).sum() > keep)

    def step(carry):
        i, cache, token, position, left, out, bad = carry
        live = left > 0
        at = jnp.where(live, position, slots)[:, None]  # a free row writes nothing
        hidden, cache = llama.forward(params, cfg, token[:, None], positions_bt=at, compute_dtype=dtype, cache=cache)
        drawn, nan = _next(params, hidden[:, 0], items_b, position + 1, draw, cfg=cfg, kind=kind)
        token = jnp.where(live, drawn, token)
        out = out.at[i].set(jnp.where(live, token, -1))
        stopped = (token[:, None] == stops).any(-1)
        left = jnp.where(live & ~stopped, left - 1, 0)
        return i + 1, cache, token, position + live, left, out, bad | (live & nan).any()

    out = jnp.full((STEPS, token_b.shape[0]), -1, jnp.int32)
    carry = (jnp.int32(0), cache, token_b, position_b, left_b, out, jnp.bool_(False))
    _, cache, _, _, _, out, bad = jax.lax.while_loop(running, step, carry)
    return _placed(cache), constrain(out, None, None), constrain(bad)


def _next(params, hidden_bd, items_b, positions_b, draw, *, cfg, kind):
    """(next token [B], whether the row's logits are NaN [B]) for the tokens at positions_b."""
    logits = llama.unembed(params, cfg, hidden_bd)
    keys = None if kind == "greedy" else row_keys(draw["seed"], items_b, positions_b)
    token = sample(logits, keys, draw["temperature"], draw["top_p"], draw["top_k"], kind=kind)
    return token, jnp.isnan(logits).any(-1)
