"""sbatch, squeue and scancel of a cluster that is this machine: arrays run in the background, task by task.

install(folder) writes the three commands; put the folder at the front of PATH. FOLDER/calls.txt has each submission;
FOLDER/lost holds numbers of tasks that the cluster kills the first time; FOLDER/down makes squeue fail.
"""

import os
import stat
import sys
from pathlib import Path

_SBATCH = """
import os, subprocess, sys
from pathlib import Path
home = Path(__file__).parent
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:-1] if "=" in a)
if flags.get("partition") == "nowhere":
    sys.exit("sbatch: error: invalid partition specified: nowhere")
with open(home / "calls.txt", "a") as f:
    print(*sys.argv[1:], file=f)
job = str(len((home / "calls.txt").read_text().splitlines()))
first, last = map(int, flags["array"].partition("%")[0].split("-"))
shell = ""
for task in range(first, last + 1):
    log = flags["output"].replace("%A", job).replace("%a", str(task))
    lost = home / "lost" / str(task)
    if lost.exists():
        lost.unlink()
        shell += f"echo slurmstepd: error: Detected 1 oom-kill event > '{log}'\\n"
        continue
    shell += f"SLURM_ARRAY_JOB_ID={job} SLURM_ARRAY_TASK_ID={task} bash '{sys.argv[-1]}' > '{log}' 2>&1\\n"
process = subprocess.Popen(["bash", "-c", shell], start_new_session=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, cwd="/")
(home / f"job-{job}").write_text(str(process.pid))
print(job + ";cluster")
"""
_SQUEUE = """
import os, sys
from pathlib import Path
home = Path(__file__).parent
if (home / "down").exists():
    (home / "down").unlink()
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
job = next(a for a in sys.argv if a.startswith("--jobs=")).partition("=")[2]
try:
    pid = int((home / f"job-{job}").read_text())
    state = Path(f"/proc/{pid}/stat").read_text().split()[2]
except OSError:
    state = "Z"
if state == "Z":
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print("RUNNING None")
"""
_SCANCEL = """
import os, signal, sys
from pathlib import Path
home = Path(__file__).parent
for job in sys.argv[1:]:
    with open(home / "cancelled.txt", "a") as f:
        print(job, file=f)
    try:
        os.killpg(int((home / f"job-{job}").read_text()), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def install(folder: Path) -> dict[str, str]:
    """Writes the commands; the environment with which they are found."""
    folder.mkdir()
    (folder / "lost").mkdir()
    for name, program in (("sbatch", _SBATCH), ("squeue", _SQUEUE), ("scancel", _SCANCEL)):
        path = folder / name
        path.write_text(f"#!{sys.executable} -S\n{program}")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
