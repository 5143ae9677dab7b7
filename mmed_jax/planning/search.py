"""Looks for the fastest setting that fits: arithmetic chooses what is compiled, the compiler decides.

Tried: micro-batches (the global batch stays what the config says, unless other batches are asked for), remat, mesh,
loss_chunk, compiler flags. What is trained never changes: an adapter stays one, and its frozen weights are rounded to
fewer bits only where that is asked for. The best by arithmetic are compiled first; then loss_chunk and flags are varied
around the fastest found. Every compiled setting is kept by hash (planner.plan), so a search that was stopped goes on
where it was.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.config.values import as_flags, batch_rows, flatten, with_values
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel.chips import GIB, chip_notes
from mmed_jax.parallel.xla_flags import compiler_options
from mmed_jax.planning import advice, step_time
from mmed_jax.planning.found_config import write_override
from mmed_jax.planning.memory import memory_terms, total
from mmed_jax.planning.plan_result import PlanResult
from mmed_jax.planning.planner import mesh_sizes, plan, with_parts
from mmed_jax.planning.smaller_configs import smaller
from mmed_jax.planning.topology import Topology

MAX_COMPILES = 8
# Of them for varying loss_chunk and flags around the fastest.
REFINING = 3
REMAT = ("none", "minimal_ctx", "minimal", "qkv", "full")
LOSS_CHUNKS = (1024, 2048, 4096, 8192)
TENSOR = (1, 2, 4, 8)
VARIED = "micro-batch, remat, mesh (data, fsdp, tensor) and loss_chunk"
# Settings that the table shows; of more only the frontier.
SHOWN = 16
# Steps and sizes that differ by less are taken for equal: arithmetic cannot tell them apart.
RESOLUTION = {"compiled": 1.0, "arithmetic": 1.03}


@dataclass
class Candidate:
    """A setting: changes of the config as {key: value}, its arithmetic, and what the compiler said."""

    changes: dict[str, Any]
    config: ConfigDict
    mesh: dict[str, int]
    seconds: float
    state_bytes: float
    step_bytes: float
    result: PlanResult | None = None
    failure: str = ""

    @property
    def works(self) -> bool:
        return self.result is not None and self.result.fits

    def bytes(self, factor: float) -> float:
        """Memory of a chip by arithmetic, what a step takes times `factor` (advice.off_by)."""
        return self.state_bytes + factor * self.step_bytes

    @functools.cached_property
    def chunk(self) -> int:
        """loss_chunk, or the tokens that a chip has in a micro-batch if that is less."""
        tokens = batch_rows(self.config) // self.config.grad_accum * self.config.data.seq_len
        return min(
            self.config.loss_chunk, max(1, tokens // (self.mesh["data"] * self.mesh["fsdp"] * self.mesh["context"]))
        )

    @functools.cached_property
    def key(self) -> tuple:
        """Equal for settings that mean the same."""
        c = self.config
        fields = (c.remat, c.grad_accum, batch_rows(c), c.xla_flags, c.lora.base)
        return (*self.mesh.values(), self.chunk, *fields)

    def label(self) -> str:
        """The changes, short."""
        return " ".join(f"{k}={v}" for k, v in self.changes.items()) or "the config as it is"


@dataclass
class Search:
    """What was found so far."""

    tried: list[Candidate] = field(default_factory=list)
    # What the compiler wants for a step over what the arithmetic says, of the last one compiled.
    factor: float = 1.0

    @property
    def winner(self) -> Candidate | None:
        """The fastest of the frontier; of those as fast within the method's resolution, the one that needs least
        memory."""
        if not (frontier := self.frontier()):
            return None
        close = RESOLUTION[frontier[0].result.method] * seconds_a_token(frontier[0])
        return [c for c in frontier if seconds_a_token(c) <= close][-1]

    def fitting(self) -> list[Candidate]:
        """What fits, the fastest first."""
        return sorted((c for c in self.tried if c.works), key=lambda c: (seconds_a_token(c), c.result.needed_bytes))

    def frontier(self) -> list[Candidate]:
        """What fits and is not both slower and larger than another, the fastest first."""
        out: list[Candidate] = []
        for c in self.fitting():
            if not out or c.result.needed_bytes * RESOLUTION[c.result.method] < out[-1].result.needed_bytes:
                out.append(c)
        return out


def seconds_a_token(c: Candidate) -> float:
    """Scheduled seconds a token: comparable between batches of different size."""
    return c.result.schedule_s / c.result.tokens_per_step


def search(
    config: ConfigDict,
    cfg: LlamaConfig,
    topology: Topology,
    *,
    recipe: str,
    output: str = "",
    batches: tuple[int, ...] = (),
    bases: tuple[str, ...] = (),
    max_compiles: int = MAX_COMPILES,
    run_tokens: float | None = None,
    price: float = 0.0,
    notes: Sequence[str] = (),
    say: Callable[[str], None] = print,
    **plan_options: Any,
) -> Search:
    """Searches, says what comes, and writes the winner to `output`.

    Args:
      recipe: the --config value; output: config file to write, "" = none.
      batches: other global batches (sequences) to try, bases: other kinds of frozen weights (lora.base); both change
        what is learned.
      max_compiles: settings to compile, kept ones included (GPUs: all are tried, nothing is compiled).
      notes: what to say beside the table. plan_options: cache_dir of planner.plan.

    Raises:
      WorkError: nothing that was tried fits.
      KeyboardInterrupt: again, after what was found has been said and written.
    """
    candidates = list(proposals(config, cfg, topology, batches, bases))
    if not candidates:
        mesh_sizes(config, cfg, topology)
    compiled = topology.kind == "tpu"
    state = Search()
    say(f"search     {len(candidates):,} settings" + (f", up to {max_compiles} compiled" if compiled else ""))
    stopped = None
    try:
        if compiled:
            _compile_best(candidates, state, config, cfg, topology, max_compiles, say, plan_options)
        else:
            for candidate in candidates:
                _try(candidate, state, cfg, topology, len(candidates), _silent, plan_options)
    except KeyboardInterrupt as e:
        stopped = e
    notes = [*chip_notes(topology.chip), *notes]
    say("\n".join([table(state, run_tokens=run_tokens, price=price), *(f"note       {n}" for n in notes)]))
    best = state.winner
    if best and output:
        write_override(output, recipe, best.config, best.mesh, best.result)
        say(f"written    {output}: python -m mmed_jax.train --config={output}")
    if stopped:
        raise stopped
    if best is None:
        raise WorkError(_nothing_fits(state, config, cfg, topology))
    return state


def _nothing_fits(state: Search, config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> str:
    """What was tried, and what was not and might help by arithmetic."""
    text = f"nothing that was tried fits on {topology.name} ({len(state.tried)} settings of {VARIED})"
    try:
        mesh = mesh_sizes(config, cfg, topology)
    except UserError:
        mesh = None
    for change in smaller(config, cfg, mesh, topology.kind) if mesh else ():
        needed = advice.bytes_needed(change.config, cfg, change.mesh, state.factor)
        if change.learns and needed <= advice.room(topology):
            text += f"; not tried, fits by arithmetic: {as_flags(change.changes)} ({change.learns})"
            break
    larger = advice.larger_slice(with_values(config, {"remat": "full"}), cfg, topology, state.factor)
    return text + (f"; larger: --topology={larger}" if larger else "")


def _compile_best(
    candidates: list[Candidate],
    state: Search,
    config: ConfigDict,
    cfg: LlamaConfig,
    topology: Topology,
    limit: int,
    say: Callable[[str], None],
    plan_options: dict[str, Any],
) -> None:
    """Compiles the most promising, and what varies the fastest of them, `limit` in all."""
    promising, varied = _by_promise(candidates, state, topology), False
    refining = max(0, min(REFINING, limit - 2))
    while len(state.tried) < limit:
        if not varied and state.winner and len(state.tried) >= limit - refining:
            varied, coming = True, list(_refinements(state, config, cfg, topology))
        else:
            coming = list(itertools.islice(promising, 1))
            if not coming:
                return
        for candidate in coming[: limit - len(state.tried)]:
            _try(candidate, state, cfg, topology, limit, say, plan_options)


def proposals(
    config: ConfigDict,
    cfg: LlamaConfig,
    topology: Topology,
    batches: tuple[int, ...] = (),
    bases: tuple[str, ...] = (),
) -> Iterator[Candidate]:
    """Every setting that divides, with its arithmetic; first the config as it is, if it does.

    Raises:
      UserError: a batch of `batches` divides on no mesh.
    """
    config, seen = with_parts(config, topology), set()
    first = _candidate({}, config, cfg, topology)
    if first:
        seen.add(first.key)
        yield first
    # Frozen weights may lie whole on every chip: nothing is gathered then, and only an adapter's gradient is summed.
    whole = {topology.device_count} if config.lora.rank else set()
    meshes = [
        {"mesh.data": data, "mesh.fsdp": -1, "mesh.tensor": tensor}
        for data, tensor in itertools.product(
            sorted({topology.slices, max(1, config.mesh.data)} | whole),
            TENSOR,
        )
    ]
    for rows in (batch_rows(config), *batches):
        size = {"batch_size": rows, "batch_tokens": 0} if rows != batch_rows(config) else {}
        accumulations = [n for n in (2**k for k in range(8)) if rows % n == 0]
        divides = False
        kinds = dict.fromkeys([config.lora.base, *bases])
        for mesh, kind, remat, accum, chunk in itertools.product(meshes, kinds, REMAT, accumulations, LOSS_CHUNKS):
            changes = {**size, **mesh, "lora.base": kind, "remat": remat, "grad_accum": accum, "loss_chunk": chunk}
            candidate = _candidate(changes, config, cfg, topology)
            if candidate is None:
                continue
            divides = True
            if candidate.key not in seen:
                seen.add(candidate.key)
                yield candidate
        if not divides and rows != batch_rows(config):
            raise UserError(f"--batches: {rows} rows do not divide over {topology.name} in any mesh")


def _candidate(changes: dict[str, Any], config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> Candidate | None:
    """The config with changes (those that change nothing are left out) and its arithmetic; None: it does not divide."""
    flat = flatten(config)
    changes = {k: v for k, v in changes.items() if flat[k] != v}
    new = with_values(config, changes)
    try:
        mesh = mesh_sizes(new, cfg, topology)
    except UserError:
        return None
    seconds = step_time.speed(new, cfg, topology, mesh).schedule_s / (batch_rows(new) * new.data.seq_len)
    terms = memory_terms(new, cfg, mesh)
    return Candidate(changes, new, mesh, seconds, total(terms, "state"), total(terms, "step"))


def _by_promise(candidates: list[Candidate], state: Search, topology: Topology) -> Iterator[Candidate]:
    """What to compile: the config as it is, then the fastest by arithmetic that should fit, as far as the compiler has
    shown by then. One chunk size for each other setting: chunks are varied later."""
    done = set()
    for c in [*candidates[:1], *sorted(candidates[1:], key=lambda c: (c.seconds, c.bytes(1.0)))]:
        apart = (*c.mesh.values(), c.config.remat, c.config.grad_accum, batch_rows(c.config), c.config.lora.base)
        if apart in done or (state.tried and c.bytes(state.factor) > advice.room(topology)):
            continue
        done.add(apart)
        yield c


def _refinements(state: Search, config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> Iterator[Candidate]:
    """The fastest so far with the other flags, and with half and twice its chunk, as far as they should fit."""
    best = state.winner
    flags = best.config.xla_flags
    other = "none" if flags == "auto" else "auto"
    chunk = best.chunk
    changes: list[dict[str, Any]] = [{"loss_chunk": chunk * 2}, {"loss_chunk": chunk // 2}]
    if compiler_options(topology.chip, other) != compiler_options(topology.chip, flags):  # not every chip has some
        changes.insert(0, {"xla_flags": other})
    for change in changes:
        candidate = _candidate({**best.changes, **change}, config, cfg, topology)
        if candidate and candidate.bytes(state.factor) <= advice.room(topology):
            yield candidate


def _try(
    c: Candidate,
    state: Search,
    cfg: LlamaConfig,
    topology: Topology,
    limit: int,
    say: Callable[[str], None],
    plan_options: dict[str, Any],
) -> None:
    """Plans a candidate and notes what came of it; a setting on which the compiler fails is a result too."""
    if any(c.key == other.key for other in state.tried):
        return
    say(f"{len(state.tried) + 1:2} of {limit:<5} {c.label()}")
    try:
        c.result = plan(c.config, cfg, topology, **plan_options)
    except WorkError as e:
        c.failure = str(e)
    state.tried.append(c)
    if c.result is None:
        say(f"           {c.failure}")
        return
    if c.result.method == "compiled":
        state.factor = advice.off_by(c.config, cfg, c.result)
    when = "at an earlier call" if c.result.cached else f"{c.result.compile_seconds:.0f} s"
    say(f"           {_outcome(c)} ({when})")


def _outcome(c: Candidate) -> str:
    r = c.result
    memory = f"{r.needed_bytes / GIB:6.2f} GiB"
    if not r.fits:
        return f"{memory}  does not fit"
    return f"{memory}  {r.schedule_s * 1e3:8,.0f} ms  {r.mfu(r.schedule_s):4.0%}  " + (
        f"{r.tokens_per_second_chip(r.schedule_s):8,.0f} tokens/s a chip"
    )


def table(state: Search, *, run_tokens: float | None = None, price: float = 0.0, most: int = SHOWN) -> str:
    """What fits, the fastest first, those of the frontier marked; then what does not, in numbers."""
    fitting, frontier = state.fitting(), state.frontier()
    # Many are tried by arithmetic alone: the frontier is shown whole.
    shown = fitting if len(fitting) <= most else frontier
    lines = ["found      memory a chip, step as estimated, MFU, speed; * = nothing tried is both faster and smaller"]
    lines += [f"{'*' if c in frontier else ' ':>10} {_outcome(c)}  {c.label()}" for c in shown]
    if len(shown) < len(fitting):
        lines.append(f"           and {len(fitting) - len(shown):,} that are slower or larger")
    if len(fitting) < len(state.tried):
        lines.append(f"           {len(state.tried) - len(fitting):,} tried do not fit, or the compiler fails on them")
    best = state.winner
    if best:
        flags, method = as_flags(best.changes), best.result.method
        evidence = "compiled" if method == "compiled" else "by arithmetic"
        lines.append(f"fastest    of {len(state.tried):,} {evidence}: {flags or 'the config as it is'}")
        if best is not fitting[0]:
            lines.append(
                f"           (steps that differ by less than {RESOLUTION[method] - 1:.0%} count as equal by {method}: "
                "of those the one that needs least memory)"
            )
        if run_tokens or price:
            hours = (run_tokens or 1e9) * seconds_a_token(best) / 3600 * best.result.chips
            cost = f", cost {hours * price:,.2f}" if price else ""
            what = f"{run_tokens:,.0f} tokens" if run_tokens else "a billion tokens (how many the run has is not known)"
            lines.append(f"run        {what}: {hours / best.result.chips:,.2f} h{cost}")
    return "\n".join(lines)


def _silent(_: str) -> None:
    """Arithmetic takes no time: nothing to say of each."""
