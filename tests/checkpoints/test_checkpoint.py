"""Checkpoints: exact on any mesh, damage found and survived, nothing lost, nothing silent."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.checkpoints.checkpointer import available_steps, restore_params
from mmed_jax.checkpoints.restore import quiet_orbax
from mmed_jax.checkpoints.run_directory import read_meta
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.config.resume import training_hash
from tests.support.checkpoints import (
    CONFIG,
    abstract,
    assert_same,
    checkpointer,
    files_of,
    flip,
    make_state,
    mesh,
    placed,
    save,
)


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
        assert c.restore_latest(abstract(make_state())) is None and c.is_best({"validation/loss": 1e9})
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
def test_where_none_has_a_manifest_they_are_tried(tmp_path, capfd):
    with checkpointer(tmp_path) as c:
        save(c, 1, 2, 3)
    for step in (1, 2, 3):
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
            assert c.is_best({"validation/loss": 0.9}) and not c.is_best({"validation/loss": 1.0})
    assert available_steps(tmp_path) == [2, 6, 7]
    assert read_meta(tmp_path, 2)["best_metric"] == 1.0


def test_policies(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("mmed_jax.checkpoints.checkpointer.time.monotonic", lambda: now[0])
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


def test_folders_that_orbax_did_not_name_are_no_checkpoints(tmp_path):
    with checkpointer(tmp_path) as c:
        save(c, 1, 2)
    folder = tmp_path / "checkpoints"
    (folder / "2").rename(folder / "02")
    (folder / "²").mkdir()
    assert available_steps(tmp_path) == [1]
    with checkpointer(tmp_path) as c:
        assert_same(c.restore_latest(abstract(make_state()))[0], make_state(1))
    assert (folder / "02").is_dir()


def test_warns_before_training_when_the_disk_cannot_hold_the_checkpoints(tmp_path, capfd, monkeypatch):
    state = make_state()
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(state))
    room = {}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=room["total"], free=room["free"]))

    def warning(total: int, free: int) -> str:
        room.update(total=total, free=free)
        with checkpointer(tmp_path, keep_last=2, keep_best=1) as c:
            c.restore_latest(abstract(state))
            save(c, *([] if available_steps(tmp_path) else [1]))
        return capfd.readouterr().err

    assert f"warning: {tmp_path / 'checkpoints'} has" in warning(10 * size, 4 * size - 1)
    there = sum(p.stat().st_size for p in (tmp_path / "checkpoints/1").rglob("*") if p.is_file())
    assert warning(10 * size, 4 * size - there) == ""
    said = warning(10 * size, 4 * size - there - 1)
    assert len(said.splitlines()) == 1 and "up to 3 are kept while" in said
    assert warning(0, 0) == ""  # a file system that does not say


def test_what_orbax_logs_of_a_failed_save_is_not_printed(caplog):
    quiet_orbax()
    for file, printed in (("/x/orbax/writer.py", 0), ("/x/other.py", 1)):
        caplog.clear()
        try:
            exec(compile("1 / 0", file, "exec"))
        except ZeroDivisionError as e:
            logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=e)
        assert len(caplog.records) == printed
