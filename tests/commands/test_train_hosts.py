"""Two processes that do not mean the same run take no step; hosts without a common cache each make their own table."""

import socket

import pytest

from tests.support.training import (
    bench,  # noqa: F401
    files,
    finish,
    losses,
    metrics,
)

pytestmark = pytest.mark.multidevice


def test_hosts_that_differ_take_no_step(bench, tmp_path):  # noqa: F811
    """Keys, and one that finds another run directory: a line each, the same on both."""
    run = tmp_path / "run"
    other = {"optim__lr": 1e-2, "data__max_repeats": 2.0, "run_dir": tmp_path / "another"}
    outcomes = finish(*bench.start_two(run, optim__lr=1e-4, second=other))
    assert [o.code for o in outcomes] == [2, 2], outcomes
    host = socket.gethostname()
    for outcome in outcomes:
        assert f"joining    process {outcomes.index(outcome)} of 2 on {host}, coordinator 127.0.0.1:" in outcome.out
        lines = [line.removeprefix("error: ") for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert lines[:2] == [
            f"config.data.max_repeats differs between hosts: 4.0 on process 0 ({host}); 2.0 on process 1 ({host})",
            f"config.optim.lr differs between hosts: 0.0001 on process 0 ({host}); 0.01 on process 1 ({host})",
        ]
        assert len(lines) == 3
        assert lines[2].startswith(f"run_dir differs between hosts: one folder on process 0 ({host}); another folder")
    assert not files(run) and not files(tmp_path / "another")


@pytest.mark.parametrize("refused", [0, 1])
def test_one_that_is_refused_before_it_joins_is_not_waited_for(bench, tmp_path, refused):  # noqa: F811
    """Its run directory is a file: both end with that, at once, whichever of them coordinates."""
    (tmp_path / "file").touch()
    places = [tmp_path / "run", tmp_path / "run"]
    places[refused] = tmp_path / "file"
    outcomes = finish(*bench.start_two(places[0], second={"run_dir": places[1]}), timeout=100)
    assert [o.code for o in outcomes] == [2, 2], outcomes
    problem = f"run_dir={tmp_path}/file: is a file, not a folder"
    assert outcomes[refused].error == problem
    who = "process 1 (" if refused else ""
    assert outcomes[1 - refused].error.startswith(who) and outcomes[1 - refused].error.endswith(problem), outcomes


def test_each_host_makes_its_own_table_where_no_cache_is_shared(bench, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    caches = tmp_path / "cache-a", tmp_path / "cache-b"
    outcomes = finish(*bench.start_two(run, data__cache_dir=caches[0], second={"data__cache_dir": caches[1]}))
    assert [o.code for o in outcomes] == [0, 0], outcomes
    assert f"{caches[0]} is not shared by all hosts, so process 1 (" in outcomes[0].out
    assert [p.name for p in caches[0].iterdir()] == [p.name for p in caches[1].iterdir()]
    assert losses(run) == pytest.approx(losses(bench.reference), rel=1e-5)
    # Compiled before the first step by all, and not once more for it.
    (compiled,) = [e for e in metrics(run).events if e["event"] == "compiled"]
    assert compiled["compile_count"] == 1 and compiled["compile_seconds"] > 0, compiled


def test_a_coordinator_that_nobody_knows(bench, tmp_path):  # noqa: F811
    process = bench.start(
        tmp_path / "run",
        distributed__coordinator="no-such-host.invalid:1234",
        distributed__num_processes=2,
        distributed__process_id=1,
    )
    (outcome,) = finish(process)
    assert outcome.code == 2 and "joining    process 1 of 2 on" in outcome.out, outcome
    start = "config.distributed.coordinator: the coordinator's host no-such-host.invalid is not known"
    assert outcome.error.startswith(start), outcome
