"""The doctor finds what is broken, warns of what is odd, and gives no secret away."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import pytest

from mmed_jax import doctor
from mmed_jax.checkpoints.local_run import LocalRun
from mmed_jax.checkup import installation, machine
from mmed_jax.checkup.findings import Findings
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.parallel import roll_call


def run_doctor(monkeypatch, capsys, *args):
    """Runs the command without starting a second jax."""
    monkeypatch.setattr(doctor, "check_jax", lambda out, accelerators: out.add("jax", "not looked at"))
    doctor.main(list(args))
    return capsys.readouterr().out


def test_command_on_this_machine(tmp_path, repo):
    """As a user runs it: one block, exit code 0, a product on every device."""
    command = [sys.executable, "-m", "mmed_jax.doctor", f"--run_dir={tmp_path}/runs/new"]
    out = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout + out.stderr
    lines = out.stdout.splitlines()
    assert lines[0] == lines[-1] == "```" and lines[1] == "mmed_jax doctor"
    names = [line[:16].strip() for line in lines]
    wanted = {"python", "packages", "cpu", "host memory", "accelerators", "jax", "processes", "compile cache"}
    assert wanted <= set(names), out.stdout
    assert "jax             cpu: 8 x cpu" in out.stdout and "right on every device" in out.stdout
    assert f"{tmp_path} is): writable" in out.stdout and list(tmp_path.iterdir()) == []


def test_packages():
    out = Findings()
    requirements = ["numpy>=1", "numpy<1.0", "no-such-package-of-ours>=2", "what is this?", 'numpy; extra == "tpu"']
    installation.check_packages(out, requirements)
    assert "outside the tested range <1.0" in out.warnings[0] and "what is this?" in out.warnings[1]
    assert out.problems == ["no-such-package-of-ours>=2 is not installed: pip install -r requirements.txt"]
    assert dict(out.lines)["packages"].count("numpy") == 2
    assert any(r.startswith("jax>=") for r in installation.read_requirements())


def test_environment_gives_no_secret_away():
    out = Findings()
    environment = {
        "WANDB_API_KEY": "s3cret",
        "HF_TOKEN": "s3cret",
        "OPENAI_API_KEY": "s3cret",
        "TPU_ACCESS_CREDENTIALS": "s3cret",
        "HF_ENDPOINT": "https://me:s3cret@example.org",
        "MY_PASSWORD": "s3cret",
        "AWS_THING": "s3cret",
        "XLA_FLAGS": "--xla_flag=1",
        "JAX_PLATFORMS": "cpu",
    }
    installation.check_environment(out, environment)
    text = out.block()
    assert "s3cret" not in text
    for line in ("HF_TOKEN is set", "WANDB_API_KEY is set", "HF_ENDPOINT is set", "XLA_FLAGS = --xla_flag=1"):
        assert line in text
    assert "MY_PASSWORD" not in text


def test_unwritable_run_dir_is_broken(monkeypatch, capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for place in (file, "/proc/nowhere"):
        with pytest.raises(WorkError, match="run dir .* cannot be written"):
            run_doctor(monkeypatch, capsys, f"--run_dir={place}")
        assert "BROKEN" in capsys.readouterr().out
    assert "BROKEN" not in run_doctor(monkeypatch, capsys, f"--run_dir={tmp_path}")


@pytest.mark.parametrize(
    "body, problem",
    [
        ("raise SystemExit('RuntimeError: no such backend')", "jax does not start: RuntimeError: no such backend"),
        ("import os; os.abort()", "jax does not start: exit code -6"),
        ("import time; time.sleep(60)", "did not start within 1 s"),
    ],
)
def test_jax_that_does_not_start(monkeypatch, tmp_path, body, problem):
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **kw: run([sys.executable, "-c", body], **kw))
    out = Findings()
    machine.check_jax(out, [], timeout=1)
    assert len(out.problems) == 1 and problem in out.problems[0]


def fake_probe(monkeypatch, **changes):
    found = {
        "platform": "cpu",
        "kinds": ["cpu"],
        "devices": 1,
        "local_devices": 1,
        "process": "0 of 1",
        "wrong": [],
        "memory_gib": [],
        "start_seconds": 0.1,
    } | changes
    done = subprocess.CompletedProcess([], 0, stdout="noise\n" + json.dumps(found) + "\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    out = Findings()
    return found, out


def test_accelerator_that_jax_does_not_use(monkeypatch):
    _, out = fake_probe(monkeypatch)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    machine.check_jax(out, ["2 x NVIDIA H200"])
    monkeypatch.delenv("JAX_PLATFORMS")
    machine.check_jax(out, ["4 TPU chip(s) (/dev/accel*)"])
    assert "2 x NVIDIA H200: JAX_PLATFORMS=cpu says so" in out.warnings[0]
    assert '".[tpu]"' in out.warnings[1] and not out.problems
    _, out = fake_probe(monkeypatch, platform="gpu", kinds=["NVIDIA H200"], devices=2, memory_gib=[140.1])
    machine.check_jax(out, ["2 x NVIDIA H200"])
    assert not out.warnings and ("jax", "gpu: 2 x NVIDIA H200, 140.1 GiB each, started in 0.1 s") in out.lines


def test_find_accelerators(monkeypatch):
    answer = "GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n"
    monkeypatch.setattr(machine, "output_of", lambda command: answer)
    monkeypatch.setattr(machine.glob, "glob", lambda p: ["/dev/vfio/0", "/dev/vfio/1"] if "vfio" in p else [])
    assert machine.find_accelerators() == ["2 x NVIDIA H200", "2 TPU chip(s) (/dev/vfio/*)"]


def test_wrong_results_are_broken(monkeypatch):
    assert machine.probe()["wrong"] == [] and machine.probe()["local_devices"] == 8
    matmul = jnp.matmul
    monkeypatch.setattr(jnp, "matmul", lambda a, b: matmul(a, b) + 1)
    wrong = machine.probe()["wrong"]
    assert len(wrong) == 8
    _, out = fake_probe(monkeypatch, wrong=wrong)
    machine.check_jax(out, [])
    assert "comes out wrong" in out.problems[0]


HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as f:
    fcntl.lockf(f, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_tpu_lockfile(tmp_path):
    path = str(tmp_path / "lock")
    out = Findings()
    machine.check_tpu_lock(out, path)
    assert not out.lines and not out.warnings
    Path(path).touch()
    machine.check_tpu_lock(out, path)
    assert "nobody holds it" in out.lines[0][1] and not out.warnings
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        machine.check_tpu_lock(out, path)
    assert f"is held: process {holder.pid} (" in out.warnings[0]


def test_all_hosts_in_one_table(monkeypatch, capsys, tmp_path):
    """Three processes of which one never comes; another's clock and run directory are not those of process 0."""
    monkeypatch.setattr(doctor, "check_jax", lambda out, accelerators: out.add("jax", "cpu: 8 x cpu, started in 1 s"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    joined = ["--all_hosts", f"--coordinator=127.0.0.1:{port}", "--timeout_seconds=8"]
    host = socket.gethostname()

    def run(process, count, run_dir):
        try:
            return doctor.main([*joined, f"--num_processes={count}", f"--process_id={process}", f"--run_dir={run_dir}"])
        except WorkError as e:
            return e

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (0, 1), (2, 2), (tmp_path, tmp_path))) == [None, None]
    out = capsys.readouterr().out
    assert "all hosts fine" in out and f"joining    process 1 of 2 on {host}, coordinator 127.0.0.1:{port}" in out
    (row,) = [line for line in out.splitlines() if line.startswith(f"1        {host}")]
    for text in ("cpu: 8 x cpu", "MiB/s, shared with process 0", " s ", " ms, "):
        assert text in row, row
    assert not list(tmp_path.iterdir())

    # A training holds it; then it was killed.
    run_dir = LocalRun(tmp_path)
    run_dir.lock()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (0, 1), (2, 2), (tmp_path, tmp_path))) == [None, None]
    out = capsys.readouterr().out
    holder = f"process {os.getpid()} on {host}"
    assert f"{tmp_path} is in use by {holder}: no other run" in out
    rows = [line for line in out.splitlines() if line.startswith((f"0        {host}", f"1        {host}"))]
    assert len(rows) == 2 and all(f"  held by {holder}" in row for row in rows), out
    run_dir.unlock()
    assert run_dir.lock_holder() == (holder, False)
    with open(tmp_path / ".lock", "r+") as f:  # as a file server has it, which does not know yet
        fcntl.flock(f, fcntl.LOCK_EX)
        f.write(f"process {2**22 + 1} on {host}\n")
        f.flush()
        assert run_dir.lock_holder() == (f"process {2**22 + 1} on {host} (which is gone)", True)
    for name in (".lock", "checkpoints"):
        (tmp_path / name).unlink() if name == ".lock" else (tmp_path / name).rmdir()
    assert run_dir.lock_holder() == ("", False)

    answer_call = roll_call.answer_call
    late = lambda point, seconds, report, clock: answer_call(point, seconds, report, lambda: clock() - 60)  # noqa: E731
    monkeypatch.setattr(roll_call, "answer_call", late)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "pod-a,pod-b,pod-c")
    (tmp_path / "other").mkdir()
    with ThreadPoolExecutor(2) as pool:
        error, _ = pool.map(run, (0, 1), (3, 3), (tmp_path, tmp_path / "other"))
    out = capsys.readouterr().out
    assert str(error).startswith("3 broken: "), error
    assert any(line.startswith("2        pod-c") and line.endswith("NEVER ANSWERED") for line in out.splitlines()), out
    broken = [line.removeprefix("BROKEN  ") for line in out.splitlines() if line.startswith("BROKEN  ")]
    assert broken == [
        f"process 1 ({host}): does not see in its run dir what process 0 writes there",
        f"the clock of process 1 ({host}) is -60.0 s off that of process 0 (limit 5 s)",
        "process 2 (pod-c) never answered: is the command running there?",
    ]

    # One that ends in the midst of its checks is not waited for.
    monkeypatch.setattr(roll_call, "answer_call", answer_call)

    def check_jax(out, accelerators):
        if threading.current_thread() is not threading.main_thread():
            raise WorkError("ended")

    monkeypatch.setattr(doctor, "check_jax", check_jax)
    joined[2] = "--timeout_seconds=100"
    other = threading.Thread(target=run, args=(1, 2, tmp_path))
    other.start()
    assert "process 1 (" in str(error := run(0, 2, tmp_path)) and "its checks did not end" in str(error)
    other.join()
    with pytest.raises(UserError, match="give --coordinator=HOST:PORT"):
        doctor.main(["--all_hosts"])
    with pytest.raises(WorkError, match="nothing answers at 127.0.0.1"):
        doctor.main([*joined[:2], "--timeout_seconds=0", "--num_processes=2", "--process_id=1"])


@pytest.mark.parametrize("home", ["/", "", "/home/someone"])
def test_only_a_whole_home_folder_is_shortened(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    out = Findings()
    out.add("run dir", "/data/runs, /home/someone/runs and /home/someone.else at 3.5 MiB/s")
    own = "~/runs" if home == "/home/someone" else "/home/someone/runs"
    assert f"/data/runs, {own} and /home/someone.else at 3.5 MiB/s" in out.block()
