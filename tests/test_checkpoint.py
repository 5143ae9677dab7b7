"""Checkpoints: exact on any mesh, damage found and survived, nothing lost, nothing silent."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.checkpoint import Checkpointer, PreemptionGuard, available_steps, restore_params
from mmed_jax.errors import UserError, WorkError
from mmed_jax.run_dir import guard_run_dir, read_meta, training_hash

CONFIG = {"name": "t", "seed": 0, "optim": {"lr": 1e-3}, "data": {"train": ["a.jsonl"]}, "log_every": 10, "steps": 100}
ADAMW = optax.adamw(1e-2, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
TX = optax.chain(optax.clip_by_global_norm(1.0), ADAMW)


def mesh(*shape: int) -> jax.sharding.Mesh:
    axes = ("fsdp", "tensor")
    return jax.make_mesh(shape, axes, (AxisType.Auto,) * 2, devices=jax.devices()[: shape[0] * shape[1]])


def make_state(seed: int = 0, hidden: int = 16):
    """Random numbers in every leaf; drawn by numpy, so that nothing has to be compiled."""
    rng = np.random.default_rng(seed)

    def draw(x) -> np.ndarray:
        return np.asarray(rng.standard_normal(x.shape) * 100).astype(x.dtype)

    shapes = {
        "embed": {"weight": jax.ShapeDtypeStruct((32, hidden), jnp.float32)},
        "layers": {"q": {"weight": jax.ShapeDtypeStruct((2, hidden, hidden), jnp.bfloat16)}},
        "norm": {"weight": jax.ShapeDtypeStruct((hidden,), jnp.float32)},
    }
    state = {"params": shapes, "opt_state": jax.eval_shape(TX.init, shapes)}
    return jax.tree.map(lambda x: jax.device_put(draw(x)), state) | {"step": jax.device_put(np.int32(seed))}


def placed(state, on: jax.sharding.Mesh):
    """The state on a mesh: matrices split over both axes, the rest replicated."""

    def put(x):
        spec = P(*([None] * (x.ndim - 2)), "fsdp", "tensor") if x.ndim >= 2 else P()
        return jax.device_put(x, NamedSharding(on, spec))

    return jax.tree.map(put, state)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def checkpointer(run_dir, **changes) -> Checkpointer:
    settings = {"every_steps": 0, "every_minutes": 0, "keep_last": 3, "keep_best": 0} | changes
    return Checkpointer(run_dir, **settings)


def save(c: Checkpointer, *steps: int, metrics=None):
    for step in steps:
        state = make_state(step)
        assert c.maybe_save(step, state, data_state={"row": step}, config=CONFIG, metrics=metrics, force=True)
    c.wait()


def files_of(run_dir: Path, step: int, item: str = "") -> list[Path]:
    """The array data of a checkpoint, largest first."""
    found = [p for p in (run_dir / "checkpoints" / str(step) / item).rglob("d/*") if p.is_file()]
    return sorted(found, key=lambda p: -p.stat().st_size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_restores_bitwise_on_any_mesh(tmp_path):
    state = placed(make_state(7), mesh(8, 1))
    with checkpointer(tmp_path) as c:
        position = {"seed": 3, "epoch": 1, "tokens_seen": 123}
        c.maybe_save(7, state, data_state=position, config=CONFIG, force=True)
    for shape in [(8, 1), (4, 2), (1, 1)]:
        target = placed(make_state(1), mesh(*shape))
        with checkpointer(tmp_path) as c:
            restored, meta = c.restore_latest(abstract(target))
        assert_same(restored, state)
        assert [x.sharding for x in jax.tree.leaves(restored)] == [x.sharding for x in jax.tree.leaves(target)]
    assert meta["step"] == 7 and meta["tokens_seen"] == 123 and meta["data_state"] == position
    assert meta["config"] == CONFIG and meta["config_hash"] == training_hash(CONFIG)
    assert meta["device_count"] == 8 and meta["versions"]["jax"] == jax.__version__


def test_a_save_is_not_changed_by_the_steps_after_it(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    state = jax.tree.map(jnp.array, make_state(1))
    expected = jax.tree.map(np.array, state)
    with checkpointer(tmp_path) as c:
        c.maybe_save(1, state, data_state={}, config=CONFIG, force=True)
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        c.wait()
        assert_same(c.restore_latest(abstract(state))[0], expected)


def test_nothing_saved_is_none(tmp_path):
    with checkpointer(tmp_path) as c:
        assert c.restore_latest(abstract(make_state())) is None and c.best_value == float("inf")
    assert available_steps(tmp_path) == []


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate, delete])
@pytest.mark.parametrize("item", ["params", "opt_state", "meta"])
def test_damage_falls_back_and_the_step_can_be_saved_again(tmp_path, capfd, damage, item):
    with checkpointer(tmp_path) as c:
        save(c, 1, 2)
    target = tmp_path / "checkpoints/2/meta/meta.json" if item == "meta" else files_of(tmp_path, 2, item)[0]
    damage(target)
    with checkpointer(tmp_path) as c:
        restored, meta = c.restore_latest(abstract(make_state()))
        assert meta["step"] == 1
        assert_same(restored, make_state(1))
        message = capfd.readouterr().err
        assert "checkpoints/2 is damaged" in message and target.name in message and "2.corrupt" in message
        assert (tmp_path / "checkpoints/2.corrupt").is_dir() and available_steps(tmp_path) == [1]
        save(c, 2)
    with checkpointer(tmp_path) as c:
        assert_same(c.restore_latest(abstract(make_state()))[0], make_state(2))


def test_every_file_of_a_checkpoint_is_covered(tmp_path):
    with checkpointer(tmp_path) as c:
        save(c, 1)
    folder = tmp_path / "checkpoints/1"
    covered = set(json.loads((folder / "manifest.json").read_text())["files"])
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert present - covered == {"manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}


def test_all_damaged_stops_and_keeps_stopping(tmp_path):
    with checkpointer(tmp_path) as c:
        save(c, 1, 2)
    for step in (1, 2):
        flip(files_of(tmp_path, step)[0])
    for _ in range(2):
        with checkpointer(tmp_path) as c, pytest.raises(WorkError, match="not starting again at step 0"):
            c.restore_latest(abstract(make_state()))
    assert available_steps(tmp_path) == [1, 2]
    for step in (1, 2):  # set aside by hand, the run still does not start from nothing
        (tmp_path / f"checkpoints/{step}").rename(tmp_path / f"checkpoints/{step}.corrupt")
    with checkpointer(tmp_path) as c, pytest.raises(WorkError, match="set aside earlier"):
        c.restore_latest(abstract(make_state()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax, after the failed read
def test_without_manifest_it_is_tried(tmp_path, capfd):
    with checkpointer(tmp_path) as c:
        save(c, 1, 2, 3)
    for step in (2, 3):
        (tmp_path / f"checkpoints/{step}/manifest.json").unlink()
    truncate(files_of(tmp_path, 3, "params")[0])
    with checkpointer(tmp_path) as c:
        restored, _ = c.restore_latest(abstract(make_state()))
    assert_same(restored, make_state(2))
    message = capfd.readouterr().err
    assert "checkpoints/3 is damaged" in message and "step 2 has no manifest.json" in message


def test_another_model_is_not_damage(tmp_path):
    with checkpointer(tmp_path) as c:
        save(c, 1)
        with pytest.raises(UserError) as e:
            c.restore_latest(abstract(make_state(hidden=8)))
    for leaf in ("embed/weight has shape [32,16], expected [32,8]", "layers/q/weight", "norm/weight", "3 leaves"):
        assert leaf in str(e.value)
    wrong = abstract(make_state()) | {"opt_state": optax.sgd(0.1, momentum=0.9).init(make_state()["params"])}
    with checkpointer(tmp_path) as c, pytest.raises(UserError, match="optimizer state.*trace/embed/weight is missing"):
        c.restore_latest(wrong)
    assert available_steps(tmp_path) == [1]


def test_keeps_last_and_best(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: float("nan"), 6: 1.0, 7: 5.0}
    for steps in [(1, 2, 3, 4), (5, 6, 7)]:  # a restart in between forgets nothing
        with checkpointer(tmp_path, keep_last=2, keep_best=1) as c:
            for step in steps:
                save(c, step, metrics=None if losses[step] is None else {"validation/loss": losses[step]})
            assert c.best_value == 1.0
    assert available_steps(tmp_path) == [2, 6, 7]
    assert read_meta(tmp_path, 2)["best_metric"] == 1.0


def test_policies(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("mmed_jax.checkpoint.time.monotonic", lambda: now[0])
    with checkpointer(tmp_path, every_steps=3, every_minutes=2, keep_last=9) as c:
        state, saved = make_state(), []
        for step in range(1, 9):
            now[0] += 50
            if c.maybe_save(step, state, data_state={}, config=CONFIG):
                saved.append(step)
        assert saved == [3, 6]  # at 50 s a step the clock never gets to 120 s before the next multiple of 3
        now[0] += 100
        calls = []
        position = lambda: {"calls": len(calls)}  # noqa: E731
        assert c.maybe_save(10, state, data_state=position, config=CONFIG, before=lambda: calls.append(1))
        assert not c.maybe_save(10, state, data_state={}, config=CONFIG, force=True, before=lambda: calls.append(1))
        assert not c.maybe_save(11, state, data_state=position, config=CONFIG, before=lambda: calls.append(1))
        c.wait()
        assert len(calls) == 1 and read_meta(tmp_path, 10)["data_state"] == {"calls": 1}
    with checkpointer(tmp_path, every_steps=5) as c:
        assert not c.maybe_save(10, state, data_state={}, config=CONFIG)


def test_restore_params(tmp_path, capfd):
    with checkpointer(tmp_path) as c:
        save(c, 1, 2, 3)
        files = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
        flip(files_of(tmp_path, 3, "params")[0])
        params, step = restore_params(tmp_path)
        assert step == 2 and "checkpoints/3 is damaged" in capfd.readouterr().err
        assert_same(params, make_state(2)["params"])
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == files

        sharding = NamedSharding(mesh(8, 1), P())
        params, step = restore_params(str(tmp_path), 1, shardings=sharding, dtype=jnp.bfloat16)
        expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state(1)["params"])
        assert_same(params, expected)
        assert all(x.sharding == sharding for x in jax.tree.leaves(params))
        tree = jax.tree.map(lambda x: x.sharding, placed(make_state(), mesh(4, 2))["params"])
        params, _ = restore_params(tmp_path, 1, shardings=tree)
        assert jax.tree.map(lambda x: x.sharding, params) == tree

    flip(files_of(tmp_path, 2, "opt_state")[0])  # not needed for the weights
    assert restore_params(tmp_path)[1] == 2
    with pytest.raises(WorkError, match="step 3"):
        restore_params(tmp_path, 3)
    with pytest.raises(UserError, match="no checkpoint of step 9; there are 1, 2, 3"):
        restore_params(tmp_path, 9)
    with pytest.raises(UserError, match="no checkpoint there"):
        restore_params(tmp_path / "nowhere")
    wrong = {"embed": {"weight": jnp.zeros((3, 3))}, "head": {"weight": jnp.zeros((1,))}}
    with pytest.raises(UserError) as e:
        restore_params(tmp_path, 1, expected=wrong)
    for text in ("head/weight is missing", "norm/weight is not expected", "embed/weight has shape [32,16], expected"):
        assert text in str(e.value)


def test_guard_run_dir(tmp_path):
    run = tmp_path / "run"
    assert guard_run_dir(run, CONFIG) == run and json.loads((run / "config.json").read_text()) == CONFIG
    changed = CONFIG | {"optim": {"lr": 1.0}}
    guard_run_dir(run, changed)  # no checkpoint yet: nothing to lose
    guard_run_dir(run, CONFIG)
    with checkpointer(run) as c:
        save(c, 4)
    guard_run_dir(run, CONFIG | {"log_every": 1, "run_dir": "elsewhere", "mesh": {"fsdp": 2}})
    with pytest.raises(UserError) as e:
        guard_run_dir(run, changed | {"steps": 200})
    for text in ("step 4", "optim.lr: 0.001 in the run, 1.0 now", "steps: 100 in the run, 200 now", "--config.run_dir"):
        assert text in str(e.value)
    (run / "config.json").write_text("{torn")  # the checkpoint knows as well
    with pytest.raises(UserError, match="optim.lr"):
        guard_run_dir(run, changed)
    guard_run_dir(run, CONFIG)
    assert json.loads((run / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("where, text", [("file", "is a file"), ("file/in", "cannot be"), ("gs://b/run", "mount")])
def test_guard_run_dir_refuses(tmp_path, monkeypatch, where, text):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(UserError, match=text):
        guard_run_dir(where, CONFIG)
    with pytest.raises(UserError, match="cannot be written"):
        guard_run_dir("/proc/no_such_place", CONFIG)  # read-only even for root


def test_signals_set_a_flag():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionGuard() as guard:
        assert not guard.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.should_stop(2) and guard.signal_name == "SIGTERM"
    with PreemptionGuard() as guard:
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.should_stop(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == before


# Other processes


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
from test_checkpoint import *
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
import resource, sys
from test_checkpoint import *
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
import sys
from test_checkpoint import *
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
    """The damaged newest is refused by both, saves by the clock are common, and so is the step a SIGTERM stops at."""
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
