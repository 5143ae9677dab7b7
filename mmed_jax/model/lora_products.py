"""The products of a linear layer with a low-rank adapter: y = f (x W^T + s dropout(x) A^T B^T), f = 1 but for DoRA.

An adapted module has, beside "weight" [out, in] (and "bias"): "lora_a" [r, in], "lora_b" [out, r] and "lora_scale" [],
which is a constant (0 in a layer without adapter); "magnitude" [out] with DoRA; "lora_dropout" {"key", "rate"} while a
model with dropout is trained. llama calls `linears` for the modules that share an input.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmed_jax.model.precision import linear, precision

Module = dict[str, Any]


def is_adapted(module: Module) -> bool:
    """Whether the module has an adapter."""
    return "lora_a" in module


def thin(x: jax.Array, matrix_oi: jax.Array) -> jax.Array:
    """x [..., I] times the transpose of a matrix [O, I] of few rows or columns, in the dtype of x."""
    # Not einsum: what jax makes of its gradient takes two fifths more time for a whole step on a CPU.
    return linear(x, matrix_oi.astype(x.dtype))


def linears(x: jax.Array, modules: Sequence[Module], weights_oi: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs [..., out] of modules that share the input x [..., in], without their biases.

    Args:
      weights_oi: the frozen weight of each, [out, in] in the dtype of x. Adapters are cast to it here.
    """
    return [_linear(x, m, w) if is_adapted(m) else linear(x, w) for m, w in zip(modules, weights_oi, strict=True)]


def _linear(x: jax.Array, module: Module, weight_oi: jax.Array) -> jax.Array:
    # The scale is put on [..., r], which is smaller than the output.
    h = thin(_drop(x, module), module["lora_a"]) * module["lora_scale"].astype(x.dtype)
    y = linear(x, weight_oi) + thin(h, module["lora_b"])
    return y * dora_factor(module, weight_oi).astype(x.dtype) if "magnitude" in module else y


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
