"""A corpus built by Slurm on this machine, compared byte by byte with one built by processes.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
    python -m scripts.corpus_slurm                      as root, in a container or a virtual machine of your own

Starts munged, slurmctld and slurmd of Debian with a configuration of their own in a temporary folder (other daemons and
/etc/slurm are left alone), a partition `cpu` of this one machine, and ends them when it is done. Needs a checkout.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, WorkError, run_command  # noqa: E402
from tests.support.corpora import finish, result, write_inputs  # noqa: E402

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")
PORT = 46817  # other clusters have 6817
CONFIG = """
ClusterName=corpus
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmUser=root
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def memory_mb() -> int:
    """Three quarters of the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4 // 2**20


def wait_for(condition: Callable[[], bool], what: str, folder: Path, seconds: float = 60) -> None:
    """Raises WorkError, with the ends of the logs, where it does not become true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = [f"{p.name}: {p.read_text(errors='replace')[-400:]}" for p in sorted(folder.glob("*.log"))]
            raise WorkError(f"{what} did not come up in {seconds:.0f} s; {' | '.join(logs)}")
        time.sleep(0.2)


def start_munged(folder: Path) -> subprocess.Popen:
    """munged with a key and a socket of its own; its folders must be its own and open to look into."""
    user = pwd.getpwnam("munge")
    home = folder / "munge"
    home.mkdir()
    key = home / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (home, key):
        os.chown(path, user.pw_uid, user.pw_gid)
    home.chmod(0o700)
    (folder / "munge-run").mkdir()
    os.chown(folder / "munge-run", user.pw_uid, user.pw_gid)
    command = ["munged", "--foreground", "--force", f"--key-file={key}"]
    command += [f"--socket={folder}/munge-run/socket", f"--pid-file={home}/pid", f"--log-file={home}/munged.log"]
    command += [f"--seed-file={home}/seed"]
    return subprocess.Popen(
        command, user=user.pw_uid, group=user.pw_gid, stdout=open(folder / "munged.log", "wb"), stderr=subprocess.STDOUT
    )


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Slurm on this machine while the block runs; its commands find it by SLURM_CONF."""
    host = socket.gethostname().partition(".")[0]
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    folder.chmod(0o755)
    values = {"host": host, "port": PORT, "node_port": PORT + 1, "cpus": os.cpu_count(), "memory": memory_mb()}
    config = CONFIG.format(folder=folder, **values).replace(f"{folder}/munge.socket", f"{folder}/munge-run/socket")
    (folder / "slurm.conf").write_text(config)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    started = [start_munged(folder)]
    try:
        wait_for((folder / "munge-run" / "socket").exists, "munged", folder)
        for name in ("slurmctld", "slurmd"):
            log = open(folder / f"{name}.out.log", "wb")
            started.append(subprocess.Popen([name, "-D"], stdout=log, stderr=subprocess.STDOUT))
        wait_for(lambda: "idle" in _output("sinfo", "--noheader", "--format=%T"), "the node", folder)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def main() -> None:
    """The command."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=8)
    args = parser.parse_args()
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed; see --help or the head of this file")
    if os.geteuid():
        raise UserError("slurmd starts tasks as their user: run this as root, on a machine of your own")
    with tempfile.TemporaryDirectory(prefix="corpus-slurm-") as name:
        folder = Path(name)
        write_inputs(folder / "raw", args.documents)
        finish(folder / "raw", folder / "local")
        with cluster(folder):
            flags = ["--executor=slurm", "--slurm.partition=cpu", "--slurm.mem_gb=1", "--slurm.poll_s=0.5"]
            printed = finish(folder / "raw", folder / "slurm", *flags, f"--tasks={args.tasks}")
            version = _output("sinfo", "--version").strip()
        one, other = result(folder / "local"), result(folder / "slurm")
    jobs = printed.count(" tasks in job ")
    differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    print(f"{version}: {jobs} array jobs; files compared {len(one)}, differing {len(differing)}")
    if differing:
        raise WorkError(f"differing: {', '.join(differing[:5])}")


if __name__ == "__main__":
    run_command(main)
