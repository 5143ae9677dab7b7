"""Counts the floating-point operations of a parsed HLO module: matrix products, convolutions and kernels.

Elementwise work is not counted, as in the model FLOPs of training.flops. One multiply-add is two operations. The count
is exact: a TPU compiler turns products into convolutions, and of a convolution only the positions inside the array
count (XLA's HloCostAnalysis::HandleConvolution), each times the trips of the loops around it.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from mmed_jax.planning.hlo.text import Instruction, Module

# FLOPs of one execution of a custom call, or None for a kernel that it does not know.
KernelFlops = Callable[[Instruction], float | None]


@dataclass(frozen=True)
class Scope:
    """Where an instruction comes from: `path` of named scopes ("layers/mlp"), and which part of the step it is:
    "forward", "backward", "recompute" (forward again for the backward pass) or "step" (neither: the optimizer)."""

    path: str
    direction: str


@dataclass(frozen=True)
class Flops:
    """FLOPs of one execution of the program on one device: of products and convolutions, of kernels, by scope.
    `unknown` names the custom calls with a kernel body that no formula covers; they are not in the sum."""

    matmul: float
    kernels: float
    by_scope: dict[Scope, float]
    unknown: tuple[str, ...]

    @property
    def total(self) -> float:
        return self.matmul + self.kernels


# Components of an op_name that are no named scopes.
_WRAPPERS = re.compile(
    r"^(while|body|cond|closed_call|eval_jaxpr|checkpoint|rematted_computation|shard_map|pallas_call|core_call|"
    r"remat2?|custom_[jv][vj]p_call(_jaxpr)?|branch_\d+_fun)$"
)
_TRANSFORMED = re.compile(r"\b(?:transpose|jvp|checkpoint|remat)\(([^()]*)\)")
_FUNCTION = re.compile(r"\b(?:p?jit|vmap|custom_[jv][vj]p)\([^()]*\)")


def scope_of(op_name: str, depth: int = 2) -> Scope:
    """The scope of an op_name such as "jit(f)/transpose(jvp(layers))/while/body/checkpoint/mlp/...->.../dot_general".

    depth: at most so many named scopes, outermost first. A path without a named scope gives "".
    """
    direction = "step"
    if "transpose(" in op_name:
        # What is named by the call itself brings its arguments: weights that are gathered again.
        again = "rematted_computation" in op_name or op_name.endswith(("/remat2", "/checkpoint"))
        direction = "recompute" if again else "backward"
    elif "jvp(" in op_name:
        direction = "forward"
    # Transformations wrap scopes: transpose(jvp(layers)) is the scope "layers", jvp() none.
    plain = op_name
    while (unwrapped := _FUNCTION.sub("", _TRANSFORMED.sub(r"\1", plain))) != plain:
        plain = unwrapped
    names = [n for n in plain.split("/")[:-1] if n and "->" not in n and not _WRAPPERS.match(n)]
    return Scope("/".join(names[:depth]), direction)


def dot_flops(instruction: Instruction) -> float:
    """FLOPs of one `dot`: 2 x elements of the result x contracted length."""
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    left = instruction.operand(0).shapes[0]
    return 2.0 * instruction.shapes[0].elements * prod(left.dims[int(d)] for d in contracted.split(",") if d)


def convolution_flops(instruction: Instruction) -> float:
    """FLOPs of one `convolution`, counting only window positions that fall on the (dilated) input."""
    labels = instruction.attribute(r"dim_labels=(\S+?)(?:,|\s|$)")
    left_labels, rest = labels.split("_")
    kernel_labels, out_labels = rest.split("->")
    left, kernel = (instruction.operand(k).shapes[0].dims for k in (0, 1))
    out = instruction.shapes[0].dims
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(part.split("=") for part in window.split())
    spatial = sorted(c for c in out_labels if c.isdigit())

    def numbers(key: str, default: int) -> list[int]:
        return [int(v) for v in fields[key].split("x")] if key in fields else [default] * len(spatial)

    pads = [int(p.split("_")[0]) for p in fields["pad"].split("x")] if "pad" in fields else [0] * len(spatial)
    strides, left_dilation, kernel_dilation = (numbers(k, 1) for k in ("stride", "lhs_dilate", "rhs_dilate"))
    positions = 1
    for k, label in enumerate(spatial):
        positions *= _positions(
            left[left_labels.index(label)],
            kernel[kernel_labels.index(label)],
            out[out_labels.index(label)],
            strides[k],
            pads[k],
            left_dilation[k],
            kernel_dilation[k],
        )
    batch_groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    batch = left[left_labels.index("b")] // batch_groups
    features = kernel[kernel_labels.index("i")] * kernel[kernel_labels.index("o")]
    return 2.0 * positions * batch * features


def _positions(size: int, window: int, out: int, stride: int, pad: int, dilation: int, window_dilation: int) -> int:
    """Pairs of an output and a window position along one dimension that meet an element of the input."""
    dilated = (size - 1) * dilation + 1
    count = 0
    for position in range(window):
        first = position * window_dilation - pad
        # Output o reads the dilated input at first + o * stride.
        if dilation == 1:
            low = max(0, -(first // stride))
            high = min(out - 1, (dilated - 1 - first) // stride)
            count += max(0, high - low + 1)
        else:
            reads = (first + o * stride for o in range(out))
            count += sum(0 <= at < dilated and at % dilation == 0 for at in reads)
    return count


def gemm_flops(instruction: Instruction) -> float | None:
    """FLOPs of a GPU or CPU library product (cuBLAS, oneDNN); None for other custom calls."""
    contracted = instruction.attribute(r'"lhs_contracting_dimensions":\["?([\d",]*?)"?\]')
    left = instruction.operand(0).shapes[0].dims if instruction.operands else ()
    if re.search(r"cublas.*(gemm|matmul)", instruction.target) and contracted is not None:
        return 2.0 * instruction.shapes[0].elements * prod(left[int(d)] for d in re.findall(r"\d+", contracted))
    if instruction.target == "__onednn$matmul":
        return 2.0 * instruction.shapes[0].elements * left[-1]
    return None


def splash_flops(instruction: Instruction) -> float | None:
    """FLOPs of one execution of a splash attention kernel (jax.experimental.pallas.ops.tpu.splash_attention), causal.

    Counts the blocks of queries x keys that hold a visible pair: forward 2 products a block, gradient of keys and
    values 4, of queries 3, the fused backward kernel 5 in all. Blocks are counted whole, as the kernel works; segment
    ids leave no block out. Layout: q [.., heads, q_len, head_dim], k [.., kv_heads, kv_len, head_dim].
    """
    kind = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", instruction.name + instruction.op_name)
    if instruction.opcode != "custom-call" or kind is None:
        return None
    floats = [
        s
        for i in range(len(instruction.operands))
        for s in instruction.operand(i).shapes[:1]
        if s.dtype in ("bf16", "f16", "f32") and len(s.dims) >= 3
    ]
    q, k = floats[0], floats[1]
    q_len, kv_len, head_dim = q.dims[-2], k.dims[-2], q.dims[-1]
    suffix = {"fwd": "", "dkv": "_dkv", "dq": "_dq"}[kind.group(1)]
    config = instruction.attributes.replace("\\", "")

    def block(key: str, length: int) -> int:
        found = re.search(rf'"{key}{suffix}": ?(\d+)', config)
        return min(int(found.group(1)), length) if found else min(512, length)

    rows, columns = block("block_q", q_len), block("block_kv", kv_len)
    live = sum(-(-min(kv_len, start + rows) // columns) for start in range(0, q_len, rows))
    # The fused kernel also returns partial gradients of the queries: an array with one dimension more than q.
    fused = any(len(s.dims) > len(q.dims) and s.dims[-2:] == q.dims[-2:] for s in instruction.shapes)
    products = {"fwd": 2, "dkv": 5 if fused else 4, "dq": 3}[kind.group(1)]
    return 2.0 * products * prod(q.dims[:-2]) * live * rows * columns * head_dim


def count_flops(module: Module, kernel_flops: KernelFlops | None = None) -> Flops:
    """FLOPs of one execution of the module on one device, by scope.

    kernel_flops: FLOPs of one execution of a kernel (a custom call); what it does not know is asked of splash_flops.
    """
    totals: Counter[str] = Counter()
    by_scope: Counter[Scope] = Counter()
    unknown: dict[str, None] = {}
    for instruction, times in module.executed(fused=True):
        one = instruction_flops(instruction, kernel_flops)
        if one is None:
            if is_kernel(instruction):
                unknown[instruction.name] = None
            continue
        kernel = instruction.opcode == "custom-call" and gemm_flops(instruction) is None
        totals["kernels" if kernel else "matmul"] += one * times
        by_scope[scope_of(instruction.op_name)] += one * times
    return Flops(totals["matmul"], totals["kernels"], dict(by_scope.most_common()), tuple(unknown))


def instruction_flops(instruction: Instruction, kernel_flops: KernelFlops | None = None) -> float | None:
    """FLOPs of one execution of a product, convolution or known kernel; None for any other instruction."""
    if instruction.opcode == "dot":
        return dot_flops(instruction)
    if instruction.opcode == "convolution":
        return convolution_flops(instruction)
    if instruction.opcode == "custom-call":
        for formula in (kernel_flops, gemm_flops, splash_flops):
            found = formula(instruction) if formula else None
            if found is not None:
                return found
    return None


def is_kernel(instruction: Instruction) -> bool:
    """A custom call that runs a kernel of its own (Pallas, Triton, cuDNN), not one of the compiler's markers."""
    return instruction.opcode == "custom-call" and bool(
        re.search(r"tpu_custom_call|triton|cudnn|pallas|mosaic", instruction.target)
    )
