"""Negative log-likelihood of targets, computed in chunks of tokens so that [batch, length, vocabulary] never exists."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmed_jax.model.lora_products import HeadAdapter
from mmed_jax.model.precision import precision, sum_product
from mmed_jax.parallel import two_step_gather
from mmed_jax.parallel.gradient_order import scatter_table
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
    adapter: HeadAdapter | None = None,
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
      adapter: of an adapted head (llama.head_adapter); it gets gradients of its own size.

    Returns:
      (the sum, float32; float32 [B, T] of every token). Gradients flow to hidden, head and adapter, and from the sum
      only.
    """
    how = _How(chunk, jnp.dtype(compute_dtype).name, train_head)
    trained = {"hidden": hidden_btd, "adapter": tuple(x for x in adapter or () if x is not None)}
    if train_head:
        trained["head"] = head_vd
    total, nll_bt = _weighted_nll(trained, head_vd, targets_bt, weights_bt, how)
    return total, jax.lax.stop_gradient(nll_bt)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted_nll(trained, head, targets, weights, how):
    (nll,) = _over_devices(trained, head, targets, weights, how, gradients=False)
    return _sum(nll, weights), nll


def _forward(trained, head, targets, weights, how):
    nll, gradients = _over_devices(trained, head, targets, weights, how, gradients=True)
    # An empty array carries the dtype in which the gradient is wanted.
    like = jax.tree.map(lambda x: jnp.zeros(0, x.dtype), trained)
    return (_sum(nll, weights), nll), (gradients, like)


def _backward(how, residuals, cotangents):
    factor = cotangents[0]
    trained = jax.tree.map(lambda g, like: (g.astype(jnp.float32) * factor).astype(like.dtype), *residuals)
    return trained, None, None, None


_weighted_nll.defvjp(_forward, _backward)


def _sum(nll, weights):
    # Selected, not multiplied: 0 x inf from a padding row would be NaN. NaN is not 0 and is kept.
    return jnp.where(weights != 0, nll * weights, 0.0).sum()


def _over_devices(trained, head, targets, weights, how: _How, *, gradients: bool) -> tuple[Any, ...]:
    """(nll,) or (nll, gradients of `trained`); every device works on its own tokens and its part of the vocabulary."""
    mesh = jax.sharding.get_abstract_mesh()
    # Cast before the head is gathered from other devices, not after.
    hidden, head = trained["hidden"].astype(how.dtype), head.astype(how.dtype)
    adapter = (*(h.astype(how.dtype) for h in trained["adapter"][:1]), *trained["adapter"][1:])
    if mesh.empty or mesh.size == 1:
        return _chunks(hidden, head, adapter, targets, weights, how, None, gradients, "vd")
    batch, length, vocab = (ACTIVATION_RULES[name] for name in ("batch", "length", "act_vocab"))
    shards = PARAM_RULES["embed"]
    split_vocab = vocab if mesh.shape[vocab] > 1 else None

    def local(hidden, head, adapter, targets, weights):
        # [D, V]: gathered and scattered along the first axis. Along the last one devices hold two copies at a time.
        if two_step_gather.in_two_steps():
            head = two_step_gather.all_gather(head.T, 0)
        else:
            head = jax.lax.all_gather(head.T, shards, axis=0, tiled=True)
        out = _chunks(hidden, head, adapter, targets, weights, how, split_vocab, gradients, "dv")
        if not gradients:
            return out
        nll, sums = out
        if "head" in sums:
            d_head = sums["head"].astype(how.dtype)
            sums["head"] = scatter_table(d_head, shards).T
            if mesh.shape["data"] > 1:
                # Only now: between slices nothing but parts is sent.
                sums["head"] = jax.lax.psum(sums["head"], "data")
        if adapter:
            of_tokens, *of_vocab = sums["adapter"]
            sums["adapter"] = (of_tokens, *jax.lax.psum(of_vocab, ("data", *shards)))
        if split_vocab is not None:
            sums["hidden"] = jax.lax.psum(sums["hidden"], split_vocab).astype(how.dtype)
            if adapter:
                sums["adapter"] = (jax.lax.psum(sums["adapter"][0], split_vocab), *sums["adapter"][1:])
        return nll, sums

    rows, wide, table = P(batch, length), P(batch, length, None), P(vocab, shards)
    of_adapter = (wide, P(vocab, None), P(vocab))[: len(adapter)]
    of_trained = {"hidden": wide, "adapter": of_adapter} | ({"head": table} if how.train_head else {})
    mapped = jax.shard_map(
        local,
        in_specs=(wide, table, of_adapter, rows, rows),
        out_specs=(rows, of_trained) if gradients else (rows,),
        check_vma=False,
    )
    return mapped(hidden, head, adapter, targets, weights)


def _chunks(
    hidden_btd, head, adapter, targets_bt, weights_bt, how: _How, vocab_axis: str | None, gradients: bool, order: str
):
    """nll [B, T] and, if asked, the gradients of the weighted sum, those of vocabulary size in float32, on one device.

    The head and its gradient have the axes `order`, "vd" or "dv". The device holds all of the vocabulary or its part
    along the mesh axis `vocab_axis`; then the gradient of hidden is a part too.
    """
    b, t, _ = hidden_btd.shape
    dtype, tokens, vocab = hidden_btd.dtype, b * t, head.shape[order.index("v")]
    chunk = min(how.chunk, tokens)
    chunks = -(-tokens // chunk)
    pad = chunks * chunk - tokens
    summed_in = {"precision": precision(dtype), "preferred_element_type": jnp.float32}

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(tokens, *x.shape[2:])
        return jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, chunk, *x.shape[1:])

    def step(sums: dict[str, Any], xs: tuple[Any, ...]) -> tuple[dict[str, Any], tuple[Any, ...]]:
        h, of_tokens, y, w = xs
        logits = jnp.einsum(f"cd,{order}->cv", h, head, **summed_in)
        if adapter:
            adapted = HeadAdapter(*of_tokens, *adapter[1:])
            logits, frozen = adapted.apply(logits), logits
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
            return sums, (nll,)
        is_target = jnp.arange(vocab) == y[:, None]
        d_logits = jnp.where(w[:, None] != 0, (exps / total[:, None] - is_target) * w[:, None], 0.0)
        d_adapter: tuple[jax.Array, ...] = ()
        if adapter:
            d_logits, d_adapter, of_vocab = adapted.gradients(d_logits, frozen)
            sums = sums | {"adapter": jax.tree.map(jnp.add, sums["adapter"], of_vocab)}
        d_logits = d_logits.astype(dtype)
        if how.train_head:
            parts = {"v": d_logits, "d": h}
            d_head = sum_product(f"c{order[0]},c{order[1]}->{order}", *(parts[x] for x in order), **summed_in)
            sums = sums | {"head": sums["head"] + d_head}
        d_h = jnp.einsum(f"cv,{order}->cd", d_logits, head, **summed_in)
        return sums, (nll, d_h if vocab_axis is not None else d_h.astype(dtype), d_adapter)

    sums: dict[str, Any] = {}
    if gradients:
        sums["adapter"] = tuple(jnp.zeros(x.shape, jnp.float32) for x in adapter[1:])
    if gradients and how.train_head:
        sums["head"] = jnp.zeros(head.shape, jnp.float32)
    with jax.named_scope("loss"):
        of_tokens = tuple(split(x) for x in adapter[:1])
        sums, outs = jax.lax.scan(step, sums, (split(hidden_btd), of_tokens, split(targets_bt), split(weights_bt)))
    outs = jax.tree.map(lambda x: x.reshape(chunks * chunk, *x.shape[2:])[:tokens].reshape(b, t, *x.shape[2:]), outs)
    if not gradients:
        return outs
    nll, d_hidden, of_tokens = outs
    return nll, sums | {"hidden": d_hidden, "adapter": of_tokens + sums["adapter"]}
