"""Estimates the seconds of one execution of a compiled program from its schedule; no such hardware is needed.

    e = estimate(module, topology)      # module: planning.hlo.parse_module, topology: planning.topology.parse
    e.low_s, e.schedule_s, e.high_s     # all transfers hidden; as scheduled; none hidden
    e.compute_s, e.kernel_s, e.ici_s, e.dcn_s, e.blocking_bytes, e.collective_bytes, e.seconds_by_scope, e.top, e.notes

Method. Computing: the TPU compiler's own estimated_cycles of every instruction x trips / clock. Kernels have none:
their FLOPs at KERNEL_EFFICIENCY of the peak. What else has no estimate (gather, sort, in-place updates, everything in a
module of another compiler) takes its FLOPs at the peak or its bytes at the memory's bandwidth, the longer.
Transfers: bytes of a ring algorithm / (links used x bandwidth x ICI_EFFICIENCY); an axis with wrap sends both ways, one
without counts one way. The schedule is walked in order: an asynchronous transfer runs beside the instructions
until its end is waited for, transfers follow one another on the links, a blocking one holds up everything.

A transfer that is on its way when a loop begins keeps the links from those inside, and no product is
taken to be faster than the chip's peak, whatever its cycles say.

Limits. The cycles are the compiler's model of its own tiles (a large bfloat16 product: 442 of 459 TFLOP/s on v5p, 192
of 197 on v5e, 265 of 275 on v4); nothing is known of contention for HBM, power, latency of small transfers, launches
or input, of copies between chip and host on the way to another slice, nor of what SparseCores read and write of HBM or
how fast the one that sums a reduce-scatter adds. A transfer fused with a product is taken as free for the core,
which is optimistic. Real steps are slower.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mmed_jax.planning.collective_time import transfer
from mmed_jax.planning.hlo.collectives import ASYNC_STARTS, Collective, Collectives
from mmed_jax.planning.hlo.flops import KernelFlops, Scope, instruction_flops, is_kernel, scope_of
from mmed_jax.planning.hlo.text import Computation, Instruction, Module
from mmed_jax.planning.topology import Topology

# Share of peak FLOP/s of a splash attention kernel: an assumption, not measured here.
KERNEL_EFFICIENCY = 0.5
TOP = 10

# Instructions that take no time of their own, or whose parts are walked.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier add-dependency "
    "domain while call conditional async-start async-update async-done call-start call-update call-done "
    "copy-start copy-done slice-start slice-done send recv send-done recv-done".split()
)
_PART = ("dynamic-slice", "slice", "gather", "broadcast", "iota")


@dataclass(frozen=True)
class ScopeSeconds:
    """Seconds of a named scope in one direction: computing, and its transfers whether hidden or not."""

    scope: Scope
    compute_s: float
    transfer_s: float


@dataclass(frozen=True)
class Hot:
    """An instruction that takes much of the step: seconds of all its executions; what: "compute", "kernel" or a kind of
    collective (then `asynchronous` says whether it can be hidden)."""

    name: str
    what: str
    scope: Scope
    op_name: str
    seconds: float
    executions: float
    asynchronous: bool = False


@dataclass(frozen=True)
class Estimate:
    """Seconds of one execution on every device alike, and bytes that one device sends.

    low_s: the longest of compute, ICI and DCN (perfect overlap); schedule_s: the walk along the schedule; high_s: their
    sum. kernel_s is the part of compute_s that stands on KERNEL_EFFICIENCY. collective_bytes, by kind, and
    blocking_bytes are of ICI; disguised_bytes those of all-reduces that do the work of an all-gather.
    """

    compute_s: float
    kernel_s: float
    ici_s: float
    dcn_s: float
    low_s: float
    schedule_s: float
    high_s: float
    flops: float
    collective_bytes: dict[str, float]
    blocking_bytes: float
    disguised_bytes: float
    dcn_bytes: float
    seconds_by_scope: tuple[ScopeSeconds, ...]
    top: tuple[Hot, ...]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """The estimate as text of several lines."""
        ms, gib = 1e3, 2**30
        kinds = ", ".join(f"{k} {b / gib:.1f}" for k, b in self.collective_bytes.items())
        lines = [
            f"compute {self.compute_s * ms:.0f} ms (kernels {self.kernel_s * ms:.0f}), ICI {self.ici_s * ms:.0f} ms, "
            f"DCN {self.dcn_s * ms:.0f} ms",
            f"step {self.low_s * ms:.0f} / {self.schedule_s * ms:.0f} / {self.high_s * ms:.0f} ms "
            "(all transfers hidden / as scheduled / none hidden)",
            f"ICI GiB a device: {kinds}; blocking {self.blocking_bytes / gib:.1f}; "
            f"all-reduce in place of all-gather {self.disguised_bytes / gib:.1f}",
        ]
        for s in self.seconds_by_scope:
            if s.compute_s + s.transfer_s < 0.001 * self.high_s:
                continue
            lines.append(
                f"  {s.scope.direction:9} {s.scope.path or '-':24} compute {s.compute_s * ms:8.2f} ms   "
                f"transfer {s.transfer_s * ms:8.2f} ms"
            )
        for h in self.top:
            when = {True: " (asynchronous)", False: ""}[h.asynchronous]
            lines.append(f"  {h.seconds * ms:8.2f} ms  {h.what}{when}  {h.name} x {h.executions:.0f}  {h.op_name}")
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def estimate(
    module: Module,
    topology: Topology,
    *,
    kernel_flops: KernelFlops | None = None,
    kernel_efficiency: float = KERNEL_EFFICIENCY,
) -> Estimate:
    """The estimate of one execution of `module` on `topology`; method and limits: the module's docstring.

    Args:
      kernel_flops: FLOPs of one execution of a custom call, None for one it does not know (hlo_flops.splash_flops is
        asked then).
      kernel_efficiency: share of the peak that kernels reach.
    """
    return _Walk(module, topology, kernel_flops, kernel_efficiency).estimate()


@dataclass
class _Clock:
    """Time on the core and when each network is free again, within one pass of a computation."""

    core: float = 0.0
    free: dict[str, float] = field(default_factory=lambda: {"ici": 0.0, "dcn": 0.0})
    pending: dict[str, float] = field(default_factory=dict)


class _Walk:
    def __init__(self, module: Module, topology: Topology, kernel_flops: KernelFlops | None, efficiency: float) -> None:
        self.module, self.topology = module, topology
        self.kernel_flops, self.efficiency = kernel_flops, efficiency
        self.collectives = Collectives(module)
        self.durations: dict[str, float] = {}
        self.sending: dict[str, bool] = {}
        self.unknown: dict[str, None] = {}
        self.without_cycles = 0.0

    def estimate(self) -> Estimate:
        scopes: defaultdict[Scope, list[float]] = defaultdict(lambda: [0.0, 0.0])
        sums: Counter[str] = Counter()
        by_kind: Counter[str] = Counter()
        hot: list[Hot] = []
        for instruction, times in self.module.executed(fused=False):
            event = self.collectives.event(instruction)
            if event and event.kind in ("start", "blocking"):
                self._count_transfer(
                    self.collectives.describe(instruction, event, times),
                    scopes,
                    sums,
                    by_kind,
                    hot,
                    instruction.op_name or event.collective.op_name,
                )
            seconds, what = self.compute(instruction)
            if seconds:
                scope = self.scope(instruction)
                scopes[scope][0] += seconds * times
                sums["compute"] += seconds * times
                sums[what] += seconds * times
                hot.append(
                    Hot(
                        instruction.name,
                        "kernel" if what == "kernel" else "compute",
                        scope,
                        instruction.op_name,
                        seconds * times,
                        times,
                    )
                )
        for instruction, times in self.module.executed(fused=True):
            sums["flops"] += (instruction_flops(instruction, self.kernel_flops) or 0.0) * times
        parts = (sums["compute"], sums["ici"], sums["dcn"])
        # The walk adds in another order than the sums, so rounding is cut off at both ends.
        schedule = min(max(self.duration(self.module.entry), *parts), sum(parts))
        return Estimate(
            sums["compute"],
            sums["kernel"],
            sums["ici"],
            sums["dcn"],
            max(parts),
            schedule,
            sum(parts),
            sums["flops"],
            dict(by_kind.most_common()),
            sums["blocking"],
            sums["disguised"],
            sums["dcn_bytes"],
            _ranked_scopes(scopes),
            tuple(sorted(hot, key=lambda h: -h.seconds)[:TOP]),
            self.notes(sums),
        )

    def _count_transfer(self, c: Collective, scopes, sums, by_kind, hot: list[Hot], op_name: str) -> None:
        one, what = transfer(c, self.topology), f"{c.kind} between slices" if c.dcn else c.kind
        seconds = (one.ici_s + one.dcn_s) * c.executions
        sums["ici"] += one.ici_s * c.executions
        sums["dcn"] += one.dcn_s * c.executions
        scopes[c.scope][1] += seconds
        hot.append(Hot(c.name, what, c.scope, op_name, seconds, c.executions, c.asynchronous))
        sums["dcn_bytes"] += one.dcn_bytes * c.executions
        sent = one.ici_bytes * c.executions
        if sent:
            by_kind[c.kind] += sent
            sums["blocking"] += 0.0 if c.asynchronous else sent
            sums["disguised"] += sent * c.disguised

    def notes(self, sums: Counter) -> tuple[str, ...]:
        notes = list(self.module.notes)
        if sums["kernel"]:
            notes.append(f"attention kernels: {self.efficiency:.0%} of peak FLOP/s is assumed, not measured")
        if self.unknown:
            notes.append(f"kernels without a FLOP formula, counted by their bytes only: {', '.join(self.unknown)}")
        if sums["compute"] and sums["bytes"] > 0.02 * sums["compute"]:
            share = sums["bytes"] / sums["compute"]
            notes.append(f"{share:.0%} of compute has no cycle estimate: by FLOPs at peak or bytes at HBM's rate")
        if sums["disguised"]:
            gib = sums["disguised"] / 2**30
            notes.append(f"{gib:.1f} GiB of all-reduce do the work of all-gathers, at twice the bytes")
        return tuple(notes)

    def scope(self, instruction: Instruction) -> Scope:
        """The scope of an instruction; what the compiler added has none and takes that of what uses it or the loop."""
        if instruction.op_name:
            return scope_of(instruction.op_name)
        return self.collectives.scope(instruction, instruction)

    def compute(self, instruction: Instruction) -> tuple[float, str]:
        """Seconds on the core of one execution without the parts it walks into, and what they rest on."""
        if instruction.opcode in _FREE:
            return 0.0, ""
        if instruction.cycles is not None:
            # The cycles are of a model of tiles and may promise more than the chip has.
            least = self._products(instruction) / self.topology.peak_flops
            return max(instruction.cycles / self.topology.clock_hz, least), "cycles"
        event = self.collectives.event(instruction)
        if event:
            return 0.0, ""
        found = instruction_flops(instruction, self.kernel_flops)
        if instruction.opcode == "fusion":
            found = self._products(instruction)
        if is_kernel(instruction) and found is not None:
            return found / (self.efficiency * self.topology.peak_flops), "kernel"
        if is_kernel(instruction):
            self.unknown[instruction.name] = None
        moved = self.moved(instruction) / self.topology.hbm_bandwidth
        return max(moved, (found or 0.0) / self.topology.peak_flops), "bytes"

    def _products(self, instruction: Instruction) -> float:
        """FLOPs of an instruction, for a fusion those of its parts."""
        parts = self._inside(instruction) if instruction.opcode == "fusion" else (instruction,)
        return sum(instruction_flops(i, self.kernel_flops) or 0.0 for i in parts)

    def _inside(self, fusion: Instruction) -> Iterable[Instruction]:
        for computation in self.module.called(fusion):
            for instruction in computation.instructions:
                yield instruction
                if instruction.opcode == "fusion":
                    yield from self._inside(instruction)

    def moved(self, instruction: Instruction) -> float:
        """Bytes of HBM that an instruction reads and writes; arrays in VMEM cost nothing here."""
        root = instruction
        if instruction.opcode == "fusion" and self.module.called(instruction):
            root = self.module.called(instruction)[0].root
        if instruction.opcode == "custom-call" and not instruction.operands:
            return 0.0
        if root.opcode == "dynamic-update-slice":
            return 2 * root.operand(1).bytes
        if root.opcode == "scatter":
            return 3 * sum(s.bytes for s in root.operand(len(root.operands) - 1).shapes)
        written = sum(s.bytes for s in instruction.shapes if s.space == 0)
        if root.opcode in _PART:
            return 2 * written
        operands = [s for k in range(len(instruction.operands)) for s in instruction.operand(k).shapes]
        return written + sum(s.bytes for s in operands if s.space == 0)

    def duration(self, computation: Computation) -> float:
        """Seconds of one pass of a computation as scheduled, with the links free when it begins."""
        if computation.name not in self.durations:
            self.durations[computation.name] = self._pass(computation, _Clock())
        return self.durations[computation.name]

    def _pass(self, computation: Computation, clock: _Clock) -> float:
        for instruction in computation.instructions:
            self._step(instruction, clock)
        # What is still on the way when the computation ends is waited for.
        return max(clock.core, *clock.pending.values(), 0.0)

    def _enter(self, computation: Computation, clock: _Clock, trips: int = 1) -> None:
        """Runs a computation `trips` times; its transfers wait for those that were on the links before."""
        while trips and self.transfers(computation) and max(clock.free.values()) > clock.core:
            busy = {network: free - clock.core for network, free in clock.free.items()}
            clock.core += self._pass(computation, _Clock(free=busy))
            trips -= 1
        clock.core += trips * self.duration(computation)

    def transfers(self, computation: Computation) -> bool:
        """Whether anything in a computation, or in what it calls, uses the links."""
        if computation.name not in self.sending:
            self.sending[computation.name] = any(
                self.collectives.event(i) or any(self.transfers(c) for c in self.module.called(i))
                for i in computation.instructions
            )
        return self.sending[computation.name]

    def _step(self, instruction: Instruction, clock: _Clock) -> None:
        event = self.collectives.event(instruction)
        if event and event.kind in ("start", "blocking"):
            one = transfer(self.collectives.describe(instruction, event, 1.0), self.topology)
            end = clock.core
            for network, taken in (("ici", one.ici_s), ("dcn", one.dcn_s)):
                if taken:
                    end = max(end, clock.free[network]) + taken
                    clock.free[network] = end
            if event.kind == "blocking":
                clock.core = end
            else:
                clock.pending[event.key] = end
        elif event and event.kind == "done":
            clock.core = max(clock.core, clock.pending.pop(event.key, 0.0))
        clock.core += self.compute(instruction)[0]
        if instruction.opcode == "while":
            trips = 1 if instruction.trips is None else instruction.trips
            for body in self.module.called(instruction, "body"):
                self._enter(body, clock, trips)
        elif instruction.opcode in ("call", "conditional") or (instruction.opcode in ASYNC_STARTS and not event):
            for called in self.module.called(instruction):
                self._enter(called, clock)


def _ranked_scopes(scopes: dict[Scope, list[float]]) -> tuple[ScopeSeconds, ...]:
    ranked = sorted(scopes.items(), key=lambda item: -sum(item[1]))
    return tuple(ScopeSeconds(scope, *seconds) for scope, seconds in ranked)
