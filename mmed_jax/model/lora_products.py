"""The products of a linear layer with a low-rank adapter: y = f (x W^T + s dropout(x) A^T B^T), f = 1 but for DoRA.

An adapted module has, beside "weight" [out, in] (and "bias"): "lora_a" [r, in], "lora_b" [out, r] and "lora_scale" [],
which is a constant (0 in a layer without adapter); "magnitude" [out] with DoRA; "lora_dropout" {"key", "rate"} while a
model with dropout is trained. llama calls `linears` for the modules that share an input.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmed_jax.model.precision import linear, precision, sum_product

Module = dict[str, Any]


def is_adapted(module: Module) -> bool:
    """Whether the module has an adapter."""
    return "lora_a" in module


def thin(x: jax.Array, matrix_oi: jax.Array) -> jax.Array:
    """x [..., I] times the transpose of a matrix [O, I] of few rows or columns, in the dtype of x."""
    # Not einsum: what jax makes of its gradient takes two fifths more time for a whole step on a CPU.
    return linear(x, matrix_oi.astype(x.dtype))


def linears(
    x: jax.Array, modules: Sequence[Module], weights_oi: Sequence[jax.Array], *, thin_first: bool = True
) -> list[jax.Array]:
    """The outputs [..., out] of modules that share the input x [..., in], without their biases.

    Args:
      weights_oi: the frozen weight of each, [out, in] in the dtype of x. Adapters are cast to it here.
      thin_first: whether the products with B come before those with the weights, or after them; equal but for rounding.
    """
    plain = [i for i, m in enumerate(modules) if is_adapted(m) and "lora_dropout" not in m]
    together = adapted_linears(
        thin_first,
        x,
        [weights_oi[i] for i in plain],
        [modules[i]["lora_a"] for i in plain],
        [modules[i]["lora_b"] for i in plain],
        [modules[i]["lora_scale"] for i in plain],
    )
    ys = dict(zip(plain, together, strict=True))
    for i, (module, weight) in enumerate(zip(modules, weights_oi, strict=True)):
        if i not in ys:
            ys[i] = _dropped_linear(x, module, weight) if is_adapted(module) else linear(x, weight)
        if "magnitude" in module:
            ys[i] = ys[i] * dora_factor(module, weight).astype(x.dtype)
    return [ys[i] for i in range(len(modules))]


def _dropped_linear(x: jax.Array, module: Module, weight_oi: jax.Array) -> jax.Array:
    """With dropout every module has inputs of its own, and autodiff its way."""
    h = thin(_drop(x, module), module["lora_a"]) * module["lora_scale"].astype(x.dtype)
    return linear(x, weight_oi) + thin(h, module["lora_b"])


Matrices = Sequence[jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adapted_linears(
    thin_first: bool, x: jax.Array, weights: Matrices, a_s: Matrices, b_s: Matrices, scales: Matrices
) -> list[jax.Array]:
    """x W^T + s x A^T B^T of modules that share x [..., in], in its dtype.

    The order of products is the point (docs/lora.md has what each costs on a TPU). The A's are one product. What is
    thin comes first, behind a barrier, so that the large products add it where they end, and what follows, as the copy
    that is kept for the backward pass, is part of them too; left alone the compiler writes a large product, reads it
    and writes it again. Outputs that are laid out anew anyway, as heads are, come the other way round (thin_first
    False): a thin product by itself would be copied into their layout.

    Args:
      weights: [out, in] in the dtype of x. a_s: [r, in]. b_s: [out, r]. scales: [], constants: they get no gradient.
    """
    return _adapted_forward(thin_first, x, weights, a_s, b_s, scales)[0]


def _adapted_forward(thin_first, x, weights, a_s, b_s, scales):
    if not weights:
        return [], (x, weights, a_s, b_s, scales, None)
    # The scale is put on [..., r], which is smaller than the output.
    h = checkpoint_name(thin(x, _stacked(a_s)) * _by_rank(a_s, scales, x.dtype), "lora_h")
    ys = []
    for h_own, weight, b in zip(_split(h, a_s), weights, b_s, strict=True):
        if thin_first:
            ys.append(linear(x, weight) + jax.lax.optimization_barrier(thin(h_own, b)))
        else:
            ys.append(jax.lax.optimization_barrier(linear(x, weight)) + thin(h_own, b))
    return ys, (x, weights, a_s, b_s, scales, h)


def _adapted_backward(thin_first, residuals, cotangents):
    x, weights, a_s, b_s, scales, h = residuals
    if not weights:
        return jnp.zeros_like(x), [], [], [], []
    at = {"precision": precision(x.dtype)}
    if thin_first:
        # Each is read three times: written once, instead of computed again wherever it is read.
        cotangents = jax.lax.optimization_barrier(cotangents)
    d_h = jnp.concatenate(
        [jnp.einsum("...o,or->...r", ct, b.astype(x.dtype), **at) for ct, b in zip(cotangents, b_s, strict=True)],
        axis=-1,
    )
    d_h = d_h * _by_rank(a_s, scales, x.dtype)
    dx = jax.lax.optimization_barrier(jnp.einsum("...r,ri->...i", d_h, _stacked(a_s).astype(x.dtype), **at))
    for ct, weight in zip(cotangents, weights, strict=True):
        dx = dx + jnp.einsum("...o,oi->...i", ct, weight, **at)
    summed = at | {"preferred_element_type": jnp.float32}
    d_a = sum_product("...r,...i->ri", d_h, x, **summed)
    d_b = [sum_product("...o,...r->or", ct, own, **summed) for ct, own in zip(cotangents, _split(h, a_s), strict=True)]
    # Nobody asks for these of frozen weights, and what nobody asks for is not computed.
    d_w = [sum_product("...o,...i->oi", ct, x, **at) for ct in cotangents]
    return dx, d_w, _split(d_a, a_s, axis=0), d_b, [jnp.zeros_like(s) for s in scales]


adapted_linears.defvjp(_adapted_forward, _adapted_backward)


def _stacked(a_s: Matrices) -> jax.Array:
    return jnp.concatenate(list(a_s)) if len(a_s) > 1 else a_s[0]


def _by_rank(a_s: Matrices, scales: Matrices, dtype: Any) -> jax.Array:
    """The scale of every row of the stacked A's."""
    each = [jnp.broadcast_to(s.astype(dtype), a.shape[:1]) for a, s in zip(a_s, scales, strict=True)]
    return jnp.concatenate(each)


def _split(stacked: jax.Array, a_s: Matrices, axis: int = -1) -> list[jax.Array]:
    """The parts of something that has the rows of the stacked A's along an axis."""
    ends = list(itertools.accumulate(a.shape[0] for a in a_s))
    return jnp.split(stacked, ends[:-1], axis=axis)


def _drop(x: jax.Array, module: Module) -> jax.Array:
    """x with some of its elements 0 and the others larger, as the module's key says."""
    if "lora_dropout" not in module:
        return x
    key, rate = module["lora_dropout"]["key"], module["lora_dropout"]["rate"]
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate).astype(x.dtype), jnp.zeros((), x.dtype))


def dora_factor(module: Module, weight_oi: jax.Array) -> jax.Array:
    """What DoRA multiplies outputs with, float32 [out]: magnitude / |row of W + s B A|; 1 in layers without adapter.

    The norm is a constant to the gradient (section 4.3 of the paper, as in PEFT), and is summed without W + s B A.
    """
    kwargs = {"precision": jax.lax.Precision.HIGHEST}
    scale = module["lora_scale"]
    a, b, w = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (module["lora_a"], module["lora_b"], weight_oi))
    mixed = 2 * scale * jnp.einsum("oi,ri->or", w, a, **kwargs)
    mixed += scale * scale * jnp.einsum("or,rs->os", b, jnp.einsum("ri,si->rs", a, a, **kwargs), **kwargs)
    norm = jnp.sqrt((w * w).sum(axis=1) + (mixed * b).sum(axis=1))
    has_adapter = scale != 0
    return jnp.where(has_adapter, module["magnitude"] / jnp.where(has_adapter, norm, 1.0), 1.0)


def adapt_embedding(x: jax.Array, module: Module, tokens_bt: jax.Array) -> jax.Array:
    """x [B, T, D], rows of the table, plus s A[:, token] B^T. (PEFT has no dropout here.)"""
    h = jnp.take(module["lora_a"].T, tokens_bt, axis=0) * module["lora_scale"]
    y = x + thin(h.astype(x.dtype), module["lora_b"])
    return y * dora_factor(module, module["weight"].T).astype(x.dtype) if "magnitude" in module else y


class HeadAdapter(NamedTuple):
    """What the head's adapter does to logits: they become (logits + h B^T) f.

    h: [..., r], s times the hidden states times A^T, in their dtype. b_vr: [V, r]. factor_v: float32 [V], of DoRA.
    """

    h: jax.Array
    b_vr: jax.Array
    factor_v: jax.Array | None = None

    def apply(self, logits: jax.Array) -> jax.Array:
        """float32 logits [..., V] of the frozen head -> those with the adapter."""
        adapted = logits + self._delta()
        return adapted if self.factor_v is None else adapted * self.factor_v

    def gradients(self, d_adapted: jax.Array, frozen: jax.Array) -> tuple[jax.Array, tuple, tuple]:
        """For logits [C, V]: the gradients of (logits of the frozen head; (h,); (b_vr, factor_v)).

        Args:
          d_adapted: float32 [C, V], the gradient of the adapted logits. frozen: float32 [C, V], what `apply` got.
        """
        of_factor: tuple[jax.Array, ...] = ()
        d_logits = d_adapted
        if self.factor_v is not None:
            of_factor = ((d_adapted * (frozen + self._delta())).sum(axis=0),)
            d_logits = d_adapted * self.factor_v
        rounded = d_logits.astype(self.h.dtype)
        d_b = jnp.einsum("cv,cr->vr", rounded, self.h, **self._summed_in)
        d_h = jnp.einsum("cv,vr->cr", rounded, self.b_vr.astype(self.h.dtype), **self._summed_in)
        return d_logits, (d_h,), (d_b, *of_factor)

    def _delta(self) -> jax.Array:
        return jnp.einsum("...r,vr->...v", self.h, self.b_vr.astype(self.h.dtype), **self._summed_in)

    @property
    def _summed_in(self) -> dict[str, Any]:
        return {"precision": precision(self.h.dtype), "preferred_element_type": jnp.float32}


def head_adapter(module: Module, hidden: jax.Array) -> HeadAdapter:
    """Of an adapted head and hidden states [..., D]."""
    h = thin(_drop(hidden, module), module["lora_a"]) * module["lora_scale"].astype(hidden.dtype)
    factor = dora_factor(module, module["weight"]) if "magnitude" in module else None
    return HeadAdapter(h, module["lora_b"], factor)
