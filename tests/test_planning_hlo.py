"""Reading optimised HLO: exact FLOPs, trip counts, collectives; against programs whose answer is known by hand."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_cases import compiled_text, tpu_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmed_jax.errors import UserError
from mmed_jax.planning import hlo
from mmed_jax.planning.hlo_collectives import replica_groups
from mmed_jax.planning.hlo_flops import _positions
from mmed_jax.planning.hlo_text import parse_text
from mmed_jax.sharding import make_mesh

LAYERS, ROWS, WIDTH = 7, 128, 256
ONE = 2 * ROWS * WIDTH * WIDTH  # FLOPs of rows @ square weight
Struct = jax.ShapeDtypeStruct


def layers(weights_ldd, x_nd):
    def layer(h_nd, w_dd):
        with jax.named_scope("mlp"):
            return jnp.tanh(h_nd @ w_dd), None

    return jnp.sum(jax.lax.scan(layer, x_nd, weights_ldd)[0])


def nested(weights_ldd, x_nd):
    return jax.lax.scan(lambda c, i: (layers(weights_ldd, c + i) * jnp.ones_like(c), None), x_nd, jnp.arange(5.0))[0]


def from_three_to_eleven(w_dd, x_nd):
    return jax.lax.fori_loop(3, 11, lambda _, h: jnp.tanh(h @ w_dd), x_nd)


def down_by_two(w_dd, x_nd):
    return jax.lax.while_loop(lambda s: s[0] >= 0, lambda s: (s[0] - 2, jnp.tanh(s[1] @ w_dd)), (9, x_nd))[1]


def dilated_convolution(x_nhwc, w_hwio):
    return jax.lax.conv_general_dilated(
        x_nhwc, w_hwio, (2, 2), ((1, 1), (1, 1)), (1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def brute_positions(size, window, out, stride, pad, dilation, window_dilation):
    reads = (o * stride - pad + k * window_dilation for o in range(out) for k in range(window))
    return sum(at >= 0 and at % dilation == 0 and at // dilation < size for at in reads)


SQUARE, STACK = Struct((WIDTH, WIDTH), jnp.float32), Struct((LAYERS, WIDTH, WIDTH), jnp.float32)
X = Struct((ROWS, WIDTH), jnp.float32)
HEADS = Struct((3, 64, 4, 32), jnp.bfloat16)
IMAGE, KERNEL = Struct((2, 16, 12, 8), jnp.float32), Struct((3, 3, 8, 16), jnp.float32)
PROGRAMS = {
    "product": (jnp.matmul, (X, SQUARE), ONE),
    "batched": (lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), (HEADS, HEADS), 2 * 3 * 4 * 64 * 64 * 32),
    "scan and gradient": (jax.value_and_grad(layers, argnums=(0, 1)), (STACK, X), LAYERS * 3 * ONE),
    "scan in scan": (nested, (STACK, X), 5 * LAYERS * ONE),
    "loop with bounds": (from_three_to_eleven, (SQUARE, X), 8 * ONE),
    "loop downwards": (down_by_two, (SQUARE, X), 5 * ONE),
    "convolution": (
        dilated_convolution, (IMAGE, KERNEL),
        2 * 2 * 8 * 16 * brute_positions(16, 3, 8, 2, 1, 1, 1) * brute_positions(12, 3, 12, 2, 1, 2, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_flops_are_exact_on_cpu(name):
    function, shapes, expected = PROGRAMS[name]
    module = hlo.parse_module(compiled_text(function, *shapes))
    assert hlo.flops(module).total == expected and module.notes == []


def test_flops_are_exact_in_a_tpu_program():
    """One TPU compile that holds batched products, a scan with its gradient and a loop, all of known size."""

    def everything(q, k, w, ws, x):
        return jnp.einsum("bqhd,bkhd->bhqk", q, k), jax.value_and_grad(layers)(ws, x), from_three_to_eleven(w, x)

    text = compiled_text(everything, HEADS, HEADS, SQUARE, STACK, X, devices=tpu_devices())
    counted = hlo.flops(hlo.parse_module(text))
    assert counted.total == 2 * 3 * 4 * 64 * 64 * 32 + LAYERS * 3 * ONE + 8 * ONE
    assert counted.by_scope[hlo.Scope("mlp", "forward")] == LAYERS * ONE
    assert counted.by_scope[hlo.Scope("mlp", "backward")] == 2 * LAYERS * ONE
    assert " convolution(" in text and " dot(" not in text  # what makes the TPU's text different


def test_a_loop_without_a_known_count_is_counted_once_and_named():
    def until(w_dd, x_nd, n):
        return jax.lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, jnp.tanh(s[1] @ w_dd)), (0, x_nd))[1]

    module = hlo.parse_module(compiled_text(until, SQUARE, X, Struct((), jnp.int32)))
    assert hlo.flops(module).total == ONE
    assert len(module.notes) == 1 and "trip count not known" in module.notes[0]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(-2, 4),
       st.integers(1, 3), st.integers(1, 3))  # fmt: skip
def test_window_positions_equal_brute_force(size, window, out, stride, pad, dilation, window_dilation):
    arguments = (size, window, out, stride, pad, dilation, window_dilation)
    assert _positions(*arguments) == brute_positions(*arguments)


def fsdp_step(devices):
    """Gradient of 6 rematerialised layers whose weights are split over all devices; (function, arguments)."""
    mesh = Mesh(np.asarray(devices), ("fsdp",))

    def loss(weights_ldd, x_nd):
        def layer(h_nd, w_dd):
            w_dd = jax.lax.with_sharding_constraint(w_dd.astype(jnp.bfloat16), NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(h_nd @ w_dd), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x_nd, weights_ldd)[0].astype(jnp.float32))

    weights = Struct((6, 512, 512), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    x = Struct((2048, 512), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    return jax.value_and_grad(loss), (weights, x)


@pytest.mark.parametrize("where", ["cpu", "tpu"])
def test_collectives_of_an_fsdp_step_equal_the_hand_count(where):
    devices = jax.devices() if where == "cpu" else tpu_devices()
    function, shapes = fsdp_step(devices)
    module = hlo.parse_module(compiled_text(function, *shapes, devices=devices))
    n = len(devices)
    assert module.num_devices == n
    # Forward, recomputed forward and two products backward of every layer, each device its rows.
    assert hlo.flops(module).total == 6 * 4 * 2 * (2048 // n) * 512 * 512
    found = [c for c in hlo.collectives(module) if c.payload_bytes > 1000]
    element = {"cpu": 4, "tpu": 2}[where]  # the CPU compiler moves float32
    one = 512 * 512 * element * (n - 1) / n
    gathers = [c for c in found if c.kind == "all-gather"]
    assert [(c.executions, c.wire_bytes, c.group_size) for c in gathers] == 2 * [(6, one, n)]
    assert {c.scope.direction for c in gathers} == {"forward", "recompute"}
    reduced = sum(c.total_bytes / (2 if c.kind == "all-reduce" else 1) for c in found if "reduce" in c.kind)
    assert reduced == 6 * one
    assert all(sorted(itertools.chain(*c.groups)) == list(range(n)) for c in found)


def test_splash_kernels_of_a_tpu_program_are_found_with_their_blocks():
    """Forward and backward of the repository's own attention: whole blocks at or below the diagonal."""
    from mmed_jax.model.attention import attention

    batch, length, heads, kv_heads, width = 2, 1024, 2, 1, 128
    q = Struct((batch, length, heads, width), jnp.bfloat16)
    k = Struct((batch, length, kv_heads, width), jnp.bfloat16)

    def out(q, k, v):
        at = jnp.broadcast_to(jnp.arange(length), (batch, length))
        return jnp.sum(attention(q, k, v, q_positions=at, kv_positions=at, backend="splash").astype(jnp.float32))

    devices = tpu_devices()
    with jax.set_mesh(make_mesh(devices=devices[:1])):  # where the kernel will run
        text = compiled_text(jax.grad(out, argnums=(0, 1, 2)), q, k, k, devices=devices)
    counted = hlo.flops(hlo.parse_module(text))
    per_pair = 2 * batch * heads * width
    rows = re.findall(r'\\"block_(q|kv)(_dkv)?\\": (\d+)', text)
    blocks = {(name, part): int(size) for name, part, size in rows}
    expected = per_pair * sum(
        products * live_pairs(length, length, blocks["q", part], blocks["kv", part])
        for part, products in (("", 2), ("_dkv", 5))
    )
    assert counted.kernels == expected and counted.matmul == 0 and counted.unknown == ()
    assert expected >= 7 * per_pair * length * (length + 1) / 2  # no less than the visible pairs


def live_pairs(queries, keys, rows, columns):
    """Pairs in the blocks of a causal mask that hold a visible pair."""
    mask = np.tril(np.ones((queries, keys), bool)).reshape(queries // rows, rows, keys // columns, columns)
    return int(mask.any(axis=(1, 3)).sum()) * rows * columns


SPLASH = """HloModule kernels
ENTRY %main (q: bf16[4,1024,64]) -> bf16[4,1024,64] {
  %q = bf16[4,1024,64]{2,1,0} parameter(0)
  %k = bf16[2,1536,64]{2,1,0} parameter(1)
  %other = bf16[4,1024,64]{2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"
  ROOT %splash_mha_KIND = (RESULT) custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_qSUFFIX\\": 256, \\"block_kvSUFFIX\\": 512}"
}}
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("kind", "suffix", "result", "products"),
    [
        ("fwd_residuals", "", "bf16[4,1024,64]", 2),
        ("dkv_no_residuals", "_dkv", "bf16[2,1536,64], bf16[2,1536,64]", 4),
        ("dkv_no_residuals", "_dkv", "bf16[3,4,1024,64], bf16[2,1536,64], bf16[2,1536,64]", 5),
        ("dq_no_residuals", "_dq", "bf16[4,1024,64]", 3),
    ],
)
def test_splash_formula_and_kernels_without_one(kind, suffix, result, products):
    text = SPLASH.replace("KIND", kind).replace("SUFFIX", suffix).replace("RESULT", result)
    module = hlo.parse_module(text)
    counted = hlo.flops(module)
    assert counted.kernels == products * 2 * 4 * live_pairs(1024, 1536, 256, 512) * 64
    assert counted.unknown == ("other",)
    told = hlo.flops(module, lambda i: 1.0 if i.name == "other" else None)
    assert told.kernels == counted.kernels + 1 and told.unknown == ()


LIBRARY = """HloModule library
ENTRY %main (a: bf16[3,64,32]) -> bf16[3,64,16] {
  %a = bf16[3,64,32]{2,1,0} parameter(0)
  %b = bf16[3,32,16]{2,1,0} parameter(1)
  %one = (bf16[3,64,16]{2,1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}
  ROOT %two = bf16[3,64,16]{2,1,0} custom-call(%a, %b), custom_call_target="__onednn$matmul"
}
"""  # noqa: E501


def test_products_that_a_library_computes_count_as_products():
    counted = hlo.flops(hlo.parse_module(LIBRARY))
    assert (counted.matmul, counted.kernels, counted.unknown) == (2 * 2 * 3 * 64 * 16 * 32, 0, ())


FUSED = """HloModule overlap, is_scheduled=true, num_partitions=4

%start (p: bf16[64,64]) -> (bf16[64,64], bf16[256,64], u32[]) {
  %p = bf16[64,64]{1,0} parameter(0)
  %all-gather.1 = bf16[256,64]{1,0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[64,64]{1,0}, bf16[256,64]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%carry (p: bf16[64,64], x: f32[8,64], w: f32[64,16]) -> (f32[8,16], bf16[256,64]) {
  %p = bf16[64,64]{1,0} parameter(0)
  %x = f32[8,64]{1,0} parameter(1)
  %w = f32[64,16]{1,0} parameter(2)
  %all-gather.2 = bf16[256,64]{1,0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  %dot = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (f32[8,16]{1,0}, bf16[256,64]{1,0}) tuple(%dot, %all-gather.2)
}

%done (p: bf16[64,64], q: bf16[256,64]) -> bf16[256,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  %q = bf16[256,64]{1,0} parameter(1)
  %all-gather.3 = bf16[256,64]{1,0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %custom-call.3 = bf16[256,64]{1,0} custom-call(%p, %q, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%cond (s: (s32[], bf16[64,64])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[64,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %n = s32[]{:T(128)} constant(32)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (s: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %s = (s32[]{:T(128)}, bf16[64,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %p = bf16[64,64]{1,0} get-tuple-element(%s), index=1
  %x = f32[8,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %w = f32[64,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %async-start = (bf16[64,64]{1,0}, bf16[256,64]{1,0}, /*index=2*/u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%start
  %gte = bf16[64,64]{1,0} get-tuple-element(%async-start), index=0
  %full = bf16[256,64]{1,0} get-tuple-element(%async-start), index=1
  %fusion.2 = (f32[8,16]{1,0}, bf16[256,64]{1,0}) fusion(%gte, %x, %w), kind=kOutput, calls=%carry, metadata={op_name="jit(f)/jvp(layers)/while/body/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1500"}}
  %async-done = bf16[256,64]{1,0} fusion(%gte, %full), kind=kCustom, calls=%done
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %t = (s32[]{:T(128)}, bf16[64,64]{1,0}) tuple(%next, %p)
}

ENTRY %main (p: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="state[\\'w\\']"}
  %zero = s32[]{:T(128)} constant(0)
  %copy = s32[]{:T(128)} copy(%zero)
  %t = (s32[]{:T(128)}, bf16[64,64]{1,0}) tuple(%copy, %p)
  %while = (s32[]{:T(128)}, bf16[64,64]{1,0}) while(%t), condition=%cond, body=%body, metadata={op_name="jit(f)/jvp(layers)/while"}
  ROOT %r = bf16[64,64]{1,0} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def test_a_transfer_fused_into_several_pieces_counts_once():
    module = hlo.parse_module(FUSED)
    (gather,) = hlo.collectives(module)
    assert (gather.kind, gather.asynchronous, gather.executions) == ("all-gather", True, 32)
    assert gather.payload_bytes == 256 * 64 * 2 and gather.wire_bytes == 256 * 64 * 2 * 3 / 4
    assert gather.group_size == 4 and gather.scope == hlo.Scope("layers/mlp", "forward")
    assert hlo.flops(module).total == 32 * 2 * 8 * 16 * 64


def test_a_transfer_in_start_and_done_counts_once_and_not_its_contexts():
    text = """HloModule gpu, num_partitions=8
ENTRY %main (p: f32[16]) -> f32[128] {
  %p = f32[16]{0} parameter(0)
  %s = (f32[16]{0}, f32[128]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %d = f32[128]{0} all-gather-done(%s)
  %c = (f32[128]{0}, f32[128]{0}, u32[], u32[]) collective-permute-start(%d), source_target_pairs={{0,1},{1,0},{2,3}}
  ROOT %e = f32[128]{0} collective-permute-done(%c)
}
"""
    gather, permute = hlo.collectives(hlo.parse_module(text))
    assert (gather.wire_bytes, gather.asynchronous, gather.group_size) == (128 * 4 * 7 / 8, True, 8)
    assert (permute.kind, permute.wire_bytes) == ("collective-permute", 128 * 4)


DISGUISED = """HloModule padded, num_partitions=4
ENTRY %main (p: bf16[64,16]) -> bf16[64,64] {
  %p = bf16[64,16]{1,0} parameter(0)
  %g = bf16[64,64]{1,0} parameter(1)
  %zero = bf16[] constant(0)
  %zeros = bf16[64,64]{1,0} broadcast(%zero), dimensions={}
  %id = u32[] partition-id()
  %width = u32[] constant(16)
  %at = u32[] multiply(%id, %width)
  %none = u32[] constant(0)
  %mine = bf16[64,64]{1,0} dynamic-update-slice(%zeros, %p, %none, %at)
  %both = (bf16[64,64]{1,0}, bf16[64,64]{1,0}) all-reduce(%mine, %g), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %r = bf16[64,64]{1,0} get-tuple-element(%both), index=0
}
"""


def test_an_all_reduce_that_does_the_work_of_an_all_gather_is_seen():
    """The TPU compiler writes a part into zeros and adds up: half of this one is such, half is a sum of gradients."""
    (reduce,) = hlo.collectives(hlo.parse_module(DISGUISED))
    assert (reduce.kind, reduce.disguised, reduce.wire_bytes) == ("all-reduce", 0.5, 2 * 2 * 64 * 64 * 2 * 3 / 4)
    (plain,) = hlo.collectives(hlo.parse_module(DISGUISED.replace("%at)", "%none)").replace("(%mine, %g)", "(%g, %g)")))
    assert plain.disguised == 0


MESH = "replica_groups=mesh['a'=2,'b'=4,'c'=2]"


@pytest.mark.parametrize(
    ("text", "along"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}", (2,)),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", (0,)),
        ("replica_groups=[2,8]<=[16]", (1, 2)),
        (MESH + " {'b'}", (1,)),
        (MESH + " {'a','c'}", (0, 2)),
        (MESH + " {'a','b','c'}", (0, 1, 2)),
    ],
)
def test_replica_groups_of_every_form(text, along):
    """Devices 0..15 as an array [2,4,2]; a collective joins those that differ along some axes only."""
    array = np.arange(16).reshape(2, 4, 2)
    rest = [k for k in range(3) if k not in along]
    expected = array.transpose([*rest, *along]).reshape(-1, int(np.prod([array.shape[k] for k in along])))
    assert replica_groups(_carrier(text), 16) == tuple(map(tuple, expected.tolist()))


def test_replica_groups_of_split_axes_and_permuted_devices():
    # 'b' of 4 as 2 x 2; the first half joins numbers two apart in b, the second neighbours.
    assert replica_groups(_carrier("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}"), 8)[0] == (0, 2)
    assert replica_groups(_carrier("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}"), 8)[:2] == ((0, 1), (2, 3))
    permuted = "replica_groups=mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'y'}"
    assert replica_groups(_carrier(permuted), 4) == ((0, 2), (1, 3))
    transposed = "replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}"
    assert replica_groups(_carrier(transposed), 8) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert replica_groups(_carrier("replica_groups={}"), 4) == ((0, 1, 2, 3),)


def _carrier(groups):
    text = f"HloModule m\nENTRY %e (p: f32[]) -> f32[] {{\n  %p = f32[] parameter(0), {groups}\n}}\n"
    return parse_text(text).entry.root


SCOPES = {
    "jit(f)/jvp(layers)/while/body/closed_call/mlp/...i,oi->...o/dot_general": ("layers/mlp", "forward"),
    "jit(f)/transpose(jvp(layers))/while/body/closed_call/checkpoint/mlp/dot_general": ("layers/mlp", "backward"),
    "jit(f)/transpose(jvp(layers))/while/body/checkpoint/rematted_computation/mlp/jit(silu)/mul":
        ("layers/mlp", "recompute"),
    "jit(f)/jvp()/shard_map/loss/while/body/closed_call/cd,vd->cv/dot_general": ("loss", "forward"),
    "jit(f)/jvp(layers)/while/body/attention/shard_map/vmap(kernel)/jit(_k)/splash_fwd/pallas_call":
        ("layers/attention", "forward"),
    "jit(f)/jvp(jit(_where))/select_n": ("", "forward"),
    "jit(f)/sqrt": ("", "step"),
    "": ("", "step"),
}  # fmt: skip


@pytest.mark.parametrize("op_name", SCOPES)
def test_scopes_of_op_names(op_name):
    assert hlo.scope_of(op_name) == hlo.Scope(*SCOPES[op_name])


def test_what_is_parsed_of_an_instruction():
    module = hlo.parse_module(FUSED)
    assert module.entry.name == "main" and module.name == "overlap" and module.num_devices == 4
    fusion = module.computations["body"].by_name["fusion.2"]
    assert fusion.cycles == 1500 and fusion.called == {"calls": ("carry",)} and len(fusion.shapes) == 2
    assert fusion.shapes[1] == hlo.Shape("bf16", (256, 64)) and fusion.operands == ("gte", "x", "w")
    start = module.computations["body"].by_name["async-start"]
    assert [s.space for s in start.shapes] == [0, 0, 2] and start.shapes[2].bytes == 4
    assert module.entry.by_name["p"].op_name == "state['w']"
    runs = {i.name: times for i, times in module.executed(fused=True)}
    assert runs["while"] == 1 and runs["async-start"] == 32 and runs["dot"] == 32


CUT = "HloModule cut\nENTRY %e {\n  %x = f32[] add(%a\n}\n"


@pytest.mark.parametrize("text", ["", "no module", "HloModule empty\n", CUT])
def test_what_is_no_hlo_text_is_refused(text):
    with pytest.raises(UserError, match="HLO"):
        hlo.parse_module(text)


def test_the_command_prints_flops_and_traffic(tmp_path, capsys):
    path = tmp_path / "step.txt"
    path.write_text(FUSED)
    hlo.main([str(path)])
    out = capsys.readouterr().out
    assert re.search(r"FLOPs a device: 5\.2429e\+05", out) and "all-gather, asynchronous" in out
    with pytest.raises(UserError, match="no such file"):
        hlo.main([str(tmp_path / "absent.txt")])
