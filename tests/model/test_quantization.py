"""NF4 and int8 bases: the bits of bitsandbytes, bounded errors, and what a sharded step keeps and sends."""

import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.model import quantization, quantized_base
from mmed_jax.model.quantization import dequantize, quantize_leaf
from tests.support import parity as ph


def test_int8_is_off_by_half_a_step_at_most():
    for seed, scale in enumerate((1e-6, 0.02, 1.0, 3e4)):
        weight = np.random.default_rng(seed).standard_t(4, (3, 17, 50)).astype(np.float32) * np.float32(scale)
        weight[1, 3] = 0
        p = quantize_leaf(weight, "int8")
        assert p["int8"].dtype == np.int8 and p["scale"].shape == (3, 17)
        error = np.abs(np.asarray(dequantize(p)) - weight)
        assert (error <= p["scale"][..., None] * 0.50001).all()
        np.testing.assert_array_equal(np.abs(p["int8"]).max(-1), np.where(p["scale"] > 0, 127, 0))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_values_that_are_not_finite_are_refused(kind):
    weight = np.ones((4, 64), np.float32)
    for bad in (np.nan, np.inf):
        weight[2, 5] = bad
        with pytest.raises(ValueError, match="not finite"):
            quantize_leaf(weight, kind)


def test_what_cannot_be_quantised_is_one_line():
    cfg = ph.tiny_config(hidden_size=96, num_heads=4, head_dim=32, intermediate_size=192)
    with pytest.raises(UserError, match="hidden_size=96 is no multiple of 64.*int8"):
        quantized_base.check_base(cfg, "nf4")
    quantized_base.check_base(cfg, "int8")
    cfg = ph.tiny_config(hidden_size=384, num_heads=4, head_dim=32, intermediate_size=192)
    with pytest.raises(UserError, match=r"hidden_size=384 has 6 blocks .*context=4 \(.* \[2, 3, 6\]\)"):
        quantized_base.check_base(cfg, "nf4", {"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    with pytest.raises(UserError, match="intermediate_size=192 has 3 blocks"):
        quantized_base.check_base(cfg, "nf4", {"data": 1, "fsdp": 2, "tensor": 2, "context": 1})
    with pytest.raises(UserError, match="did you mean 'nf4'"):
        quantized_base.check_base(cfg, "nf5")
    for kind in ("int8", "nf4"):
        with pytest.raises(UserError, match="remat='none'"):
            quantized_base.check_base(cfg, kind, remat="none")
    quantized_base.check_base(cfg, "compute", remat="none")


def test_the_abstract_base_is_what_quantising_gives():
    import jax
    import jax.numpy as jnp

    cfg = ph.tiny_config(hidden_size=64, num_heads=4, head_dim=32, intermediate_size=192)
    params = quantized_base.abstract_params(cfg)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), params)
    for kind in quantization.KINDS:
        base = quantized_base.quantize_base(params, kind, jnp.bfloat16)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), base)
        assert shapes == jax.tree.map(
            lambda x: (x.shape, x.dtype), quantized_base.abstract_base(cfg, kind, jnp.bfloat16)
        )
        axes = quantized_base.base_axes(cfg, kind)
        jax.tree.map(lambda x, names: len(names) == x.ndim or pytest.fail(f"{names}"), base, axes)
