"""Checks the machine and prints one block to paste into a question.

    python -m mmed_jax.doctor [--run_dir=DIR]
    python -m mmed_jax.doctor --all_hosts       started on every host of a pod or job: one table of all of them

Exit code 0: fine, or warnings only; 1: something is broken. Names of keys and tokens are shown, never their values.
"""

import argparse
import contextlib
import fcntl
import glob
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from packaging.requirements import InvalidRequirement, Requirement

from mmed_jax.common import jsonl
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, one_line, run_command
from mmed_jax.common.output_files import check_writable
from mmed_jax.common.paths import REPO
from mmed_jax.common.place_flags import OutputPlace
from mmed_jax.common.places import Place, is_bucket, parse_place

LOCKFILE = "/tmp/libtpu_lockfile"
# On one worker of a TPU pod jax waits for the others; a healthy start takes well under this.
PROBE_SECONDS = 180
_ENVIRONMENT = re.compile(
    r"^(JAX_|XLA_|LIBTPU|TPU_|CUDA_VISIBLE|NVIDIA_VISIBLE|NCCL_|SLURM_(NTASKS|PROCID|JOB_NUM_NODES|STEP_ID)|OMPI_COMM_WORLD_"
    r"|HF_|TRANSFORMERS_|TOKENIZERS_|WANDB_|OPENAI_|MMED_JAX_|TF_CPP|OMP_NUM_THREADS|PYTHONPATH|VIRTUAL_ENV|LD_PRELOAD)"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_ACCELERATOR_PACKAGES = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


@dataclass
class Findings:
    """The lines of the block, what deserves a look, and what is broken."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def block(self) -> str:
        rows = [f"{name:16s}{line}" for name, text in self.lines for line in (text.splitlines() or [""])]
        rows += [f"{'warning':16s}{w}" for w in self.warnings] + [f"{'BROKEN':16s}{p}" for p in self.problems]
        ok = "all fine" if not self.warnings and not self.problems else None
        return _short_home("\n".join(["```", "mmed_jax doctor", *rows, *([ok] if ok else []), "```"]))


def _short_home(text: str) -> str:
    """The home folder as ~; none that is "/" or unknown, as in containers."""
    home = os.path.expanduser("~")
    if not home.startswith("/") or not home.strip("/"):
        return text
    return re.sub(rf"(?<![\w.-]){re.escape(home.rstrip('/'))}(?![\w.-])", "~", text)


def check_python(out: Findings) -> None:
    """Interpreter, system, and the commit of the checkout."""
    out.add("python", f"{platform.python_version()} ({platform.python_implementation()}), {platform.platform()}")
    if (REPO / ".git").exists():
        revision = _run(["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"])
        changed = _run(["git", "-C", str(REPO), "status", "--porcelain", "--untracked-files=no"])
        out.add("checkout", (revision or "unknown") + (" with local changes" if changed else ""))


def check_packages(out: Findings, requirements: list[str]) -> None:
    """Each direct dependency: its version, and whether it lies in the tested range."""
    shown = []
    for text in requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            out.warnings.append(f"requirements: cannot read {text!r}")
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            out.problems.append(f"{wanted} is not installed: pip install -r requirements.txt")
            continue
        inside = wanted.specifier.contains(version, prereleases=True)
        shown.append(f"{wanted.name} {version}" + ("" if inside else "(!)"))
        if not inside:
            out.warnings.append(f"{wanted.name} {version} is outside the tested range {wanted.specifier}")
    for name in _ACCELERATOR_PACKAGES:
        try:
            shown.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    rows = [", ".join(shown[i : i + 5]) for i in range(0, len(shown), 5)]
    out.add("packages", "\n".join(rows) or "no requirements found")


def read_requirements() -> list[str]:
    """requirements.txt of the checkout, else what the installed package declares."""
    path = REPO / "requirements.txt"
    if path.is_file():
        lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line and not line.startswith("-")]
    try:
        return metadata.requires("mmed_jax") or []
    except metadata.PackageNotFoundError:
        return []


def check_host(out: Findings) -> None:
    """Cores and memory that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    limited = f", limited to {int(quota[0]) / int(quota[1]):.1f}" if quota and quota[0].isdigit() else ""
    out.add("cpu", f"{cores} of {os.cpu_count()} cores{limited}, {platform.machine()}")
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE))
    if "MemTotal" in info:
        total, free = (int(info[k]) / 2**20 for k in ("MemTotal", "MemAvailable"))
        limit = _read("/sys/fs/cgroup/memory.max").strip()
        text = f"{free:.1f} of {total:.1f} GiB available"
        out.add("host memory", text + (f", limited to {int(limit) / 2**30:.1f} GiB" if limit.isdigit() else ""))


def check_environment(out: Findings, environment: Mapping[str, str]) -> None:
    """Variables that change what happens; of secrets and addresses with a password only that they are set."""
    rows = []
    for name in sorted(environment):
        value = environment[name]
        if not _ENVIRONMENT.match(name):
            continue
        hidden = _SECRET.search(name) or "@" in value
        if name.endswith(("_URL", "_ENDPOINT")):
            value = re.split(r"[?#]", value)[0]
        rows.append(f"{name} {'is set' if hidden else '= ' + (value if len(value) <= 160 else value[:160] + ' ...')}")
    out.add("environment", "\n".join(rows) or "nothing special")


def check_bucket(out: Findings, run_dir: Place) -> None:
    """Whether objects can be written, read and removed where runs will lie, and how long that takes."""
    from mmed_jax.checkpoints.run_directory import run_storage

    start = time.perf_counter()
    try:
        run_storage(run_dir).check(())
        out.add("run dir", f"{run_dir}: writable, three requests in {time.perf_counter() - start:.2f} s")
    except (UserError, WorkError) as e:
        out.add("run dir", f"{run_dir}: cannot be used ({one_line(e)})")
        out.problems.append(f"run dir {run_dir} cannot be used")


def check_storage(out: Findings, folders: dict[str, Path]) -> None:
    """Whether the run directory and the compile cache can be written, how fast, and what is free."""
    for name, folder in folders.items():
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        try:
            if not existing.is_dir():
                raise NotADirectoryError(20, f"{existing} is a file")
            check_writable(existing)
            speed = _write_speed(existing) if name == "run dir" else ""
            free = shutil.disk_usage(existing).free / 2**30
            state = "" if existing == folder else f" (not there yet; {existing} is)"
            out.add(name, f"{folder}{state}: writable, {free:.1f} GiB free{speed}")
            if free < 5:
                out.warnings.append(f"{existing}: only {free:.1f} GiB free")
        except OSError as e:
            out.add(name, f"{folder}: cannot be written ({e.strerror or e})")
            (out.problems if name == "run dir" else out.warnings).append(f"{name} {folder} cannot be written")


def _write_speed(folder: Path, mib: int = 16) -> str:
    probe, block = folder / f".speed_test.{os.getpid()}", os.urandom(mib << 20)
    try:
        start = time.perf_counter()
        with open(probe, "wb") as f:
            f.write(block)
            os.fsync(f.fileno())
        return f", {mib / (time.perf_counter() - start):,.0f} MiB/s"
    finally:
        probe.unlink(missing_ok=True)


def find_accelerators() -> list[str]:
    """What the machine has, whatever jax sees: "2 x NVIDIA H200", "4 TPU chips (/dev/accel*)"."""
    accelerators = []
    if gpus := [line for line in _run(["nvidia-smi", "-L"]).splitlines() if line.startswith("GPU ")]:
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
                command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
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


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module."""
    parser = Parser(prog="python -m mmed_jax.doctor", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--run_dir", default="runs", type=OutputPlace, metavar="DIR", help="where runs will be written (default: runs)"
    )
    parser.add_argument("--all_hosts", action="store_true", help="started on every host: one table of all of them")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    parser.add_argument("--num_processes", default=0, type=int, metavar="N", help="where no scheduler tells")
    parser.add_argument("--process_id", default=-1, type=int, metavar="I", help="of this host, from 0")
    parser.add_argument("--timeout_seconds", default=300, type=int, metavar="S", help="how long hosts are waited for")
    parser.add_argument("--probe", action="store_true", help="only what jax finds, as one line of JSON")
    args = parser.parse_args(argv)
    if args.probe:
        print(json.dumps(probe()))
        return
    run_dir = parse_place(args.run_dir, "--run_dir")
    if args.all_hosts:
        check_all_hosts(args, run_dir)
    else:
        end(check_machine(run_dir).problems)


def check_machine(run_dir: Place) -> Findings:
    """All checks of this host; prints their block."""
    from mmed_jax.config.defaults import base

    out = Findings()
    check_python(out)
    check_packages(out, read_requirements())
    check_host(out)
    check_tpu_lock(out)
    check_jax(out, find_accelerators())
    folders = {"compile cache": parse_place(base().compile_cache).absolute()}
    if is_bucket(run_dir):
        check_bucket(out, run_dir)
    else:
        folders = {"run dir": run_dir.absolute(), **folders}
    check_storage(out, folders)
    check_environment(out, os.environ)
    print(out.block(), flush=True)
    return out


def end(problems: list[str]) -> None:
    """Raises WorkError where something is broken."""
    if problems:
        raise WorkError(f"{len(problems)} broken: {problems[0]}")


def check_all_hosts(args: argparse.Namespace, run_dir: Place) -> None:
    """The checks of this host; process 0 also waits for the others and prints one table.

    Raises:
      UserError: nothing says where the processes meet. WorkError: something is broken, here or, on process 0, anywhere.
    """
    from mmed_jax.parallel import meeting, roll_call

    point = meeting.find(args, ask=True)
    if not point.host or not 0 <= point.process < point.count:
        raise UserError(
            "--all_hosts: no scheduler says which processes there are: give --coordinator=HOST:PORT, --num_processes=N "
            "and --process_id=I (0 to N-1) on every host"
        )
    print(meeting.announce(point, args.timeout_seconds), flush=True)
    meeting.check_address(point)
    bucket = is_bucket(run_dir)
    storage = run_dir if bucket else next(p for p in (run_dir.absolute(), *run_dir.absolute().parents) if p.exists())

    def report(mark: str) -> dict[str, Any]:
        seen = mark == str(storage) if bucket else bool(mark) and (storage / mark).exists()
        out = check_machine(run_dir)
        return host_report(out, "shared with process 0" if seen else "NOT SHARED with process 0", seen)

    if point.process:
        roll_call.answer_call(point, args.timeout_seconds, report, time.time)
        print(f"reported   to process 0 on {point.host}: the table is there")
        return
    mark = str(storage) if bucket else write_mark(storage)
    try:
        with roll_call.RollCall(point.port, point.count, mark) as call:
            out = check_machine(run_dir)
            own = roll_call.Answer(socket.gethostname(), host_report(out, "", True))
            call.wait(args.timeout_seconds, 2 * PROBE_SECONDS)
    finally:
        if mark and not bucket:
            (storage / mark).unlink(missing_ok=True)
    print("\n".join(["", *roll_call.host_table(own, call.answers, os.environ)]))
    problems = roll_call.host_problems(own, call, os.environ)
    print("\n".join(f"BROKEN  {problem}" for problem in problems) or "all hosts fine")
    end(problems)


def write_mark(folder: Path) -> str:
    """The name of a new file in `folder`, by which others see whether it is the same one; "" when it is read-only."""
    name = f".shared.{uuid4().hex}"
    try:
        (folder / name).write_bytes(b"")
    except OSError:
        return ""
    return name


def host_report(out: Findings, shared: str, seen: bool) -> dict[str, Any]:
    """What a host says of itself in a roll call: columns of the table, what is broken, and what has to be equal."""
    from mmed_jax.parallel.host_facts import code_facts, environment_facts, version_facts

    lines = dict(out.lines)
    storage = lines.get("run dir", "").rpartition(": ")[2]
    shown = {
        "devices": lines.get("jax", "jax does not start").partition(", started")[0],
        "checkout": lines.get("checkout", ""),
        "run dir": ", ".join(filter(None, (storage, shared))),
        "tpu lock": "held" if any(LOCKFILE in w for w in out.warnings) else "",
    }
    facts = {**code_facts(), **version_facts(), **environment_facts(os.environ), "devices": shown["devices"]}
    unshared = [] if seen else ["does not see in its run dir what process 0 writes there"]
    return {"shown": shown, "problems": [*out.problems, *unshared], "facts": facts}


if __name__ == "__main__":
    run_command(main)
