"""A stand-in for the interpreter: `fake_commands.py -m mmed_jax.COMMAND FLAGS` leaves what the command would leave.

In the folder FAKE_COMMANDS: calls.txt has a line a call; NAME.slow (NAME: of a step) makes that step wait until it is
removed, saving at SIGTERM as train does (exit code 75); NAME.fail makes it fail.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

home = Path(os.environ["FAKE_COMMANDS"])
command = sys.argv[2].removeprefix("mmed_jax.")
flags = dict(a[2:].split("=", 1) for a in sys.argv[3:] if "=" in a)
result = Path(flags.get("config.run_dir") or flags["output"])
step = result.parent.name.rpartition("-")[0]


def stop(*_: object) -> None:
    print("SIGTERM: saving after this step, then leaving", flush=True)
    sys.exit(75)


signal.signal(signal.SIGTERM, stop)
with open(home / "calls.txt", "a") as f:
    print(command, step, file=f)
result.mkdir(parents=True, exist_ok=command == "train")
print(f"step {step} begins", flush=True)
while (home / f"{step}.slow").exists():
    time.sleep(0.02)
if (home / f"{step}.fail").exists():
    print("error: config.data.train: x.jsonl:3: no answer\nsome more words", file=sys.stderr)
    sys.exit(1)
if command == "train":
    lines = [{"kind": "event", "event": "start", "step": 0, "time": 1.0, "steps": 3}, {"kind": "train", "step": 3}]
    lines.append({"kind": "event", "event": "end", "step": 3, "time": 2.0})
    (result / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
(result / "config.json").write_text("{}")
for name in ("results.json", "report.html"):
    (result / name).write_text("{}")
