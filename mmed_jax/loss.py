"""Negative log-likelihood of targets, computed in chunks of tokens so that [batch, length, vocabulary] never exists."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

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
    def local(hidden, head, targets):
        return _local_nll(hidden, head, targets, chunk, compute_dtype)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(hidden_btd, head_vd, targets_bt)
    # Each device works on its own tokens: the head is gathered once, and its gradient summed over devices once,
    # instead of once per chunk. The vocabulary stays split over `tensor`.
    batch, length = ACTIVATION_RULES["batch"], ACTIVATION_RULES["length"]
    rows = P(batch, length)
    return jax.shard_map(
        local,
        in_specs=(P(batch, length, None), P(), rows),
        out_specs=rows,
        axis_names={*batch, length},
    )(hidden_btd, head_vd, targets_bt)


def _local_nll(hidden_btd: jax.Array, head_vd: jax.Array, targets_bt: jax.Array, chunk: int, dtype: Any) -> jax.Array:
    b, t, d = hidden_btd.shape
    tokens = b * t
    chunk = min(chunk, tokens)
    chunks = -(-tokens // chunk)
    pad = chunks * chunk - tokens
    hidden = jnp.pad(hidden_btd.reshape(tokens, d).astype(dtype), ((0, pad), (0, 0))).reshape(chunks, chunk, d)
    targets = jnp.pad(targets_bt.reshape(tokens), (0, pad)).reshape(chunks, chunk)
    head = head_vd.astype(dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None

    @jax.checkpoint
    def step(_, xs):
        h, y = xs
        logits = jnp.einsum("cd,vd->cv", h, head, precision=precision, preferred_element_type=jnp.float32)
        at_target = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
        return None, jax.nn.logsumexp(logits, axis=-1) - at_target

    with jax.named_scope("loss"):
        _, nll = jax.lax.scan(step, None, (hidden, targets))
    return nll.reshape(-1)[:tokens].reshape(b, t)
