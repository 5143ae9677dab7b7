"""Hosts that do not mean the same run are refused, each difference named with its values and hosts."""

import subprocess
import time

import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.places import parse_place
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.recipes import load_config
from mmed_jax.parallel import host_facts
from mmed_jax.parallel.host_comparison import HostsDiffer, agree, compare, failure
from mmed_jax.parallel.shared_work import make_once_a_storage, makers
from mmed_jax.training.host_agreement import compiled_together
from tests.support.hosts import hosts

HOSTS = {0: "host-a", 1: "host-b", 2: "host-c"}


@pytest.fixture(scope="module")
def three():
    with hosts(3) as started:
        yield started


def facts(**changed):
    """The facts of a process whose config has other values ("optim__lr")."""
    config = load_config("stage1")
    with config.unlocked():
        for name, value in changed.items():
            config.update_from_flattened_dict({name.replace("__", "."): value})
    return host_facts.host_facts(config, {"run_dir": "one folder"}, {}, time.time())


def test_every_key_is_compared_but_those_of_a_host():
    config = load_config("stage1")
    before = host_facts.config_facts(config)
    assert {f"config.{name}" for name in KEYS} - before.keys() == {f"config.{n}" for n, k in KEYS.items() if k.per_host}
    # Each key in turn, and each other fact.
    stated = facts()
    for name in stated.keys() - {host_facts.TIME, host_facts.FREE, "training hash"}:
        differs = {**stated, name: "another value"}
        (line,), warnings = compare({0: stated, 1: differs, 2: stated}, HOSTS)
        assert line.startswith(f"{name} differs between hosts: "), line
        assert " on processes 0, 2 (host-a, host-c); another value on process 1 (host-b)" in line and not warnings
    # A fact that one host alone has; one that a host cannot know.
    flagged = {**stated, "XLA_FLAGS --xla_x": "1"}
    assert compare({0: stated, 1: flagged}, HOSTS)[0] == [
        "XLA_FLAGS --xla_x differs between hosts: not set on process 0 (host-a); 1 on process 1 (host-b)"
    ]
    assert compare({0: stated, 1: {**stated, "git commit": None, "local changes": None}}, HOSTS) == ([], [])


def test_one_line_a_difference_on_every_host(three):
    """Learning rate and seed differ on one host: all three end with the same two lines."""
    stated = [facts(), facts(optim__lr=1e-2, seed=7), facts()]
    results = three.run(lambda c: agree(c, "run", stated[c.index]))
    assert all(isinstance(e, HostsDiffer) for e in results)
    lr = stated[0]["config.optim.lr"]
    assert {e.lines for e in results} == {
        (
            f"config.optim.lr differs between hosts: {lr} on processes 0, 2 (host-a, host-c); "
            "0.01 on process 1 (host-b)",
            "config.seed differs between hosts: 0 on processes 0, 2 (host-a, host-c); 7 on process 1 (host-b)",
        )
    }
    assert three.run(lambda c: agree(c, "run", stated[0])) == [None] * 3


def test_code_that_differs_is_named_by_file(three, tmp_path):
    folder = tmp_path / "mmed_jax"
    folder.mkdir()
    (folder / "a.py").write_text("a = 1")
    (folder / "b.py").write_text("b = 1")
    code, files = host_facts.code_facts(tmp_path), host_facts.source_files(tmp_path)
    assert code["git commit"] is None and list(files) == ["mmed_jax/a.py", "mmed_jax/b.py"]
    (folder / "b.py").write_text("b = 2")
    changed = host_facts.code_facts(tmp_path), host_facts.source_files(tmp_path)
    by_host = [(code, files), changed, (code, files)]

    def work(c):
        code, files = by_host[c.index]
        return agree(c, "run", code, files=lambda: files)

    (line,) = three.run(work)[2].lines
    assert line.startswith("code differs between hosts: ") and line.endswith("(host-b), in mmed_jax/b.py")


def test_commit_and_local_changes(tmp_path):
    (tmp_path / "mmed_jax").mkdir()
    file = tmp_path / "mmed_jax" / "a.py"
    file.write_text("a = 1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    clean = host_facts.code_facts(tmp_path)
    assert len(clean["git commit"]) == 12 and clean["local changes"] == "none"
    file.write_text("a = 2")
    changed = host_facts.code_facts(tmp_path)
    assert changed["git commit"] == clean["git commit"] and changed["local changes"].endswith(" in mmed_jax/a.py")
    lines, _ = compare({0: clean, 1: changed}, HOSTS)
    assert [line.partition(" differs")[0] for line in lines] == ["local changes", "code"]

    # As a launcher copies it: no .git, the commit in a file.
    (tmp_path / ".git").rename(tmp_path / "elsewhere")
    (tmp_path / ".commit").write_text(f"{'ab' * 20}\n")
    copied = host_facts.code_facts(tmp_path)
    assert (copied["git commit"], copied["local changes"]) == ("ab" * 6, "none")
    (tmp_path / ".commit").write_text(f"{'ab' * 20}\nchanges 0123456789ab\n")
    assert host_facts.code_facts(tmp_path)["local changes"] == "0123456789ab"


def test_clocks_and_disks_have_limits(three):
    stated = {host_facts.TIME: time.time(), host_facts.FREE: {"config.run_dir": 100.0}}
    late = {host_facts.TIME: stated[host_facts.TIME] - 20, host_facts.FREE: {"config.run_dir": 0.5}}
    said = []
    results = three.run(lambda c: agree(c, "run", late if c.index == 1 else stated, warning=said.append))
    assert results == [None] * 3
    assert said == [
        "the clock of process 1 (host-b) is 20.0 s behind (limit 5 s): times in its files are off by as much",
        "config.run_dir: only 0.5 GiB free on process 1 (host-b) (limit 5 GiB)",
    ]
    late[host_facts.TIME] -= 40
    assert compare({0: stated, 1: late}, HOSTS)[0] == [
        "the clock of process 0 (host-a) is 60.0 s ahead (limit 30 s): set the clocks"
    ]


def test_who_does_not_answer_is_named_and_waited_for_no_longer(three):
    three.run(lambda c: None)
    start = time.monotonic()
    results = three.run(lambda c: c.index != 1 and agree(c, "run", {}, seconds=1))
    assert [isinstance(e, WorkError) for e in results] == [True, False, True] and time.monotonic() - start < 10
    wanted = "process 1 (host-b) did not answer within 1 s (run); the output there says why"
    assert str(results[0]) == str(results[2]) == wanted


def folders_of(tmp_path, *names):
    return [tmp_path / name for name in names]


def test_a_folder_is_shared_or_each_host_makes_its_own(three, tmp_path):
    folders = folders_of(tmp_path, "shared", "shared", "own")
    assert three.run(lambda c: makers(c, folders[c.index], "x")) == [{0: 0, 1: 0, 2: 2}] * 3
    # In a bucket: who names the same place shares it.
    places = [parse_place(f"gs://bucket/{name}") for name in ("a", "a", "b")]
    assert three.run(lambda c: makers(c, places[c.index], "x")) == [{0: 0, 1: 0, 2: 2}] * 3
    assert three.run(lambda c: makers(c, [places[0], folders[1]][c.index % 2], "x")) == [{0: 0, 1: 1, 2: 0}] * 3
    made, said = [], []

    def product(c, writes, content="rows"):
        path = folders[c.index] / "table"
        if writes and not path.exists():
            made.append(c.index)
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return path.read_text()

    def make(c, content="rows"):
        work = lambda writes: product(c, writes, content)  # noqa: E731
        return make_once_a_storage(c, folders[c.index], work, lambda t: {"rows": t}, name="the table", say=said.append)

    assert three.run(make) == ["rows"] * 3 and sorted(made) == [0, 2]
    assert said == [
        f"the table: {folders[0]} is not shared by all hosts, so process 2 (host-c) will make it there as well"
    ]
    assert not list(tmp_path.rglob(".shared.*"))

    # What came of it is not equal.
    (folders[2] / "table").write_text("other rows")
    results = three.run(make)
    wanted = "rows differs between hosts: rows on processes 0, 1 (host-a, host-b); other rows on process 2 (host-c)"
    assert [e.lines for e in results] == [(wanted,)] * 3


@pytest.mark.parametrize("failing", [0, 2])
def test_one_that_cannot_make_it_ends_all(three, tmp_path, failing):
    folders = folders_of(tmp_path, "shared", "shared", "own")

    def make(c):
        def work(writes):
            if writes and c.index == failing:
                raise UserError("a.jsonl: no such file")
            return 1

        return make_once_a_storage(c, folders[c.index], work, lambda t: {"rows": t}, name="the table")

    results = three.run(make)
    assert all(isinstance(e, UserError) for e in results), results
    assert str(results[failing]) == "a.jsonl: no such file"
    where = "" if failing == 0 else "process 2 (host-c): "
    assert str(results[1]) == f"{where}a.jsonl: no such file"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (UserError("a.jsonl: no such file"), UserError, "a.jsonl: no such file"),
        (OSError(5, "Input/output error"), WorkError, "[Errno 5] Input/output error"),
        (KeyError("rows"), WorkError, "KeyError: 'rows'"),  # a fault of the program, whose message alone says nothing
    ],
)
def test_whatever_one_fails_with_ends_all(three, error, kind, said):
    results = three.run(lambda c: agree(c, "start", failure(error) if c.index == 1 else {}))
    assert [type(e) for e in results] == [kind] * 3
    assert {str(e) for e in results} == {f"process 1 (host-b): {said}"}


def test_no_host_runs_what_others_still_compile(three):
    """The first call waits for the slowest, and only the first."""
    events = []

    def work(c):
        class Jitted:
            def lower(self, *arguments):
                return self

            def compile(self):
                time.sleep(0.3 if c.index == 1 else 0)
                events.append("compiled")

            def __call__(self, x):
                events.append("called")
                return x + 1

        step = compiled_together(Jitted(), c, "the step")
        return step(1), step(2)

    assert three.run(work) == [(2, 3)] * 3
    assert events[:3] == ["compiled"] * 3 and events[3:] == ["called"] * 6
    function = print
    assert compiled_together(function, None, "the step") is function
