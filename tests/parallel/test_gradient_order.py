"""The order of gradients in programs compiled for TPUs: what of them stays a reduce-scatter."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.parallel import sharding
from mmed_jax.parallel.gradient_order import linear_in_order, order_of_gradients, scatter_table
from mmed_jax.parallel.xla_flags import compiler_options
from mmed_jax.planning import topology
from mmed_jax.planning.hlo import analysis
from tests.support.hlo_cases import tpu_devices

WIDTH, TOKENS = 4096, 512  # of the model, and of a device
SHARDS = sharding.PARAM_RULES["embed"]


def sums(name: str, f, *specs: tuple[tuple[int, ...], P]) -> list[str]:
    """Kinds of the large sums over devices in f of bfloat16 arrays of these shapes and places, compiled for `name`."""
    mesh = sharding.make_mesh(devices=tpu_devices(name))
    rows = mesh.devices.size
    arguments = [
        jax.ShapeDtypeStruct(
            tuple(rows if n == 0 else n for n in shape), jnp.bfloat16, sharding=NamedSharding(mesh, spec)
        )
        for shape, spec in specs
    ]
    # Larger tiles take minutes to compile and change no sum.
    flags = {k: v for k, v in compiler_options(topology.parse(name).chip).items() if "vmem" not in k}
    with jax.set_mesh(mesh):
        traced = jax.jit(f).trace(*arguments)
        compiled = traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=flags)
    found = analysis.collectives(analysis.parse_module(compiled.as_text()))
    return [c.kind for c in found if "reduce" in c.kind and c.payload_bytes > WIDTH * WIDTH]


@pytest.mark.parametrize("said, kind", [(True, "reduce-scatter"), (False, "all-reduce")])
def test_the_gradient_of_a_llama_3_head_is_reduce_scattered(said, kind):
    """Its vocabulary is no multiple of 1,024; as it is, the compiler for 64 chips sends twice the bytes."""
    vocabulary, rows = 128_256, P(SHARDS)

    def gradient(h, d_logits):
        def local(h, d_logits):
            return scatter_table(jnp.einsum("btd,btv->dv", h, d_logits), SHARDS)

        return jax.shard_map(local, in_specs=(rows, rows), out_specs=P(SHARDS), check_vma=False)(h, d_logits)

    with order_of_gradients(said):
        assert sums("v6e-64", gradient, ((0, TOKENS, WIDTH), rows), ((0, TOKENS, vocabulary), rows)) == [kind]


def test_the_gradient_of_a_down_projection_is_reduce_scattered():
    """Beside an activation whose gradient is taken too, as in a layer: the compiler for v6e then has its own wishes."""
    hidden, rows = 14_336, P(SHARDS)

    def gradients(gate, weight, ct):
        def down(gate, weight):
            return linear_in_order(jax.nn.silu(gate), weight, None)

        return jax.vjp(down, gate, weight)[1](ct)

    places = ((0, TOKENS, hidden), rows), ((WIDTH, hidden), P(SHARDS)), ((0, TOKENS, WIDTH), rows)
    assert sums("v6e-64", gradients, *places) == ["reduce-scatter"]
