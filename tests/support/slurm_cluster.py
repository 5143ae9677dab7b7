"""Debian's Slurm on this machine, with a configuration of its own in a temporary folder; nothing else is touched.

apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mmed_jax.common.errors import WorkError

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scontrol")
PORT = 46817  # other clusters have 6817
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge-run/socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmUser=root
ReturnToService=2
KillWait=2
MpiDefault=none
SwitchType=switch/none
"""


def why_not() -> str:
    """Why Slurm cannot be started here, "" where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
    return "slurmd starts tasks as their user: run this as root, on a machine of your own" if os.geteuid() else ""


def memory_mb() -> int:
    """Three quarters of the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4 // 2**20


def output_of(*command: str) -> str:
    """What a command prints, whether or not it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


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
    with open(folder / "munged.log", "wb") as log:
        return subprocess.Popen(command, user=user.pw_uid, group=user.pw_gid, stdout=log, stderr=subprocess.STDOUT)


def config_of(folder: Path, nodes: tuple[str, ...]) -> str:
    """slurm.conf of one controller and a slurmd for each of `nodes`, all on this machine."""
    host = socket.gethostname().partition(".")[0]
    lines = [CONFIG.format(folder=folder, host=host, port=PORT)]
    each = f"CPUs={os.cpu_count()} RealMemory={memory_mb() // len(nodes)} State=UNKNOWN"
    for number, node in enumerate(nodes, start=1):
        lines.append(f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={PORT + number} {each}\n")
    lines.append(f"PartitionName=cpu Nodes={','.join(nodes)} Default=YES MaxTime=INFINITE State=UP\n")
    return "".join(lines)


@contextlib.contextmanager
def cluster(folder: Path, nodes: tuple[str, ...] = ()) -> Iterator[None]:
    """Slurm on this machine while the block runs; its commands find it by SLURM_CONF.

    Args:
      folder: a new one, for everything it writes. nodes: their names, () = one, called as this machine is.
    """
    nodes = nodes or (socket.gethostname().partition(".")[0],)
    (folder / "state").mkdir()
    folder.chmod(0o755)
    for node in nodes:
        (folder / "spool" / node).mkdir(parents=True)
    (folder / "slurm.conf").write_text(config_of(folder, nodes))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    started = [start_munged(folder)]
    try:
        wait_for((folder / "munge-run" / "socket").exists, "munged", folder)
        for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in nodes)):
            with open(folder / f"{'-'.join([command[0], *command[3:]])}.out.log", "wb") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        idle = ["idle"] * len(nodes)
        wait_for(lambda: output_of("sinfo", "-h", "-N", "-o", "%T").split() == idle, "the nodes", folder)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before
