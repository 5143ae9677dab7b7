"""NF4 and int8 bases: the bits of bitsandbytes, bounded errors, and what a sharded step keeps and sends.

nf4_bitsandbytes.npz was made once by bitsandbytes 0.50.2 on a CPU (torch 2.14) from `weight` float32 [8, 128] with
normal rows, heavy tails, a block of zeros, values on the bounds between codes and tiny numbers:

    codes, state = bitsandbytes.functional.quantize_4bit(torch.from_numpy(weight), quant_type="nf4", blocksize=64)
    values = bitsandbytes.functional.dequantize_4bit(codes, state)
    np.savez_compressed("tests/model/nf4_bitsandbytes.npz", weight=weight, codes=codes.numpy().reshape(8, 64),
                        absmax=state.absmax.numpy().reshape(8, 2), values=values.numpy())
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.model import llama, lora, quantized_base
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.quantization import BLOCK, KINDS, LINEAR_MODULES, dequantize, quantize_leaf, weight_of
from mmed_jax.parallel.sharding import make_mesh, param_shardings
from mmed_jax.planning.hlo.analysis import collectives, parse_module
from tests.support import parity as ph
from tests.support.hf_folders import random_params

CFG = LlamaConfig(
    vocab_size=96, hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64
)
MESHES = {"fsdp": {"fsdp": 4}, "tensor": {"fsdp": 1, "tensor": 2}, "both": {"fsdp": 2, "tensor": 2}}


def mesh_of(name: str):
    count = int(np.prod(list(MESHES[name].values())))
    return make_mesh(**MESHES[name], devices=jax.devices()[:count])


@pytest.fixture(scope="module")
def fixture():
    with np.load(Path(__file__).with_name("nf4_bitsandbytes.npz")) as file:
        return dict(file)


def as_bitsandbytes(codes: np.ndarray) -> np.ndarray:
    """Our bytes in bitsandbytes' order: codes 2j and 2j + 1 in byte j."""
    blocks = codes.reshape(-1, BLOCK // 2)
    values = np.concatenate([blocks >> 4, blocks & 15], axis=-1)
    return (values[:, ::2] << 4 | values[:, 1::2]).reshape(codes.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_is_that_of_bitsandbytes(fixture, dtype):
    p = quantize_leaf(fixture["weight"], "nf4")
    np.testing.assert_array_equal(as_bitsandbytes(p["nf4"]), fixture["codes"])
    np.testing.assert_array_equal(p["absmax"], fixture["absmax"].astype(jnp.bfloat16))
    # With the absmax that bitsandbytes keeps, the values are its too; ours is rounded to bfloat16.
    exact = dequantize({"nf4": p["nf4"], "absmax": fixture["absmax"]}, dtype)
    np.testing.assert_array_equal(exact, fixture["values"].astype(dtype))
    rounded = np.asarray(dequantize(p))
    np.testing.assert_allclose(rounded, fixture["values"], rtol=2**-8, atol=1e-38)


def test_stacks_are_quantised_row_by_row(fixture):
    stack = np.stack([fixture["weight"], 2 * fixture["weight"]])
    for kind in ("nf4", "int8"):
        whole = quantize_leaf(stack.astype(jnp.bfloat16), kind)
        for i in range(2):
            one = quantize_leaf(stack[i].astype(jnp.bfloat16).astype(np.float32), kind)
            for leaf, values in one.items():
                np.testing.assert_array_equal(whole[leaf][i], values)


def test_relative_error_of_normal_weights():
    weight = 0.02 * np.random.default_rng(0).standard_normal((64, 4096), np.float32)
    for kind, bound in {"nf4": 0.093, "int8": 0.009}.items():
        p = quantize_leaf(weight, kind)
        error = np.asarray(dequantize(p)) - weight
        assert np.sqrt((error**2).mean() / (weight**2).mean()) < bound
        bits = 8 * sum(x.nbytes for x in p.values()) / weight.size
        assert bits == {"nf4": 4.25, "int8": 8 + 32 / 4096}[kind]


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
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), llama.abstract_params(CFG))
    for kind in KINDS:
        base = quantized_base.quantize_base(params, kind, jnp.bfloat16)
        abstract = quantized_base.abstract_base(CFG, kind, jnp.bfloat16, mesh_of("both"))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), base) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
        assert jax.tree.map(lambda x: x.sharding, abstract) == quantized_base.base_shardings(mesh_of("both"), CFG, kind)


@pytest.fixture(scope="module")
def trees():
    """{kind: base}, an adapter that does something, and its specification."""
    params = jax.tree.map(lambda x: np.float32(0.2) * np.asarray(x), random_params(CFG))
    bases = {kind: quantized_base.quantize_base(params, kind, jnp.float32) for kind in ("int8", "nf4")}
    spec = adapter_spec(CFG)
    adapter = lora.init_adapter(spec, CFG, jax.random.key(0))
    # In numpy: what lies on a device is cut for a mesh by a program that is compiled for each shape.
    return jax.device_get(bases), jax.tree.map(lambda x: np.asarray(x) + np.float32(0.01), adapter), spec


def adapter_spec(cfg: LlamaConfig) -> lora.LoraSpec:
    layers = cfg.num_layers
    modules = tuple((name, (2,) * layers, (4.0,) * layers) for name in LINEAR_MODULES)
    return lora.LoraSpec(rank=2, alpha=4.0, modules=modules, rslora=False, dora=False, dropout=0.0)


def loss_of(cfg: LlamaConfig, spec: lora.LoraSpec, remat: str = "full", dtype=jnp.float32):
    def loss(adapter, base, tokens):
        params = lora.join(base, adapter, spec, cfg)
        hidden = llama.forward(params, cfg, tokens, compute_dtype=dtype, remat=remat)
        return jnp.mean(jnp.square(hidden.astype(jnp.float32)))

    return loss


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_decoded_weight_does_not_depend_on_the_mesh(trees, kind):
    base = trees[0][kind]
    decode = jax.jit(lambda layers: {name: weight_of(layers[name], jnp.bfloat16) for name in LINEAR_MODULES})
    want = decode(base["layers"])
    for name, weight in quantized_base.decoded(base, jnp.bfloat16)["layers"].items():
        if name in LINEAR_MODULES:
            np.testing.assert_array_equal(weight["weight"], want[name].astype(jnp.float32))
    for mesh in map(mesh_of, MESHES):
        placed = jax.device_put(base, quantized_base.base_shardings(mesh, CFG, kind))
        with jax.set_mesh(mesh):
            got = decode(placed["layers"])
        for name in LINEAR_MODULES:
            np.testing.assert_array_equal(got[name], want[name])


@pytest.fixture(scope="module")
def of_decoded(trees):
    """(loss, gradients) of the adapter on the decoded weights, by kind of base."""
    bases, adapter, spec = trees
    step = jax.jit(jax.value_and_grad(loss_of(CFG, spec)))
    return {
        kind: step(adapter, quantized_base.decoded(base), ph.random_tokens(CFG, 8, 6)) for kind, base in bases.items()
    }


@pytest.mark.parametrize(
    ("kind", "mesh"), [("nf4", "none"), *(("nf4", mesh) for mesh in MESHES), ("int8", "none"), ("int8", "both")]
)
def test_gradients_are_those_with_the_decoded_weights(trees, of_decoded, kind, mesh):
    bases, adapter, spec = trees
    base, tokens = bases[kind], ph.random_tokens(CFG, 8, 6)
    if mesh == "none":
        loss, grads = jax.jit(jax.value_and_grad(loss_of(CFG, spec, "minimal")))(adapter, base, tokens)
    else:
        step, places = compiled_step(CFG, kind, mesh)
        loss, grads = step(*jax.device_put((adapter, base), places), tokens)
    want_loss, want = of_decoded[kind]
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@functools.cache
def compiled_step(cfg: LlamaConfig, kind: str, name: str, remat: str = "full"):
    """The loss of an adapter on a base of that kind and its gradient, compiled for a mesh of MESHES, "" for one device.

    Returns:
      the program of adapter, base and tokens, and where it wants adapter and base.
    """
    spec = adapter_spec(cfg)
    mesh = mesh_of(name) if name else None
    base = quantized_base.abstract_base(cfg, kind, jnp.float32, mesh)
    adapter = lora.abstract_adapter(spec, cfg)
    step = jax.jit(jax.value_and_grad(loss_of(cfg, spec, remat)))
    if mesh is None:
        return step.lower(adapter, base, TOKENS).compile(), None
    places = param_shardings(mesh, lora.logical_axes(spec, cfg))
    adapter = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), adapter, places)
    with jax.set_mesh(mesh):
        return step.lower(adapter, base, TOKENS).compile(), (places, jax.tree.map(lambda x: x.sharding, base))


TOKENS = jax.ShapeDtypeStruct((8, 6), jnp.int32)
ITEM_BYTES = {"u8": 1, "s8": 1, "bf16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1}


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("mesh", MESHES)
def test_collectives_move_codes(kind, mesh):
    """Gathered are codes and scales; floats as large as the smallest part of a weight that a device needs are not."""
    sizes = MESHES[mesh]
    found = [
        c
        for c in collectives(parse_module(compiled_step(CFG, kind, mesh)[0].as_text()))
        if c.kind not in ("all-reduce", "reduce-scatter")  # sums of activations and of the adapter's gradients
    ]
    moved = {(c.dtype, int(c.payload_bytes / ITEM_BYTES[c.dtype])) for c in found}
    print(kind, mesh, sorted((c.kind, c.dtype, int(c.payload_bytes), int(c.executions)) for c in found))
    weights = llama.abstract_params(CFG)["layers"]
    parts = {weights[name]["weight"].size // CFG.num_layers // sizes.get("tensor", 1) for name in LINEAR_MODULES}
    table = CFG.vocab_size * CFG.hidden_size // sizes.get("tensor", 1)  # the embedding is no quantised weight
    assert not {(dtype, n) for dtype, n in moved if dtype in ("f32", "bf16") and n >= min(parts) and n != table}
    codes = {n for dtype, n in moved if dtype in ("u8", "s8")}
    assert codes == ({n // (2 if kind == "nf4" else 1) for n in parts} if sizes["fsdp"] > 1 else set())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_no_decoded_weight_is_kept_for_the_backward_pass(kind):
    cfg = dataclasses.replace(CFG, num_layers=6)
    weights = llama.abstract_params(cfg)["layers"]
    decoded = sum(weights[name]["weight"].size * 4 for name in LINEAR_MODULES)
    temp = {
        remat: compiled_step(cfg, kind, "", remat)[0].memory_analysis().temp_size_in_bytes for remat in ("full", "none")
    }
    print(kind, temp, f"decoded {decoded:,}")
    # remat="none" keeps every decoded weight, which is why it is refused; "full" keeps none of them.
    assert temp["none"] - temp["full"] > 0.9 * decoded
