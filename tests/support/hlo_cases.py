"""What the tests of the HLO reader share: small programs compiled for the CPU here or for a TPU that is not there."""

import importlib.util
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmed_jax.planning import topology


def tpu_devices(name: str = "v5e-4") -> list[jax.Device]:
    """The chips of a topology, by default a v5e 2x2 slice, which exist for the compiler only; skips without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu (scripts/setup.sh test installs it)")
    return topology.devices(topology.parse(name))


def compiled_text(function: Callable, *shapes: jax.ShapeDtypeStruct, devices: list | None = None) -> str:
    """The optimised HLO text of `function`; an argument without a sharding lies on the first device."""
    devices = devices or jax.devices()
    first = NamedSharding(Mesh(np.asarray(devices[:1]), "one"), PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or first) for s in shapes]
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(devices[0].platform,))
    return lowered.compile().as_text()


# An all-gather that the TPU compiler fused into a loop's work: begun, carried on beside a product, ended.
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
