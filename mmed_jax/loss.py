"""Negative log-likelihood of targets, computed in chunks of tokens so that [batch, length, vocabulary] never exists."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmed_jax.model.precision import einsum_f32
from mmed_jax.sharding import ACTIVATION_RULES


def token_nll(
    hidden_btd: jax.Array,
    head_vd: jax.Array,
    targets_bt: jax.Array,
    *,
    chunk: int = 1024,
    compute_dtype: Any = jnp.float32,
) -> jax.Array:
    """-log softmax(hidden @ head^T)[target] of every token.

    Logits exist for `chunk` tokens (per device) at a time and are computed again in the backward pass.

    Args:
      hidden_btd: [B, T, D], after the final norm.
      head_vd: [V, D].
      targets_bt: int32 [B, T], in 0..V-1.
      compute_dtype: of the products; they are summed, and logsumexp is taken, in float32.

    Returns:
      float32 [B, T]. Masking and averaging are the caller's.
    """

    # Cast before the head is gathered from other devices, not after.
    hidden_btd, head_vd = hidden_btd.astype(compute_dtype), head_vd.astype(compute_dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _local_nll(hidden_btd, head_vd, targets_bt, chunk, None)
    # Every device works on its own tokens and its part of the vocabulary. The head is gathered once, and gradients are
    # summed over devices once, where pcast stands, instead of once per chunk.
    batch, length, vocab = (ACTIVATION_RULES[name] for name in ("batch", "length", "act_vocab"))

    def local(hidden, head, targets):
        hidden = jax.lax.pcast(hidden, vocab, to="varying")
        head = jax.lax.pcast(head, (*batch, length), to="varying")
        return _local_nll(hidden, head, targets, chunk, vocab)

    rows = P(batch, length)
    mapped = jax.shard_map(local, in_specs=(P(batch, length, None), P(vocab, None), rows), out_specs=rows)
    return mapped(hidden_btd, head_vd, targets_bt)


def _local_nll(
    hidden_btd: jax.Array, head_vd: jax.Array, targets_bt: jax.Array, chunk: int, vocab_axis: str | None
) -> jax.Array:
    """token_nll on one device, which holds all of the vocabulary or its part along the mesh axis `vocab_axis`."""
    b, t, d = hidden_btd.shape
    tokens, vocab = b * t, head_vd.shape[0]
    chunk = min(chunk, tokens)
    chunks = -(-tokens // chunk)
    pad = chunks * chunk - tokens
    hidden = jnp.pad(hidden_btd.reshape(tokens, d), ((0, pad), (0, 0))).reshape(chunks, chunk, d)
    targets = jnp.pad(targets_bt.reshape(tokens), (0, pad)).reshape(chunks, chunk)
    # einsum_f32 casts the head back: its values are rounded already, its gradient is summed over chunks in float32.
    head = head_vd.astype(jnp.float32)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(_, xs):
        h, y = xs
        logits = einsum_f32("cd,vd->cv", h, head)
        top = jax.lax.stop_gradient(logits.max(axis=-1))
        if vocab_axis is not None:
            top = jax.lax.pmax(top, vocab_axis)
            y = y - jax.lax.axis_index(vocab_axis) * vocab
            here = (0 <= y) & (y < vocab)
            y = jnp.clip(y, 0, vocab - 1)
        total = jnp.exp(logits - top[:, None]).sum(axis=-1)
        at_target = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
        if vocab_axis is not None:
            total, at_target = jax.lax.psum((total, jnp.where(here, at_target, 0)), vocab_axis)
        return None, jnp.log(total) + top - at_target

    with jax.named_scope("loss"):
        _, nll = jax.lax.scan(step, None, (hidden, targets))
    return nll.reshape(-1)[:tokens].reshape(b, t)
