"""Negative log-likelihood of targets, computed in chunks of tokens so that [batch, length, vocabulary] never exists."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmed_jax.model.precision import precision, sum_product
from mmed_jax.parallel.sharding import ACTIVATION_RULES, PARAM_RULES


@dataclass(frozen=True)
class _How:
    chunk: int
    dtype: str
    train_head: bool


def weighted_nll(
    hidden_btd: jax.Array,
    head_vd: jax.Array,
    targets_bt: jax.Array,
    weights_bt: jax.Array,
    *,
    chunk: int = 1024,
    compute_dtype: Any = jnp.float32,
    train_head: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """-log softmax(hidden @ head^T)[target] of every token, and its weighted sum.

    Logits exist for `chunk` tokens (per device) at a time, once: the gradients of the sum are computed with them, in
    the forward pass, because they need only a factor afterwards. The head is gathered once and its gradient summed over
    devices once: over the chunks of a device in float32, over devices in compute_dtype. (On one device it stays
    float32.)

    Args:
      hidden_btd: [B, T, D], after the final norm. Finite everywhere, also where the weight is 0: there the sum and the
        gradient of hidden are not touched by what it holds, but the gradient of the head is (0 x inf is NaN).
      head_vd: [V, D].
      targets_bt: int32 [B, T], in 0..V-1.
      weights_bt: float32 [B, T]. A token of weight 0 adds nothing to the sum, whatever its likelihood; a weight that is
        NaN makes the sum and the gradients NaN.
      compute_dtype: of the products; they are summed, and logsumexp is taken, in float32.
      train_head: False where the head is frozen: its gradient, [V, D] in float32 and a third of the products, is then
        neither computed nor held; it counts as zero.

    Returns:
      (the sum, float32; float32 [B, T] of every token). Gradients flow to hidden and head, and from the sum only.
    """
    how = _How(chunk, jnp.dtype(compute_dtype).name, train_head)
    total, nll_bt = _weighted_nll(hidden_btd, head_vd, targets_bt, weights_bt, how)
    return total, jax.lax.stop_gradient(nll_bt)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted_nll(hidden, head, targets, weights, how):
    (nll,) = _over_devices(hidden, head, targets, weights, how, gradients=False)
    return _sum(nll, weights), nll


def _forward(hidden, head, targets, weights, how):
    nll, d_hidden, *d_head = _over_devices(hidden, head, targets, weights, how, gradients=True)
    # An empty array carries the dtype in which the gradient is wanted.
    return (_sum(nll, weights), nll), (d_hidden, d_head, jnp.zeros(0, hidden.dtype), jnp.zeros(0, head.dtype))


def _backward(how, residuals, cotangents):
    d_hidden, d_head, like_hidden, like_head = residuals
    factor = cotangents[0]
    d_hidden = (d_hidden.astype(jnp.float32) * factor).astype(like_hidden.dtype)
    of_head = [(d.astype(jnp.float32) * factor).astype(like_head.dtype) for d in d_head]
    return d_hidden, of_head[0] if of_head else None, None, None


_weighted_nll.defvjp(_forward, _backward)


def _sum(nll, weights):
    # Selected, not multiplied: 0 x inf from a padding row would be NaN. NaN is not 0 and is kept.
    return jnp.where(weights != 0, nll * weights, 0.0).sum()


def _over_devices(hidden, head, targets, weights, how: _How, *, gradients: bool) -> tuple[jax.Array, ...]:
    """(nll,), (nll, d_hidden) or (nll, d_hidden, d_head); every device works on its own tokens and its part of the
    vocabulary."""
    mesh = jax.sharding.get_abstract_mesh()
    # Cast before the head is gathered from other devices, not after.
    hidden, head = hidden.astype(how.dtype), head.astype(how.dtype)
    if mesh.empty or mesh.size == 1:
        return _chunks(hidden, head, targets, weights, how, None, gradients, "vd")
    batch, length, vocab = (ACTIVATION_RULES[name] for name in ("batch", "length", "act_vocab"))
    shards = PARAM_RULES["embed"]
    split_vocab = vocab if mesh.shape[vocab] > 1 else None

    def local(hidden, head, targets, weights):
        # [D, V]: gathered and scattered along the first axis. Along the last one devices hold two copies at a time.
        head = jax.lax.all_gather(head.T, shards, axis=0, tiled=True)
        nll, *of = _chunks(hidden, head, targets, weights, how, split_vocab, gradients, "dv")
        if gradients and how.train_head:
            of[1] = jax.lax.psum_scatter(of[1].astype(how.dtype), shards, scatter_dimension=0, tiled=True).T
            if mesh.shape["data"] > 1:
                # Only now: between slices nothing but parts is sent.
                of[1] = jax.lax.psum(of[1], "data")
        if gradients and split_vocab is not None:
            of[0] = jax.lax.psum(of[0], split_vocab).astype(how.dtype)
        return nll, *of

    rows, wide, table = P(batch, length), P(batch, length, None), P(vocab, shards)
    mapped = jax.shard_map(
        local,
        in_specs=(wide, table, rows, rows),
        out_specs=(rows, wide, table)[: 1 + gradients * (1 + how.train_head)],
        check_vma=False,
    )
    return mapped(hidden, head, targets, weights)


def _chunks(hidden_btd, head, targets_bt, weights_bt, how: _How, vocab_axis: str | None, gradients: bool, order: str):
    """nll [B, T] and, if asked, d_hidden [B, T, D] and d_head of the weighted sum, float32, on one device.

    The head and its gradient have the axes `order`, "vd" or "dv". The device holds all of the vocabulary or its part
    along the mesh axis `vocab_axis`; then d_hidden is a part too.
    """
    b, t, d = hidden_btd.shape
    dtype, tokens, vocab = hidden_btd.dtype, b * t, head.shape[order.index("v")]
    chunk = min(how.chunk, tokens)
    of_head = gradients and how.train_head
    chunks = -(-tokens // chunk)
    pad = chunks * chunk - tokens
    summed_in = {"precision": precision(dtype), "preferred_element_type": jnp.float32}

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(tokens, *x.shape[2:])
        return jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, chunk, *x.shape[1:])

    def step(d_head: jax.Array | None, xs: tuple[jax.Array, ...]) -> tuple[jax.Array | None, tuple[jax.Array, ...]]:
        h, y, w = xs
        logits = jnp.einsum(f"cd,{order}->cv", h, head, **summed_in)
        top = logits.max(axis=-1)
        if vocab_axis is not None:
            top = jax.lax.pmax(top, vocab_axis)
            y = y - jax.lax.axis_index(vocab_axis) * vocab
            here = (0 <= y) & (y < vocab)
        exps = jnp.exp(logits - top[:, None])
        total = exps.sum(axis=-1)
        at_target = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
        if vocab_axis is not None:
            total, at_target = jax.lax.psum((total, jnp.where(here, at_target, 0.0)), vocab_axis)
        nll = jnp.log(total) + top - at_target
        if not gradients:
            return None, (nll,)
        is_target = jnp.arange(vocab) == y[:, None]
        d_logits = jnp.where(w[:, None] != 0, (exps / total[:, None] - is_target) * w[:, None], 0.0).astype(dtype)
        if of_head:
            parts = {"v": d_logits, "d": h}
            d_head = d_head + sum_product(f"c{order[0]},c{order[1]}->{order}", *(parts[x] for x in order), **summed_in)
        d_h = jnp.einsum(f"cv,{order}->cd", d_logits, head, **summed_in)
        return d_head, (nll, d_h if vocab_axis is not None else d_h.astype(dtype))

    with jax.named_scope("loss"):
        start = jnp.zeros(head.shape, jnp.float32) if of_head else None
        d_head, outs = jax.lax.scan(step, start, (split(hidden_btd), split(targets_bt), split(weights_bt)))
    outs = [x.reshape(chunks * chunk, *x.shape[2:])[:tokens].reshape(b, t, *x.shape[2:]) for x in outs]
    return (*outs, d_head) if of_head else tuple(outs)
