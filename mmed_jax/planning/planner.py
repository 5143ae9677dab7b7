"""Plans a run: compiles its training step for a slice that need not be there, and says whether it fits and how fast.

    result = plan(config, cfg, topology.parse("v5p-128"))
    result.fits, result.alloc_bytes, result.schedule_s, ...; report.table(result)

What is fact and what is estimate: memory and FLOPs are the compiler's; seconds are of its schedule (planning.schedule);
everything about GPUs is arithmetic (planning.memory, and shares of peak rates).
"""

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmed_jax.config import batch_rows, flatten
from mmed_jax.errors import UserError
from mmed_jax.flops import train_flops_per_token
from mmed_jax.model.config import LlamaConfig, num_params
from mmed_jax.planning.memory import memory_terms, total
from mmed_jax.planning.topology import Topology

if TYPE_CHECKING:
    import jax

    from mmed_jax.planning.program import Program

# Keys of a config that decide what is compiled.
RELEVANT = (
    "compute_dtype", "param_dtype", "remat", "attention", "loss_chunk", "data.seq_len", "data.packing", "batch_size",
    "batch_tokens", "grad_accum", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.context", "xla_flags",
    "optim.name", "optim.mu_dtype", "optim.clip_norm", "optim.weight_decay", "optim.decay_embeddings",
)  # fmt: skip
# GPUs: share of the peak that large bfloat16 products reach, low and high, and of NVLink that rings reach. Published
# runs of 8B models lie within (JAX-Toolbox, torchtitan: 33 to 51 % MFU).
GPU_EFFICIENCY = (0.40, 0.65)
GPU_LINK_EFFICIENCY = 0.8
CACHE = "~/.cache/mmed_jax/plan"


@dataclass
class PlanResult:
    """What is known of one configuration on one topology. Bytes are of one chip; seconds of one optimizer step."""

    topology: dict[str, Any]
    mesh: dict[str, int]
    settings: dict[str, Any]
    parameters: int
    tokens_per_step: int
    method: str  # "compiled" or "arithmetic"
    fits: bool
    capacity_bytes: float
    terms: list[dict[str, Any]]
    # Compiled: from the compiler; arithmetic: argument = state, temporary = step.
    argument_bytes: float = 0.0
    temporary_bytes: float = 0.0
    alloc_bytes: float = 0.0
    peak_bytes: float = 0.0
    failure: str = ""
    hlo_flops: float = 0.0
    model_flops: float = 0.0
    compute_s: float = 0.0
    kernel_s: float = 0.0
    ici_s: float = 0.0
    dcn_s: float = 0.0
    low_s: float = 0.0
    schedule_s: float = 0.0
    high_s: float = 0.0
    collective_bytes: dict[str, float] = field(default_factory=dict)
    blocking_bytes: float = 0.0
    scopes: list[dict[str, Any]] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    compile_seconds: float = 0.0
    cached: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def chips(self) -> int:
        return self.topology["chips"]

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation (0..1) of a step of so many seconds."""
        return self.model_flops / (seconds * self.topology["peak_flops"]) if seconds else 0.0

    def tokens_per_second_chip(self, seconds: float) -> float:
        """Tokens a second and chip of a step of so many seconds."""
        return self.tokens_per_step / (seconds * self.chips) if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """All fields, with MFU and tokens a second and chip for the three step times."""
        derived = {
            "mfu": {k: self.mfu(getattr(self, f"{k}_s")) for k in ("low", "schedule", "high")},
            "tokens_per_second_chip": {
                k: self.tokens_per_second_chip(getattr(self, f"{k}_s")) for k in ("low", "schedule", "high")
            },
            "hlo_over_model_flops": self.hlo_flops / self.model_flops if self.model_flops else 0.0,
        }
        return dataclasses.asdict(self) | derived


def mesh_sizes(config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> dict[str, int]:
    """The mesh of the config on the topology, checked; no jax.

    Several slices (nodes): `data` runs over them unless the config sets it.

    Raises:
      UserError: it does not divide the chips, the model or the batch.
    """
    from mmed_jax import sharding

    sizes = {a: config.mesh[a] for a in sharding.MESH_AXES}
    if topology.slices > 1 and topology.kind == "tpu" and sizes["data"] == 1:
        sizes["data"] = topology.slices
    shape = dict(zip(sharding.MESH_AXES, sharding.mesh_shape(sizes, topology.chips), strict=True))
    if topology.kind == "tpu" and shape["data"] % topology.slices:
        raise UserError(
            f"config.mesh.data={shape['data']} must be a multiple of the {topology.slices} slices of {topology.name}"
        )
    dims = {k: getattr(cfg, k) for k in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size", "hidden_size")}
    sharding.check_divisible(shape, dims, batch_rows(config) // config.grad_accum, config.data.seq_len)
    return shape


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
    """
    mesh = mesh_sizes(config, cfg, topology)
    tokens = batch_rows(config) * config.data.seq_len
    result = PlanResult(
        topology=dataclasses.asdict(topology) | {"text": topology.describe()},
        mesh=mesh,
        settings=relevant(config),
        parameters=num_params(cfg),
        tokens_per_step=tokens,
        method="compiled" if topology.kind == "tpu" else "arithmetic",
        fits=True,
        capacity_bytes=topology.hbm_bytes,
        terms=[dataclasses.asdict(t) for t in memory_terms(config, cfg, mesh)],
        model_flops=train_flops_per_token(cfg, config.data.seq_len) * tokens / topology.chips,
    )
    if topology.kind != "tpu":
        return _by_arithmetic(result, config, cfg, topology)
    key = cache_key(config, cfg, topology)
    path = Path(cache_dir).expanduser() / f"{key}.json" if cache_dir else None
    if path and path.is_file():
        result = PlanResult(**json.loads(path.read_text()))
        result.cached = True
        say(f"cached     {path}")
        return result
    _by_compiler(result, config, cfg, topology, mesh, say)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(result)))
        partial.replace(path)
    return result


def plan_devices(program: "Program", config: ConfigDict, cfg: LlamaConfig) -> PlanResult:
    """The plan of a run's program on the devices of its mesh.

    Memory and FLOPs are the compiler's; seconds are estimated where the chip's rates are known (not for CPUs).
    """
    from mmed_jax.planning import topology as topologies

    found = list(program.mesh.devices.flat)
    topology = topologies.of_devices(found)
    stats = found[0].memory_stats() if found[0].platform != "cpu" else None
    tokens = batch_rows(config) * config.data.seq_len
    described = dataclasses.asdict(topology) if topology else {"chips": len(found), "peak_flops": 0.0}
    mesh = dict(program.mesh.shape)
    result = PlanResult(
        topology=described | {"text": f"{len(found)} x {found[0].device_kind}, the devices here"},
        mesh=mesh,
        settings=relevant(config) | {"attention": program.options.attention},
        parameters=num_params(cfg),
        tokens_per_step=tokens,
        method="compiled",
        fits=True,
        capacity_bytes=(stats or {}).get("bytes_limit") or (topology.hbm_bytes if topology else 0),
        terms=[dataclasses.asdict(t) for t in memory_terms(config, cfg, mesh)],
        model_flops=train_flops_per_token(cfg, config.data.seq_len) * tokens / len(found),
        flags=program.compiler_options,
    )
    _compile(result, program.lower(), topology)
    return result


def relevant(config: ConfigDict) -> dict[str, Any]:
    """The keys of a config that decide what is compiled."""
    flat = flatten(config)
    return {key: flat[key] for key in RELEVANT}


def cache_key(config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> str:
    """A hash of everything that decides the result: settings, model, topology, flags, compiler, and our own sources."""
    root = Path(__file__).resolve().parents[1]
    sources = sorted([*root.glob("model/*.py"), *root.glob("planning/*.py"), *(root / f"{n}.py" for n in (
        "step", "loss", "optim", "adafactor", "placement", "sharding", "flops",
    ))])  # fmt: skip
    digest = hashlib.sha256()
    for source in sources:
        if source.is_file():
            digest.update(source.read_bytes())
    versions = {}
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    facts = [relevant(config), dataclasses.asdict(cfg), dataclasses.asdict(topology), versions, digest.hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()[:24]


def _by_arithmetic(result: PlanResult, config: ConfigDict, cfg: LlamaConfig, topology: Topology) -> PlanResult:
    terms = memory_terms(config, cfg, result.mesh)
    result.argument_bytes, result.temporary_bytes = total(terms, "state"), total(terms, "step")
    result.alloc_bytes = result.peak_bytes = total(terms)
    # The runtime and its communication buffers take their share.
    result.fits = result.alloc_bytes <= 0.92 * result.capacity_bytes
    recompute = {"none": 0.0, "minimal_ctx": 0.0, "minimal": 0.02, "qkv": 0.22, "full": 1 / 3, "offload": 1 / 3}
    result.hlo_flops = result.model_flops * (1 + recompute[config.remat])
    sent = _gathered_and_reduced(config, cfg, result.mesh)
    rate = topology.link_bandwidth if result.mesh["fsdp"] <= topology.shape[0] else topology.dcn_bandwidth
    result.collective_bytes = {"all-gather and reduce-scatter": sent}
    result.ici_s = sent / (rate * GPU_LINK_EFFICIENCY)
    slow, fast = GPU_EFFICIENCY
    result.compute_s = result.hlo_flops / topology.peak_flops / fast
    result.low_s = max(result.compute_s, result.ici_s)
    result.high_s = result.hlo_flops / topology.peak_flops / slow + result.ici_s
    result.schedule_s = (result.low_s + result.high_s) / 2
    result.notes.append(
        f"arithmetic: {slow:.0%} to {fast:.0%} of peak FLOP/s and {GPU_LINK_EFFICIENCY:.0%} of the links are assumed, "
        "nothing was compiled or measured; memory may be 20 % off"
    )
    return result


def _gathered_and_reduced(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int]) -> float:
    """Bytes one device sends in a step under FSDP: weights twice, gradients once (arXiv 1910.02054)."""
    shards = mesh["fsdp"] * mesh["context"]
    width = 2 if config.compute_dtype == "bfloat16" else 4
    weights = num_params(cfg) / mesh["tensor"] * (shards - 1) / shards
    return weights * width * (2 + 1) * config.grad_accum


def _by_compiler(
    result: PlanResult, config: ConfigDict, cfg: LlamaConfig, topology: Topology, mesh: dict[str, int],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    from mmed_jax import sharding
    from mmed_jax.model.attention import resolve_backend
    from mmed_jax.planning import topology as topologies
    from mmed_jax.planning.program import train_program

    backend = resolve_backend(
        config.attention, "tpu", config.data.packing, seq_len=config.data.seq_len, context=mesh["context"],
        head_dim=cfg.head_dim, dtype=config.compute_dtype,
    )  # fmt: skip
    grid = sharding.make_mesh(**mesh, devices=topologies.devices(topology))
    program = train_program(config, cfg, grid, steps=1000, attention=backend)
    result.flags = program.compiler_options
    result.settings["attention"] = backend
    say(f"compiling  {topology.describe()}; a large model takes one to five minutes")
    with topologies.quiet_stderr():
        lowered = program.lower()
        _compile(result, lowered, topology)


def _compile(result: PlanResult, lowered: "jax.stages.Lowered", topology: Topology | None) -> None:
    """Compiles and fills the result; a program that does not fit is a result too."""
    import jax

    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        compiled, result.failure = None, str(e)
    result.compile_seconds = time.perf_counter() - start
    if compiled is None:
        result.fits = False
        result.alloc_bytes = result.peak_bytes = _used_bytes(result.failure)
        result.failure = result.failure.splitlines()[0][:300]
        return
    fill_from_compiled(result, compiled, topology)


def fill_from_compiled(result: PlanResult, compiled: Any, topology: Topology | None) -> None:
    """Memory, FLOPs and, where the topology is known, seconds of a compiled program."""
    from mmed_jax.planning import hlo, schedule

    memory = compiled.memory_analysis()
    result.argument_bytes = memory.argument_size_in_bytes
    result.temporary_bytes = memory.temp_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    result.alloc_bytes = result.argument_bytes + result.temporary_bytes + fresh
    result.peak_bytes = getattr(memory, "peak_memory_in_bytes", 0) or result.alloc_bytes
    result.fits = result.alloc_bytes <= result.capacity_bytes if result.capacity_bytes else True
    module = hlo.parse_module(compiled.as_text())
    result.hlo_flops = hlo.flops(module).total
    result.notes += module.notes
    if topology is None:
        return
    e = schedule.estimate(module, topology)
    for name in ("compute_s", "kernel_s", "ici_s", "dcn_s", "low_s", "schedule_s", "high_s", "blocking_bytes"):
        setattr(result, name, getattr(e, name))
    result.collective_bytes = dict(e.collective_bytes)
    result.scopes = [
        {"scope": s.scope.path, "direction": s.scope.direction, "compute_s": s.compute_s, "transfer_s": s.transfer_s}
        for s in e.seconds_by_scope
    ]
    result.notes += e.notes


def _used_bytes(message: str) -> float:
    """What the compiler says a program that does not fit would use: "Used 24.51G of 15.75G hbm"."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return float(match[1]) * 1024.0 ** " KMGT".index(match[2]) if match else 0.0
