"""The TPU and the GPU kernel in the Pallas interpreter, against the reference; what they skip, pad and keep."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType

from mmed_jax.model import attention as att
from mmed_jax.model import attention_splash, attention_triton, llama
from mmed_jax.model.remat import rematerialise
from mmed_jax.model.rope import rope_tables
from tests.model.test_attention import packed_rows, random_qkv
from tests.support import parity as ph

KERNELS = {
    "splash": functools.partial(attention_splash.splash_attention, interpret=True),
    "triton": functools.partial(attention_triton.flash_attention, interpret=True),
}


def values_and_gradients(f, q, k, v, counts):
    """[out, dq, dk, dv] of a loss over the places that count; padding means nothing and may see what it likes."""

    def loss(q, k, v):
        out = jnp.where(counts[..., None, None], f(q, k, v), 0).astype(jnp.float32)
        return (out**2).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *grads)]


def check(kernel, q, k, v, segments, positions, atol):
    counts = np.ones_like(positions, bool) if segments is None else segments > 0
    ours = values_and_gradients(lambda q, k, v: kernel(q, k, v, segments), q, k, v, counts)
    exact = [x.astype(np.float32) for x in (q, k, v)]
    theirs = values_and_gradients(
        lambda q, k, v: att.reference(q, k, v, positions, positions, segments, segments), *exact, counts
    )
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs):
        np.testing.assert_allclose(a, b, atol=atol * max(1, np.abs(b).max()), err_msg=name)


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", KERNELS)
def test_grouped_heads(name, heads, kv_heads, monkeypatch):
    """1, 2 and 4 query heads a kv head, whose K and V are not repeated; several blocks, packed rows."""
    monkeypatch.setattr(attention_splash, "LARGEST_BLOCK", 128)
    q, k, v = random_qkv(2, 256, 256, heads, kv_heads, 16)
    check(KERNELS[name], q, k, v, *packed_rows(2, 256), atol=2e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_one_document_a_row(name):
    q, k, v = random_qkv(1, 192, 192, 2, 1, 16)
    check(KERNELS[name], q, k, v, None, np.arange(192, dtype=np.int32)[None], atol=2e-6)


def test_bfloat16_rounds_as_bfloat16():
    """Within a few roundings (2^-8 each) of float32 on the same numbers."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in random_qkv(2, 128, 128, 4, 1, 16))
    check(KERNELS["triton"], q, k, v, *packed_rows(2, 128), atol=0.02)


def test_splash_works_on_part_of_a_block(monkeypatch):
    """Keys of a block in parts, and a row that no block divides."""
    monkeypatch.setattr(attention_splash, "COMPUTE_BLOCK", 128)
    monkeypatch.setattr(attention_splash, "LARGEST_BLOCK", 256)
    q, k, v = random_qkv(1, 500, 500, 2, 1, 16)
    assert attention_splash.block_size(500) == (256, 512)
    check(KERNELS["splash"], q, k, v, *packed_rows(1, 500), atol=2e-6)


def test_splash_adds_up_dq_without_a_reduction(monkeypatch):
    """A TPU takes ten times as long for JAX's sum over the blocks of keys; parts are rounded once all the same."""
    monkeypatch.setattr(attention_splash, "LARGEST_BLOCK", 128)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in random_qkv(2, 512, 512, 2, 1, 16))
    segments = jnp.asarray(packed_rows(2, 512)[0])

    def gradients(exchange):
        monkeypatch.setattr(attention_splash, "_sum_of_dq_by_adds", exchange)
        run = jax.grad(lambda *x: (KERNELS["splash"](*x, segments) ** 2).sum().astype(jnp.float32), argnums=(0, 1, 2))
        return jax.make_jaxpr(run)(q, k, v), jax.jit(run)(q, k, v)

    ours, theirs = gradients(attention_splash._sum_of_dq_by_adds), gradients(jax.vmap)
    partial = re.compile(r"f32\[2,2,512,16\] = reduce_sum")
    assert not partial.search(str(ours[0])) and partial.search(str(theirs[0]))
    for a, b in zip(ours[1], theirs[1]):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2**-8, atol=1e-6)


def test_the_backward_pass_of_splash_may_hold_any_equation():
    """What another jax traces for it: literals, custom derivatives, loops, sums over other axes, an input as output."""

    def f(x, unused):
        y = jax.nn.relu(2.0 * x + x * 0.5) - jax.jit(lambda a: a.astype(jnp.float32).sum(0) * 3.0)(x)
        y = jax.lax.fori_loop(0, 3, lambda i, y: y * 1.5, y)
        return y.sum((0, 1)), y.sum(-1), jnp.ones((4, 3)).sum(0), 4.0, x

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 8, 16)), jnp.bfloat16)
    traced = jax.make_jaxpr(f)(x, x)
    ours = attention_splash._evaluate(traced.jaxpr, traced.consts, [x, x])
    for a, b in zip(ours, f(x, x), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-5, atol=1e-4)
    adds = jax.make_jaxpr(lambda x: attention_splash._evaluate(traced.jaxpr, traced.consts, [x, x]))(x)
    # One sum of four is over a leading axis.
    assert str(traced).count("reduce_sum") == str(adds).count("reduce_sum") + 1


def test_splash_without_the_means_to_read_a_program_is_jaxs_own(monkeypatch, capsys):
    monkeypatch.delattr("jax.extend.core.jaxpr_as_fun")
    attention_splash._can_evaluate.cache_clear()
    try:
        q, k, v = (jnp.asarray(x) for x in random_qkv(1, 128, 128, 1, 1, 16))
        for _ in range(2):
            ours = jax.grad(lambda q: KERNELS["splash"](q, k, v).sum())(q)
    finally:
        monkeypatch.undo()
        attention_splash._can_evaluate.cache_clear()
    theirs = jax.grad(lambda q: KERNELS["splash"](q, k, v).sum())(q)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert capsys.readouterr().err.count("splash attention is JAX's own, and slower") == 1


@pytest.mark.parametrize("length, expected", [(2048, (1024, 2048)), (8192, (1024, 8192)), (640, (640, 640))])
def test_block_sizes(length, expected):
    assert attention_splash.block_size(length) == expected


@given(st.integers(1, 40_000))
@settings(deadline=None, max_examples=200)
def test_any_row_has_a_block(length):
    block, padded = attention_splash.block_size(length)
    assert block % 128 == 0 and block <= attention_splash.LARGEST_BLOCK and padded % block == 0
    # Padding stays small.
    assert length <= padded <= max(1.25 * length, length + 127)


def test_triton_needs_no_order_of_ids():
    """Ids that fall, return and are 0 in the middle: right, if slower."""
    rng = np.random.default_rng(0)
    segments = np.repeat(rng.integers(0, 4, (2, 16)), 16, axis=1).astype(np.int32)
    positions = np.broadcast_to(np.arange(256, dtype=np.int32), (2, 256))
    q, k, v = random_qkv(2, 256, 256, 2, 1, 16)
    check(KERNELS["triton"], q, k, v, segments, positions, atol=2e-6)


@given(st.integers(0, 2**31), st.booleans())
@settings(deadline=None, max_examples=30)
def test_triton_skips_only_what_no_query_sees(seed, in_order):
    """Every pair that may see each other lies within the bounds; for ids in order the bounds are the tightest."""
    rng = np.random.default_rng(seed)
    block, length = attention_triton.BLOCK, 8 * attention_triton.BLOCK
    ids = np.repeat(rng.integers(1, 9, (1, 32)), length // 32, axis=1).astype(np.int32)
    ids = np.sort(ids) if in_order else ids
    for rows in (block, attention_triton.BLOCK_Q):
        first = np.asarray(attention_triton._first_keys(jnp.asarray(ids), rows))[0]
        end = np.asarray(attention_triton._end_queries(jnp.asarray(ids)))[0]
        sees = (ids[0][:, None] == ids[0][None]) & (np.arange(length)[:, None] >= np.arange(length)[None])
        by_rows = sees.reshape(length // rows, rows, -1, block).any((1, 3))
        by_block = sees.reshape(length // block, block, -1, block).any((1, 3))
        exact_first = by_rows.argmax(1)
        exact_end = length // block - by_block[::-1].argmax(0)
        assert (first <= exact_first).all() and (end >= exact_end).all()
        if in_order:
            np.testing.assert_array_equal(first, exact_first)
            np.testing.assert_array_equal(end, exact_end)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_triton_compiles_for_a_gpu_that_is_not_here(head_dim):
    """Pallas lowers forward and both backward kernels to Triton, and "auto" takes them."""
    device = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    q = jax.ShapeDtypeStruct((2, 256, 8, head_dim), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((2, 256, 2, head_dim), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def loss(q, k, v, ids):
        out = att.attention(q, k, v, q_positions=ids, kv_positions=ids, q_segments=ids, kv_segments=ids, backend="auto")
        return out.astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, kv, kv, ids)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert sorted(re.findall(r'name = "(\w+_kernel)"', text)) == ["dkv_kernel", "dq_kernel", "forward_kernel"]


def live_kernels(jaxpr, name):
    """The kernels of this name, in a jaxpr and those inside it, that anything is made from (XLA drops the others)."""
    used = {v for eqn in jaxpr.eqns for v in eqn.invars if not hasattr(v, "val")} | set(jaxpr.outvars)
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            found += [eqn] if name in str(eqn.params) and used & set(eqn.outvars) else []
        else:
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                found += live_kernels(inner, name) if hasattr(inner, "eqns") and used & set(eqn.outvars) else []
    return found


@pytest.mark.parametrize("backend", ["reference", "splash", "triton"])
def test_context_is_kept_once(backend, capsys):
    """Under minimal_ctx the output of attention is saved, not computed again, and not saved a second time."""
    cfg = ph.tiny_config()
    p = jax.tree.map(lambda x: x[0], llama.init_params(cfg, jax.random.key(0))["layers"])
    x = jnp.ones((2, 128, cfg.hidden_size))
    positions = jnp.broadcast_to(jnp.arange(128, dtype=jnp.int32), (2, 128))
    segments = jnp.ones((2, 128), jnp.int32)

    def mix(q, k, v):
        out = att.attention(
            q,
            k,
            v,
            q_positions=positions,
            kv_positions=positions,
            q_segments=segments,
            kv_segments=segments,
            backend=backend,
        )
        return out, None

    layer = rematerialise(lambda x, p: llama._layer(x, p, cfg, rope_tables(cfg, positions), mix), "minimal_ctx")

    def loss(x, p):
        return layer(x, p)[0].sum()

    jax.ad_checkpoint.print_saved_residuals(loss, x, p)
    saved = [line for line in capsys.readouterr().out.splitlines() if "qkv" not in line and "argument" not in line]
    sizes = [np.prod([int(n) for n in re.match(r"\w+\[([\d,]*)\]", line)[1].split(",") if n]) for line in saved]
    # The reference's own checkpoint keeps the rotated queries under its name instead of "qkv".
    queries = sum("remat" in line for line in saved) > 0
    assert sizes.count(2 * 128 * cfg.num_heads * cfg.head_dim) == 1 + queries
    if backend != "reference":
        forward = {"splash": "splash_mha_fwd", "triton": "forward_kernel"}[backend]
        assert len(live_kernels(jax.make_jaxpr(jax.grad(loss))(x, p).jaxpr, forward)) == 1
