"""Reads the text of an optimised HLO module (`compiled.as_text()`), of the TPU, GPU or CPU compiler, into structures.

Format: XLA's HLO text (openxla.org/xla/operation_semantics; the printed form is that of HloInstruction::ToString).
What a scheduled module says and this keeps: every computation with its instructions in execution order, shapes,
operands, called computations, scope names (metadata op_name), and of the TPU compiler the cycle estimate of an
instruction (backend_config estimated_cycles). Trip counts of loops are found by hlo_loops.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from mmed_jax.common.errors import UserError

# Bits of an element; types not listed (token, opaque) have no bytes.
DTYPE_BITS = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz", "f8e4m3", "f8e8m0fnu"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    **dict.fromkeys(("s2", "u2"), 2),
    "c128": 128,
}


@dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, and the TPU memory it lies in (0 = HBM, 1 = VMEM, others are tiny)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        return prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes of the elements, without the padding of a tiled layout."""
        return self.elements * DTYPE_BITS.get(self.dtype, 0) / 8


@dataclass(eq=False)
class Instruction:
    """One instruction. `shapes` are the arrays of its result (several for a tuple), `operands` names in the same
    computation, `literal` what stands between the parentheses (a constant's value, a parameter's number),
    `attributes` the text after them, `trips` the trip count of a loop (None: not known, or not a loop)."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool
    computation: "Computation" = field(repr=False)
    trips: int | None = None

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression searched in the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None

    @cached_property
    def op_name(self) -> str:
        """The path of named scopes and transformations that JAX wrote, with the primitive last; "" without one."""
        return (self.attribute(r'op_name="((?:[^"\\]|\\.)*)"') or "").replace("\\'", "'")

    @cached_property
    def cycles(self) -> int | None:
        """The TPU compiler's estimate of one execution, in clock cycles of the core; None where it has none."""
        found = self.attribute(r'"estimated_cycles":"?(\d+)')
        # The largest 64-bit number stands for no estimate: what SparseCores do, as of libtpu 0.0.50.
        return int(found) if found and int(found) < 2**63 - 1 else None

    @cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations it calls, by the attribute that names them (calls, to_apply, body, ...)."""
        one = re.findall(
            r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)", self.attributes
        )
        many = re.findall(r"\b(branch_computations|called_computations|calls)=\{([^}]*)\}", self.attributes)
        split = {key: tuple(n.strip().lstrip("%") for n in names.split(",")) for key, names in many}
        return {**{key: (name,) for key, name in one}, **split}

    @cached_property
    def target(self) -> str:
        """The custom_call_target, "" for anything else."""
        return self.attribute(r'custom_call_target="([^"]*)"') or ""

    def operand(self, index: int) -> "Instruction":
        return self.computation.by_name[self.operands[index]]

    @property
    def bytes(self) -> float:
        return sum(s.bytes for s in self.shapes)


@dataclass(eq=False)
class Computation:
    """A computation: its instructions in the text's order, which in a scheduled module is the order of execution."""

    name: str
    is_entry: bool
    module: "Module" = field(repr=False)
    instructions: list[Instruction] = field(default_factory=list, repr=False)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.literal): i for i in self.instructions if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions of this computation that take the named one as an operand."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for name in set(instruction.operands):
                users.setdefault(name, []).append(instruction)
        return users


@dataclass(eq=False)
class Module:
    """A parsed module. `notes` says what could not be known (a loop without a trip count), for the reader."""

    name: str
    header: str = field(repr=False)
    computations: dict[str, Computation] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def entry(self) -> Computation:
        entries = [c for c in self.computations.values() if c.is_entry]
        return entries[0] if entries else list(self.computations.values())[-1]

    @cached_property
    def callers(self) -> dict[str, list[Instruction]]:
        """The instructions that call a computation, by its name."""
        callers: dict[str, list[Instruction]] = {}
        for computation in self.computations.values():
            for instruction in computation.instructions:
                for names in instruction.called.values():
                    for name in names:
                        callers.setdefault(name, []).append(instruction)
        return callers

    @cached_property
    def num_devices(self) -> int:
        """Devices the program was compiled for: replicas x partitions."""
        counts = [re.search(rf"\b{key}=(\d+)", self.header) for key in ("replica_count", "num_partitions")]
        return prod(int(c.group(1)) for c in counts if c)

    def called(self, instruction: Instruction, *keys: str) -> list[Computation]:
        """The computations that `instruction` calls by the attributes `keys` (all of them without keys)."""
        names = [n for key, ns in instruction.called.items() if not keys or key in keys for n in ns]
        return [self.computations[n] for n in names if n in self.computations]

    def executed(self, *, fused: bool) -> Iterator[tuple[Instruction, float]]:
        """Every instruction that runs, with how often it runs in one execution of the module.

        Loop bodies count with their trip counts (1 where not known), every branch of a conditional counts once, calls
        and asynchronous wrappers are entered. fused: also enter fusions; their pieces then come beside the fusion.
        """
        yield from self._executed(self.entry, 1.0, fused)

    def _executed(self, computation: Computation, times: float, fused: bool) -> Iterator[tuple[Instruction, float]]:
        for instruction in computation.instructions:
            yield instruction, times
            if instruction.opcode == "while":
                trips = times * (1 if instruction.trips is None else instruction.trips)
                for body in self.called(instruction, "body"):
                    yield from self._executed(body, trips, fused)
            elif instruction.opcode in ("call", "conditional", "async-start", "call-start") or (
                fused and instruction.opcode == "fusion"
            ):
                for inner in self.called(instruction):
                    yield from self._executed(inner, times, fused)


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$")
_CLOSED = re.compile(r"^\}(, execution_thread=.*)?\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<= ]*)\](\{[^}]*\})?")


def parse_text(text: str) -> Module:
    """The module without trip counts; `mmed_jax.planning.hlo.analysis.parse_module` adds them.

    Raises:
      UserError: the text is no HLO module.
    """
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith("HloModule ")), None)
    if start is None:
        raise UserError("not the text of an HLO module: no line begins with 'HloModule '")
    module = Module(lines[start].split()[1].rstrip(","), lines[start])
    computation, pending = None, ""
    for line in lines[start + 1 :]:
        opened = _COMPUTATION.match(line)
        if opened and not line.startswith(" "):
            computation = Computation(opened.group(2), bool(opened.group(1)), module)
            module.computations[computation.name] = computation
        elif computation is None:
            continue
        elif (closed := bool(_CLOSED.match(line))) or _INSTRUCTION.match(line):
            if pending:
                computation.instructions.append(_parse_instruction(pending, computation))
            pending = line
            if closed:
                computation, pending = None, ""
        else:
            # An attribute may hold a line break (metadata of a Pallas kernel).
            pending += " " + line
    if not module.computations:
        raise UserError(f"not the text of an HLO module: no computation in '{module.name}'")
    return module


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays named in the text of a shape, `bf16[2,8]{1,0:T(8,128)S(1)}` or a tuple of such."""
    shapes = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.strip().lstrip("<=")) for d in dims.split(",") if d.strip())
        shapes.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(shapes)


def _parse_instruction(line: str, computation: Computation) -> Instruction:
    begin = _INSTRUCTION.match(line)
    end = begin.end()
    if line[end] == "(":
        end = _closing(line, end)
    else:
        end = line.index(" ", end)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise UserError(f"HLO: instruction '{begin.group(2)}' of '{computation.name}' has no opcode")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    operands = ()
    if opcode.group(1) not in ("constant", "parameter", "iota"):
        operands = tuple(p.split()[-1].lstrip("%") for p in _split(re.sub(r"/\*.*?\*/", "", inside)))
    return Instruction(
        begin.group(2),
        opcode.group(1),
        parse_shapes(line[begin.end() : end]),
        operands,
        inside,
        line[close:],
        bool(begin.group(1)),
        computation,
    )


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`; quoted text is skipped."""
    depth = 0
    for found in re.compile(r'[()]|"(?:[^"\\]|\\.)*"').finditer(text, start):
        depth += {"(": 1, ")": -1}.get(found.group(), 0)
        if depth == 0:
            return found.end()
    raise UserError(f"HLO: a parenthesis is never closed in: {text.strip()[:100]}")


def _split(text: str) -> list[str]:
    """The parts of `text` between commas that stand in no bracket (operands of old dumps carry their shapes)."""
    parts, depth, last = [], 0, 0
    for found in re.finditer(r"[(){}\[\],]", text):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(found.group(), 0)
        if found.group() == "," and depth == 0:
            parts.append(text[last : found.start()])
            last = found.end()
    return [p.strip() for p in [*parts, text[last:]] if p.strip()]
