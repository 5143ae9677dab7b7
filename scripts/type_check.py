"""mypy over the source, with a ratchet: rooms without a type error stay so, every other file's errors may only fall.

python -m scripts.type_check            fails when a file has more errors than scripts/type_errors.json allows, or fewer
python -m scripts.type_check --write    writes the counts of today, unless they are more in all than those written

A file that is moved brings its errors along: --write after the move. Settings: [tool.mypy] in pyproject.toml.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mmed_jax.common.errors import UserError, WorkError, run_command

RATCHET = Path(__file__).with_name("type_errors.json")
# No file in here may have an error.
CLEAN = ("mmed_jax/common/", "mmed_jax/config/", "mmed_jax/parallel/", "mmed_jax/llm_api/", "mmed_jax/data/records/")


def find_errors() -> list[dict]:
    """mypy's errors, each with file, line, message and code.

    Raises:
      UserError: mypy itself did not run.
    """
    root = RATCHET.parent.parent
    done = subprocess.run([sys.executable, "-m", "mypy", "--output=json"], cwd=root, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise UserError(f"mypy did not run: {(done.stderr or done.stdout).strip()}")
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [message for message in messages if message["severity"] == "error"]


def check(errors: list[dict], allowed: dict[str, int]) -> list[str]:
    """What is wrong with today's errors beside the allowed counts, a line each; none when they are equal."""
    counts = Counter(error["file"] for error in errors)
    lines = []
    for file in sorted(counts.keys() | allowed.keys()):
        limit = 0 if file.startswith(CLEAN) else allowed.get(file, 0)
        if counts[file] > limit:
            lines += [f"{e['file']}:{e['line']}: {e['message']} [{e['code']}]" for e in errors if e["file"] == file]
            lines.append(f"{file}: {counts[file]} type errors, {limit} allowed")
        elif counts[file] < allowed.get(file, 0):
            lines.append(f"{file}: {counts[file]} type errors, fewer than the {allowed[file]} allowed: lower them")
    return lines


def main() -> None:
    """Checks, or writes the counts."""
    parser = argparse.ArgumentParser(prog="python -m scripts.type_check", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the counts of today, which may not be more in all")
    args = parser.parse_args()
    allowed = json.loads(RATCHET.read_text(encoding="utf-8"))
    errors = find_errors()
    counts = {k: n for k, n in sorted(Counter(e["file"] for e in errors).items()) if not k.startswith(CLEAN)}
    if args.write:
        if sum(counts.values()) > sum(allowed.values()):
            raise WorkError(f"{sum(counts.values())} type errors, {sum(allowed.values())} allowed: they may only fall")
        RATCHET.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        allowed = counts
    lines = check(errors, allowed)
    if lines:
        print("\n".join(lines), file=sys.stderr)
        raise WorkError(
            f"types: see above; python -m scripts.type_check --write lowers {RATCHET.name} and follows moves"
        )
    print(f"types: {sum(counts.values())} errors in {len(counts)} files, none elsewhere", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
