"""What the engine runs on the device: jitted functions of arrays, and how weights are laid out for them.

Shape suffixes: b rows of the cache, g prompts that enter together, t tokens of their prompts, w tokens of their
choices, s slots, d hidden, v vocabulary. `draw` is {"seed": random key, "temperature", "top_p", "top_k"}; `kind` see
sampling.Sampling; `chunk` is the number of tokens of a prompt that are read at a time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmed_jax.inference.sampling import argmax, row_keys, sample
from mmed_jax.model import kv_cache, llama
from mmed_jax.model.kv_cache import Cache
from mmed_jax.parallel.sharding import constrain

# Decoding steps of one dispatch; the loop ends earlier when rows have to be refilled.
STEPS = 64
# Tokens of a row's choices whose logits exist at a time: a vocabulary is large.
LOGITS = 16


def cast(params: llama.Params, dtype: Any) -> llama.Params:
    """Weights in the compute dtype; norms stay as they are, as in training."""

    def leaf(path: tuple, x: jax.Array) -> jax.Array:
        norm = any("norm" in str(getattr(p, "key", p)) for p in path)
        return x if norm else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _shard(cache: Cache) -> Cache:
    """The cache on a mesh: rows over data and fsdp, heads over tensor."""
    axes = ("batch", "act_kv_heads", None, None)
    return jax.tree.map(lambda x: constrain(x, *(None,) * (x.ndim + kv_cache.ROW_AXIS), *axes), cache)


def unstack(layers: dict, count: int, owned: bool) -> list[dict]:
    """The layers one by one, as a CPU reads them fastest: matrices as "weight_io", [in, out].

    owned: the stacked arrays are deleted as they are copied; else both exist.
    """
    out: list[dict] = [{name: {} for name in layers} for _ in range(count)]
    for name, tensors in layers.items():
        for key, stacked in tensors.items():
            matrix = stacked.ndim == 3
            for i in range(count):
                out[i][name][f"{key}_io" if matrix else key] = stacked[i].T if matrix else stacked[i]
            if owned:
                jax.block_until_ready([layer[name] for layer in out])
                stacked.delete()
    return out


@partial(jax.jit, static_argnames=("cfg", "rows", "length", "dtype", "unstacked"))
def init(*, cfg, rows, length, dtype, unstacked=False) -> Cache:
    """An empty cache."""
    return _shard(kv_cache.init(cfg, rows, length, dtype, unstacked))


@partial(jax.jit, static_argnames=("length",))
def grow(cache: Cache, *, length: int) -> Cache:
    """The cache with `length` slots a row."""
    return _shard(kv_cache.grow(cache, length))


@partial(jax.jit, static_argnames=("cfg", "dtype", "kind", "chunk"), donate_argnames=("cache",))
def prefill(params, cache, entry, items_g, draw, *, cfg, dtype, kind, chunk):
    """Reads G prompts into rows of the cache and draws the first token of each answer.

    Args:
      entry: of mmed_jax.inference.slots.CacheRows.entry.

    Returns:
      cache, tokens [G], whether a prompt's logits are NaN [G].
    """
    part, last_gd = _read(params, cache, entry, cfg=cfg, dtype=dtype, chunk=chunk)
    token, nan = _next(params, last_gd, items_g, entry["lengths_g"], draw, cfg=cfg, kind=kind)
    return _put(cache, part, entry), constrain(token, None), constrain(nan, None)


@partial(jax.jit, static_argnames=("cfg", "dtype", "chunk", "single"), donate_argnames=("cache",))
def score(params, cache, entry, choice_gw, offset_gw, branch_gw, *, cfg, dtype, chunk, single):
    """Reads G prompts and takes the log-probability of every token of their choices.

    The choices of a prompt lie one behind the other in its row. All see the prompt, none sees another one.

    Args:
      choice_gw: token ids. offset_gw: place of the token in its choice. branch_gw: number of its choice, -1 = padding.
      single: all choices are one token, so that the prompts alone decide.

    Returns:
      cache, log-probabilities float32 [G, W] in nats, those of padding without meaning.
    """
    g, w = choice_gw.shape
    part, last_gd = _read(params, cache, entry, cfg=cfg, dtype=dtype, chunk=chunk)
    before = jnp.broadcast_to(last_gd[:, None], (g, w, last_gd.shape[-1]))
    if not single:
        lengths, slots = entry["lengths_g"][:, None], kv_cache.slots(part)
        place = jnp.arange(w, dtype=jnp.int32)
        at = jnp.where(branch_gw >= 0, lengths + place, slots)
        own = (branch_gw[:, :, None] == branch_gw[:, None, :]) & (place <= place[:, None])
        # Slot s holds token s - length of the choices.
        index = jnp.arange(slots, dtype=jnp.int32) - lengths
        of_choice = jnp.take_along_axis(own, jnp.clip(index, 0, w - 1)[:, None, :], axis=2)
        visible = (index < 0)[:, None, :] | (of_choice & ((index >= 0) & (index < w))[:, None, :])
        hidden, part = llama.forward(
            params,
            cfg,
            choice_gw,
            positions_bt=lengths + offset_gw,
            compute_dtype=dtype,
            cache=part,
            slots_bt=at,
            visible_bts=visible,
        )
        shifted = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
        before = jnp.where((offset_gw == 0)[..., None], before, shifted)

    def logp(xs):
        hidden_gld, token_gl = xs
        logits = llama.unembed(params, cfg, hidden_gld)
        return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token_gl[..., None], axis=-1)[..., 0]

    blocks = (jnp.moveaxis(x.reshape(g, w // LOGITS, LOGITS, *x.shape[2:]), 1, 0) for x in (before, choice_gw))
    values = jnp.moveaxis(jax.lax.map(logp, tuple(blocks)), 0, 1).reshape(g, w)
    return _put(cache, part, entry), constrain(values, None, None)


def _read(params, cache, entry, *, cfg, dtype, chunk):
    """(the G rows' part of the cache, the hidden state [G, D] of each prompt's last token)."""
    tokens_gt, lengths_g = entry["tokens_gt"], entry["lengths_g"]
    slots = kv_cache.slots(cache)
    # A row whose beginning another row holds starts as a copy of that row.
    part = _shard(kv_cache.take_rows(cache, entry["from_g"]))

    def step(i, carry):
        part, last_gd = carry
        offset = i * chunk
        positions = offset + jnp.broadcast_to(jnp.arange(chunk, dtype=jnp.int32), (tokens_gt.shape[0], chunk))
        at = jnp.where(positions < lengths_g[:, None], positions, slots)  # padding is not written
        tokens = jax.lax.dynamic_slice_in_dim(tokens_gt, offset, chunk, axis=1)
        hidden, part = llama.forward(params, cfg, tokens, positions_bt=at, compute_dtype=dtype, cache=part)
        last = lengths_g - 1 - offset
        here = jnp.take_along_axis(hidden, jnp.clip(last, 0, chunk - 1)[:, None, None], axis=1)[:, 0]
        last_gd = jnp.where(((last >= 0) & (last < chunk))[:, None], here, last_gd)
        return _shard(part), constrain(last_gd, None, None)

    none = constrain(jnp.zeros((tokens_gt.shape[0], cfg.hidden_size), dtype), None, None)
    end = (lengths_g.max() + chunk - 1) // chunk
    return jax.lax.fori_loop(entry["start"] // chunk, end, step, (part, none))


def _put(cache: Cache, part: Cache, entry) -> Cache:
    """The cache with the G rows in their places; a row number past the end stands for no prompt."""
    return _shard(kv_cache.put_rows(cache, entry["rows_g"], part))


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
    slots = kv_cache.slots(cache)

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
    return _shard(cache), constrain(out, None, None), constrain(bad)


def _next(params, hidden_bd, items_b, positions_b, draw, *, cfg, kind):
    """(next token [B], whether the row's logits are NaN [B]) for the tokens at positions_b."""
    logits = llama.unembed(params, cfg, hidden_bd)
    keys = None if kind == "greedy" else row_keys(draw["seed"], items_b, positions_b)
    token = sample(logits, keys, draw["temperature"], draw["top_p"], draw["top_k"], kind=kind)
    return token, argmax(logits)[1]
