"""Checkpoints across processes: killed while saving, failing to write, and two that must agree."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmed_jax.checkpoints.checkpointer import available_steps
from mmed_jax.common.errors import UserError
from tests.support.checkpoints import abstract, assert_same, checkpointer, files_of, flip, make_state, save
from tests.support.fake_gcs import fake_cloud


def start(repo: Path, code: str, *args: object, devices: int = 1) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{repo}{os.pathsep}{repo / 'tests'}",
    }
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(
        command, env=environment, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


SAVE_FOREVER = """
import sys
from tests.support.checkpoints import *
with checkpointer(sys.argv[1], every_steps=1, keep_last=2) as c:
    for step in range(1, 10**6):
        c.maybe_save(step, make_state(step), data_state={"row": step}, config=CONFIG)
        print(step, flush=True)
"""


def test_kill_in_the_middle_of_a_save_and_one_writer_only(tmp_path, repo):
    child = start(repo, SAVE_FOREVER, tmp_path)
    try:
        for line in child.stdout:
            if line.strip() == "3":
                break
        with pytest.raises(UserError, match=f"in use by another training process .process {child.pid} on"):
            checkpointer(tmp_path)
    finally:
        time.sleep(0.013)
        child.kill()
        child.communicate()
    with checkpointer(tmp_path) as c:
        restored, meta = c.restore_latest(abstract(make_state()))
        assert meta["step"] >= 2 and meta["data_state"] == {"row": meta["step"]}
        assert_same(restored, make_state(meta["step"]))
        save(c, meta["step"] + 1)
        leftovers = [p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.isdigit()]
        assert leftovers == []


DISK_FULL = """
import resource, sys, time
from mmed_jax.checkpoints.checkpointer import available_steps
from mmed_jax.common.errors import WorkError
from tests.support.checkpoints import *
c = checkpointer(sys.argv[1])
save(c, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    c.maybe_save(2, make_state(2), data_state={}, config=CONFIG, force=True)
    for step in range(3, 1000):  # the failure shows at a later call
        c.maybe_save(step, make_state(2), data_state={}, config=CONFIG)
        time.sleep(0.01)
except WorkError as e:
    print("WORK", e)
c.close()
print("STEPS", available_steps(sys.argv[1]))
"""


def test_a_failed_write_in_the_background_is_said_at_the_next_call(tmp_path, repo):
    output, _ = start(repo, DISK_FULL, tmp_path).communicate(timeout=60)
    assert "WORK checkpoint of step 2" in output and "step 1 is the newest whole checkpoint" in output, output
    assert "STEPS [1]" in output, output


TWO_PROCESSES = """
import sys, time
from mmed_jax.parallel.preemption import PreemptionGuard
from tests.support.checkpoints import *
run_dir, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + port, 2, index)
state = placed(make_state(1), mesh(4, 1))
update = jax.jit(lambda x: x + 1)
total = jax.device_put(np.zeros(4), NamedSharding(mesh(4, 1), P("fsdp")))
with PreemptionGuard() as guard, checkpointer(run_dir, every_minutes=1e-9, sync_every=3, keep_last=999) as c:
    restored, meta = c.restore_latest(abstract(state))
    print("RESTORED", meta["step"], flush=True)
    for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(make_state(meta["step"])), strict=True):
        for shard in leaf.addressable_shards:
            assert np.array_equal(np.asarray(shard.data), np.asarray(expected)[shard.index])
    for step in range(meta["step"] + 1, 2000):
        total = update(total)
        total.block_until_ready()
        time.sleep(0.02)
        stop = guard.should_stop(step)
        c.maybe_save(step, restored, data_state={"row": step}, config=CONFIG, force=stop)
        if step == 5:
            print("RUNNING", flush=True)
        if stop:
            print("STOPPED", step, flush=True)
            break
"""


def test_two_processes_agree(tmp_path, repo):
    """The damaged newest is refused by both, saves by the clock are common, and so is the step a SIGTERM stops at.

    In a folder whose name libraries would take for a pattern.
    """
    tmp_path = tmp_path / "lr=[1e-5]"
    with checkpointer(tmp_path) as c:
        save(c, 1, 2)
    flip(files_of(tmp_path, 2, "params")[0])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = [start(repo, TWO_PROCESSES, tmp_path, port, i, devices=2) for i in range(2)]
    try:
        lines: list[str] = []
        for line in children[1].stdout:
            lines.append(line)
            if "RUNNING" in line:
                break
        children[1].send_signal(signal.SIGTERM)
        outputs = [child.communicate(timeout=60)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    outputs[1] = "".join(lines) + outputs[1]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert all("RESTORED 1" in o for o in outputs), outputs
    assert outputs[0].count("checkpoints/2 is damaged") == 1 and "damaged" not in outputs[1]
    stopped = [o.split("STOPPED ")[1].split()[0] for o in outputs]
    last = int(stopped[0])
    # By the clock of process 0, which is asked every third step; and the one that was asked for.
    assert stopped[0] == stopped[1] and available_steps(tmp_path) == sorted({1, *range(3, last, 3), last})
    assert (tmp_path / "checkpoints" / stopped[0] / "manifest.json").is_file()


TWO_THAT_FETCHED = """
import sys
from mmed_jax.checkpoints.restore import restore_params
from mmed_jax.common.buckets import ranged_file
from mmed_jax.common.buckets.download import fetch_model
from mmed_jax.common.errors import WorkError
from tests.support.checkpoints import *
run_dir, port, index, step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ranged_file.LEAST = 1
path = fetch_model(run_dir, step)  # as it is at the moment, the newest
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + port, 2, index)
try:
    print("READ", restore_params(path, shardings=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))[1])
except WorkError as e:
    print("WORK", e)
"""


def test_processes_that_fetched_other_steps_of_a_run_in_a_bucket_read_none(tmp_path, repo, monkeypatch):
    """Weights that stay in the bucket: a step that was saved between the fetches of two hosts."""
    with checkpointer(tmp_path / "run", keep_last=5) as c:
        save(c, 3, 5)
    with fake_cloud() as cloud:
        for file in (tmp_path / "run").rglob("*"):
            if file.is_file():
                cloud.write("bucket", f"run/{file.relative_to(tmp_path / 'run').as_posix()}", file.read_bytes())
        for step in (3, 5):
            cloud.write("bucket", f"run/checkpoints/{step}/commit_success.txt", b"")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        children = []
        for index, step in enumerate((3, 5)):
            monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / f"host{index}"))
            children.append(start(repo, TWO_THAT_FETCHED, "gs://bucket/run", port, index, step))
        try:
            outputs = [child.communicate(timeout=120)[0] for child in children]
        finally:
            for child in children:
                child.kill()
    assert all("WORK gs://bucket/run: processes fetched different checkpoints" in o for o in outputs), outputs
    assert not any("READ" in o for o in outputs), outputs
