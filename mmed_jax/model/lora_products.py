"""The products of a linear layer with a low-rank adapter: y = x W^T + s (x A^T) B^T.

An adapted module has, beside "weight" [out, in] (and "bias"): "lora_a" [r, in], "lora_b" [out, r] and "lora_scale" [],
which is a constant. llama calls `linears` for the modules that share an input.
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
    return jnp.einsum("...i,oi->...o", x, matrix_oi.astype(x.dtype), precision=precision(x.dtype))


def linears(x: jax.Array, modules: Sequence[Module], weights_oi: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs [..., out] of modules that share the input x [..., in], without their biases.

    Args:
      weights_oi: the frozen weight of each, [out, in] in the dtype of x. Adapters are cast to it here.
    """
    return [_linear(x, m, w) if is_adapted(m) else linear(x, w) for m, w in zip(modules, weights_oi, strict=True)]


def _linear(x: jax.Array, module: Module, weight_oi: jax.Array) -> jax.Array:
    # The scale is put on [..., r], which is smaller than the output.
    h = thin(x, module["lora_a"]) * module["lora_scale"].astype(x.dtype)
    return linear(x, weight_oi) + thin(h, module["lora_b"])


def adapt_embedding(x: jax.Array, module: Module, tokens_bt: jax.Array) -> jax.Array:
    """x [B, T, D], rows of the table, plus s A[:, token] B^T."""
    h = jnp.take(module["lora_a"].T, tokens_bt, axis=0) * module["lora_scale"]
    return x + thin(h.astype(x.dtype), module["lora_b"])


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

    def _delta(self) -> jax.Array:
        return jnp.einsum("...r,vr->...v", self.h, self.b_vr.astype(self.h.dtype), **self._summed_in)

    @property
    def _summed_in(self) -> dict[str, Any]:
        return {"precision": precision(self.h.dtype), "preferred_element_type": jnp.float32}

    def gradients(self, d_adapted: jax.Array, frozen: jax.Array) -> tuple[jax.Array, tuple, tuple]:
        """For logits [C, V]: the gradients of (logits of the frozen head, those logits; (h,); (b_vr, factor_v)).

        Args:
          d_adapted: float32 [C, V], the gradient of the adapted logits. frozen: float32 [C, V], what `apply` got.
        """
        of_vocab: tuple[jax.Array, ...] = ()
        d_logits = d_adapted
        if self.factor_v is not None:
            of_vocab = ((d_adapted * (frozen + self._delta())).sum(axis=0),)
            d_logits = d_adapted * self.factor_v
        rounded = d_logits.astype(self.h.dtype)
        d_b = jnp.einsum("cv,cr->vr", rounded, self.h, **self._summed_in)
        d_h = jnp.einsum("cv,vr->cr", rounded, self.b_vr.astype(self.h.dtype), **self._summed_in)
        return d_logits, (d_h,), (d_b, *of_vocab)


def head_adapter(module: Module, hidden: jax.Array) -> HeadAdapter:
    """Of an adapted head and hidden states [..., D]."""
    return HeadAdapter(thin(hidden, module["lora_a"]) * module["lora_scale"].astype(hidden.dtype), module["lora_b"])
