"""Matrix products whose precision is said, forward and backward."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def precision(dtype: Any) -> jax.lax.Precision | None:
    """float32 means float32: no TF32 on GPUs, no bfloat16 passes on TPUs. Others as the hardware does it."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_f32(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """jnp.einsum(spec, a, b) multiplied in the dtype of `a` and summed and returned in float32.

    Backward, the cotangent is rounded to the dtype of `a` first, so that no product runs at float32 when `a` is
    bfloat16. The gradient of `b` has the dtype of `b`: a float32 `b` (cast here) gets it unrounded.

    Args:
      spec: two operands without "..."; every index of an operand is in the other operand or in the result.
    """
    return jnp.einsum(spec, a, b.astype(a.dtype), precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _forward(spec, a, b):
    return einsum_f32(spec, a, b), (a, b)


def _backward(spec, residuals, ct):
    a, b = residuals
    inputs, out = spec.split("->")
    a_spec, b_spec = inputs.split(",")
    ct = ct.astype(a.dtype)
    kwargs = {"precision": precision(a.dtype), "preferred_element_type": jnp.float32}
    da = jnp.einsum(f"{out},{b_spec}->{a_spec}", ct, b.astype(a.dtype), **kwargs)
    db = jnp.einsum(f"{out},{a_spec}->{b_spec}", ct, a, **kwargs)
    return da.astype(a.dtype), db.astype(b.dtype)


einsum_f32.defvjp(_forward, _backward)
