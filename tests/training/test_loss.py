"""The chunked loss against the plain one: values, gradients, masks, memory, meshes, bfloat16."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.model.lora_products import HeadAdapter
from mmed_jax.model.precision import einsum_f32
from mmed_jax.parallel.sharding import batch_sharding, make_mesh
from mmed_jax.training.loss import weighted_nll

VOCAB, HIDDEN = 96, 16


def inputs(batch, length, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(batch, length, HIDDEN)).astype(np.float32)
    head = scale * rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32) / np.sqrt(HIDDEN)
    targets = rng.integers(0, VOCAB, (batch, length)).astype(np.int32)
    weights = (rng.random((batch, length)) < 0.6).astype(np.float32)
    return tuple(jnp.asarray(x) for x in (hidden, head, targets, weights))


def plain(hidden, head, targets):
    log_probs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head, precision="highest"), axis=-1)
    return -(log_probs * jax.nn.one_hot(targets, VOCAB)).sum(-1)


def plain_sum(hidden, head, targets, weights):
    values = plain(hidden, head, targets)
    return (values * weights).sum(), values


def loss_of(nll, **kwargs):
    """Masked mean loss, its per-token values and its gradients, compiled."""

    def loss(hidden, head, targets, weights):
        total, values = nll(hidden, head, targets, weights, **kwargs)
        return total / jnp.maximum(weights.sum(), 1), values

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("batch, length, chunk", [(3, 40, 32), (2, 16, 1024), (1, 7, 7), (2, 33, 1)])
def test_chunks_change_nothing(batch, length, chunk):
    args = inputs(batch, length)
    (loss, values), grads = loss_of(weighted_nll, chunk=chunk)(*args)
    (expected, expected_values), expected_grads = loss_of(plain_sum)(*args)
    assert values.dtype == jnp.float32 and values.shape == (batch, length)
    np.testing.assert_allclose(values, expected_values, atol=2e-5)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_masked_tokens_carry_no_gradient():
    hidden, head, targets, weights = inputs(3, 40)
    weights = weights.at[1].set(0)
    _, (d_hidden, _) = loss_of(weighted_nll, chunk=16)(hidden, head, targets, weights)
    touched = np.abs(d_hidden).max(-1) > 0
    np.testing.assert_array_equal(touched, np.asarray(weights) > 0)


def test_all_masked_is_zero_not_nan():
    hidden, head, targets, weights = inputs(2, 20)
    (loss, _), grads = loss_of(weighted_nll, chunk=16)(hidden, head, targets, weights * 0)
    assert float(loss) == 0
    for g in grads:
        np.testing.assert_array_equal(g, 0)


def test_a_weight_that_is_no_number_is_not_counted_as_0():
    """Neither in the sum nor in the gradients of what it weighs; other tokens keep theirs."""
    hidden, head, targets, weights = inputs(2, 20)
    (loss, values), (d_hidden, d_head) = loss_of(weighted_nll, chunk=16)(
        hidden, head, targets, weights.at[0, 3].set(jnp.nan)
    )
    total, _ = weighted_nll(hidden, head, targets, weights.at[0, 3].set(jnp.nan))
    assert np.isnan(total) and np.isnan(loss) and np.isfinite(values).all()
    assert np.isnan(d_hidden[0, 3]).all() and np.isnan(d_head).any()


def test_hidden_states_that_are_no_numbers_at_weight_0():
    """As the docstring says: the sum and the other tokens know nothing of them, the head's gradient does."""
    hidden, head, targets, weights = inputs(2, 20)
    weights = weights.at[0, 3].set(0)
    broken = hidden.at[0, 3].set(jnp.inf)
    (loss, values), (d_hidden, d_head) = loss_of(weighted_nll, chunk=16)(broken, head, targets, weights)
    (expected, _), (expected_hidden, _) = loss_of(weighted_nll, chunk=16)(hidden, head, targets, weights)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert not np.isfinite(values[0, 3]) and np.isfinite(np.delete(np.asarray(values), 3, axis=1)).all()
    np.testing.assert_allclose(d_hidden, expected_hidden, atol=1e-6)
    assert np.isnan(d_head).any()


def test_huge_logits_do_not_overflow():
    hidden, head, targets, weights = inputs(1, 12)
    (loss, values), grads = loss_of(weighted_nll, chunk=5)(hidden * 1e3, head * 1e3, targets, weights)
    assert np.isfinite(loss) and np.isfinite(values).all() and all(np.isfinite(g).all() for g in grads)
    reference = plain(np.asarray(hidden, np.float64) * 1e3, np.asarray(head, np.float64) * 1e3, targets)
    np.testing.assert_allclose(values, reference, rtol=1e-4)


def test_target_outside_the_vocabulary_is_loud():
    hidden, head, targets, weights = inputs(1, 4)
    _, values = weighted_nll(hidden, head, targets.at[0, 1].set(VOCAB), weights)
    np.testing.assert_array_equal(np.isnan(values), [[False, True, False, False]])


def test_memory_is_one_chunk_of_logits():
    """Temporary memory of value and gradient at 4096 tokens and 8192 words: a few chunks, not [tokens, vocab]."""
    tokens, vocab, chunk = 4096, 8192, 256

    def loss(h, w, y):
        return weighted_nll(h, w, y, jnp.ones(y.shape), chunk=chunk)[0]

    args = (
        jax.ShapeDtypeStruct((4, tokens // 4, HIDDEN), jnp.float32),
        jax.ShapeDtypeStruct((vocab, HIDDEN), jnp.float32),
        jax.ShapeDtypeStruct((4, tokens // 4), jnp.int32),
    )
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (4 * chunk * vocab) < 4 * tokens * vocab / 3


MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}]


def on_mesh(sizes, dtype, batch=8, length=32, chunk=16):
    hidden, head, targets, weights = inputs(batch, length)
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        rows = batch_sharding(mesh)
        args = (
            jax.device_put(hidden, NamedSharding(mesh, P(*rows.spec, None))),
            jax.device_put(head, NamedSharding(mesh, P("tensor", ("fsdp", "context")))),
            jax.device_put(targets, rows),
            jax.device_put(weights, rows),
        )
        compiled = loss_of(weighted_nll, chunk=chunk, compute_dtype=dtype).lower(*args).compile()
        return compiled(*args), compiled.as_text(), (hidden, head, targets, weights)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_meshes_give_the_same(sizes):
    ((loss, values), grads), _, args = on_mesh(sizes, jnp.float32)
    (expected, expected_values), expected_grads = loss_of(weighted_nll)(*args)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(values, expected_values, atol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_head_moves_once_whatever_the_number_of_chunks():
    """One gather of the head and one reduce-scatter of its gradient in the program, outside the loop over chunks."""
    _, text, _ = on_mesh({"fsdp": 4, "tensor": 2}, jnp.float32, chunk=16)
    part = rf"f32\[({HIDDEN}|{HIDDEN // 4}),{VOCAB // 2}\]"
    lines = [
        line for line in text.splitlines() if re.search(r" (all-gather|all-reduce|reduce-scatter|all-to-all)\(", line)
    ]
    moved = [line for line in lines if re.search(part, line.split("(%")[0])]
    assert len([line for line in moved if " all-gather(" in line]) == 1
    assert len([line for line in moved if " reduce-scatter(" in line]) == 1
    assert len(moved) == 2
    assert not [line for line in lines if re.search(r"while/body", line) and re.search(part, line)]
    # Logits are never put together across the vocabulary.
    assert not [line for line in lines if re.search(rf"\[\d+,{VOCAB}\]", line)]


@pytest.mark.parametrize("sizes", [None, *MESHES], ids=str)
def test_a_frozen_head_has_no_gradient_and_no_product_for_it(sizes):
    """The sum and the gradient of hidden stay as they are; one of three products of the vocabulary's size goes."""
    mesh = make_mesh(**sizes) if sizes else make_mesh(devices=jax.devices()[:1])
    args = inputs(8, 32)
    with jax.set_mesh(mesh):
        (loss, _), (d_hidden, d_head) = loss_of(weighted_nll, chunk=16, train_head=False)(*args)
        (expected, _), (expected_hidden, _) = loss_of(weighted_nll, chunk=16)(*args)
        texts = [loss_of(weighted_nll, chunk=16, train_head=t).lower(*args).as_text() for t in (True, False)]
    assert float(loss) == float(expected) and not np.asarray(d_head).any()
    np.testing.assert_array_equal(d_hidden, expected_hidden)
    assert [len([x for x in t.splitlines() if "dot_general" in x]) for t in texts] == [3, 2]


def test_bfloat16_products_over_a_float32_head():
    """bfloat16 rounding of hidden and head, float32 after it; the head's gradient is summed over chunks in float32."""
    hidden, head, targets, weights = inputs(4, 64)
    (loss, values), (d_hidden, d_head) = loss_of(weighted_nll, chunk=8, compute_dtype=jnp.bfloat16)(
        hidden.astype(jnp.bfloat16), head, targets, weights
    )
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, head)]
    (expected, expected_values), (e_hidden, e_head) = loss_of(plain_sum)(*rounded, targets, weights)
    np.testing.assert_allclose(values, expected_values, atol=2e-5)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert d_hidden.dtype == jnp.bfloat16 and d_head.dtype == jnp.float32
    # One rounding of each cotangent to 8 bits: 32 chunks summed in bfloat16 would be further off.
    assert np.abs(d_head - e_head).max() < 4e-3 * np.abs(e_head).max()
    assert np.abs(d_hidden.astype(np.float32) - e_hidden).max() < 1e-2 * np.abs(e_hidden).max()


def test_bfloat16_on_a_mesh():
    ((loss, _), _), _, args = on_mesh({"fsdp": 4, "tensor": 2}, jnp.bfloat16)
    (expected, _), _ = loss_of(weighted_nll, compute_dtype=jnp.bfloat16)(*args)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_logits_product_runs_once():
    """Value and gradient together take three products: logits, and one for each gradient."""
    args = inputs(2, 16)
    text = loss_of(weighted_nll, chunk=8).lower(*args).as_text()
    assert len([line for line in text.splitlines() if "dot_general" in line]) == 3


def test_einsum_f32_is_einsum():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 5, 4), (2, 3, 6, 4)))

    def ours(a, b):
        return (einsum_f32("bkqh,bksh->bkqs", a, b) ** 3).sum()

    def theirs(a, b):
        return (jnp.einsum("bkqh,bksh->bkqs", a, b) ** 3).sum()

    for x, y in zip(jax.grad(ours, (0, 1))(a, b), jax.grad(theirs, (0, 1))(a, b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4)


def test_no_product_runs_at_float32_in_bfloat16_compute():
    hidden, head, targets, weights = inputs(2, 16)
    fn = loss_of(weighted_nll, chunk=8, compute_dtype=jnp.bfloat16)
    text = fn.lower(hidden.astype(jnp.bfloat16), head, targets, weights).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 3
    for line in products:
        operands = line.split(" : (")[1].split(")")[0]
        assert operands.count("bf16") == 2, line


def adapted_inputs():
    """Inputs with an adapter of rank 3 of the head: hidden's part h, B, and the factor of DoRA."""
    rng = np.random.default_rng(5)
    h, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 32, 3), (VOCAB, 3)))
    return *inputs(8, 32), h, b, jnp.asarray(rng.uniform(0.5, 1.5, VOCAB), jnp.float32)


@pytest.mark.parametrize("sizes", [None, *MESHES], ids=str)
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_head_is_the_merged_one(sizes, dora):
    """Value and gradients of hidden, h, B and factor, as of the plain logits; nothing of the head's size is summed."""
    hidden, head, targets, weights, *adapter = adapted_inputs()
    adapter = adapter if dora else adapter[:2]

    def ours(hidden, adapter):
        kwargs = {"chunk": 16, "train_head": False, "adapter": HeadAdapter(*adapter)}
        return weighted_nll(hidden, head, targets, weights, **kwargs)[0]

    def plainly(hidden, adapter):
        h, b, *factor = adapter
        wide = jnp.concatenate([hidden, h], axis=-1)
        rows = jnp.concatenate([head, b], axis=-1) * (factor[0][:, None] if factor else 1)
        return (plain(wide, rows, targets) * weights).sum()

    mesh = make_mesh(**sizes) if sizes else make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.value_and_grad(ours, argnums=(0, 1))).lower(hidden, adapter).compile()
        value, grads = compiled(hidden, adapter)
    expected, expected_grads = jax.value_and_grad(plainly, argnums=(0, 1))(hidden, adapter)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
