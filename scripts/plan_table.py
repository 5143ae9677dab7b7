"""Compiles the shipped variants for TPU slices and prints the table of docs/performance.md.

    python -m scripts.plan_table                 every row; about two minutes each, compiled ones are remembered
    python -m scripts.plan_table --only=8b       rows whose configuration or slice contains the text

Each row is one call of `python -m mmed_jax.plan --config=.. --topology=..` with what the row shows and nothing else. It
needs the extra `plan` and no TPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose configuration or slice contains this")
    only, failed = parser.parse_args().only, []
    tables = [[row for row in rows if only in f"{row[0]} {row[1]}"] for rows in (SHIPPED, FASTER)]
    if not any(tables):
        known = sorted({name for row in (*SHIPPED, *FASTER) for name in row[:2]})
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
