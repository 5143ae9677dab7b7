"""The mean of models, tensor by tensor, beside numpy: dtypes, shards, blocks, weights of either sign."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.common.errors import UserError
from mmed_jax.hf import average
from mmed_jax.hf.average import AverageStream, read_shares
from mmed_jax.hf.model_source import open_whole
from mmed_jax.hf.save import save_pretrained
from tests.commands.test_export import CFG
from tests.support.hf_folders import random_params, raw_tensors, tiny_tokenizer

KINDS = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{(seed, dtype): an open folder}, some in several shards."""
    place = tmp_path_factory.mktemp("models")
    tokenizer, found = tiny_tokenizer(place / "tok"), {}
    for seed, kind in ((0, "float32"), (1, "bfloat16"), (2, "float16"), (3, "float32")):
        folder = place / f"{seed}"
        size = 30_000 if seed % 2 else 5_000_000_000
        save_pretrained(folder, random_params(CFG, seed), CFG, tokenizer, dtype=kind, max_shard_bytes=size)
        found[seed] = open_whole(folder)
    return found


def tensors(stream):
    return stream.read(lambda kinds, weights: {w.tensor.name: (w.tensor, w.array, w.finite) for w in weights})


@pytest.fixture(scope="module")
def stored(models):
    """(model, tensor name) -> its values in their stored dtype, read by the tests' own parser."""
    codes = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    raw = {id(m): raw_tensors(m.path) for m in models.values()}

    def values(model, name):
        code, shape, data = raw[id(model)][name]
        return np.frombuffer(data, jnp.dtype(codes[code])).reshape(shape)

    return values


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from(range(4)), min_size=2, max_size=4, unique=True),
    st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4),
    st.sampled_from([None, *KINDS]),
    st.sampled_from([70, 1 << 22]),
)
def test_each_value_is_the_sum_rounded_once(models, stored, seeds, shares, dtype, block):
    sources, shares = [models[s] for s in seeds], shares[: len(seeds)]
    before, average.BLOCK = average.BLOCK, block
    try:
        found = tensors(AverageStream(sources, shares, dtype))
    finally:
        average.BLOCK = before
    kind = np.dtype(dtype) if dtype else None
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        t, array, finite = found[name]
        parts = [stored(source, name) for source in sources]
        total = np.zeros(t.shape, np.float32)
        for part, share in zip(parts, shares):
            total += np.float32(share) * part.astype(np.float32)
        assert array.dtype == (kind or parts[0].dtype) and finite
        np.testing.assert_array_equal(array, total.astype(array.dtype), err_msg=name)
        # And against exact arithmetic: half a step of the dtype, and the float32 sums' own error.
        exact = sum(np.float64(np.float32(s)) * p.astype(np.float64) for p, s in zip(parts, shares))
        steps = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[str(array.dtype)]
        size = sum(abs(s) * np.abs(p.astype(np.float64)) for p, s in zip(parts, shares))
        assert (np.abs(array.astype(np.float64) - exact) <= np.abs(exact) * steps + size * 5e-7 + 1e-7).all()


def test_the_mean_of_equal_models_is_the_model(models, stored):
    for source in models.values():
        for name, (_, array, _) in tensors(AverageStream([source] * 4, [0.25] * 4)).items():
            np.testing.assert_array_equal(array, stored(source, name))


def test_a_value_that_does_not_fit_its_dtype_is_not_finite(models):
    found = tensors(AverageStream([models[0], models[2]], [4e5, 1 - 4e5], "float16"))
    assert not all(finite for _, _, finite in found.values())


@pytest.mark.parametrize(
    "text, count, words",
    [
        ("0.5,0.6", 2, "their sum is 1.1, and must be 1"),
        ("0.5,x", 2, "must be numbers"),
        ("nan,1", 2, "must be numbers"),
        ("1e400,1", 2, "must be numbers"),
        ("0.5,0.5", 3, "2 for 3 models"),
        (",", 2, "must be numbers"),
    ],
)
def test_weights_that_make_no_mean(text, count, words):
    with pytest.raises(UserError, match=words):
        read_shares(text, count)


def test_weights():
    assert read_shares("", 4) == [0.25] * 4 and read_shares("1,1,-1", 3) == [1, 1, -1]
    assert read_shares("0.3333333,0.3333333,0.3333333", 3) == [0.3333333] * 3
