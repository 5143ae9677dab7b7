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
    """What the head's adapter does to logits: they become logits + h B^T.

    h: [..., r], s times the hidden states times A^T, in their dtype. b_vr: [V, r], in that dtype.
    """

    h: jax.Array
    b_vr: jax.Array

    def apply(self, logits: jax.Array) -> jax.Array:
        """float32 logits [..., V] of the frozen head -> those with the adapter."""
        kwargs = {"precision": precision(self.h.dtype), "preferred_element_type": jnp.float32}
        return logits + jnp.einsum("...r,vr->...v", self.h, self.b_vr.astype(self.h.dtype), **kwargs)


def head_adapter(module: Module, hidden: jax.Array) -> HeadAdapter:
    """Of an adapted head and hidden states [..., D]."""
    return HeadAdapter(thin(hidden, module["lora_a"]) * module["lora_scale"].astype(hidden.dtype), module["lora_b"])
