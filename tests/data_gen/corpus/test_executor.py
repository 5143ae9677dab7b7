"""Stages in processes: a worker that dies is seen, retried and named; a part is whole or not there."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver

import pytest

from data_gen.corpus.executor import LocalExecutor, split_tasks
from data_gen.corpus.run_task import main as run_task
from data_gen.corpus.stage_folder import Stage, StageFolder, open_file
from mmed_jax.common.errors import UserError, WorkError


def stage(function="count_up", parts=4, settings=None, **context) -> Stage:
    settings = {"word": "a", **(settings or {})}
    listed = [{"n": n} for n in range(parts)]
    return Stage("count", f"tests.support.corpus_stages:{function}", listed, settings, context=context)


def local(**values) -> LocalExecutor:
    return LocalExecutor(**values, preload=("data_gen.corpus.run_task",))


def contents(folder: StageFolder) -> dict[str, bytes]:
    return {p.relative_to(folder.path).as_posix(): p.read_bytes() for p in sorted(folder.path.rglob("parts/*/*"))}


def test_what_changes_is_another_folder(tmp_path, monkeypatch):
    """Settings, contents of files, code, the stages before, parts; context and the executor's tasks are not in it."""
    words = tmp_path / "words.txt"
    words.write_text("fever\n")
    base = stage()

    def name(**changes) -> str:
        values = {**vars(base), "files": {"fr": words}, **changes}
        return StageFolder.make(tmp_path, Stage(**values)).path.name

    first = name()
    assert first == name() == name(context={"root": "/elsewhere"})
    others = [
        name(settings={"word": "b"}),
        name(parts=[{"n": 1}]),
        name(before={"read": "0"}),
        name(function="tests.support.corpus_stages:fail"),
        name(modules=("data_gen.corpus.lines_reader",)),
    ]
    words.write_text("cough\n")
    others.append(name())
    monkeypatch.setattr("data_gen.corpus.stage_folder.library_versions", lambda: {"datatrove": "0.11"})
    others.append(name())
    assert len({first, *others}) == len(others) + 1


def test_parts_are_the_same_however_they_are_divided(tmp_path):
    one, many = (StageFolder.make(tmp_path / name, stage(parts=5)) for name in ("one", "many"))
    local(workers=1, tasks=1).run(one)
    local(workers=3).run(many)
    assert contents(one) == contents(many) and len(contents(one)) == 10
    assert one.marker(3)["rows"] == 3 and one.pending() == []
    before = {p: p.stat().st_mtime_ns for p in one.path.rglob("parts/*/*")}
    local(workers=1).run(one)  # nothing is left to do
    assert before == {p: p.stat().st_mtime_ns for p in one.path.rglob("parts/*/*")}


def test_a_killed_worker_is_tried_again(tmp_path):
    says = []
    folder = StageFolder.make(tmp_path, stage("die", marks=str(tmp_path), dying=[1, 2], times=2, signal="SIGKILL"))
    local(workers=2, say=says.append).run(folder)
    assert folder.pending() == []
    assert len(says) == 4 and all("ended by SIGKILL (out of memory?); tried again" in text for text in says)
    assert "half.txt" in folder.marker(1)["files"] and not list(folder.path.glob("parts/.*"))


def test_the_process_that_workers_come_from_may_be_killed_too(tmp_path):
    folder = StageFolder.make(tmp_path, stage(parts=3))
    executor = local(workers=1)
    executor.run(folder)
    for number in range(2):
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        folder = StageFolder.make(tmp_path / str(number), stage(parts=3))
        executor.run(folder)
        assert folder.pending() == []


def test_a_worker_that_is_killed_each_time_is_named_and_the_rest_is_done(tmp_path):
    folder = StageFolder.make(tmp_path, stage("die", marks=str(tmp_path), dying=[2], times=9, signal="SIGKILL"))
    with pytest.raises(WorkError, match=r"stage count-\w+: task 2 \(parts 2\): .* ended by SIGKILL .*3 tries"):
        local(workers=2).run(folder)
    assert folder.pending() == [2]


@pytest.mark.parametrize(
    "kind, error, text",
    [
        ("user", UserError, r"part 0 of count-\w+: raw/x.parquet: has no text"),
        ("fault", WorkError, r"part 0 of count-\w+: ZeroDivisionError: 1 / 0 \(1 try\)"),
        ("memory", WorkError, "MemoryError"),
    ],
)
def test_what_a_task_raises_is_one_line(tmp_path, kind, error, text):
    folder = StageFolder.make(tmp_path, stage("fail", parts=1, settings={"kind": kind}))
    with pytest.raises(error, match=text) as e:
        local(workers=1, retries=0, memory_gb=1).run(folder)
    assert "\n" not in str(e.value)
    if kind != "memory":  # no limit here
        assert run_task([f"--stage={folder.path}", f"--tasks={_tasks(tmp_path)}"]) == (2 if kind == "user" else 1)


def _tasks(tmp_path):
    (tmp_path / "tasks.json").write_text("[[0]]")
    return tmp_path / "tasks.json"


def test_damage_is_seen(tmp_path):
    folder = StageFolder.make(tmp_path, stage(parts=2))
    local(workers=1, tasks=1).run(folder)
    folder.check()
    lines = folder.part(1) / "lines.txt"
    lines.write_text("b\n")
    with pytest.raises(WorkError, match="another checksum.*remove this folder"):
        open_file(folder.part(1), "lines.txt")
    lines.write_text("")
    with pytest.raises(WorkError, match="lines.txt has 0 bytes instead of 2"):
        folder.check()
    (folder.part(0) / "marker.json").write_text("{")
    with pytest.raises(WorkError, match="no marker.json that can be read"):
        folder.check()


def test_workers_end_with_their_parent_and_the_same_command_goes_on(tmp_path):
    """The parent is killed while its workers sleep; they write nothing afterwards."""
    program = (
        "import sys; from pathlib import Path\n"
        "from data_gen.corpus.executor import LocalExecutor\n"
        "from data_gen.corpus.stage_folder import StageFolder\n"
        "if __name__ == '__main__': LocalExecutor(workers=2, preload=()).run(StageFolder(Path(sys.argv[1])))\n"
    )
    (tmp_path / "run.py").write_text(program)
    folder = StageFolder.make(tmp_path, stage(parts=8, seconds=0.4))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, tmp_path / "run.py", folder.path], env=environment)
    _wait(lambda: len(folder.pending()) <= 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = folder.pending()
    time.sleep(0.9)
    assert folder.pending() == left and left
    folder.context["seconds"] = 0
    (folder.path / "stage.json").write_text(json.dumps({"key": folder.key, "context": folder.context}))
    subprocess.run([sys.executable, tmp_path / "run.py", folder.path], env=environment, check=True)
    assert folder.pending() == [] and not list(folder.path.glob("parts/.*"))


def _wait(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_split_tasks():
    assert split_tasks([3, 5, 6], 0) == [[3], [5], [6]] and split_tasks([], 4) == []
    assert split_tasks(range(5), 2) == [[0, 1], [2, 3, 4]] and split_tasks([1], 9) == [[1]]
