"""Plans a run: compiles its training step for a slice that need not be there, and says whether it fits and how fast.

    result = plan(config, cfg, topology.parse("v5p-128"))
    result.fits, result.needed_bytes, result.schedule_s, ...; plan_report.table(result)

What is fact and what is estimate: memory and FLOPs are the compiler's; seconds are of its schedule (schedule_time);
everything about GPUs is arithmetic (memory, step_time).
"""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.paths import expand_home
from mmed_jax.config.values import batch_rows, compile_settings, with_grad_accum, with_values
from mmed_jax.model.config import LlamaConfig, num_params
from mmed_jax.parallel import xla_flags
from mmed_jax.parallel.chips import chip_notes
from mmed_jax.planning import plan_cache, step_time
from mmed_jax.planning.collective_time import ICI_EFFICIENCY
from mmed_jax.planning.memory import memory_terms, total
from mmed_jax.planning.plan_result import PlanResult
from mmed_jax.planning.smaller_configs import check_mesh
from mmed_jax.planning.topology import Topology, count
from mmed_jax.training.flops import train_flops_per_token

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from mmed_jax.training.program import Program

CACHE = "~/.cache/mmed_jax/plan"
# Share of a GPU's memory that a run may take: the runtime and its communication buffers need the rest.
GPU_ROOM = 0.92
# Learning-rate schedules need a length; no compiled size or speed depends on it.
ANY_LENGTH = 1000


def mesh_sizes(config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> dict[str, int]:
    """The mesh of the config on the topology, checked; no device is touched.

    On several TPU slices `data` runs over them unless the config sets it.

    Raises:
      UserError: it does not divide the chips, the model or the batch.
    """
    shape = _mesh_shape(config, topology)
    config = with_grad_accum(config, shape["data"] * shape["fsdp"])
    if topology.kind == "tpu" and shape["data"] % topology.slices:
        raise UserError(
            f"config.mesh.data={shape['data']} must be a multiple of the {topology.slices} slices of {topology.name}"
        )
    check_mesh(config, cfg, shape)
    return shape


def _mesh_shape(config: ConfigDict, topology: Topology) -> dict[str, int]:
    """The mesh, of which nothing but the number of chips is checked."""
    from mmed_jax.parallel import sharding

    if config.mesh.devices not in (0, topology.device_count):
        there = count(topology.device_count, "chip" if topology.devices_a_chip == 1 else "device")
        raise UserError(
            f"config.mesh.devices={config.mesh.devices} but {topology.name} has {there}: set "
            "--config.mesh.devices=0 to use them all, or name a smaller slice"
        )
    sizes = {a: config.mesh[a] for a in sharding.MESH_AXES}
    if topology.kind == "tpu":
        sizes["data"] = sharding.over_slices(sizes["data"], topology.slices)
    return dict(zip(sharding.MESH_AXES, sharding.mesh_shape(sizes, topology.device_count), strict=True))


def with_parts(config: ConfigDict, topology: Topology) -> ConfigDict:
    """The config with the grad_accum that a run on the topology has where it is 0 (values.with_grad_accum).

    Raises:
      UserError: the mesh does not divide the chips.
    """
    shape = _mesh_shape(config, topology)
    return with_grad_accum(config, shape["data"] * shape["fsdp"])


def plan(
    config: ConfigDict,
    cfg: LlamaConfig,
    topology: Topology,
    *,
    cache_dir: str | Path | None = CACHE,
    say: Callable[[str], None] = lambda line: None,
) -> PlanResult:
    """The plan of one configuration.

    Args:
      cache_dir: folder of results by hash; None = always compile.

    Raises:
      UserError: a mesh that does not divide, an attention backend the chip lacks, libtpu is missing.
      WorkError: the compiler failed for another reason than memory.
    """
    from mmed_jax.training.program import attention_backend

    config = with_parts(config, topology)
    mesh = mesh_sizes(config, cfg, topology)
    resolved = {"attention": attention_backend(config, cfg, topology.kind, mesh["context"])}
    config = with_values(config, resolved | {f"mesh.{axis}": size for axis, size in mesh.items()})
    result = _begin(config, cfg, mesh, dataclasses.asdict(topology) | {"text": topology.describe()})
    result.capacity_bytes = topology.hbm_bytes
    path = None
    if topology.kind == "tpu" and cache_dir:
        try:
            path = expand_home(cache_dir) / f"{plan_cache.cache_key(config, cfg, topology)}.json"
        except UserError as e:
            say(f"not kept   {e}")
    if topology.kind != "tpu":
        _by_arithmetic(result, config, cfg, topology)
    elif path and (cached := plan_cache.read(path, result)):
        say(f"cached     {path}")
        result = cached
    else:
        say(f"compiling  {topology.describe()}; a large model takes one to five minutes")
        _by_compiler(result, config, cfg, topology, mesh)
        if path:
            plan_cache.keep(path, result, say)
    return result


def _begin(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int], topology: dict[str, Any]) -> PlanResult:
    """What is known before anything is compiled; config.attention is resolved."""
    from mmed_jax.model.lora import lora_spec, num_adapter_params

    tokens, spec = batch_rows(config) * config.data.seq_len, lora_spec(config.lora, cfg)
    devices = topology["chips"] * topology.get("devices_a_chip", 1)
    return PlanResult(
        topology=topology,
        mesh=mesh,
        settings=compile_settings(config),
        parameters=num_params(cfg),
        trained_parameters=num_adapter_params(spec, cfg) if spec else num_params(cfg),
        tokens_per_step=tokens,
        method="compiled",
        fits=True,
        capacity_bytes=0,
        terms=[dataclasses.asdict(t) for t in memory_terms(config, cfg, mesh)],
        model_flops=train_flops_per_token(cfg, config.data.seq_len, spec) * tokens / devices,
        notes=chip_notes(topology.get("chip", "")),
    )


def plan_devices(program: "Program", config: ConfigDict, cfg: LlamaConfig) -> PlanResult:
    """The plan of a run's program on the devices of its mesh.

    Memory and FLOPs are the compiler's; seconds are estimated where the chip's rates are known (not for CPUs).

    Raises:
      WorkError: the compiler failed for another reason than memory.
    """
    config = with_values(config, {"attention": program.options.attention})
    result, topology = _begin_here(config, cfg, program.mesh)
    result.flags = program.compiler_options
    _compile(result, program.lower(), topology)
    return result


def plan_out_of_memory(config: ConfigDict, cfg: LlamaConfig, mesh: "Mesh", message: str) -> PlanResult:
    """The plan by arithmetic of a run whose devices ran out of memory with that message."""
    from mmed_jax.training.program import attention_backend

    platform, context = mesh.devices.flat[0].platform, dict(mesh.shape)["context"]
    config = with_values(config, {"attention": attention_backend(config, cfg, platform, context)})
    result, topology = _begin_here(config, cfg, mesh)
    _by_arithmetic(result, config, cfg, topology)
    result.fits = False
    result.notes.append(f"a device ran out of memory: {message}")
    return result


def _begin_here(config: ConfigDict, cfg: LlamaConfig, mesh: "Mesh") -> tuple[PlanResult, Topology | None]:
    """As _begin, for the devices of a mesh; their topology, None for CPUs and chips without figures."""
    from mmed_jax.planning import topology as topologies

    here = list(mesh.devices.flat)
    topology = topologies.of_devices(here)
    stats = here[0].memory_stats() if here[0].platform != "cpu" else None
    described = dataclasses.asdict(topology) if topology else {"chips": len(here), "peak_flops": 0.0}
    described["text"] = f"{len(here)} x {here[0].device_kind}, the devices here"
    result = _begin(config, cfg, dict(mesh.shape), described)
    result.capacity_bytes = (stats or {}).get("bytes_limit") or (topology.hbm_bytes if topology else 0)
    return result, topology


def _by_arithmetic(result: PlanResult, config: ConfigDict, cfg: LlamaConfig, topology: Topology | None) -> None:
    """Memory, and where the topology is known also seconds."""
    result.method = "arithmetic"
    terms = memory_terms(config, cfg, result.mesh)
    result.argument_bytes, result.temporary_bytes = total(terms, "state"), total(terms, "step")
    result.needed_bytes = result.summed_bytes = total(terms)
    result.fits = result.needed_bytes <= GPU_ROOM * result.capacity_bytes
    if topology is None:
        result.notes.append("arithmetic: nothing was compiled or measured; memory may be 20 % off")
        return
    for name, value in vars(step_time.speed(config, cfg, topology, result.mesh)).items():
        setattr(result, name, value)
    slow, fast = step_time.EFFICIENCY[topology.kind]
    result.notes.append(
        f"arithmetic: {slow:.0%} to {fast:.0%} of peak FLOP/s and {ICI_EFFICIENCY:.0%} of the links are assumed, "
        "nothing was compiled or measured; memory may be 20 % off"
    )


def _by_compiler(
    result: PlanResult, config: ConfigDict, cfg: LlamaConfig, topology: Topology, mesh: dict[str, int]
) -> None:
    from mmed_jax.parallel import sharding
    from mmed_jax.planning import topology as topologies
    from mmed_jax.training.program import train_program

    grid = sharding.make_mesh(**mesh, devices=topologies.devices(topology))
    program = train_program(config, cfg, grid, steps=ANY_LENGTH, attention=config.attention)
    result.flags = program.compiler_options
    with topologies.quiet_stderr():
        _compile(result, program.lower(), topology)


def _compile(result: PlanResult, lowered: "jax.stages.Lowered", topology: Topology | None) -> None:
    """Compiles and fills the result; a program that does not fit is a result too."""
    import jax

    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if complaint := xla_flags.refusal(str(e), result.settings["xla_flags"]):
            raise UserError(complaint) from e
        sizes = no_room(str(e))
        if sizes is None:
            raise WorkError(f"the compiler failed on this configuration: {one_line(e)[:300]}") from e
        result.compile_seconds = time.perf_counter() - start
        result.fits, result.failure = False, str(e).splitlines()[0][:300]
        wanted, result.capacity_bytes = sizes
        if "temporaries" in result.failure:
            wanted += sum(t["bytes"] for t in result.terms if t["kind"] == "state")
        result.needed_bytes = result.summed_bytes = wanted
        return
    result.compile_seconds = time.perf_counter() - start
    fill_from_compiled(result, compiled, topology)


def fill_from_compiled(result: PlanResult, compiled: Any, topology: Topology | None) -> None:
    """Memory, FLOPs and, where the topology is known, seconds of a compiled program."""
    from mmed_jax.planning import schedule_time
    from mmed_jax.planning.hlo import analysis

    memory = compiled.memory_analysis()
    result.argument_bytes = memory.argument_size_in_bytes
    result.temporary_bytes = memory.temp_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    result.summed_bytes = result.argument_bytes + result.temporary_bytes + fresh
    # The TPU compiler lays out the chip's memory itself, where values of different moments share places: what the
    # layout takes is its peak, and that is what it compares with the chip (a program with a sum of 19.0 GiB and a peak
    # of 14.9 compiles for 15.75 GiB, one with a peak of 16.4 is refused). Other compilers' peak leaves temporaries out.
    # Where values lie in host memory its peak counts those as well, and the sum does not (70B, 1280 x 8192 on v6e-256,
    # remat=offload: a peak of 53 GiB, of which 50 are the host's, and a sum of 21).
    on_chip = topology and result.settings["remat"] != "offload"
    peak = getattr(memory, "peak_memory_in_bytes", 0) if on_chip else 0
    result.needed_bytes = peak or result.summed_bytes
    result.fits = result.needed_bytes <= result.capacity_bytes if result.capacity_bytes else True
    module = analysis.parse_module(compiled.as_text())
    result.hlo_flops = analysis.flops(module).total
    result.notes += module.notes
    if topology is None:
        return
    e = schedule_time.estimate(module, topology)
    for name in ("compute_s", "kernel_s", "ici_s", "dcn_s", "low_s", "schedule_s", "high_s", "blocking_bytes"):
        setattr(result, name, getattr(e, name))
    result.collective_bytes = dict(e.collective_bytes)
    result.scopes = [
        {"scope": s.scope.path, "direction": s.scope.direction, "compute_s": s.compute_s, "transfer_s": s.transfer_s}
        for s in e.seconds_by_scope
    ]
    result.notes += e.notes


# The TPU compiler, of a program that does not fit: "Used 24.51G of 15.75G hbm." or "... the total memory required for
# HLO temporaries (27.44G) exceeds available HBM (15.75G)". Running out of VMEM, which is no matter of batch or model
# size, is not meant.
_NO_ROOM = (
    r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
    r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)",
)


def no_room(message: str) -> tuple[float, float] | None:
    """(bytes wanted, bytes there are) of a compiler's message that device memory is too small; None for others."""
    for pattern in _NO_ROOM:
        if m := re.search(pattern, message):
            wanted, there = (float(n) * 1024.0 ** " KMGT".index(unit) for n, unit in (m.group(1, 2), m.group(3, 4)))
            return wanted, there
    return None
