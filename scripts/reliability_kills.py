"""Training that is killed: SIGKILL at random moments, the same command again, compared bit for bit with one left alone.

    python -m scripts.reliability_kills --kills=32

A small run (80 steps, a checkpoint every 5) in a process of its own is killed shortly after a checkpoint folder
appears, after some step, or while it starts, until --kills are reached, and then ends by itself; of runs that complete,
as many as that takes. Compared with an undisturbed run: losses, learning rates, norms and batch hashes of every step,
steps that stand twice in metrics.jsonl, and all arrays of the last checkpoint. Needs a checkout (the helpers are in
tests/).
"""

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import WorkError, run_command  # noqa: E402
from tests.support.training import (  # noqa: E402
    REPRODUCED,
    SLOWLY,
    Bench,
    finish,
    last_step,
    reproduced,
    saved,
    state_of,
)

STEPS, EVERY = 80, 5
# Two kills in three fall around a save.
MOMENTS = ("a save", "a save", "a step", "the start")
RUN = {"steps": STEPS, "checkpoint__every_steps": EVERY, "checkpoint__keep_last": 3}


def wait_and_kill(process, run_dir: Path, moment: str, draw: random.Random) -> bool:
    """Kills the process at such a moment; False when it ended before."""
    folder = run_dir / "checkpoints"
    begun, before = time.monotonic(), last_step(run_dir) if (run_dir / "metrics.jsonl").exists() else 0
    goal = before + draw.randrange(1, 12)
    late = draw.uniform(0, 8) if moment == "the start" else draw.uniform(0, 0.3)
    seen = {p.name for p in folder.glob("*")}
    while process.poll() is None:
        if moment == "the start":
            there = True
        elif moment == "a save":
            there = any(p.name not in seen for p in folder.glob("*orbax-checkpoint-tmp*"))
        else:
            there = (run_dir / "metrics.jsonl").exists() and last_step(run_dir) >= goal
        if there or time.monotonic() - begun > 240:
            break
        time.sleep(0.003)
    time.sleep(late)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def raw_steps(run_dir: Path) -> tuple[int, int]:
    """(steps that stand more than once in metrics.jsonl, those of them that differ)."""
    met: dict[int, list[dict]] = {}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the torn last line of a kill
        if "loss" in record:
            met.setdefault(record["step"], []).append({k: record.get(k) for k in REPRODUCED})
    repeated = [records for records in met.values() if len(records) > 1]
    return len(repeated), sum(any(r != records[0] for r in records) for records in repeated)


def differences(run_dir: Path, reference: Path) -> list[str]:
    """What of a finished run is not as in the undisturbed one."""
    found = []
    ours, theirs = reproduced(run_dir), reproduced(reference)
    if [r["step"] for r in ours] != [r["step"] for r in theirs]:
        found.append("steps are missing")
    found += [f"step {a['step']}: {k}" for a, b in zip(ours, theirs) for k in b if a.get(k) != b[k]]
    one, other = state_of(run_dir, STEPS), state_of(reference, STEPS)
    if one.keys() != other.keys():
        found.append("the last checkpoint holds other arrays")
    found += [f"array {k}" for k in one.keys() & other.keys() if one[k].tobytes() != other[k].tobytes()]
    return found


def main(argv: list[str] | None = None) -> None:
    """Runs the suite and prints its table; exit 1 when anything differs."""
    parser = Parser(prog="python -m scripts.reliability_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    draw, counts, runs, wrong = random.Random(args.seed), Counter(), 0, []
    repeated = [0, 0]
    with tempfile.TemporaryDirectory(prefix="reliability_kills_") as base:
        bench = Bench(Path(base))
        outcome = finish(bench.start(bench.folder / "reference", **RUN), timeout=1200)[0]
        if outcome.code:
            raise WorkError(f"the undisturbed run ended with exit {outcome.code}: {outcome.err[-300:]}")
        while sum(counts.values()) < args.kills:
            runs += 1
            run_dir = bench.folder / f"run{runs}"
            # At most half of the kills in one run, so that two at least are compared.
            for _ in range(min(args.kills - sum(counts.values()), max(1, (args.kills + 1) // 2))):
                moment = draw.choice(MOMENTS)
                process = bench.start(run_dir, command=SLOWLY, **RUN)
                if not wait_and_kill(process, run_dir, moment, draw):
                    break
                counts[moment] += 1
                print(f"kill {sum(counts.values())} of {args.kills}: run {runs}, {moment}", file=sys.stderr, flush=True)
            outcome = finish(bench.start(run_dir, **RUN), timeout=1200)[0]
            if outcome.code or STEPS not in saved(run_dir):
                wrong.append(f"run {runs}: exit {outcome.code}: {outcome.err[-300:].strip()}")
                continue
            wrong += [f"run {runs}: {d}" for d in differences(run_dir, bench.folder / "reference")]
            repeated = [a + b for a, b in zip(repeated, raw_steps(run_dir))]
    print(
        "| kills | around a save | after a step | while starting | runs completed | steps repeated (different) | "
        "differences |\n|---|---|---|---|---|---|---|"
    )
    print(
        f"| {sum(counts.values())} | {counts['a save']} | {counts['a step']} | {counts['the start']} | {runs} | "
        f"{repeated[0]} ({repeated[1]}) | {len(wrong)} |"
    )
    if wrong or repeated[1]:
        raise WorkError(f"{len(wrong)} differences, first: {wrong[0] if wrong else 'a repeated step differs'}")


if __name__ == "__main__":
    run_command(main)
