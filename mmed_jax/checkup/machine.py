"""Cores, memory and accelerators of this machine, and whether jax computes with them."""

import contextlib
import fcntl
import glob
import os
import platform
import re
import subprocess
import sys
import time
from typing import Any

from mmed_jax.checkup.findings import Findings, output_of, text_of
from mmed_jax.common import jsonl
from mmed_jax.common.paths import REPO

LOCKFILE = "/tmp/libtpu_lockfile"
# On one worker of a TPU pod jax waits for the others; a healthy start takes well under this.
PROBE_SECONDS = 180


def check_host(out: Findings) -> None:
    """Cores and memory that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = text_of("/sys/fs/cgroup/cpu.max").split()
    limited = f", limited to {int(quota[0]) / int(quota[1]):.1f}" if quota and quota[0].isdigit() else ""
    out.add("cpu", f"{cores} of {os.cpu_count()} cores{limited}, {platform.machine()}")
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", text_of("/proc/meminfo"), re.MULTILINE))
    if "MemTotal" in info:
        total, free = (int(info[k]) / 2**20 for k in ("MemTotal", "MemAvailable"))
        limit = text_of("/sys/fs/cgroup/memory.max").strip()
        text = f"{free:.1f} of {total:.1f} GiB available"
        out.add("host memory", text + (f", limited to {int(limit) / 2**30:.1f} GiB" if limit.isdigit() else ""))


def find_accelerators() -> list[str]:
    """What the machine has, whatever jax sees: "2 x NVIDIA H200", "4 TPU chips (/dev/accel*)"."""
    accelerators = []
    if gpus := [line for line in output_of(["nvidia-smi", "-L"]).splitlines() if line.startswith("GPU ")]:
        kinds = [re.sub(r"^GPU \d+: | \(UUID.*$", "", g) for g in gpus]
        accelerators += [f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds)]
    elif nodes := glob.glob("/dev/nvidia[0-9]*"):
        accelerators.append(f"{len(nodes)} NVIDIA device(s), nvidia-smi does not answer")
    for pattern in ("/dev/accel[0-9]*", "/dev/accel/accel[0-9]*", "/dev/vfio/[0-9]*"):
        if chips := glob.glob(pattern):
            accelerators.append(f"{len(chips)} TPU chip(s) ({pattern.replace('[0-9]', '')})")
    return accelerators


def check_tpu_lock(out: Findings, lockfile: str = LOCKFILE) -> None:
    """A lock file that a killed process left behind keeps libtpu from starting. Call before jax starts."""
    if not os.path.exists(lockfile):
        return
    try:
        with open(lockfile, "r+b") as f:
            for lock in (fcntl.flock, fcntl.lockf):
                lock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        out.add("tpu lock", f"{lockfile}: nobody holds it; if the TPU seems to be in use all the same, remove the file")
    except BlockingIOError:
        out.warnings.append(f"{lockfile} is held: {find_holder(lockfile) or 'another process'} uses the TPU")
    except OSError as e:
        out.warnings.append(f"{lockfile} is somebody else's ({e.strerror}): the TPU may seem in use; remove it as root")


def find_holder(path: str) -> str:
    """ "process 123 (python -m ...)" that has the file open, "" when none can be seen."""
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.path.samefile(link, path) and (pid := link.split("/")[2]) != str(os.getpid()):
                command = text_of(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
                return f"process {pid} ({command[:80]})"
    return ""


def probe() -> dict[str, Any]:
    """What jax finds and whether it computes rightly; runs in its own process, which may hang or crash."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    start = time.perf_counter()
    devices = jax.devices()
    started = time.perf_counter() - start
    wrong = []
    a = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) % 7 - 3
    for device in jax.local_devices():
        # Small whole numbers: exact in every precision that a matrix unit has.
        product = jax.jit(jnp.matmul)(jax.device_put(a, device), jax.device_put(a.T, device))
        if not np.array_equal(np.asarray(product), a @ a.T):
            wrong.append(str(device))
    local = jax.local_devices()
    over_all = NamedSharding(Mesh(np.asarray(local), ("all",)), PartitionSpec("all"))
    total = jax.jit(jnp.sum)(jax.device_put(np.arange(4.0 * len(local)), over_all))
    if float(total) != sum(range(4 * len(local))):
        wrong.append("sum over all local devices")

    def limit(device: Any) -> int:
        try:
            return (device.memory_stats() or {}).get("bytes_limit", 0)
        except Exception:  # some runtimes do not implement it
            return 0

    return {
        "platform": devices[0].platform,
        "kinds": sorted({d.device_kind for d in devices}),
        "devices": len(devices),
        "local_devices": len(local),
        "process": f"{jax.process_index()} of {jax.process_count()}",
        "memory_gib": [round(limit(d) / 2**30, 1) for d in local if limit(d)],
        "start_seconds": round(started, 1),
        "wrong": wrong,
    }


def check_jax(out: Findings, accelerators: list[str], timeout: int = PROBE_SECONDS) -> None:
    """Devices as jax sees them, a matrix product on each, and accelerators that jax does not use."""
    out.add("accelerators", ", ".join(accelerators) or "none found")
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "mmed_jax.doctor", "--probe"]
    environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        out.problems.append(
            f"jax did not start within {timeout} s: on a TPU pod or under Slurm, start this on all hosts; else another "
            "process may hold the accelerator"
        )
        return
    try:
        probed = jsonl.loads(child.stdout.strip().splitlines()[-1], dict)
    except (IndexError, ValueError):
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        out.problems.append(f"jax does not start: {last[:400]}")
        return
    memory = f", {max(probed['memory_gib'])} GiB each" if probed["memory_gib"] else ""
    out.add(
        "jax",
        f"{probed['platform']}: {probed['devices']} x {', '.join(probed['kinds'])}{memory}, started in "
        f"{probed['start_seconds']} s",
    )
    out.add("processes", f"this is {probed['process']}, {probed['local_devices']} local device(s)")
    wrong = ", ".join(probed["wrong"])
    out.add("test product", f"WRONG on {wrong}" if wrong else "right on every device")
    if wrong:
        out.problems.append(f"a small matrix product comes out wrong on {wrong}")
    if accelerators and probed["platform"] == "cpu":
        forced = os.environ.get("JAX_PLATFORMS", "")
        extra = "tpu" if "TPU" in accelerators[0] else "cuda"
        cause = f"JAX_PLATFORMS={forced} says so" if forced else f'install it with pip install -e ".[{extra}]"'
        out.warnings.append(f"jax uses the CPU although there is {', '.join(accelerators)}: {cause}")
