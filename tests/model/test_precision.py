"""Products whose gradients are arranged for the processor: the same numbers, and arranged so on CPUs only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.model.precision import einsum_f32, linear, sum_product

SPECS = [
    # spec, shapes of the operands with the larger first
    ("...o,...i->oi", (3, 16, 24), (3, 16, 8)),
    ("cv,cd->vd", (16, 40), (16, 8)),
    ("bkgts,bkgth->bksh", (2, 2, 3, 8, 8), (2, 2, 3, 8, 4)),
]


def normal(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def swapped(spec):
    a, b, out = spec.replace("->", ",").split(",")
    return f"{b},{a}->{out}"


@pytest.mark.parametrize("spec, large, small", SPECS)
def test_a_sum_of_products_is_the_einsum_in_either_order(spec, large, small):
    a, b = normal(0, large), normal(1, small)
    expected = np.einsum(spec.replace("...", "xy"), *(np.asarray(x, np.float64) for x in (a, b)))
    for got in (sum_product(spec, a, b), sum_product(swapped(spec), b, a)):
        assert got.shape == expected.shape and got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    rounded = sum_product(spec, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, expected, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("inp, out", [(8, 24), (24, 8), (8, 8)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_linear_has_the_gradients_of_the_einsum(inp, out, dtype):
    x, w, weights = normal(0, (2, 6, inp), dtype), normal(1, (out, inp), dtype), normal(2, (2, 6, out), dtype)

    def loss(product, x, w):
        return (product(x, w) * weights).sum()

    got = jax.grad(lambda x, w: loss(linear, x, w), (0, 1))(x, w)
    expected = jax.grad(lambda x, w: loss(lambda x, w: jnp.einsum("...i,oi->...o", x, w), x, w), (0, 1))(x, w)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 0.05
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance)


def test_only_a_cpu_gets_the_other_order():
    x, w = jnp.zeros((4, 16, 8)), jnp.zeros((32, 8))

    def gradients(x, w):
        logits = jax.grad(lambda h, w: einsum_f32("cd,vd->cv", h, w).sum(), 1)(x.reshape(64, 8), w)
        return jax.grad(lambda w: linear(x, w).sum())(w), logits

    def program(platform):
        return jax.jit(gradients).trace(x, w).lower(lowering_platforms=(platform,)).as_text()

    assert program("cpu").count("optimization_barrier") == 2
    for platform in ("tpu", "cuda"):
        assert "optimization_barrier" not in program(platform)
