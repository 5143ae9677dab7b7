"""Attention backends against an independent float64 oracle; documents of a packed row never see each other; meshes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.model import attention as att
from mmed_jax.model import attention_reference, llama
from mmed_jax.parallel.sharding import batch_sharding, make_mesh, param_shardings
from tests.support import parity as ph

RUNNABLE = ("reference", "splash", "triton")  # the kernels run in the Pallas interpreter here


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
        q,
        k,
        v,
        q_positions=positions,
        kv_positions=positions,
        q_segments=segments,
        kv_segments=segments,
        backend="reference",
    )
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


def temporary_bytes(length, **kwargs):
    """Compiled temporary memory of the reference's gradient, one row."""
    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    pos = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(q, k, v, pos):
        return att.reference(q, k, v, pos, pos, pos, pos, **kwargs).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, pos).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_row_not_with_its_square():
    short, long = temporary_bytes(8192), temporary_bytes(16384)
    assert long < 2.2 * short
    # All scores would be more than this, for one of the two heads.
    assert long < 4 * 16384**2


def test_memory_grows_with_the_block():
    length = 2 * attention_reference.QUERY_BLOCK
    half = temporary_bytes(length, block=attention_reference.QUERY_BLOCK // 2)
    assert half < 0.6 * temporary_bytes(length) < 0.5 * temporary_bytes(length, block=length)


def test_cudnn_call_is_the_reference():
    """The same call as on a GPU, computed by XLA here."""
    q, k, v = random_qkv(2, 24, 24, 4, 2, 8)
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), (2, 24))
    expected = jax.jit(att.reference)(q, k, v, positions, positions)
    got = jax.jit(att.cudnn, static_argnums=3)(q, k, v, "xla")
    np.testing.assert_allclose(got, expected, atol=2e-6)


HALF = {"seq_len": 2048, "head_dim": 128, "dtype": "bfloat16"}
RESOLVED = [
    (("auto", "cpu", True), HALF, "reference"),
    (("auto", "gpu", True), HALF, "triton"),
    (("auto", "gpu", True), {}, "reference"),
    (("auto", "gpu", True), HALF | {"seq_len": 2000}, "reference"),
    (("auto", "gpu", True), HALF | {"head_dim": 80}, "reference"),
    (("auto", "gpu", True), HALF | {"dtype": "float32"}, "reference"),
    (("auto", "gpu", True), HALF | {"context": 2}, "reference"),
    (("auto", "cuda", False), HALF, "cudnn"),
    (("auto", "gpu", False), HALF | {"seq_len": 2001}, "reference"),
    (("auto", "gpu", False), HALF | {"head_dim": 256}, "reference"),
    (("auto", "gpu", False), HALF | {"dtype": "float32"}, "reference"),
    (("auto", "tpu", True), {"seq_len": 2048}, "splash"),
    (("auto", "tpu", False), {"seq_len": 2000}, "splash"),
    (("auto", "tpu", True), {"seq_len": 2048, "context": 2}, "reference"),
    (("auto", "tpu", True), {"seq_len": 64}, "reference"),
    (("auto", "tpu", True), {}, "reference"),
    (("splash", "tpu", True), {"seq_len": 2000}, "splash"),
    (("triton", "gpu", True), HALF, "triton"),
    (("triton", "cpu", True), HALF | {"dtype": "float32"}, "triton"),
    (("cudnn", "gpu", False), HALF, "cudnn"),
    (("reference", "tpu", True), {"seq_len": 2000, "context": 2}, "reference"),
]


@pytest.mark.parametrize("args, kwargs, backend", RESOLVED)
def test_resolved(args, kwargs, backend):
    assert att.resolve_backend(*args, **kwargs) == backend


REFUSED = [
    (("cudnn", "gpu", True), HALF, "packed documents"),
    (("cudnn", "cpu", False), HALF, "GPUs only"),
    (("cudnn", "gpu", False), HALF | {"context": 2}, "context"),
    (("cudnn", "gpu", False), HALF | {"dtype": jnp.float32}, "bfloat16.*float32"),
    (("cudnn", "gpu", False), HALF | {"seq_len": 2001}, r"2001.*\[2000, 2002\]"),
    (("cudnn", "gpu", False), HALF | {"head_dim": 256}, "256"),
    (("splash", "gpu", True), {}, "TPU kernel"),
    (("splash", "tpu", True), {"seq_len": 2048, "context": 2}, "context"),
    (("triton", "tpu", True), HALF, "GPU kernel"),
    (("triton", "gpu", True), HALF | {"seq_len": 2000}, r"2000.*\[1984, 2048\]"),
    (("triton", "gpu", True), HALF | {"head_dim": 80}, "head_dim.*80"),
    (("triton", "gpu", True), HALF | {"dtype": "float32"}, "bfloat16.*float32"),
    (("triton", "gpu", True), HALF | {"context": 2}, "context"),
    (("spalsh", "tpu", True), {}, "did you mean 'splash'"),
]


@pytest.mark.parametrize("args, kwargs, message", REFUSED)
def test_refused(args, kwargs, message):
    with pytest.raises(UserError, match=message):
        att.resolve_backend(*args, **kwargs)


def test_platform_is_that_of_the_mesh():
    """A program may be compiled for TPUs that are not here."""
    for kind, platform in (("TPU v5 lite", "tpu"), ("NVIDIA H200", "gpu")):
        device = types.SimpleNamespace(device_kind=kind)
        assert att._platform(types.SimpleNamespace(empty=False, abstract_device=device)) == platform
    with jax.set_mesh(make_mesh()):
        assert att._platform(jax.sharding.get_abstract_mesh()) == "cpu"
    assert att._platform(jax.sharding.get_abstract_mesh()) == "cpu"


@pytest.fixture(scope="module")
def model():
    cfg = ph.tiny_config(num_layers=3)
    return cfg, ph.pair(ph.TINY | {"rope_scaling": ph.LLAMA3_ROPE, "num_hidden_layers": 3})[2]


def test_a_backend_without_segments_refuses_packed_rows_in_the_model(model, monkeypatch):
    cfg, params = model
    tokens = ph.random_tokens(cfg, 1, 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="packed documents"):
        llama.forward(params, cfg, tokens, segment_ids_bt=jnp.ones((1, 16), jnp.int32), attention="cudnn")
    with pytest.raises(UserError, match="bfloat16"):
        llama.forward(params, cfg, tokens, attention="cudnn")


@pytest.mark.parametrize("backend", RUNNABLE)
def test_packed_is_unpacked(model, backend):
    """Logits of every document in a packed row equal those of the document alone."""
    cfg, params = model
    length = 256
    tokens = ph.random_tokens(cfg, 2, length)
    segments, positions = packed_rows(2, length, seed=3)
    packed = ph.logits(
        params,
        cfg,
        tokens,
        segment_ids_bt=jnp.asarray(segments),
        positions_bt=jnp.asarray(positions),
        attention=backend,
    )
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
    """Through the whole model, the gradient of one document's loss is exactly 0 at every token of the others."""
    cfg, params = model
    length = 64
    segments, positions = packed_rows(1, length, seed=7)
    tokens = jnp.asarray(ph.random_tokens(cfg, 1, length))
    table = params["embed"]["weight"]

    def loss(inputs_btd):
        # Tokens are looked up in a table of their own, one row a place, to see each place's gradient.
        own = params | {"embed": {"weight": inputs_btd}}
        hidden = llama.forward(
            own,
            cfg,
            jnp.arange(length)[None],
            segment_ids_bt=jnp.asarray(segments),
            positions_bt=jnp.asarray(positions),
        )
        return (hidden[0, segments[0] == 2] ** 3).sum()

    grad = np.asarray(jax.jit(jax.grad(loss))(table[tokens[0]]))
    touched = np.abs(grad).max(-1) > 0
    np.testing.assert_array_equal(touched, segments[0] == 2)


@pytest.mark.parametrize("backend", RUNNABLE)
def test_a_changed_document_leaves_all_gradients_of_the_others(backend):
    """Queries, keys, values and the gradient from above change in one document: bit for bit, the others' stay."""
    length = 256
    segments, positions = packed_rows(1, length, seed=8)
    here = (segments == 2)[..., None, None]
    before, other = random_qkv(1, length, length, 2, 1, 16), random_qkv(1, length, length, 2, 1, 16, seed=1)
    rng = np.random.default_rng(2)
    do, do_other = rng.normal(size=(2, *before[0].shape)).astype(np.float32)

    @jax.jit
    def run(q, k, v, do):
        def f(q, k, v):
            return att.attention(
                q,
                k,
                v,
                q_positions=positions,
                kv_positions=positions,
                q_segments=segments,
                kv_segments=segments,
                backend=backend,
            )

        out, vjp = jax.vjp(f, q, k, v)
        return (out, *vjp(do))

    first = run(*before, do)
    second = run(*(np.where(here, b, a) for a, b in zip(before, other)), np.where(here, do_other, do))
    for name, a, b in zip(("out", "dq", "dk", "dv"), first, second):
        same = (np.asarray(a) == np.asarray(b)).all(axis=(2, 3))
        assert same[segments != 2].all(), name
        # dq of a document's first token is 0: it sees nothing but itself.
        assert same[segments == 2].sum() <= (name == "dq"), name


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


@pytest.mark.parametrize("backend", ["splash", "triton"])
@pytest.mark.parametrize("packed", [True, False])
def test_kernels_on_a_mesh(backend, packed):
    """Each device runs the kernel on its own rows and heads; a split row is refused."""
    q, k, v = random_qkv(2, 128, 128, 4, 2, 16)
    segments, positions = packed_rows(2, 128)
    segments = segments if packed else None
    real = slice(None) if segments is None else segments > 0

    def run(backend):
        return att.attention(
            q,
            k,
            v,
            q_positions=positions,
            kv_positions=positions,
            q_segments=segments,
            kv_segments=segments,
            backend=backend,
        )

    if not packed:
        positions = np.broadcast_to(np.arange(128, dtype=np.int32), (2, 128))
    with jax.set_mesh(make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])):
        got = jax.jit(lambda: run(backend))()
    np.testing.assert_allclose(got[real], run("reference")[real], atol=1e-5)
    with jax.set_mesh(make_mesh(fsdp=4, context=2)), pytest.raises(UserError, match="context"):
        run(backend)
