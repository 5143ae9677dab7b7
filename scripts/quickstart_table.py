"""The closing table of scripts/quickstart.sh: what was trained, how much of it is right, where to look next.

python -m scripts.quickstart_table runs/quickstart
"""

import argparse
import json
from pathlib import Path

from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.common.errors import UserError, run_command


def last_train(run: Path) -> dict:
    """The last training record of a run directory."""
    records = read_metrics(run).train
    if not records:
        raise UserError(f"{run}: no training record in metrics.jsonl")
    return records[-1]


def accuracy(folder: Path) -> tuple[float, int]:
    """(share of right answers over all items, number of items) of an evaluation."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; run scripts/quickstart.sh again")
    overall = json.loads(path.read_text(encoding="utf-8"))["overall"]
    return overall["accuracy"], overall["count"]


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder given to scripts/quickstart.sh")
    out = parser.parse_args(argv).out
    rows = [("stage", "steps", "loss", "what is asked", "right")]
    for stage, name, what in (
        ("stage1", "instructions", "instructions, word for word"),
        ("stage2", "direct", "multiple choice, letter alone"),
        ("stage2", "rationale", "multiple choice, after a rationale"),
    ):
        train = last_train(out / stage)
        share, count = accuracy(out / "evaluation" / name)
        rows.append((stage, f"{train['step']:,}", f"{train['loss']:.4f}", what, f"{share:.1%} of {count}"))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    print()
    print(f"curves     {out}/stage1/report.html, {out}/stage2/report.html")
    print(f"answers    {out}/evaluation/*/report.html")
    print(f"model      {out}/export (an ordinary Hugging Face folder)")
    print(f"next       python -m mmed_jax.generate --model={out}/export --prompt='Which vitamin prevents scurvy?'")
    print("next       README.md, 'The main job with a published model'")


if __name__ == "__main__":
    run_command(main)
