"""Attention backends against an independent float64 oracle; documents of a packed row never see each other; meshes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import parity_helpers as ph
import pytest

from mmed_jax.errors import UserError
from mmed_jax.model import attention as att
from mmed_jax.model import llama
from mmed_jax.sharding import batch_sharding, make_mesh, param_shardings

RUNNABLE = ("reference", "splash")  # splash runs in the Pallas interpreter here


def oracle(q, k, v, q_pos, kv_pos, q_seg, kv_seg):
    """One query at a time in float64."""
    out = np.zeros(q.shape, np.float64)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            see = [s for s in range(k.shape[1]) if kv_pos[b, s] <= q_pos[b, t] and kv_seg[b, s] == q_seg[b, t]]
            for n in range(q.shape[2]):
                scores = k[b, see, n // group].astype(np.float64) @ q[b, t, n] / np.sqrt(q.shape[3])
                p = np.exp(scores - scores.max())
                out[b, t, n] = p @ v[b, see, n // group] / p.sum()
    return out


def random_qkv(b, t, s, n, k, h, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((b, t, n, h), (b, s, k, h), (b, s, k, h))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def packed_rows(batch, length, seed=0, padding=True):
    """Random documents: segment ids from 1 (0 = padding at the end) and positions from 0 in each."""
    rng = np.random.default_rng(seed)
    segments, positions = np.zeros((batch, length), np.int32), np.zeros((batch, length), np.int32)
    for b in range(batch):
        end = length - (rng.integers(0, length // 6) if padding else 0)
        cuts = np.sort(rng.choice(np.arange(1, end), 3, replace=False)).tolist()
        for i, (lo, hi) in enumerate(zip([0, *cuts], [*cuts, end], strict=True)):
            segments[b, lo:hi], positions[b, lo:hi] = i + 1, np.arange(hi - lo)
    return segments, positions


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_reference_is_the_definition(kv_heads):
    q, k, v = random_qkv(2, 21, 21, 6, kv_heads, 10)
    segments, positions = packed_rows(2, 21)
    ours = att.attention(
        q, k, v, q_positions=positions, kv_positions=positions, q_segments=segments, kv_segments=segments,
        backend="reference",
    )  # fmt: skip
    np.testing.assert_allclose(ours, oracle(q, k, v, positions, positions, segments, segments), atol=2e-6)


def test_reference_goes_by_position_not_by_place():
    """Keys in any order, more keys than queries, as a cache has them."""
    q, k, v = random_qkv(2, 5, 12, 4, 2, 8)
    rng = np.random.default_rng(1)
    kv_pos = np.stack([rng.permutation(12) for _ in range(2)]).astype(np.int32)
    q_pos = rng.integers(0, 12, (2, 5)).astype(np.int32)
    ours = att.attention(q, k, v, q_positions=q_pos, kv_positions=kv_pos)
    zeros = np.zeros_like
    np.testing.assert_allclose(ours, oracle(q, k, v, q_pos, kv_pos, zeros(q_pos), zeros(kv_pos)), atol=2e-6)


def test_query_that_sees_nothing_is_finite():
    q, k, v = random_qkv(1, 2, 4, 2, 1, 8)
    out = att.attention(q, k, v, q_positions=jnp.array([[-1, 2]]), kv_positions=jnp.arange(4)[None])
    assert np.isfinite(out).all()


@pytest.mark.parametrize("length, block, parts", [(40, 16, 1), (48, 16, 1), (48, 8, 2), (42, 8, 2)])
def test_query_blocks_change_nothing(length, block, parts):
    q, k, v = random_qkv(2, length, length, 4, 2, 8)
    segments, positions = packed_rows(2, length)

    def both(block, parts):
        def loss(q, k, v):
            out = att.reference(q, k, v, positions, positions, segments, segments, block=block, parts=parts)
            return (out**2).sum(), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return [out, *grads]

    for a, b in zip(both(block, parts), both(length, 1), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_long_rows_never_hold_all_scores():
    """Compiled temporary memory of the gradient grows with one block of queries, not with all."""
    length = 2 * att.QUERY_BLOCK
    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    pos = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def temporary(run):
        grad = jax.jit(jax.grad(lambda q, k, v, pos: run(q, k, v, pos).sum(), argnums=(0, 1, 2)))
        return grad.lower(x, x, x, pos).compile().memory_analysis().temp_size_in_bytes

    default = temporary(
        lambda q, k, v, pos: att.attention(q, k, v, q_positions=pos, kv_positions=pos, backend="reference")
    )
    half = temporary(lambda q, k, v, pos: att.reference(q, k, v, pos, pos, block=att.QUERY_BLOCK // 2))
    whole = temporary(lambda q, k, v, pos: att.reference(q, k, v, pos, pos, block=length))
    assert half < 0.6 * default < 0.5 * whole


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_splash_is_the_reference(kv_heads):
    """Values and gradients, packed rows, grouped heads."""
    q, k, v = random_qkv(2, 256, 256, 2, kv_heads, 16)
    segments, positions = packed_rows(2, 256)

    def run(q, k, v, backend):
        out = att.attention(
            q, k, v, q_positions=positions, kv_positions=positions, q_segments=segments, kv_segments=segments,
            backend=backend,
        )  # fmt: skip
        # Padding means nothing, and its positions do not rise: only the reference lets it see itself both ways.
        out = jnp.where((segments > 0)[..., None, None], out, 0)
        return (out**2).sum(), out

    def both(backend):
        f = jax.jit(jax.value_and_grad(lambda *x: run(*x, backend), argnums=(0, 1, 2), has_aux=True))
        (_, out), grads = f(q, k, v)
        return [out, *grads]

    for a, b in zip(both("splash"), both("reference"), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_cudnn_call_is_the_reference():
    """The same call as on a GPU, computed by XLA here."""
    q, k, v = random_qkv(2, 24, 24, 4, 2, 8)
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), (2, 24))
    expected = att.reference(q, k, v, positions, positions)
    np.testing.assert_allclose(att.cudnn(q, k, v, implementation="xla"), expected, atol=2e-6)


RESOLVED = [
    (("auto", "cpu", True), {}, "reference"),
    (("auto", "gpu", True), {}, "reference"),
    (("auto", "tpu", True), {"seq_len": 2048}, "splash"),
    (("auto", "tpu", True), {"seq_len": 2000}, "reference"),
    (("auto", "tpu", True), {"seq_len": 2048, "context": 2}, "reference"),
    (("auto", "tpu", True), {}, "reference"),
    (("splash", "tpu", True), {"seq_len": 2048}, "splash"),
    (("cudnn", "gpu", False), {"seq_len": 2048}, "cudnn"),
    (("reference", "tpu", True), {"seq_len": 2000, "context": 2}, "reference"),
]


@pytest.mark.parametrize("args, kwargs, backend", RESOLVED)
def test_resolved(args, kwargs, backend):
    assert att.resolve_backend(*args, **kwargs) == backend


REFUSED = [
    (("cudnn", "gpu", True), {}, "packed documents"),
    (("cudnn", "cpu", False), {}, "GPUs only"),
    (("cudnn", "gpu", False), {"context": 2}, "context"),
    (("splash", "gpu", True), {}, "TPU kernel"),
    (("splash", "tpu", True), {"seq_len": 2000}, r"2000.*\[1920, 2048\]"),
    (("splash", "tpu", True), {"seq_len": 2048, "context": 2}, "context"),
    (("spalsh", "tpu", True), {}, "did you mean 'splash'"),
]


@pytest.mark.parametrize("args, kwargs, message", REFUSED)
def test_refused(args, kwargs, message):
    with pytest.raises(UserError, match=message):
        att.resolve_backend(*args, **kwargs)


def test_platform_is_that_of_the_mesh():
    """A program may be compiled for TPUs that are not here."""
    device = types.SimpleNamespace(device_kind="TPU v5 lite")
    assert att._platform(types.SimpleNamespace(empty=False, abstract_device=device)) == "tpu"
    with jax.set_mesh(make_mesh()):
        assert att._platform(jax.sharding.get_abstract_mesh()) == "cpu"
    assert att._platform(jax.sharding.get_abstract_mesh()) == "cpu"


def test_a_backend_without_segments_refuses_packed_rows_in_the_model(monkeypatch):
    cfg = ph.tiny_config()
    params = llama.init_params(cfg, jax.random.key(0))
    tokens = ph.random_tokens(cfg, 1, 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="packed documents"):
        llama.forward(params, cfg, tokens, segment_ids_bt=jnp.ones((1, 16), jnp.int32), attention="cudnn")
    with pytest.raises(UserError, match="bfloat16"):
        llama.forward(params, cfg, tokens, attention="cudnn")


@pytest.fixture(scope="module")
def model():
    cfg = ph.tiny_config(num_layers=3)
    return cfg, ph.pair(ph.TINY | {"rope_scaling": ph.LLAMA3_ROPE, "num_hidden_layers": 3})[2]


@pytest.mark.parametrize("backend", RUNNABLE)
def test_packed_is_unpacked(model, backend):
    """Logits of every document in a packed row equal those of the document alone."""
    cfg, params = model
    length = 256
    tokens = ph.random_tokens(cfg, 2, length)
    segments, positions = packed_rows(2, length, seed=3)
    packed = ph.logits(
        params, cfg, tokens, segment_ids_bt=jnp.asarray(segments), positions_bt=jnp.asarray(positions),
        attention=backend,
    )  # fmt: skip
    for b in range(2):
        for segment in range(1, segments[b].max() + 1):
            (where,) = np.nonzero(segments[b] == segment)
            # Right padding, which no earlier token sees, keeps this to one compilation.
            alone = np.zeros((1, length), np.int32)
            alone[0, : len(where)] = tokens[b, where]
            expected = ph.logits(params, cfg, alone, attention="reference")[0, : len(where)]
            np.testing.assert_allclose(packed[b, where], expected, atol=1e-4)


@pytest.mark.parametrize("backend", RUNNABLE)
def test_no_leak_between_documents(model, backend):
    """Changing any one document changes itself, from the change on, and no other token; gradients agree."""
    cfg, params = model
    length, rows = 128, 8
    rng = np.random.default_rng(5)
    tokens = ph.random_tokens(cfg, rows, length)
    segments, positions = packed_rows(rows, length, seed=6)
    changed = tokens.copy()
    places = []
    for b in range(rows):
        segment = rng.integers(1, segments[b].max() + 1)
        (where,) = np.nonzero(segments[b] == segment)
        place = rng.choice(where)
        changed[b, place] = (changed[b, place] + 1 + rng.integers(cfg.vocab_size - 1)) % cfg.vocab_size
        places.append((place, where))
    kwargs = {"segment_ids_bt": jnp.asarray(segments), "positions_bt": jnp.asarray(positions), "attention": backend}
    before, after = (ph.logits(params, cfg, t, **kwargs) for t in (tokens, changed))
    for b, (place, where) in enumerate(places):
        own = where[where >= place]
        others = np.setdiff1d(np.arange(length), own)
        np.testing.assert_array_equal(before[b, others], after[b, others])
        assert (np.abs(before[b, own] - after[b, own]).max(-1) > 0).all()


def test_no_gradient_flows_between_documents(model):
    cfg, params = model
    segments, positions = packed_rows(1, 64, seed=7)
    tokens = jnp.asarray(ph.random_tokens(cfg, 1, 64))
    table = params["embed"]["weight"]

    def loss(inputs_btd):
        # Tokens are looked up in a table of their own, one row a place, to see each place's gradient.
        own = params | {"embed": {"weight": inputs_btd}}
        hidden = llama.forward(
            own, cfg, jnp.arange(64)[None], segment_ids_bt=jnp.asarray(segments), positions_bt=jnp.asarray(positions)
        )
        return (hidden[0, segments[0] == 2] ** 3).sum()

    grad = np.asarray(jax.jit(jax.grad(loss))(table[tokens[0]]))
    touched = np.abs(grad).max(-1) > 0
    np.testing.assert_array_equal(touched, segments[0] == 2)


MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2, "context": 2}, {"fsdp": 8}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_meshes_give_the_same_logits(sizes):
    cfg = ph.tiny_config(vocab_size=96)
    params = llama.init_params(cfg, jax.random.key(1))
    tokens = ph.random_tokens(cfg, 8, 64)
    segments, positions = packed_rows(8, 64)
    kwargs = {"segment_ids_bt": jnp.asarray(segments), "positions_bt": jnp.asarray(positions)}
    expected = ph.logits(params, cfg, tokens, **kwargs)
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, param_shardings(mesh, llama.logical_axes(cfg)))
        rows = {name: jax.device_put(x, batch_sharding(mesh)) for name, x in kwargs.items()}
        got = ph.logits(sharded, cfg, jax.device_put(tokens, batch_sharding(mesh)), **rows)
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_splash_on_a_mesh():
    """Each device runs the kernel on its own rows and heads; a split row is refused."""
    q, k, v = random_qkv(2, 128, 128, 4, 2, 16)
    segments, positions = packed_rows(2, 128)

    def run(backend):
        return att.attention(
            q, k, v, q_positions=positions, kv_positions=positions, q_segments=segments, kv_segments=segments,
            backend=backend,
        )  # fmt: skip

    with jax.set_mesh(make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])):
        got = jax.jit(lambda: run("splash"))()
    np.testing.assert_allclose(got[segments > 0], run("reference")[segments > 0], atol=1e-5)
    with jax.set_mesh(make_mesh(fsdp=4, context=2)), pytest.raises(UserError, match="context"):
        run("splash")
