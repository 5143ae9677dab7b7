"""A plan as a table for people."""

from mmed_jax.planning.planner import PlanResult

GIB = 2**30
HOURS = 3600.0


def table(r: PlanResult, *, run_tokens: float | None = None, price: float = 0.0) -> str:
    """The plan in lines.

    Args:
      run_tokens: tokens of rows, padding included, that the whole run shows the model; None = not known.
      price: of one chip and hour, in any currency; 0 = not given.
    """
    lines = [
        f"topology   {r.topology['text']}",
        f"mesh       {' '.join(f'{a}={n}' for a, n in r.mesh.items())}",
        f"model      {r.parameters:,} parameters, {r.settings['param_dtype']} weights, "
        f"{r.settings['compute_dtype']} compute, optimizer {r.settings['optim.name']}",
        f"step       {r.tokens_per_step:,} tokens ({r.tokens_per_step // r.chips:,} a chip) in rows of "
        f"{r.settings['data.seq_len']}, remat {r.settings['remat']}, attention {r.settings['attention']}, "
        f"loss_chunk {r.settings['loss_chunk']}, grad_accum {r.settings['grad_accum']}",
        *memory_lines(r),
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


def memory_lines(r: PlanResult, biggest: int = 6) -> list[str]:
    """Memory of a chip against its capacity, and its biggest terms."""
    room = f" of {r.capacity_bytes / GIB:.1f}" if r.capacity_bytes else ""
    verdict = "fits" if r.fits else "DOES NOT FIT"
    if not r.capacity_bytes:
        verdict = "capacity not known"
    if r.argument_bytes:
        detail = f"state {r.argument_bytes / GIB:.2f}, while stepping {r.temporary_bytes / GIB:.2f}"
        detail += f", peak {r.peak_bytes / GIB:.2f}" if r.peak_bytes != r.alloc_bytes else ""
    else:
        detail = "as far as the compiler came"
    lines = [f"memory     {r.alloc_bytes / GIB:.2f}{room} GiB a chip: {verdict} ({detail}; {r.method})"]
    for term in r.terms[:biggest]:
        lines.append(f"             {term['bytes'] / GIB:8.2f} GiB  {term['name']} (arithmetic)")
    return lines


def _speed(r: PlanResult) -> list[str]:
    sent = ", ".join(f"{k} {b / GIB:.1f}" for k, b in r.collective_bytes.items() if b)
    ms = 1e3
    middle = "as scheduled" if r.method == "compiled" else "in the middle"
    hidden = f"; {r.blocking_bytes / GIB:.1f} GiB block" if r.method == "compiled" else ""
    return [
        f"FLOPs      {r.hlo_flops:.3e} a chip, {r.hlo_flops / r.model_flops:.3f} x the model's (6N + causal attention)",
        f"estimate   computing {r.compute_s * ms:,.0f} ms, interconnect {r.ici_s * ms:,.0f} ms, between slices "
        f"{r.dcn_s * ms:,.0f} ms (GiB sent: {sent or 'none'}{hidden})",
        f"step time  {r.low_s * ms:,.0f} to {r.high_s * ms:,.0f} ms, {middle} {r.schedule_s * ms:,.0f} ms; "
        f"MFU {r.mfu(r.high_s):.0%} to {r.mfu(r.low_s):.0%}, {middle} {r.mfu(r.schedule_s):.0%}",
        f"speed      {r.tokens_per_second_chip(r.schedule_s):,.0f} tokens/s a chip "
        f"({r.tokens_per_second_chip(r.high_s):,.0f} to {r.tokens_per_second_chip(r.low_s):,.0f})",
    ]


def _run(r: PlanResult, run_tokens: float | None, price: float) -> list[str]:
    known = run_tokens is not None
    tokens = run_tokens if known else 1e9
    slow, fast = (tokens / (r.tokens_per_second_chip(s) * r.chips) / HOURS for s in (r.high_s, r.low_s))
    middle = tokens / (r.tokens_per_second_chip(r.schedule_s) * r.chips) / HOURS
    what = f"{tokens:,.0f} tokens" if known else "a billion tokens (the run's length is not known: give --tokens)"
    cost = f"; cost {middle * r.chips * price:,.2f} ({fast * r.chips * price:,.2f} to {slow * r.chips * price:,.2f})"
    return [
        f"run        {what}: {middle:,.2f} h ({fast:,.2f} to {slow:,.2f}), {middle * r.chips:,.1f} chip hours"
        + (cost if price else "")
    ]
