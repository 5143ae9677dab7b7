"""Matrix products whose precision is said, forward and backward, and whose gradients suit the processor."""

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
    db = sum_product(f"{out},{a_spec}->{b_spec}", ct, a, **kwargs)
    return da.astype(a.dtype), db.astype(b.dtype)


einsum_f32.defvjp(_forward, _backward)


@jax.custom_vjp
def linear(x: jax.Array, weight_oi: jax.Array) -> jax.Array:
    """x [..., I] times the transpose of weight [O, I], both of one dtype; [..., O] in that dtype."""
    return jnp.einsum("...i,oi->...o", x, weight_oi, precision=precision(x.dtype))


def _linear_backward(residuals, ct):
    x, weight = residuals
    dx = jnp.einsum("...o,oi->...i", ct, weight, precision=precision(x.dtype))
    return dx, sum_product("...o,...i->oi", ct, x, precision=precision(x.dtype))


linear.defvjp(lambda x, weight_oi: (linear(x, weight_oi), (x, weight_oi)), _linear_backward)


def sum_product(spec: str, a: jax.Array, b: jax.Array, **kwargs: Any) -> jax.Array:
    """jnp.einsum(spec, a, b) for a product that sums over leading dimensions of both, as gradients of weights do.

    On a CPU, XLA writes the first operand in transposed order, and computes whatever elementwise work made it a second
    time along the way, jumping through memory: slow when that operand is large. There the smaller operand comes first,
    and the result, smaller still, is transposed. Other platforms get the einsum as it stands.

    Args:
      spec: two operands and a result; "..." stands for dimensions that are summed over.
    """
    a_spec, b_spec, out = spec.replace("->", ",").split(",")
    if a.size <= b.size:
        return jnp.einsum(spec, a, b, **kwargs)
    of_both = [c for c in out if c in a_spec and c in b_spec]
    swapped = "".join([*of_both, *(c for c in out if c not in a_spec), *(c for c in out if c not in b_spec)])

    def smaller_first(a: jax.Array, b: jax.Array) -> jax.Array:
        product = jnp.einsum(f"{b_spec},{a_spec}->{swapped}", b, a, **kwargs)
        # The barrier keeps the compiler from turning the product round again.
        return jnp.einsum(f"{swapped}->{out}", jax.lax.optimization_barrier(product))

    return jax.lax.platform_dependent(a, b, cpu=smaller_first, default=lambda a, b: jnp.einsum(spec, a, b, **kwargs))
