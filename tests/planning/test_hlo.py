"""Reading optimised HLO: exact FLOPs, trip counts, scopes; against programs whose answer is known by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.common.errors import UserError
from mmed_jax.parallel.sharding import make_mesh
from mmed_jax.planning.hlo import analysis
from mmed_jax.planning.hlo.flops import _positions
from tests.support.hlo_cases import FUSED, compiled_text, tpu_devices

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
        dilated_convolution,
        (IMAGE, KERNEL),
        2 * 2 * 8 * 16 * brute_positions(16, 3, 8, 2, 1, 1, 1) * brute_positions(12, 3, 12, 2, 1, 2, 1),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_flops_are_exact_on_cpu(name):
    function, shapes, expected = PROGRAMS[name]
    module = analysis.parse_module(compiled_text(function, *shapes))
    assert analysis.flops(module).total == expected and module.notes == []


def test_flops_are_exact_in_a_tpu_program():
    """One TPU compile that holds batched products, a scan with its gradient and a loop, all of known size."""

    def everything(q, k, w, ws, x):
        return jnp.einsum("bqhd,bkhd->bhqk", q, k), jax.value_and_grad(layers)(ws, x), from_three_to_eleven(w, x)

    text = compiled_text(everything, HEADS, HEADS, SQUARE, STACK, X, devices=tpu_devices())
    counted = analysis.flops(analysis.parse_module(text))
    assert counted.total == 2 * 3 * 4 * 64 * 64 * 32 + LAYERS * 3 * ONE + 8 * ONE
    assert counted.by_scope[analysis.Scope("mlp", "forward")] == LAYERS * ONE
    assert counted.by_scope[analysis.Scope("mlp", "backward")] == 2 * LAYERS * ONE
    assert " convolution(" in text and " dot(" not in text  # what makes the TPU's text different


def test_a_loop_without_a_known_count_is_counted_once_and_named():
    def until(w_dd, x_nd, n):
        return jax.lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, jnp.tanh(s[1] @ w_dd)), (0, x_nd))[1]

    module = analysis.parse_module(compiled_text(until, SQUARE, X, Struct((), jnp.int32)))
    assert analysis.flops(module).total == ONE
    assert len(module.notes) == 1 and "trip count not known" in module.notes[0]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(-2, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_window_positions_equal_brute_force(size, window, out, stride, pad, dilation, window_dilation):
    arguments = (size, window, out, stride, pad, dilation, window_dilation)
    assert _positions(*arguments) == brute_positions(*arguments)


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
    counted = analysis.flops(analysis.parse_module(text))
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
    module = analysis.parse_module(text)
    counted = analysis.flops(module)
    assert counted.kernels == products * 2 * 4 * live_pairs(1024, 1536, 256, 512) * 64
    assert counted.unknown == ("other",)
    told = analysis.flops(module, lambda i: 1.0 if i.name == "other" else None)
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
    counted = analysis.flops(analysis.parse_module(LIBRARY))
    assert (counted.matmul, counted.kernels, counted.unknown) == (2 * 2 * 3 * 64 * 16 * 32, 0, ())


SCOPES = {
    "jit(f)/jvp(layers)/while/body/closed_call/mlp/...i,oi->...o/dot_general": ("layers/mlp", "forward"),
    "jit(f)/transpose(jvp(layers))/while/body/closed_call/checkpoint/mlp/dot_general": ("layers/mlp", "backward"),
    "jit(f)/transpose(jvp(layers))/while/body/checkpoint/rematted_computation/mlp/jit(silu)/mul": (
        "layers/mlp",
        "recompute",
    ),
    "jit(f)/jvp()/shard_map/loss/while/body/closed_call/cd,vd->cv/dot_general": ("loss", "forward"),
    "jit(f)/jvp(layers)/while/body/attention/shard_map/vmap(kernel)/jit(_k)/splash_fwd/pallas_call": (
        "layers/attention",
        "forward",
    ),
    # As jax 0.12 names them.
    "jit(f)/transpose(jvp(layers))/while/body/eval_jaxpr/checkpoint/rematted_computation/mlp/dot_general": (
        "layers/mlp",
        "recompute",
    ),
    "jit(f)/transpose(jvp(layers))/while/body/eval_jaxpr/remat2": ("layers", "recompute"),
    "jit(f)/jvp(jit(_where))/select_n": ("", "forward"),
    "jit(f)/sqrt": ("", "step"),
    "": ("", "step"),
}


@pytest.mark.parametrize("op_name", SCOPES)
def test_scopes_of_op_names(op_name):
    assert analysis.scope_of(op_name) == analysis.Scope(*SCOPES[op_name])


def test_what_is_parsed_of_an_instruction():
    module = analysis.parse_module(FUSED)
    assert module.entry.name == "main" and module.name == "overlap" and module.num_devices == 4
    fusion = module.computations["body"].by_name["fusion.2"]
    assert fusion.cycles == 1500 and fusion.called == {"calls": ("carry",)} and len(fusion.shapes) == 2
    assert fusion.shapes[1] == analysis.Shape("bf16", (256, 64)) and fusion.operands == ("gte", "x", "w")
    start = module.computations["body"].by_name["async-start"]
    assert [s.space for s in start.shapes] == [0, 0, 2] and start.shapes[2].bytes == 4
    assert module.entry.by_name["p"].op_name == "state['w']"
    runs = {i.name: times for i, times in module.executed(fused=True)}
    assert runs["while"] == 1 and runs["async-start"] == 32 and runs["dot"] == 32


CUT = "HloModule cut\nENTRY %e {\n  %x = f32[] add(%a\n}\n"


@pytest.mark.parametrize("text", ["", "no module", "HloModule empty\n", CUT])
def test_what_is_no_hlo_text_is_refused(text):
    with pytest.raises(UserError, match="HLO"):
        analysis.parse_module(text)


def test_the_command_prints_flops_and_traffic(tmp_path, capsys):
    path = tmp_path / "step.txt"
    path.write_text(FUSED)
    analysis.main([str(path)])
    out = capsys.readouterr().out
    assert re.search(r"FLOPs a device: 5\.2429e\+05", out) and "all-gather, asynchronous" in out
    with pytest.raises(UserError, match="no such file"):
        analysis.main([str(tmp_path / "absent.txt")])
