"""Finds the collective operations of a parsed HLO module: what moves, how many bytes a device sends, and when it waits.

A collective appears as one instruction that blocks, as a start/done pair, or, on TPUs, fused into computations: a
fusion that ends in the custom call AsyncCollectiveStart, fusions that carry it on beside a matrix product
(continuation), and one that ends in AsyncCollectiveDone. All pieces repeat the instruction with the same channel; it is
one transfer and counts once. A TPU's SparseCores take one over by call-start and call-done around a computation that
holds it; from libtpu 0.0.50 on call-start has no operands and makes them ready, and the transfer begins at the
call-update that hands the data over. Between slices a TPU program sends to and receives from the hosts' network (DCN):
send begins it, recv, which the compiler puts near the end, gives the result a place, recv-done waits; such a module
describes the devices of one slice.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from mmed_jax.planning.hlo.flops import Scope, scope_of
from mmed_jax.planning.hlo.text import Instruction, Module, Shape

# Both start a computation that runs beside what follows.
ASYNC_STARTS = ("async-start", "call-start")
_ASYNC_UPDATES = ("async-update", "call-update")
_ASYNC_DONES = ("async-done", "call-done")
KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Collective:
    """One collective and how often it runs.

    payload_bytes: the whole array (gathered, reduced, exchanged); wire_bytes: what each device sends by a ring
    algorithm in one execution, (n-1)/n of the payload, twice that for an all-reduce. groups: the devices (by partition
    number) that take part together, () where the text does not say. axes: how many torus axes the TPU compiler uses, 0
    where it does not say. dcn: it goes between slices, and group_size counts slices. disguised: share of the payload
    that an all-reduce moves although it is zero outside each device's own part: an all-gather at twice the bytes.
    """

    name: str
    kind: str
    payload_bytes: float
    wire_bytes: float
    executions: float
    asynchronous: bool
    group_size: int
    dtype: str
    scope: Scope
    groups: tuple[tuple[int, ...], ...] = ()
    axes: int = 0
    dcn: bool = False
    disguised: float = 0.0

    @property
    def total_bytes(self) -> float:
        """Wire bytes of all executions, per device."""
        return self.wire_bytes * self.executions


@dataclass(frozen=True)
class Event:
    """What an instruction of an executed computation means for a transfer: "start", "done", "blocking" or "carry"."""

    kind: str
    key: str
    collective: Instruction


class Collectives:
    """The collectives of `module`; `event(instruction)` for the walk along the schedule, `all()` for the sums."""

    def __init__(self, module: Module) -> None:
        self.module = module

    @cached_property
    def _recv_of(self) -> dict[str, Instruction]:
        """Rendezvous of a transfer between slices that the module sends -> the recv that takes its result."""
        found: dict[str, dict[str, Instruction]] = {"send": {}, "recv": {}}
        for computation in self.module.computations.values():
            for instruction in computation.instructions:
                if instruction.opcode in found:
                    found[instruction.opcode].setdefault(_rendezvous(instruction), instruction)
        return {name: found["recv"][name] for name in found["send"] if name in found["recv"] and name}

    @cached_property
    def _events(self) -> dict[tuple[str, str], Event]:
        events = {}
        for computation in self.module.computations.values():
            for instruction in computation.instructions:
                event = self._find(instruction)
                if event:
                    events[computation.name, instruction.name] = event
        return events

    def event(self, instruction: Instruction) -> Event | None:
        return self._events.get((instruction.computation.name, instruction.name))

    def _find(self, instruction: Instruction) -> Event | None:
        name = instruction.opcode
        if name in KINDS:
            callers = self.module.callers.get(instruction.computation.name, ())
            wrapped = any(c.opcode in ASYNC_STARTS for c in callers)
            return Event("carry" if wrapped else "blocking", instruction.name, instruction)
        if name in ("send", "recv", "send-done", "recv-done"):
            return self._between(instruction)
        if name.endswith("-start") and name[: -len("-start")] in KINDS:
            return Event("start", instruction.name, instruction)
        if name.endswith("-done") and name[: -len("-done")] in KINDS:
            return Event("done", instruction.operands[0], instruction.operand(0))
        if name in (*ASYNC_STARTS, *_ASYNC_UPDATES, *_ASYNC_DONES):
            return self._wrapped(instruction)
        if name == "fusion":
            inner = self._inner(instruction)
            if inner is None:
                return None
            # A piece of a transfer says so by its marker or by carrying the transfer's state in its results.
            targets = {i.target for i in inner.computation.instructions}
            key = inner.attribute(r"channel_id=(\d+)") or inner.name
            if "AsyncCollectiveStart" in targets:
                return Event("start", key, inner)
            if "AsyncCollectiveDone" in targets:
                return Event("done", key, inner)
            if "async_collective_fusion_config" in inner.attributes:
                return Event("carry", key, inner)
            return Event("blocking", key, inner)
        return None

    def _wrapped(self, instruction: Instruction) -> Event | None:
        """A piece of an asynchronous call: its transfer begins where the call has all its operands."""
        start = instruction
        while start.opcode in (*_ASYNC_UPDATES, *_ASYNC_DONES):
            start = start.operand(0)
        inner = self._inner(start) if start.opcode in ASYNC_STARTS else None
        if inner is None:
            return None
        if instruction.opcode in _ASYNC_DONES:
            return Event("done", start.name, inner)
        wanted = max(_arrays(c.parameters.values()) for c in self.module.called(start))
        before = -1 if instruction is start else _arrays(_handed(instruction.operand(0)))
        begins = before < wanted <= _arrays(_handed(instruction))
        return Event("start" if begins else "carry", start.name, inner)

    def _between(self, instruction: Instruction) -> Event | None:
        """Between slices data leave at the send; the recv, which stands near the end or behind the loop of the send,
        only gives them a place."""
        start = instruction.operand(0) if instruction.opcode.endswith("-done") else instruction
        if start.attribute(r'transfer_type="(\w+)"') is None:
            return None
        recv = self._recv_of.get(_rendezvous(start))
        begins = "send" if recv else "recv"
        kinds = {begins: "start", "recv-done": "done"}
        key = _rendezvous(start) if recv else start.name
        return Event(kinds.get(instruction.opcode, "carry"), key, recv or start)

    def _inner(self, instruction: Instruction, depth: int = 0) -> Instruction | None:
        """The collective inside a fusion or an asynchronous wrapper."""
        for computation in self.module.called(instruction):
            for inner in computation.instructions:
                if inner.opcode in KINDS:
                    return inner
                if inner.opcode == "fusion" and depth < 4 and (found := self._inner(inner, depth + 1)):
                    return found
        return None

    def describe(self, instruction: Instruction, event: Event, times: float) -> Collective:
        """The collective that begins (or blocks) at `instruction`, running `times` times."""
        inner = event.collective
        if inner.opcode == "recv":
            return self._between_slices(inner, times)
        kind = next(k for k in KINDS if inner.opcode.startswith(k))
        operands = [s for k in range(len(inner.operands)) for s in inner.operand(k).shapes]
        results = _results(inner, operands)
        groups = replica_groups(inner, self.module.num_devices)
        size = len(groups[0]) if groups else self.module.num_devices
        sent, received = sum(s.bytes for s in operands), sum(s.bytes for s in results)
        payload = max(sent, received)
        dims = inner.attribute(r"active_dims:([01]+)")
        # A SparseCore names its rings one by one: two of them, one in each direction, fill an axis.
        rings = inner.attributes.count('"phase_rings"')
        return Collective(
            instruction.name,
            kind,
            payload,
            ring_bytes(kind, payload, size),
            times,
            event.kind != "blocking",
            size,
            max(results or operands, key=lambda s: s.bytes).dtype,
            self.scope(instruction, inner),
            groups,
            dims.count("1") if dims else -(-rings // 2),
            disguised=_disguised(self.module, _sources(instruction, inner)) if kind == "all-reduce" else 0.0,
        )

    def _between_slices(self, recv: Instruction, times: float) -> Collective:
        kind = (recv.attribute(r'transfer_type="(\w+)"') or "").lower().replace("_", "-")
        kind = "collective-permute" if kind == "one-to-one" else kind
        slices = _count(recv.attribute(r'megascale_target="\{([^}]*)\}') or "0,1")
        payload = recv.shapes[0].bytes
        # An all-gather receives the whole, a reduce-scatter the part that stays.
        whole = payload * slices if kind == "reduce-scatter" else payload
        return Collective(
            recv.name,
            kind,
            whole,
            ring_bytes(kind, whole, slices),
            times,
            True,
            slices,
            recv.shapes[0].dtype,
            self.scope(recv, recv),
            dcn=True,
        )

    def scope(self, instruction: Instruction, inner: Instruction) -> Scope:
        """The scope it carries; what the compiler added has none and takes that of what uses it, or of the loop."""
        own = [i.op_name for i in (inner, instruction) if i.op_name]
        names, users = list(own), [instruction]
        for _ in range(2 if own else 6):
            users = [u for i in users for u in i.computation.users.get(i.name, ())]
            names += [u.op_name for u in users if u.op_name]
        if not own:
            callers = self.module.callers.get(instruction.computation.name, [])
            names += [c.op_name for c in callers if c.opcode == "while"]
        found = [scope_of(n) for n in names]
        named = next((s for s in found if s.path), found[0] if found else Scope("", "step"))
        return Scope(named.path, found[0].direction) if own else named

    def all(self) -> list[Collective]:
        found = []
        for instruction, times in self.module.executed(fused=False):
            event = self.event(instruction)
            if event and event.kind in ("start", "blocking"):
                found.append(self.describe(instruction, event, times))
        return found


def _rendezvous(instruction: Instruction) -> str:
    """What a send and its recv share, "" where the text does not say."""
    return instruction.attribute(r'host_transfer_rendezvous="([^"]+)"') or ""


def ring_bytes(kind: str, payload_bytes: float, size: int) -> float:
    """Bytes that each of `size` devices sends for a collective over `payload_bytes` (the whole array), by a ring."""
    share = (size - 1) / size
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(kind, share)
    return factor * payload_bytes


def _results(inner: Instruction, operands: Sequence[Shape]) -> list[Shape]:
    """The arrays received; a start's result also repeats the operands and holds its contexts."""
    if inner.opcode.endswith("-start") and len(inner.shapes) > len(operands):
        return list(inner.shapes[len(operands) : 2 * len(operands)])
    return list(inner.shapes)


def _sources(instruction: Instruction, inner: Instruction) -> list[Instruction]:
    """The instructions outside a fusion that make the collective's operands."""
    if inner.computation is instruction.computation:
        return [inner.operand(k) for k in range(len(inner.operands))]
    numbers = [inner.operand(k).literal for k in range(len(inner.operands)) if inner.operand(k).opcode == "parameter"]
    handed = _handed(instruction)
    return [handed[int(n)] for n in numbers if n.strip().isdigit()]


def _handed(instruction: Instruction) -> list[Instruction]:
    """What a fusion, or the pieces of an asynchronous call up to this one, hand to the computation."""
    operands = [instruction.operand(k) for k in range(len(instruction.operands))]
    before = _handed(operands.pop(0)) if instruction.opcode in _ASYNC_UPDATES else []
    return before + operands


def _arrays(instructions: Iterable[Instruction]) -> int:
    """How many of them are arrays; a start may take a token that its computation does not."""
    return sum(any(s.dtype != "token" for s in i.shapes) for i in instructions)


def _count(members: str) -> int:
    """How many numbers a list such as "1,2" or "1:4" names."""
    ends = [[int(n) for n in part.split(":")] for part in members.split(",")]
    return sum(e[-1] - e[0] + 1 for e in ends)


def _disguised(module: Module, sources: Sequence[Instruction]) -> float:
    total = sum(s.bytes for s in sources)
    return sum(s.bytes for s in sources if _zero_elsewhere(module, s)) / total if total else 0.0


def _zero_elsewhere(module: Module, instruction: Instruction, depth: int = 0) -> bool:
    """Whether an array is a part written into zeros at a place that depends on the device."""
    if instruction.opcode in ("copy", "bitcast", "convert", "copy-start", "copy-done") and instruction.operands:
        return _zero_elsewhere(module, instruction.operand(0), depth)
    if instruction.opcode == "dynamic-update-slice":
        base, by_device = instruction.operand(0), False
        while base.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
            base = base.operand(0)
        pending = [instruction.operand(k) for k in range(2, len(instruction.operands))]
        for _ in range(12):
            by_device |= any(i.opcode in ("partition-id", "replica-id") for i in pending)
            pending = [p.operand(k) for p in pending if p.opcode != "parameter" for k in range(len(p.operands))]
        # Inside a fusion both come from outside as parameters, whose nature the shapes already show.
        return base.opcode in ("broadcast", "parameter") and (by_device or base.opcode == "parameter")
    if instruction.opcode == "fusion" and depth == 0:
        roots = [c.root for c in module.called(instruction)]
        base = instruction.operand(0) if instruction.operands else None
        return bool(roots) and base is not None and base.opcode == "broadcast" and _zero_elsewhere(module, roots[0], 1)
    return False


def replica_groups(instruction: Instruction, num_devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of an instruction, each the partition numbers that take part together; () when none are named.

    Three forms: {{0,1},{2,3}}, the iota [groups,size]<=[dims]T(perm) and the mesh mesh['a'=2,'b'=4] {'b'} (xla
    hlo/ir/replica_group.h, mesh_and_axis.h), where a part of an axis is 'a':(before)size.
    """
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{((?:\{[\d,]+\},?)*)\}", text)
    if pairs:
        # A permutation moves along chains; its group is whoever is linked.
        return _linked([tuple(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)\}", pairs.group(1))])
    listed = re.search(r"replica_groups=\{((?:\{[\d, ]*\},?)*)\}", text)
    if listed:
        groups = tuple(tuple(int(d) for d in g.split(",") if d.strip()) for g in re.findall(r"\{([^}]*)\}", listed[1]))
        return groups or ((tuple(range(num_devices)),) if num_devices else ())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        order = _iota(iota.group(2), iota.group(3))
        size = int(iota.group(1).split(",")[-1])
        return tuple(tuple(order[i : i + size]) for i in range(0, len(order), size))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    if mesh:
        return _mesh_groups(*mesh.groups())
    return ()


def _iota(dims: str, perm: str | None) -> list[int]:
    """The numbers 0.. laid out in `dims`, read in the order that the transposition `perm` gives."""
    sizes = [int(d) for d in dims.split(",")]
    order = [int(p) for p in perm.split(",")] if perm else list(range(len(sizes)))
    strides = [prod(sizes[k + 1 :]) for k in range(len(sizes))]
    places = product(*(range(sizes[a]) for a in order))
    return [sum(strides[axis] * at for axis, at in zip(order, place)) for place in places]


def _mesh_groups(axes: str, ids: str | None, used: str) -> tuple[tuple[int, ...], ...]:
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", axes)}
    # Every axis as (before, size, after) pieces, marked where the collective runs along the piece.
    pieces: list[tuple[int, bool]] = []
    taken: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in re.findall(r"'?([A-Za-z_][\w.\-]*)'?(?::\((\d+)\)(\d+))?", used):
        taken.setdefault(name, []).append((int(before or 1), int(size or sizes[name])))
    for name, size in sizes.items():
        done = 1
        for before, length in sorted(taken.get(name, [])):
            pieces += [(before // done, False), (length, True)]
            done = before * length
        pieces.append((size // done, False))
    total = prod(sizes.values())
    if ids and ids.startswith("["):
        dims, perm = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", ids).groups()
        devices = _iota(dims, perm)
    else:
        devices = [int(d) for d in ids.split(",")] if ids else list(range(total))
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, place in enumerate(product(*(range(n) for n, _ in pieces))):
        fixed = tuple(at for at, (_, along) in zip(place, pieces) if not along)
        groups.setdefault(fixed, []).append(devices[number])
    return tuple(tuple(g) for g in groups.values())


def _linked(pairs: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    groups: list[set[int]] = []
    for pair in pairs:
        joined = set(pair).union(*(g for g in groups if g & set(pair)))
        groups = [g for g in groups if not g & set(pair)] + [joined]
    return tuple(tuple(sorted(g)) for g in groups)
