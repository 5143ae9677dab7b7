"""Compiles the shipped variants for TPU slices and prints the tables of docs/performance.md.

    python -m scripts.plan_table                 every row; about two minutes each, compiled ones are remembered
    python -m scripts.plan_table --only=8b       rows whose configuration or slice contains the text
    python -m scripts.plan_table --adapters      full fine-tuning, LoRA and QLoRA by arithmetic: seconds, no compiler

Each compiled row is one call of `python -m mmed_jax.plan --config=.. --topology=..` with what the row shows and nothing
else. It needs the extra `plan` and no TPU.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from configs import hardware
from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import batch_rows, with_values
from mmed_jax.model.config import PRESETS, LlamaConfig
from mmed_jax.parallel.chips import TPUS
from mmed_jax.planning.advice import room
from mmed_jax.planning.memory import memory_terms, total
from mmed_jax.planning.planner import mesh_sizes
from mmed_jax.planning.step_time import speed
from mmed_jax.planning.topology import Topology, count, parse

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30

# (config, slice, changed keys). First the defaults of every variant, on the smallest slices of configs/hardware.py.
SHIPPED = [
    ("stage1:1b", "v5e-8", {}),
    ("stage1:1b", "v6e-4", {}),
    ("stage1:1b", "v5p-8", {}),
    ("stage1:3b", "v5e-16", {}),
    ("stage1:3b", "v6e-8", {}),
    ("stage1:3b", "v5p-8", {}),
    ("stage1:8b", "v5e-32", {}),
    ("stage1:8b", "v6e-16", {}),
    ("stage1:8b", "v5p-8", {}),
    ("stage1:70b", "v5e-256", {"batch_size": 256}),
    ("stage1:70b", "v6e-128", {}),
    ("stage1:70b", "v5p-64", {}),
]
FASTER = [
    ("stage1:8b", "v5p-128", {"remat": "minimal_ctx"}),
    ("stage1:8b", "v5p-128", {"remat": "minimal_ctx", "data.seq_len": 8192, "batch_size": 64}),
    ("stage1:8b", "v5p-512", {"remat": "minimal_ctx", "batch_size": 512}),
    ("stage1:8b", "v6e-64", {"remat": "minimal_ctx", "batch_size": 64}),
    ("stage1:8b", "v6e-64", {"remat": "minimal_ctx"}),
    ("stage1:8b", "v6e-64", {"remat": "minimal_ctx", "batch_size": 192}),
    ("stage1:8b", "v5e-64", {"batch_size": 64}),
    ("stage1:8b", "v5e-64", {"batch_size": 256}),
    ("stage1:70b", "v5p-256", {}),
]
# Adapters, and beside them what trains all weights on the same slice.
ADAPTERS = [
    ("stage1:8b-lora", "v5p-8", {"mesh.data": 4, "grad_accum": 4}),
    ("stage1:8b-lora", "v5p-8", {"grad_accum": 4}),
    ("stage1:8b", "v5p-8", {"remat": "minimal_ctx", "grad_accum": 8}),
    ("stage1:8b-lora", "v5e-8", {"batch_size": 8, "remat": "full"}),
    ("stage1:8b-lora", "v5p-8", {"grad_accum": 1, "remat": "full"}),
    ("stage1:70b-qlora", "v5e-8", {"batch_size": 8, "grad_accum": 1}),
]
HEAD = (
    "config",
    "slice",
    "chips",
    "batch x length",
    "changed",
    "memory GiB a chip",
    "of",
    "HLO / model FLOPs",
    "step ms (hidden / scheduled / not hidden)",
    "MFU scheduled",
    "tokens/s a chip",
    "compile s",
)


def plan(config: str, topology: str, changes: dict) -> dict:
    """The JSON of one plan. What does not fit is a result too. Raises RuntimeError when there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        keys = [f"--config.{k}={v}" for k, v in changes.items()]
        command = [sys.executable, "-m", "mmed_jax.plan", f"--config={config}", f"--topology={topology}", *keys]
        done = subprocess.run(
            [*command, "--no_verify", "--tokens=1e9", f"--json={path}"], cwd=ROOT, capture_output=True, text=True
        )
        if not path.is_file():
            raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(path.read_text(encoding="utf-8"))


def line(config: str, topology: str, changes: dict) -> str:
    """One row of the table, in Markdown."""
    r = plan(config, topology, changes)
    seq_len = r["settings"]["data.seq_len"]
    shown = {k: v for k, v in changes.items() if k not in ("batch_size", "data.seq_len")}
    changed = ", ".join(f"{k} {v}" for k, v in shown.items())
    cells = [
        config,
        topology,
        r["topology"]["chips"],
        f"{r['tokens_per_step'] // seq_len} x {seq_len}",
        changed,
        f"{r['needed_bytes'] / GIB:.1f}",
        f"{r['capacity_bytes'] / GIB:.0f}",
    ]
    if r["fits"]:
        times = (f"{1e3 * r[k]:,.0f}" for k in ("low_s", "schedule_s", "high_s"))
        cells += [
            f"{r['hlo_over_model_flops']:.3f}",
            " / ".join(times),
            f"{r['mfu']['schedule']:.0%}",
            f"{r['tokens_per_second_chip']['schedule']:,.0f}",
            f"{r['compile_seconds']:.0f}",
        ]
    else:
        cells += ["does not fit", "", "", "", f"{r['compile_seconds']:.0f}"]
    return f"| {' | '.join(map(str, cells))} |"


# ---- By arithmetic: every model, however it is tuned, on the least that holds it -------------------------------------

SIZES = ("1b", "3b", "8b", "70b")
WAYS = {"": "full", "-lora": "LoRA", "-qlora": "QLoRA, nf4"}
# The slices of a chip in the order of their size; one GPU, or none.
CHIPS = {
    **{chip: [f"{chip}-{n}" for n in TPUS[chip].shapes] for chip in ("v5e", "v6e", "v5p")},
    "one H100": ["gpu:1xh100-80g"],
    "one H200": ["gpu:1xh200"],
}


def smallest(
    config: ConfigDict, cfg: LlamaConfig, names: list[str]
) -> tuple[Topology, ConfigDict, dict[str, int]] | None:
    """The first slice that holds a config by arithmetic, the config in as few micro-batches as fit there, its mesh."""
    for name in names:
        topology = parse(name)
        rows = batch_rows(config) // topology.device_count
        for accumulation in (n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= rows):
            kernel = "triton" if topology.kind == "gpu" else "splash"
            tried = with_values(config, {"grad_accum": accumulation, "remat": "full", "attention": kernel})
            mesh = mesh_sizes(tried, cfg, topology)
            if total(memory_terms(tried, cfg, mesh)) <= room(topology):
                return topology, tried, mesh
    return None


def cell(config: ConfigDict, cfg: LlamaConfig, names: list[str]) -> str:
    """The smallest slice in a cell: name, micro-batches, memory, seconds a step, tokens a second and chip."""
    found = smallest(config, cfg, names)
    if found is None:
        return "does not fit"
    topology, config, mesh = found
    seconds = speed(config, cfg, topology, mesh).schedule_s
    each = batch_rows(config) * config.data.seq_len / seconds / topology.chips
    name = "" if topology.kind == "gpu" else f"{topology.name}, "
    memory = total(memory_terms(config, cfg, mesh)) / GIB
    return f"{name}{count(config.grad_accum, 'part')}: {memory:.1f} GiB, {seconds:,.1f} s, {each:,.0f}"


def arithmetic_table(only: str) -> list[str]:
    """Lines of the table of adapters, of variants whose name contains `only`."""
    lines = [f"| model | trained | {' | '.join(CHIPS)} |", f"|{'---|' * (2 + len(CHIPS))}"]
    for size, (suffix, way) in itertools.product(SIZES, WAYS.items()):
        if only in f"stage1:{size}{suffix}":
            config, cfg = load_config(f"stage1:{size}{suffix}"), PRESETS[hardware.PRESETS[size]]
            cells = (cell(config, cfg, names) for names in CHIPS.values())
            lines.append(f"| {size} | {way} | {' | '.join(cells)} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose configuration or slice contains this")
    parser.add_argument("--adapters", action="store_true", help="adapters by arithmetic, nothing is compiled")
    arguments, failed = parser.parse_args(argv), []
    only = arguments.only
    if arguments.adapters:
        lines = arithmetic_table(only)
        if len(lines) == 2:
            parser.error(f"--only={only}: no variant has that; there are {', '.join(SIZES)}")
        print("\n".join(lines))
        return
    tables = [[row for row in rows if only in f"{row[0]} {row[1]}"] for rows in (SHIPPED, FASTER, ADAPTERS)]
    if not any(tables):
        known = sorted({name for row in (*SHIPPED, *FASTER, *ADAPTERS) for name in row[:2]})
        parser.error(f"--only={only}: no row has that; there are {', '.join(known)}")
    for rows in filter(None, tables):
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for config, topology, changes in rows:
            try:
                print(line(config, topology, changes), flush=True)
            except RuntimeError as e:  # the other rows are still wanted
                failed.append(str(e))
        print()
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
