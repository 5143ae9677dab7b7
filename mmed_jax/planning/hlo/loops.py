"""Trip counts of the while loops of a parsed HLO module.

A loop that the compiler knows carries the count (`known_trip_count`). For others the count follows from the program:
the condition compares a carried integer with a bound, the loop starts it at a constant and adds a constant each time.
Scalars are followed through copies, tuples, fusions and the values that outer loops carry unchanged.
"""

from collections.abc import Mapping

from mmed_jax.planning.hlo.text import Computation, Instruction, Module

# What only moves, renames or converts a value.
_SAME = (
    "copy",
    "bitcast",
    "convert",
    "reshape",
    "broadcast",
    "copy-start",
    "copy-done",
    "optimization-barrier",
    "bitcast-convert",
)
_ARITHMETIC = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": max,
    "minimum": min,
}


def find_trip_counts(module: Module) -> None:
    """Sets `trips` of every while instruction; one whose count can't be known keeps None and is named in the notes."""
    for computation in module.computations.values():
        for instruction in computation.instructions:
            if instruction.opcode == "while":
                known = instruction.attribute(r'known_trip_count":?=?\{"?n"?[:=]"?(\d+)')
                instruction.trips = int(known) if known else _trips(module, instruction)
                if instruction.trips is None:
                    module.notes.append(f"loop '{instruction.name}': trip count not known, its body counts once")


def _trips(module: Module, loop: Instruction) -> int | None:
    (condition,), (body,) = module.called(loop, "condition"), module.called(loop, "body")
    compared = _comparison(module, condition.root, {})
    if compared is None:
        return None
    left, right, direction = compared
    if isinstance(left, int):  # bound on the left: turn the comparison around
        left, right = right, left
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if not isinstance(left, tuple):
        return None
    index, shift = left
    bound = right if isinstance(right, int) else None
    if isinstance(right, tuple) and right[1] == 0:
        bound = _carried(module, loop, right[0])
    start = _element(module, loop.operand(0), index, 0)
    step = _step(module, body, index)
    if bound is None or start is None or not step:
        return None
    distance = bound - (start + shift)
    if direction in ("GE", "GT") and step < 0 or direction in ("LE", "LT") and step > 0:
        distance += {"LE": 1, "GE": -1}.get(direction, 0)
        return max(0, -(-distance // step))
    return distance // step if direction == "NE" and distance % step == 0 else None


def _comparison(module: Module, instruction: Instruction, given: Mapping[int, Instruction]):
    """(left, right, direction) of the comparison that decides the loop; a side is an int or (carried index, shift)."""
    if instruction.opcode in ("fusion", "call"):
        (inner,) = module.called(instruction)
        outer = dict(enumerate(instruction.computation.by_name[o] for o in instruction.operands))
        return _comparison(module, inner.root, outer)
    if instruction.opcode in _SAME:
        return _comparison(module, instruction.operand(0), given)
    direction = instruction.attribute(r"direction=(\w+)")
    if instruction.opcode != "compare" or direction is None:
        return None
    return (*(_affine(module, instruction.operand(k), given) for k in (0, 1)), direction)


def _affine(module: Module, instruction: Instruction, given: Mapping[int, Instruction]):
    """An int, (index of the carried tuple, added constant), or None; `given`: what a fusion's parameters stand for."""
    if instruction.opcode == "parameter" and given:
        return _affine(module, given[int(instruction.literal)], {})
    if instruction.opcode == "get-tuple-element" and instruction.operand(0).opcode == "parameter":
        return int(instruction.attribute(r"index=(\d+)") or 0), 0
    if instruction.opcode in _SAME:
        return _affine(module, instruction.operand(0), given)
    if instruction.opcode in ("add", "subtract"):
        sides = [_affine(module, instruction.operand(k), given) for k in (0, 1)]
        sign = 1 if instruction.opcode == "add" else -1
        if isinstance(sides[0], tuple) and isinstance(sides[1], int):
            return sides[0][0], sides[0][1] + sign * sides[1]
        if sign == 1 and isinstance(sides[1], tuple) and isinstance(sides[0], int):
            return sides[1][0], sides[1][1] + sides[0]
    return _value(module, instruction, 0)


def _step(module: Module, body: Computation, index: int) -> int | None:
    """What one pass of the body adds to element `index` of the carried tuple."""
    root = body.root
    if root.opcode != "tuple":
        return None
    found = _affine(module, root.operand(index), {})
    if isinstance(found, tuple):
        return found[1] if found[0] == index else None
    # The increment may be inside a fusion: follow its parameters back to the carried tuple.
    instruction = root.operand(index)
    element = 0
    if instruction.opcode == "get-tuple-element":
        element = int(instruction.attribute(r"index=(\d+)") or 0)
        instruction = instruction.operand(0)
    if instruction.opcode != "fusion":
        return None
    (inner,) = module.called(instruction)
    result = inner.root.operand(element) if inner.root.opcode == "tuple" else inner.root
    outer = dict(enumerate(body.by_name[o] for o in instruction.operands))
    found = _affine(module, result, outer)
    return found[1] if isinstance(found, tuple) and found[0] == index else None


def _value(module: Module, instruction: Instruction, depth: int) -> int | None:
    """The integer that a scalar instruction always gives, or None."""
    if depth > 50:
        return None
    if instruction.opcode == "constant":
        literal = instruction.literal.strip()
        return int(literal) if literal.lstrip("-").isdigit() else None
    if instruction.opcode in _SAME:
        return _value(module, instruction.operand(0), depth + 1)
    if instruction.opcode in _ARITHMETIC:
        sides = [_value(module, instruction.operand(k), depth + 1) for k in (0, 1)]
        return None if None in sides else _ARITHMETIC[instruction.opcode](*sides)
    if instruction.opcode == "get-tuple-element":
        index = int(instruction.attribute(r"index=(\d+)") or 0)
        return _element(module, instruction.operand(0), index, depth + 1)
    if instruction.opcode == "parameter":
        # A computation's parameter, when one instruction calls it with a value that is known.
        callers = module.callers.get(instruction.computation.name, [])
        if len(callers) == 1 and callers[0].opcode in ("fusion", "call"):
            return _value(module, callers[0].operand(int(instruction.literal)), depth + 1)
    return None


def _element(module: Module, instruction: Instruction, index: int, depth: int) -> int | None:
    """The integer that element `index` of a tuple always is, or None."""
    if depth > 50:
        return None
    if instruction.opcode == "tuple":
        return _value(module, instruction.operand(index), depth + 1)
    if instruction.opcode in _SAME:
        return _element(module, instruction.operand(0), index, depth + 1)
    if instruction.opcode == "while":
        return _carried(module, instruction, index, depth + 1)
    if instruction.opcode == "parameter":
        callers = module.callers.get(instruction.computation.name, [])
        loops = [c for c in callers if c.opcode == "while"]
        if loops and len(loops) == len(callers) and all(c is loops[0] for c in callers):
            return _carried(module, loops[0], index, depth + 1)
    return None


def _carried(module: Module, loop: Instruction, index: int, depth: int = 0) -> int | None:
    """The integer that a loop carries unchanged at `index`, or None."""
    (body,) = module.called(loop, "body")
    if body.root.opcode != "tuple":
        return None
    passed = body.root.operand(index)
    while passed.opcode in _SAME:
        passed = passed.operand(0)
    same = passed.opcode == "get-tuple-element" and passed.operand(0).opcode == "parameter"
    if not same or int(passed.attribute(r"index=(\d+)") or 0) != index:
        return None
    return _element(module, loop.operand(0), index, depth + 1)
