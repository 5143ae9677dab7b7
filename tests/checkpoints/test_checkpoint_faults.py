"""What happens to checkpoints from outside: odd paths, storage that fails, lost folders, stores written by half."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from mmed_jax.checkpoints.checkpointer import available_steps, restore_params
from mmed_jax.checkpoints.run_directory import guard_run_dir, read_meta
from mmed_jax.checkpoints.stored_arrays import stored_problems
from mmed_jax.common import checksums, output_files
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.training.metric_log import MetricsLogger
from tests.support.checkpoints import (
    CONFIG,
    abstract,
    assert_same,
    checkpointer,
    files_of,
    make_state,
    mesh,
    placed,
    save,
)

# Names that mean something to glob, to TensorStore or to a shell; as the run's folder or above it.
ODD = ["lr=[1e-5]", "a\\b/run", "x*/y?[!a]", "{a,b}$HOME~", "new\nline\t'\"", "up[0]/..x/%41#;&|<>"]


@pytest.mark.parametrize("name", ODD)
def test_a_run_directory_of_any_name_works(tmp_path, monkeypatch, name):
    neighbour = tmp_path / "xy" / "ya"  # what x*/y?[!a] stands for, read as a pattern
    for run in (neighbour, tmp_path / name):
        with checkpointer(run, keep_last=2) as c:
            save(c, 1, 2, 3)
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / name)
    for run in (tmp_path / name, Path(name), link):
        with checkpointer(run) as c:
            assert_same(c.restore_latest(abstract(make_state()))[0], make_state(3))
        assert_same(restore_params(run)[0], make_state(3)["params"])
    moved = tmp_path / "plain"  # and the other way round, what lies there is a whole checkpoint
    shutil.move(tmp_path / name, moved)
    assert_same(restore_params(moved, 2)[0], make_state(2)["params"])
    assert {p.name for p in tmp_path.iterdir()} <= {"link", "plain", "xy", name.split("/")[0]}


def test_where_no_other_name_helps_it_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "samefile", lambda self, other: False)  # a system without /proc
    with checkpointer(tmp_path / "run ü-1.5,x=2") as c:
        save(c, 1)
    with pytest.raises(UserError, match=r"path holds '\[' '\]'; use another --config.run_dir"):
        checkpointer(tmp_path / "lr=[1]")


def test_what_is_stored_is_compared_leaf_by_leaf(tmp_path):
    with checkpointer(tmp_path) as c:
        c.maybe_save(7, placed(make_state(7), mesh(4, 2)), data_state={}, config=CONFIG, force=True)
    folder, leaves = tmp_path / "checkpoints/7", read_meta(tmp_path, 7)["leaves"]
    assert stored_problems(folder, leaves) == []
    leaves["params"] |= {"norm/bias": [[16], "float32"], "norm/weight": [[3], "float32"]}
    leaves["opt_state"]["step"] = [[], "int64"]
    assert stored_problems(folder, leaves) == [
        "params/norm/weight has shape [16] instead of [3]",
        "params/norm/bias is missing",
        "opt_state/step is int32 instead of int64",
    ]
    (folder / "params/manifest.ocdbt").unlink()  # the processes' stores, not merged
    assert len([p for p in stored_problems(folder, leaves) if p.endswith("is missing")]) == 4


def test_a_part_of_an_array_that_did_not_arrive(tmp_path, monkeypatch):
    import tensorstore as ts

    with checkpointer(tmp_path) as c:
        c.maybe_save(7, placed(make_state(7), mesh(4, 2)), data_state={}, config=CONFIG, force=True)
    folder, leaves = tmp_path / "checkpoints/7", read_meta(tmp_path, 7)["leaves"]
    store = ts.KvStore.open(f"file://{folder}/params/|ocdbt:").result()
    key = next(k for k in store.list().result() if k.startswith(b"embed.weight/1"))
    store.write(key, None).result()
    assert stored_problems(folder, leaves) == ["params/embed/weight has 7 of its 8 parts"]


@pytest.mark.parametrize("in_background", [True, False])
def test_a_save_that_did_not_arrive_fails_and_the_older_one_stays(tmp_path, monkeypatch, in_background):
    from orbax.checkpoint._src.serialization import ocdbt_utils

    async def merge_nothing(*_, **__):
        pass

    c = checkpointer(tmp_path, keep_last=1, async_=in_background)
    save(c, 1)
    monkeypatch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", merge_nothing)
    with pytest.raises(WorkError) as e:
        save(c, 2)
    for text in ("step 2", "did not arrive in the store: params/", "is missing", "step 1 is the newest whole"):
        assert text in one_line(e.value)
    c.close()
    assert available_steps(tmp_path) == [1]
    monkeypatch.undo()
    with checkpointer(tmp_path, keep_last=1) as c:
        assert_same(c.restore_latest(abstract(make_state()))[0], make_state(1))
        save(c, 2)
    assert available_steps(tmp_path) == [2]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run with checkpoints 1, 2 and 3; no test changes it."""
    run = tmp_path_factory.mktemp("three")
    with checkpointer(run) as c:
        save(c, 1, 2, 3)
    return run


PASSING = (
    "EACCES",
    "EPERM",
    "EIO",
    "ESTALE",
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "EINTR",
    "ETIMEDOUT",
    "EAGAIN",
    "ENODEV",
)


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("where", ["manifest.json", "meta/meta.json", "params/d/*", "opt_state/d/*"])
def test_what_cannot_be_read_now_is_no_damage(three, monkeypatch, capfd, name, where):
    code = getattr(errno, name)
    file = next((three / "checkpoints/3").glob(where))
    opened = open

    def fails(path, *args, **kwargs):
        if isinstance(path, (str, Path)) and Path(path) == file:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", fails)
    monkeypatch.setattr("io.open", fails)  # pathlib's
    before = sorted(os.listdir(three / "checkpoints"))

    def resume():
        with checkpointer(three) as c:
            c.restore_latest(abstract(make_state()))

    of_weights = not where.startswith("opt_state")
    for read in (resume, lambda: restore_params(three))[: 1 + of_weights]:
        with pytest.raises(WorkError) as e:
            read()
        assert str(file) in str(e.value) and os.strerror(code) in str(e.value) and "no damage" in str(e.value)
    assert of_weights or restore_params(three)[1] == 3
    assert sorted(os.listdir(three / "checkpoints")) == before and "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize("name", [checksums.MANIFEST, "a"])
def test_a_pipe_in_a_files_place_is_damage_and_not_waited_for(tmp_path, name):
    (tmp_path / "a").touch()
    checksums.write_manifest(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert checksums.verify_manifest(tmp_path) == [f"{name} is a named pipe"]


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000, '{"files": {"params/x": [' + "1" * 5000 + ", 1]}}"])
def test_a_manifest_of_any_content_is_damage_at_most(tmp_path, text):
    with checkpointer(tmp_path) as c:
        save(c, 1, 2)
    (tmp_path / "checkpoints/2/manifest.json").write_text(text)
    (tmp_path / "config.json").write_text(text)
    guard_run_dir(tmp_path, CONFIG)
    with checkpointer(tmp_path) as c:
        assert_same(c.restore_latest(abstract(make_state()))[0], make_state(1))


def unlink(path: Path) -> None:
    path.unlink()


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("lose", [unlink, dangle])
def test_without_manifest_it_is_damaged_where_an_older_one_is_whole(tmp_path, capfd, lose):
    """This program never leaves a checkpoint without one; a flipped byte could not be seen."""
    with checkpointer(tmp_path) as c:
        save(c, 1, 2, 3)
    for step in (2, 3):
        lose(tmp_path / f"checkpoints/{step}/manifest.json")
    assert restore_params(tmp_path)[1] == 1
    with checkpointer(tmp_path) as c:
        assert_same(c.restore_latest(abstract(make_state()))[0], make_state(1))
    message = capfd.readouterr().err
    assert "checkpoints/3 is damaged and is not used: manifest.json is missing" in message
    assert available_steps(tmp_path) == [1] and (tmp_path / "checkpoints/2.corrupt").is_dir()
    lose(tmp_path / "checkpoints/1/manifest.json")  # the only one: read, and said
    with checkpointer(tmp_path) as c:
        assert_same(c.restore_latest(abstract(make_state()))[0], make_state(1))
    assert "step 1 has no manifest.json: it was read" in capfd.readouterr().err


def test_what_has_a_checkpoints_name_and_is_none_is_said(tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    with checkpointer(tmp_path) as c:
        save(c, 5, 7)
    (folder / "3").write_text("x")
    (folder / "6").symlink_to("nowhere")
    with checkpointer(tmp_path) as c:
        assert c.restore_latest(abstract(make_state()))[1]["step"] == 7
    message = capfd.readouterr().err
    assert f"{folder / '3'} is a file, not a folder; it is not used" in message
    assert f"{folder / '6'} is a link to nowhere, which is not there; it is not used" in message
    for make, what in ((lambda p: p.write_text("x"), "a file"), (lambda p: p.symlink_to("/mnt/gone"), "/mnt/gone")):
        make(folder / "9")
        with checkpointer(tmp_path) as c, pytest.raises(UserError, match=f"checkpoints/9 is .*{what}.*remove it"):
            c.restore_latest(abstract(make_state()))
        (folder / "9").unlink()
    assert available_steps(tmp_path) == [5, 7]


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: p.symlink_to("nowhere")])
@pytest.mark.parametrize("which", ["", "checkpoints"])
def test_a_file_or_a_dangling_link_as_folder(tmp_path, make, which):
    run = tmp_path / "run"
    if which:
        run.mkdir()
    make(run / which)
    with pytest.raises(UserError, match=f"run{'/checkpoints' if which else ''}:? is a (file, not|link to nowhere)"):
        guard_run_dir(run, CONFIG)
    if which:
        with pytest.raises(UserError, match="is a (file, not|link to nowhere)"):
            checkpointer(run)


# What metrics.jsonl says: {event: step}, the last training step, the newest checkpoint by then, every_steps.
LOST = {
    "finished": ([("start", 0), ("end", 80)], 80, None, 0),
    "stopped": ([("start", 0), ("stopped", 40), ("end", 40)], 40, None, 0),
    "resumed once": ([("start", 0), ("start", 20)], 22, None, 0),
    "killed after a save": ([("start", 0)], 75, 70, 5),
    "killed, by an earlier version": ([("start", 0)], 11, None, 5),
    "numbers without a beginning": ([], 3, None, 0),
}
NOTHING_LOST = {
    "no numbers": ([], 0, None, 0),
    "only begun": ([("start", 0)], 0, None, 5),
    "stopped before the first step": ([("start", 0), ("stopped", 0), ("end", 0)], 0, None, 5),
    "killed before the first save": ([("start", 0)], 40, None, 0),
    "killed in the first save": ([("start", 0)], 7, None, 5),
    "stopped, and killed in the save that this began": ([("start", 0), ("stopped", 40)], 40, None, 0),
    "begun again, killed before the first save": ([("start", 0), ("end", 80), ("start", 0)], 4, None, 0),
}


def run_of(folder: Path, events, reached: int, whole: int | None, every: int) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"checkpoint": {"every_steps": every}}))
    with MetricsLogger(folder, tensorboard=False) as log:
        for event, step in events:
            log.event(event, step)
        for step in range(1, reached + 1):
            more = {"checkpoint_step": whole} if whole and step > whole else {}
            log.train(step, {"loss": 1.0, **more})


@pytest.mark.parametrize("case", LOST)
def test_a_run_whose_checkpoints_are_gone_does_not_start_again_in_silence(tmp_path, case):
    run_of(tmp_path, *LOST[case])
    with checkpointer(tmp_path) as c:
        with pytest.raises(UserError) as e:
            c.restore_latest(abstract(make_state()))
        for text in ("metrics.jsonl says that step", f"{tmp_path / 'checkpoints'} holds none", "--config.restart=true"):
            assert text in one_line(e.value)
        assert c.restore_latest(abstract(make_state()), restart=True) is None


@pytest.mark.parametrize("case", NOTHING_LOST)
def test_a_run_that_never_saved_starts_again(tmp_path, case):
    run_of(tmp_path, *NOTHING_LOST[case])
    with checkpointer(tmp_path) as c:
        assert c.restore_latest(abstract(make_state())) is None


@pytest.mark.parametrize(("newest", "said"), [(70, 0), (65, 1)])
def test_a_newest_checkpoint_that_is_gone_is_told(tmp_path, capfd, newest, said):
    """Older ones are left: a copy of yesterday, a folder that was removed."""
    with checkpointer(tmp_path) as c:
        save(c, newest)
    run_of(tmp_path, [("start", 0)], 75, 70, 5)
    with checkpointer(tmp_path) as c:
        _, meta = c.restore_latest(abstract(make_state()))
    assert meta["step"] == newest
    assert capfd.readouterr().err.count("a checkpoint of step 70 was saved, the newest in") == said


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match="config.json: cannot be written .File too large"):
        output_files.write_json(tmp_path / "config.json", {})
    assert os.listdir(tmp_path) == []


def test_a_state_on_disk_is_covered(three):
    """`files_of` finds what the tests above damage."""
    assert files_of(three, 3, "params") and files_of(three, 3, "opt_state")
