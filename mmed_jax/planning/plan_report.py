"""A plan as a table for people and as JSON.

JSON (bytes are of one chip, seconds of one optimizer step):

  schema                    1
  topology                  name, kind, chip, chips, slices, shape and wrap of a slice, rates of a chip, text
  mesh, settings            size of every mesh axis; the config keys that decide what is compiled, attention resolved
  parameters, tokens_per_step; trained_parameters: of an adapter, if one is trained
  method                    "compiled" (TPUs, devices present) or "arithmetic" (GPUs that are not here)
  fits, capacity_bytes
  argument_bytes            weights, moments and batch, which live always
  needed_bytes              the most in use at one time, which is what has to fit (TPUs: the compiler's peak)
  temporary_bytes, summed_bytes   values of a step, and these with arguments and results, each counted as if alone
  terms                     [{name, bytes, kind}]: what fills the memory, by arithmetic; kinds: planning.memory.Term
  failure                   the compiler's message where it found no room, else ""; needed_bytes is then what it wanted
  hlo_flops, model_flops    of a chip: with what remat computes again; by formula (training.flops); hlo_over_model_flops
  compute_s, kernel_s       computing; attention kernels' part of it, which is an assumption
  ici_s, dcn_s              transfers within a slice (node) and between slices (nodes)
  low_s, schedule_s, high_s all transfers hidden; as scheduled (arithmetic: the middle); none hidden
  mfu, tokens_per_second_chip   {low, schedule, high}: for these three step times
  collective_bytes          {kind: bytes a chip sends within its slice}; blocking_bytes: those that nothing hides
  scopes                    [{scope, direction, compute_s, transfer_s}]
  flags                     XLA flags used; compile_seconds; cached: compiled at an earlier call
  notes                     what the numbers rest on
  run_tokens, price         as given or counted, null if not known
  advice                    {changes: {config key: value}, needed_bytes, checked, slice, ..., adapter: {key: value} of
                            one in place of all weights}, null when it fits: planning.advice.Advice
"""

import dataclasses
from typing import Any

from mmed_jax.planning.memory import ADAPTER, FROZEN
from mmed_jax.planning.plan_result import PlanResult

GIB, MIB = 2**30, 2**20
SCHEMA = 1


def to_json(
    r: PlanResult, *, run_tokens: float | None = None, price: float = 0.0, advice: Any = None
) -> dict[str, Any]:
    """The plan as the module's docstring describes it; advice: planning.advice.Advice."""
    times = {k: getattr(r, f"{k}_s") for k in ("low", "schedule", "high")}
    return {
        "schema": SCHEMA,
        **dataclasses.asdict(r),
        "mfu": {k: r.mfu(s) for k, s in times.items()},
        "tokens_per_second_chip": {k: r.tokens_per_second_chip(s) for k, s in times.items()},
        "hlo_over_model_flops": r.hlo_flops / r.model_flops if r.model_flops else 0.0,
        "run_tokens": run_tokens,
        "price": price or None,
        "advice": dataclasses.asdict(advice) if advice else None,
    }


def table(r: PlanResult, *, run_tokens: float | None = None, price: float = 0.0) -> str:
    """The plan in lines.

    Args:
      run_tokens: tokens of rows, padding included, that the whole run shows the model; None = not known.
      price: of one chip and hour, in any currency; 0 = not given.
    """
    lines = [
        f"topology   {r.topology['text']}",
        f"mesh       {' '.join(f'{a}={n}' for a, n in r.mesh.items())}",
        f"model      {r.parameters:,} parameters, {_weights(r)}, "
        f"{r.settings['compute_dtype']} compute, optimizer {r.settings['optim.name']}",
        *_adapter(r),
        f"step       {r.tokens_per_step:,} tokens ({r.tokens_per_step // r.chips:,} a chip) in rows of "
        f"{r.settings['data.seq_len']}, remat {r.settings['remat']}, attention {r.settings['attention']}, "
        f"loss_chunk {r.settings['loss_chunk']}, grad_accum {r.settings['grad_accum']}",
        *_memory(r),
    ]
    if r.failure:
        lines.append(f"compiler   {r.failure}")
    if r.schedule_s:
        lines += _speed(r)
        lines += _run(r, run_tokens, price)
    elif r.hlo_flops:
        lines.append(f"FLOPs      {r.hlo_flops:.3e} a device, {r.hlo_flops / r.model_flops:.3f} x the model's")
    if r.method == "compiled":
        lines.append(f"compiled   in {r.compile_seconds:.0f} s" + (" (at an earlier call)" if r.cached else ""))
    lines += [f"note       {n}" for n in r.notes]
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes in GiB, or in MiB below a tenth of one."""
    return f"{count / GIB:.2f} GiB" if count >= 0.1 * GIB else f"{count / MIB:.1f} MiB"


def _weights(r: PlanResult) -> str:
    """How the weights are stored."""
    if not r.settings["lora.rank"]:
        return f"{r.settings['param_dtype']} weights"
    kind = r.settings["lora.base"]
    return f"frozen in {r.settings['compute_dtype'] if kind == 'compute' else kind}"


def _adapter(r: PlanResult) -> list[str]:
    """What is trained in place of all weights; nothing where these are."""
    s = r.settings
    if not s["lora.rank"]:
        return []
    kinds = [kind for kind in ("rslora", "dora") if s[f"lora.{kind}"]]
    patterns = " with patterns" if s["lora.rank_pattern"] or s["lora.alpha_pattern"] else ""
    return [
        " ".join([f"adapter    rank {s['lora.rank']}{patterns}", *kinds])
        + f" on {','.join(s['lora.targets'])}: {r.trained_parameters:,} numbers are trained, "
        f"{r.trained_parameters / r.parameters:.2%} of the model's, float32"
    ]


def _memory(r: PlanResult, biggest: int = 6) -> list[str]:
    """Memory of a chip against its capacity, and its biggest terms."""
    room = f" of {size(r.capacity_bytes)}" if r.capacity_bytes else ""
    verdict = "fits" if r.fits else "DOES NOT FIT"
    if not r.capacity_bytes and r.fits:
        verdict = "capacity not known"
    detail = "wanted by the compiler"
    if r.argument_bytes:
        detail = f"state {size(r.argument_bytes)}, while stepping {size(r.needed_bytes - r.argument_bytes)}"
        if r.summed_bytes > 1.01 * r.needed_bytes:
            detail += f"; {size(r.summed_bytes)} if nothing shared its place"
    lines = [f"memory     {size(r.needed_bytes)}{room} a {r.unit}: {verdict} ({detail}; {r.method})"]
    shown = [t for i, t in enumerate(r.terms) if i < biggest or t["name"] in (FROZEN, ADAPTER)]
    lines += [f"           {size(term['bytes']):>12}  {term['name']} (arithmetic)" for term in shown]
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def _speed(r: PlanResult) -> list[str]:
    sent = ", ".join(f"{k} {size(b)}" for k, b in r.collective_bytes.items() if b)
    compiled = r.method == "compiled"
    middle = "as scheduled" if compiled else "in the middle"
    hidden = f"; {size(r.blocking_bytes)} of it block" if compiled and sent else ""
    formula = "4N + causal attention + 6 x adapter" if r.settings["lora.rank"] else "6N + causal attention"
    network = "slices" if r.topology["kind"] == "tpu" else "nodes"
    return [
        f"FLOPs      {r.hlo_flops:.3e} a {r.unit}, {r.hlo_flops / r.model_flops:.3f} x the model's ({formula})",
        f"estimate   computing {_ms(r.compute_s)} ms, interconnect {_ms(r.ici_s)} ms, between {network} "
        f"{_ms(r.dcn_s)} ms (a {r.unit} sends {sent or 'nothing'}{hidden})",
        f"step time  {_ms(r.low_s)} to {_ms(r.high_s)} ms, {middle} {_ms(r.schedule_s)} ms; "
        f"MFU {r.mfu(r.high_s):.0%} to {r.mfu(r.low_s):.0%}, {middle} {r.mfu(r.schedule_s):.0%}",
        f"speed      {r.tokens_per_second_chip(r.schedule_s):,.0f} tokens/s a chip "
        f"({r.tokens_per_second_chip(r.high_s):,.0f} to {r.tokens_per_second_chip(r.low_s):,.0f})",
    ]


def _run(r: PlanResult, run_tokens: float | None, price: float) -> list[str]:
    """Time and cost of the run's steps, by the three step times."""
    known = run_tokens is not None
    tokens = run_tokens if known else 1e9
    fast, middle, slow = (tokens / r.tokens_per_step * s / 3600 for s in (r.low_s, r.schedule_s, r.high_s))
    what = f"{tokens:,.0f} tokens" if known else "a billion tokens (how many the run has is not known: give --tokens)"
    cost = ""
    if price:
        money = [hours * r.chips * price for hours in (middle, fast, slow)]
        cost = "; cost {:,.2f} ({:,.2f} to {:,.2f})".format(*money)
    return [
        f"run        {what}: {middle:,.2f} h ({fast:,.2f} to {slow:,.2f}), {middle * r.chips:,.1f} chip hours{cost}; "
        "steps alone, without start, evaluation and checkpoints"
    ]
