"""Seconds estimated from a schedule: arithmetic by hand, bounds that always hold, and the TPU compiler's cycles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmed_jax.planning import collective_time, schedule_time, topology
from mmed_jax.planning.hlo import analysis
from tests.support.hlo_cases import compiled_text, tpu_devices

V5P, V5E, V6E = (topology.parse(name) for name in ("v5p-128", "v5e-64", "v6e-64"))
# One link of 1 GB/s at 90 %, one cycle a microsecond: numbers that can be followed.
SLOW = dataclasses.replace(
    V5E, shape=(4,), wrap=(False,), peak_flops=1e9, hbm_bandwidth=1e9, link_bandwidth=1e9, clock_hz=1e6
)


def program(*lines: str, name: str = "main", inner: str = "", devices: int = 4) -> analysis.Module:
    body = "\n".join(f"  {line}" for line in ("%p = f32[250]{0} parameter(0)", *lines))
    header = f"HloModule m, is_scheduled=true, num_partitions={devices}\n"
    return analysis.parse_module(f"{header}{inner}\nENTRY %{name} (p: f32[250]) -> f32[250] {{\n{body}\n}}\n")


def work(name: str, cycles: int, scope: str = "jit(f)/jvp(mlp)/dot") -> str:
    return (
        f'%{name} = f32[250]{{0}} fusion(%p), kind=kLoop, calls=%none, metadata={{op_name="{scope}"}}, '
        f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    )


GROUPS = "replica_groups={{0,1,2,3}}, dimensions={0}"
GATHER = f"%gather = f32[1000]{{0}} all-gather(%p), {GROUPS}"
START = f"%start = (f32[250]{{0}}, f32[1000]{{0}}) all-gather-start(%p), {GROUPS}"
DONE = "%done = f32[1000]{0} all-gather-done(%start)"
ONE_GATHER = 1000 * 4 * 3 / 4 / 0.9e9  # seconds: 3000 bytes


def test_a_blocking_transfer_adds_to_the_step():
    e = schedule_time.estimate(program(work("a", 7), GATHER, work("b", 5)), SLOW)
    assert e.compute_s == pytest.approx(12e-6) and e.ici_s == pytest.approx(ONE_GATHER)
    assert (e.low_s, e.high_s) == (e.compute_s, e.compute_s + e.ici_s) and e.schedule_s == pytest.approx(e.high_s)
    assert e.collective_bytes == {"all-gather": 3000} and e.blocking_bytes == 3000 and e.dcn_s == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_nothing_hidden_is_the_longest_to_the_last_bit(cycles):
    """Sums of the same numbers in another order differ in their last bit; the range must hold all the same."""
    e = schedule_time.estimate(program(GATHER, *(work(f"w{i}", n) for i, n in enumerate(cycles))), SLOW)
    assert e.low_s <= e.schedule_s <= e.high_s and e.schedule_s == pytest.approx(e.high_s)


def test_an_asynchronous_transfer_hides_behind_what_stands_between_its_ends():
    hidden = schedule_time.estimate(program(START, work("a", 7), DONE, work("b", 5)), SLOW)
    assert hidden.schedule_s == pytest.approx(12e-6) and hidden.blocking_bytes == 0
    late = schedule_time.estimate(program(work("a", 7), START, work("b", 1), DONE), SLOW)
    assert late.schedule_s == pytest.approx(7e-6 + ONE_GATHER)


MOVED = f"""
%moved (p: f32[250]) -> f32[1000] {{
  %p = f32[250]{{0}} parameter(0)
  ROOT {GATHER}
}}, execution_thread="sparsecore"
"""


def test_a_transfer_of_sparse_cores_hides_behind_what_stands_after_its_data_are_handed_over():
    """libtpu 0.0.50 makes them ready long before there is anything to send."""
    ready = "%s = ((), (), (s32[1]{0})) call-start(), to_apply=%moved"
    handed = "%u = ((f32[250]{0}), f32[1000]{0}) call-update(%s, %p)"
    done = "%done = f32[1000]{0} call-done(%u)"
    hidden = program(ready, handed, work("a", 7), done, work("b", 5), inner=MOVED)
    assert schedule_time.estimate(hidden, SLOW).schedule_s == pytest.approx(12e-6)
    late = program(ready, work("a", 7), handed, work("b", 1), done, inner=MOVED)
    assert schedule_time.estimate(late, SLOW).schedule_s == pytest.approx(7e-6 + ONE_GATHER)


def test_transfers_follow_one_another_on_the_links():
    """A blocking transfer waits for the one that is on its way."""
    e = schedule_time.estimate(program(START, work("a", 1), GATHER, DONE), SLOW)
    assert e.schedule_s == pytest.approx(2 * ONE_GATHER)


LOOP = """
%body (s: (s32[], f32[250])) -> (s32[], f32[250]) {
  %s = (s32[], f32[250]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %p = f32[250]{0} get-tuple-element(%s), index=1
  LINES
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[250]{0}) tuple(%next, %p)
}
%cond (s: (s32[], f32[250])) -> pred[] {
  %s = (s32[], f32[250]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(10)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
"""


def test_a_loop_takes_its_trips_and_fused_transfers_overlap_in_it():
    inner = LOOP.replace("LINES", "\n  ".join((START, work("a", 7), DONE, work("b", 5))))
    around = (
        "%zero = s32[] constant(0)",
        "%t = (s32[], f32[250]{0}) tuple(%zero, %p)",
        "%w = (s32[], f32[250]{0}) while(%t), condition=%cond, body=%body",
        work("c", 3),
    )
    e = schedule_time.estimate(program(*around, inner=inner), SLOW)
    # The loop's counter, an add without an estimate, moves 12 bytes at 1 GB/s each time.
    counter = 10 * 12e-9
    assert e.compute_s == pytest.approx(123e-6 + counter) and e.ici_s == pytest.approx(10 * ONE_GATHER)
    assert e.schedule_s == pytest.approx(e.compute_s) and e.collective_bytes == {"all-gather": 30000}


def test_seconds_by_scope_and_the_longest_instructions():
    back = "jit(f)/transpose(jvp(mlp))/dot"
    e = schedule_time.estimate(program(work("a", 7), work("b", 5), work("c", 20, back), GATHER), SLOW)
    found = {(s.scope.path, s.scope.direction): s.compute_s for s in e.seconds_by_scope}
    assert found["mlp", "forward"] == pytest.approx(12e-6) and found["mlp", "backward"] == pytest.approx(20e-6)
    assert sum(s.compute_s for s in e.seconds_by_scope) == pytest.approx(e.compute_s)
    assert sum(s.transfer_s for s in e.seconds_by_scope) == pytest.approx(e.ici_s)
    assert [h.name for h in e.top] == ["c", "a", "b", "gather"] and e.top[3].what == "all-gather"
    many = schedule_time.estimate(program(*(work(f"w{n}", n + 1) for n in range(30))), SLOW)
    assert [h.name for h in many.top] == [f"w{n}" for n in range(29, 19, -1)]
    assert "mlp" in e.summary() and "blocking" in e.summary()


def test_kernels_take_their_flops_at_the_assumed_share_of_the_peak():
    kernel = '%k = f32[250]{0} custom-call(%p), custom_call_target="tpu_custom_call"'
    flops = dict(kernel_flops=lambda i: 5e6 if i.name == "k" else None)
    e = schedule_time.estimate(program(kernel), SLOW, **flops)
    assert e.kernel_s == pytest.approx(5e6 / (0.5 * 1e9)) == e.compute_s and e.flops == 5e6
    assert "50%" in e.notes[0]
    assert schedule_time.estimate(program(kernel), SLOW, **flops, kernel_efficiency=0.25).kernel_s == 2 * e.kernel_s
    unknown = schedule_time.estimate(program(kernel), SLOW)
    assert unknown.compute_s == pytest.approx(2000e-9) and "without a FLOP formula" in unknown.notes[0]


def test_what_has_no_cycles_takes_flops_or_bytes():
    """The modules of other compilers: the longer of FLOPs at the peak and bytes; an update in place moves its part."""
    dot = "%d = f32[250,250]{1,0} dot(%p, %p), lhs_contracting_dims={}, rhs_contracting_dims={}"
    assert schedule_time.estimate(program(dot), SLOW).compute_s == pytest.approx((250 * 250 + 500) * 4 / 1e9)
    update = (
        "%u = f32[10]{0} constant({...})",
        "%z = s32[] constant(0)",
        "%d = f32[250]{0} dynamic-update-slice(%p, %u, %z)",
    )
    assert schedule_time.estimate(program(*update), SLOW).compute_s == pytest.approx(2 * 40 / 1e9)
    assert schedule_time.estimate(program("%v = f32[250]{0:S(1)} negate(%p)"), SLOW).compute_s == pytest.approx(1e-6)
    # An estimate that is none: the largest 64-bit number.
    assert schedule_time.estimate(program(work("a", 2**63 - 1)), SLOW).compute_s == pytest.approx(2000e-9)


RATES = [
    (V5P, 64, 0, 540e9),
    (V5P, 16, 0, 360e9),
    (V5P, 4, 0, 180e9),
    (V5P, 2, 0, 90e9),
    (V5P, 8, 0, 270e9),
    (V5P, 4, 3, 540e9),
    (V5E, 64, 0, 90e9),
    (V6E, 64, 0, 180e9),
    (V5E, 8, 0, 45e9),
    (V5E, 16, 0, 90e9),
    (topology.parse("gpu:8xh100-80g"), 8, 0, 405e9),
    (topology.parse("v5p-8"), 4, 3, 180e9),
    (topology.parse("v5e-256"), 256, 0, 180e9),
]


@pytest.mark.parametrize(("chips", "group", "axes", "rate"), RATES)
def test_links_of_a_group(chips, group, axes, rate):
    assert collective_time.link_rate(chips, group, axes) == pytest.approx(rate)


def test_mean_hops_equal_the_mean_over_all_pairs():
    def ring(n):
        return sum(min((a - b) % n, (b - a) % n) for a in range(n) for b in range(n)) / n**2

    def line(n):
        return sum(abs(a - b) for a in range(n) for b in range(n)) / n**2

    assert collective_time.mean_hops(V5P, 64) == pytest.approx(3 * ring(4))
    assert collective_time.mean_hops(V5E, 64) == pytest.approx(2 * line(8))
    assert collective_time.mean_hops(V5E, 8) == pytest.approx(line(8))


TWO = dataclasses.replace(SLOW, slices=2, dcn_bandwidth=1e8)


def test_a_group_over_two_slices_reduces_in_the_slice_and_then_between_them():
    reduce = "%r = f32[250]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add"
    e = schedule_time.estimate(program(reduce, devices=8), TWO)
    assert e.ici_s == pytest.approx(2 * 1000 * 3 / 4 / 0.9e9)
    assert e.dcn_bytes == 2 * (1000 / 4) / 2 and e.dcn_s == pytest.approx(e.dcn_bytes / 1e8)
    apart = "%r = f32[250]{0} all-reduce(%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add"
    e = schedule_time.estimate(program(apart, devices=8), TWO)
    assert (e.ici_s, e.dcn_bytes, e.collective_bytes) == (0, 1000, {}) and e.schedule_s == e.dcn_s > 0


MEGASCALE = (
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}'
)
BETWEEN = (
    "%token = token[] after-all()",
    f"%s = (f32[250]{{0}}, u32[], token[]) send(%p, %token), channel_id=2, is_host_transfer=true, {MEGASCALE}",
    f"%r = (f32[250]{{0}}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, {MEGASCALE}",
    "WORK",
    "%sd = token[] send-done(%s), channel_id=2, is_host_transfer=true",
    "%rd = (f32[250]{0}, token[]) recv-done(%r), channel_id=1, is_host_transfer=true",
)


@pytest.mark.parametrize("cycles", [3, 30])
def test_send_and_receive_between_slices_run_beside_the_work(cycles):
    lines = [work("a", cycles) if line == "WORK" else line for line in BETWEEN]
    e = schedule_time.estimate(program(*lines), TWO)
    assert e.dcn_bytes == 2 * 1000 / 2 and e.dcn_s == pytest.approx(10e-6) and e.ici_s == 0
    assert e.schedule_s == pytest.approx(max(cycles * 1e-6, 10e-6))
    (found,) = analysis.collectives(program(*lines))
    assert found.dcn and found.asynchronous and found.group_size == 2


def test_a_transfer_between_slices_begins_at_its_send_wherever_the_recv_stands():
    """The compiler puts every recv next to its end; the send of the same rendezvous stands where data leave."""
    attributes = MEGASCALE.replace("={", '={_xla_host_transfer_rendezvous="sum.1_0",')
    token, send, recv, _, send_done, recv_done = (line.replace(MEGASCALE, attributes) for line in BETWEEN)
    e = schedule_time.estimate(program(token, send, work("a", 7), recv, work("b", 1), send_done, recv_done), TWO)
    assert e.schedule_s == pytest.approx(10e-6) and e.dcn_bytes == 1000
    late = schedule_time.estimate(program(token, work("a", 7), send, recv, work("b", 1), send_done, recv_done), TWO)
    assert late.schedule_s == pytest.approx(17e-6)
    # Received behind the loop that sends: every pass of the loop sends.
    loop = LOOP.replace("LINES", "\n  ".join((token, send, work("a", 7), send_done)))
    loop = loop.replace("%s = (f32", "%out = (f32").replace("send-done(%s)", "send-done(%out)")
    around = (
        "%zero = s32[] constant(0)",
        "%t = (s32[], f32[250]{0}) tuple(%zero, %p)",
        "%w = (s32[], f32[250]{0}) while(%t), condition=%cond, body=%body",
        *(token, recv, recv_done),
    )
    apart = schedule_time.estimate(program(*around, inner=loop), TWO)
    assert apart.dcn_bytes == 10 * 1000 and apart.schedule_s == pytest.approx(100e-6, rel=1e-2)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("work"), st.integers(0, 20)),
        st.tuples(st.just("blocking"), st.integers(1, 40)),
        st.tuples(st.just("asynchronous"), st.integers(1, 40), st.integers(0, 4)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_schedule_lies_between_all_hidden_and_none_hidden(steps):
    """Any order of work, blocking and asynchronous transfers whose ends come up to four steps later."""
    lines, ends = [], []
    for n, step in enumerate([*steps, ("work", 1)]):
        if step[0] == "work":
            lines.append(work(f"w{n}", step[1]))
        elif step[0] == "blocking":
            lines.append(f"%g{n} = f32[{250 * step[1]}]{{0}} all-gather(%p), {GROUPS}")
        else:
            lines.append(f"%s{n} = (f32[250]{{0}}, f32[{250 * step[1]}]{{0}}) all-gather-start(%p), {GROUPS}")
            ends.append((n + step[2], f"%d{n} = f32[{250 * step[1]}]{{0}} all-gather-done(%s{n})"))
        lines += [line for at, line in ends if at == n]
    lines += [line for at, line in ends if at > len(steps)]
    e = schedule_time.estimate(program(*lines), SLOW)
    work_s = 1e-6 * (1 + sum(s[1] for s in steps if s[0] == "work"))
    assert e.compute_s == pytest.approx(work_s)
    assert e.low_s <= e.schedule_s * (1 + 1e-9) and e.schedule_s <= e.high_s * (1 + 1e-9)
    blocking = sum(250 * 4 * s[1] * 3 / 4 for s in steps if s[0] == "blocking")
    assert e.blocking_bytes == pytest.approx(blocking)
    assert e.schedule_s >= work_s + blocking / 0.9e9 - 1e-12


def test_the_tpu_compilers_cycles_give_a_large_product_near_the_peak():
    """Checks clock, trips and cycles together: a projection of an 8B model reaches 0.98 of the peak on v5e."""
    x, w = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((4096, 4096), (4096, 14336)))
    module = analysis.parse_module(compiled_text(jnp.matmul, x, w, devices=tpu_devices()))
    e = schedule_time.estimate(module, V5E)
    assert e.flops == 2 * 4096 * 4096 * 14336
    assert 0.95 < e.flops / e.compute_s / V5E.peak_flops < 1.0


def test_gradients_of_two_slices_cross_once_per_slice_in_a_tpu_program():
    """Weights split over 4 chips, data over 2 slices: a chip exchanges its quarter of each layer's gradient."""
    devices, layers, width = tpu_devices("2xv5e-4"), 5, 1024
    mesh = Mesh(np.asarray(devices).reshape(2, 4), ("data", "fsdp"))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "fsdp"), ()))

    def loss(weights_ldd, x_nd):
        def layer(h_nd, w_dd):
            return jnp.tanh(h_nd @ jax.lax.with_sharding_constraint(w_dd.astype(jnp.bfloat16), whole)), None

        return jnp.sum(jax.lax.scan(layer, x_nd, weights_ldd)[0].astype(jnp.float32))

    def step(weights_ldd, x_nd):
        return jax.lax.with_sharding_constraint(weights_ldd - jax.grad(loss)(weights_ldd, x_nd), split)

    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=split)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((4096, width), jnp.bfloat16, sharding=rows)
    module = analysis.parse_module(compiled_text(step, weights, x, devices=devices))
    e = schedule_time.estimate(module, topology.parse("2xv5e-4"))
    assert e.dcn_bytes == layers * (width * width * 2 / 4) * 2 / 2
    assert e.flops == layers * 3 * 2 * (4096 / 8) * width * width
    assert e.collective_bytes["all-gather"] == layers * width * width * 2 * 3 / 4
    assert e.low_s <= e.schedule_s <= e.high_s and e.dcn_s == pytest.approx(e.dcn_bytes / V5E.dcn_bandwidth)


def test_links_that_are_busy_before_a_loop_are_busy_in_it():
    """The loop's first gather waits for the one that began before; later passes find the links free."""
    inner = LOOP.replace("LINES", "\n  ".join((START, work("a", 3), DONE)))
    around = (
        "%zero = s32[] constant(0)",
        "%t = (s32[], f32[250]{0}) tuple(%zero, %p)",
        START.replace("%start", "%before"),
        "%w = (s32[], f32[250]{0}) while(%t), condition=%cond, body=%body",
        DONE.replace("%done", "%after").replace("%start", "%before"),
    )
    e = schedule_time.estimate(program(*around, inner=inner), SLOW)
    counter, alone = 12e-9, max(3e-6, ONE_GATHER)
    assert e.schedule_s == pytest.approx(ONE_GATHER + 10 * alone + 10 * counter, rel=1e-3)


def test_a_product_is_never_faster_than_the_chip():
    fused = """
%product (p: f32[250]) -> f32[250,250] {
  %p = f32[250]{0} parameter(0)
  ROOT %d = f32[250,250]{1,0} dot(%p, %p), lhs_contracting_dims={}, rhs_contracting_dims={}
}
"""
    line = (
        "%f = f32[250,250]{1,0} fusion(%p), kind=kOutput, calls=%product, "
        'backend_config={"window_config":{"estimated_cycles":"CYCLES"}}'
    )
    flops = 2 * 250 * 250
    for cycles, seconds in ((1, flops / 1e9), (1000, 1e-3)):
        e = schedule_time.estimate(program(line.replace("CYCLES", str(cycles)), inner=fused), SLOW)
        assert e.compute_s == pytest.approx(seconds)
