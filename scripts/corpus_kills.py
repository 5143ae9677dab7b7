"""A corpus build that is killed: kill -9 and Ctrl-C at random moments, the same command again, compared byte by byte.

    python -m scripts.corpus_kills --kills=20

A small corpus is built once without disturbance. A second build is killed, the parent alone or a random other process
of its group, and started again with the same command; when it comes to its end, all files that both give are compared
and a new one is begun, until --kills are reached.
Needs a checkout (the helpers are in tests/).
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import WorkError, run_command  # noqa: E402
from tests.support.corpora import finish, result, start, write_inputs  # noqa: E402

MOMENTS = ("kill -9 of the parent", "kill -9 of a worker", "Ctrl-C")


def processes_of(group: int) -> list[int]:
    """Ids of the processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group:
                found.append(int(entry.name))
        except (ProcessLookupError, PermissionError):
            continue
    return found


def disturb(process, moment: str, draw: random.Random) -> bool:
    """Sends a signal after a random while; False where there was nothing to send it to."""
    time.sleep(draw.uniform(0.3, 6))
    if process.poll() is not None:
        return False
    if moment == "kill -9 of a worker":
        others = [pid for pid in processes_of(process.pid) if pid != process.pid]
        if not others:
            return False
        try:
            os.kill(draw.choice(others), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True
    process.send_signal(signal.SIGKILL if moment == MOMENTS[0] else signal.SIGINT)
    process.wait(timeout=60)
    return True


def compare(whole: dict[str, str], output: Path) -> None:
    """Raises WorkError where a build has other files, or something half-written."""
    built = result(output)
    differing = sorted(name for name in {*whole, *built} if whole.get(name) != built.get(name))
    left = [p.name for p in output.rglob(".*")]
    if differing or left:
        raise WorkError(f"differing: {', '.join(differing[:5])}; left over: {', '.join(left[:5])}")


def main() -> None:
    """The command."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, done = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder / "raw", args.documents, args.seed)
        finish(folder / "raw", folder / "whole")
        runs, builds, killed = 0, 0, folder / "killed"
        whole = result(folder / "whole")
        while done.total() < args.kills or killed.exists():
            runs += 1
            process = start(folder / "raw", killed)
            if done.total() < args.kills:
                moment = draw.choice(MOMENTS)
                done[moment] += disturb(process, moment, draw)
            printed, _ = process.communicate(timeout=300)
            if process.returncode not in (0, 130, -signal.SIGINT, -signal.SIGKILL):
                raise WorkError(f"{moment}: exit code {process.returncode}: {printed[-300:]}")
            if process.returncode == 0:
                builds += 1
                compare(whole, killed)
                shutil.rmtree(killed)
    for moment in MOMENTS:
        print(f"{moment:<24} {done[moment]:>3}")
    print(f"runs {runs}, builds {builds} of {len(whole)} files each, all equal, nothing left over")


if __name__ == "__main__":
    run_command(main)
