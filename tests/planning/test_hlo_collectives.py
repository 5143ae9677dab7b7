"""Collectives of optimised HLO: bytes against the hand count, pieces of one transfer, groups of devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmed_jax.planning.hlo import analysis
from mmed_jax.planning.hlo.collectives import Collectives, replica_groups
from mmed_jax.planning.hlo.text import parse_text
from tests.support.hlo_cases import FUSED, compiled_text, tpu_devices

Struct = jax.ShapeDtypeStruct


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
    module = analysis.parse_module(compiled_text(function, *shapes, devices=devices))
    n = len(devices)
    assert module.num_devices == n
    # Forward, recomputed forward and two products backward of every layer, each device its rows.
    assert analysis.flops(module).total == 6 * 4 * 2 * (2048 // n) * 512 * 512
    found = [c for c in analysis.collectives(module) if c.payload_bytes > 1000]
    element = {"cpu": 4, "tpu": 2}[where]  # the CPU compiler moves float32
    one = 512 * 512 * element * (n - 1) / n
    gathers = [c for c in found if c.kind == "all-gather"]
    assert [(c.executions, c.wire_bytes, c.group_size) for c in gathers] == 2 * [(6, one, n)]
    assert {c.scope.direction for c in gathers} == {"forward", "recompute"}
    reduced = sum(c.total_bytes / (2 if c.kind == "all-reduce" else 1) for c in found if "reduce" in c.kind)
    assert reduced == 6 * one
    assert all(sorted(itertools.chain(*c.groups)) == list(range(n)) for c in found)


def test_a_transfer_fused_into_several_pieces_counts_once():
    module = analysis.parse_module(FUSED)
    (gather,) = analysis.collectives(module)
    assert (gather.kind, gather.asynchronous, gather.executions) == ("all-gather", True, 32)
    assert gather.payload_bytes == 256 * 64 * 2 and gather.wire_bytes == 256 * 64 * 2 * 3 / 4
    assert gather.group_size == 4 and gather.scope == analysis.Scope("layers/mlp", "forward")
    assert analysis.flops(module).total == 32 * 2 * 8 * 16 * 64


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
    gather, permute = analysis.collectives(analysis.parse_module(text))
    assert (gather.wire_bytes, gather.asynchronous, gather.group_size) == (128 * 4 * 7 / 8, True, 8)
    assert (permute.kind, permute.wire_bytes) == ("collective-permute", 128 * 4)


# An all-reduce on SparseCores, as libtpu 0.0.42 writes it and as 0.0.50 does, where only the update brings the data.
ON_SPARSE_CORES = """HloModule offloaded, is_scheduled=true, num_partitions=4

%moved (p: bf16[64,64]) -> bf16[64,64] {{
  %p = bf16[64,64]{{1,0}} parameter(0)
  ROOT %all-reduce = bf16[64,64]{{1,0}} all-reduce(%p), channel_id=2, replica_groups={{{{0,1,2,3}}}}, to_apply=%add
}}, execution_thread="sparsecore"

ENTRY %main (p: bf16[64,64]) -> bf16[64,64] {{
  %p = bf16[64,64]{{1,0}} parameter(0)
{pieces}
  ROOT %d = bf16[64,64]{{1,0}} call-done(%{last})
}}
"""
STARTED = [
    "  %made = bf16[64,64]{1,0} copy(%p)",
    "  %ready = token[] after-all()",
    "  %s = ((bf16[64,64]{1,0}, token[]), bf16[64,64]{1,0}) call-start(%made, %ready), to_apply=%moved",
]
UPDATED = [
    "  %s = ((), (), (s32[1]{0:T(128)S(2)})) call-start(), to_apply=%moved",
    "  %made = bf16[64,64]{1,0} copy(%p)",
    "  %u = ((bf16[64,64]{1,0}), bf16[64,64]{1,0}) call-update(%s, %made)",
]
EMPTY_UPDATE = "  %v = ((bf16[64,64]{1,0}), bf16[64,64]{1,0}) call-update(%u)"


@pytest.mark.parametrize(
    ("pieces", "last", "begins"), [(STARTED, "s", "s"), (UPDATED, "u", "u"), ([*UPDATED, EMPTY_UPDATE], "v", "u")]
)
def test_a_transfer_of_sparse_cores_begins_where_its_data_are_handed_over(pieces, last, begins):
    module = analysis.parse_module(ON_SPARSE_CORES.format(pieces="\n".join(pieces), last=last))
    (reduce,) = analysis.collectives(module)
    assert (reduce.name, reduce.kind, reduce.asynchronous, reduce.disguised) == (begins, "all-reduce", True, 0)
    assert reduce.wire_bytes == 2 * 64 * 64 * 2 * 3 / 4
    events = Collectives(module)
    kinds = {i.name: events.event(i).kind for i in module.entry.instructions if events.event(i)}
    assert kinds.pop(begins) == "start" and kinds.pop("d") == "done" and set(kinds.values()) <= {"carry"}


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
    (reduce,) = analysis.collectives(analysis.parse_module(DISGUISED))
    assert (reduce.kind, reduce.disguised, reduce.wire_bytes) == ("all-reduce", 0.5, 2 * 2 * 64 * 64 * 2 * 3 / 4)
    (plain,) = analysis.collectives(
        analysis.parse_module(DISGUISED.replace("%at)", "%none)").replace("(%mine, %g)", "(%g, %g)"))
    )
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
