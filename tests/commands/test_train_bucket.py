"""Runs whose directory lies in a bucket: as on a disk, bit for bit, in spite of faults, kills and a second process."""

import json
import random
import re

import numpy as np
import pytest

from mmed_jax import doctor, export, report
from mmed_jax.checkpoints import bucket_run
from mmed_jax.checkpoints.metrics_file import metrics_version, read_metrics
from mmed_jax.common.buckets import lease, ranged_file
from mmed_jax.common.buckets.bucket import Bucket
from mmed_jax.common.places import parse_place
from tests.support import fake_gcs
from tests.support.fake_gcs import fake_cloud
from tests.support.training import (  # noqa: F401
    SLOWLY,
    STEPS,
    assert_same_state,
    bench,
    call,
    cut_back,
    files,
    finish,
    last_step,
    losses,
    reproduced,
    saved,
    state_of,
    wait_for,
)

SILENCE_S = 120.0
KEEP = {"checkpoint__keep_last": 2}
# As SLOWLY; a request that failed is tried again after a fraction of the seconds.
BRIEFLY = "import pytest\nfrom tests.support import fake_gcs\nfake_gcs.impatient(pytest.MonkeyPatch())\n"
IMPATIENTLY = (*SLOWLY[:2], BRIEFLY + SLOWLY[2])


@pytest.fixture(scope="module")
def server():
    with fake_cloud("bucket") as server:
        yield server


@pytest.fixture
def cloud(server):
    yield server
    server.heal()


@pytest.fixture(scope="module")
def finished(bench, server) -> str:  # noqa: F811
    """A run of 24 steps in the bucket, checkpoints at 18 and 24."""
    outcome = bench.train("gs://bucket/runs/one", **KEEP, tensorboard=True)
    assert outcome.code == 0, outcome.err
    assert "numbers in gs://bucket/runs/one/metrics, curves in gs://bucket/runs/one/report.html" in outcome.out
    return "gs://bucket/runs/one"


def names(cloud, run: str) -> list[str]:
    return [n.removeprefix(f"{run.removeprefix('gs://bucket/')}/") for n in cloud.names("bucket", run[12:] + "/")]


def copied(cloud, run: str, to: str, without: str = "$^") -> str:
    """A copy of a run, without the objects whose names match."""
    for name in names(cloud, run):
        if not re.match(without, name):
            cloud.write("bucket", f"{to[12:]}/{name}", cloud.read("bucket", f"{run[12:]}/{name}"))
    return to


def assert_as_on_disk(bench, run):  # noqa: F811
    assert reproduced(run) == reproduced(bench.reference)
    assert_same_state(state_of(run, STEPS), state_of(bench.reference, STEPS))


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bench, cloud, finished):  # noqa: F811
    assert saved(finished) == [18, 24]
    assert_as_on_disk(bench, finished)
    there = names(cloud, finished)
    tops = {n.partition("/")[0] for n in there}
    assert tops == {"checkpoints", "config.json", "hf_assets", "metrics", "report.html", "tensorboard"}
    manifest = json.loads(cloud.read("bucket", "runs/one/checkpoints/24/manifest.json"))
    assert manifest["checksum"] == "crc32c" and not any(n.endswith("manifest.json") for n in manifest["files"])
    outcome = call(report.main, "--run", finished)
    assert outcome.code == 0 and "gs://bucket/runs/one/report.html" in outcome.out, outcome.err
    assert b"last step" in cloud.read("bucket", "runs/one/report.html")
    both = call(
        report.main, "--run", f"here={bench.reference},there={finished}", "--output=gs://bucket/pages/both.html"
    )
    assert (both.code, both.out) == (0, "gs://bucket/pages/both.html\n"), both.err
    assert b'data-name="there"' in cloud.read("bucket", "pages/both.html")
    version = metrics_version(finished)
    assert version == metrics_version(finished) != metrics_version("gs://bucket/runs/none")
    outcome = call(report.main, "--run", finished, "--profile")
    assert outcome.code == 2 and "gs://bucket/runs/one: no profile there" in outcome.error
    refused = call(export.main, "--model", finished, "--best", "--output=exports/none").error
    assert f"no checkpoint of {finished} was saved with a validation/loss (there are 18, 24)" in refused
    # Again: complete, and nothing changes but the lock, which comes and goes.
    before = names(cloud, finished)
    outcome = bench.train(finished, **KEEP)
    assert outcome.code == 0 and f"complete   step {STEPS}" in outcome.out, outcome.err
    assert names(cloud, finished) == before


def test_a_damaged_step_is_marked_and_saved_again(bench, cloud, finished):  # noqa: F811
    run = copied(cloud, finished, "gs://bucket/runs/damaged")
    largest = max(
        (n for n in cloud.names("bucket", "runs/damaged/checkpoints/24/params/") if "/d/" in n),
        key=lambda n: len(cloud.read("bucket", n)),
    )
    data = bytearray(cloud.read("bucket", largest))
    data[len(data) // 2] ^= 1
    cloud.write("bucket", largest, data)
    outcome = bench.train(run, **KEEP, **{"eval_every": 0})
    assert outcome.code == 0, outcome.err
    assert "has another checksum than when it was written" in outcome.err
    assert "checkpoint of step 24 marked by 24.corrupt.json" in outcome.err
    assert f"resumed    step 18 of {STEPS}" in outcome.out
    # Every step once, though six were done twice.
    assert [e["step"] for e in read_metrics(run).events if e["event"] == "start"] == [0, 18]
    assert saved(run) == [18, 24] and "checkpoints/24.corrupt.json" not in names(cloud, run)
    assert_as_on_disk(bench, run)


def test_what_a_bucket_refuses_and_who_holds_the_run_is_one_line(bench, cloud, finished, monkeypatch):  # noqa: F811
    other = "https://bucket/run"
    assert "places of https:// are not supported" in bench.train(other).error
    assert "gs://nowhere" in bench.train("gs://nowhere/run").error
    cloud.fault("POST .*upload", status=403)
    refused = bench.train("gs://bucket/runs/refused")
    assert refused.code == 2 and "gs://bucket/runs/refused/.write_test" in refused.error and "403" in refused.error
    cloud.heal()
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lease.Lease.__init__, "__defaults__", (0.2, print))
    holder = lease.Lease(Bucket("bucket"), "runs/one/.lock", "run_dir=gs://bucket/runs/one", 0.1)
    holder.take()
    found = doctor.Findings()
    doctor.check_bucket(found, parse_place(finished))
    doctor.check_run_lock(found, parse_place(finished))
    assert not found.problems and "writable, three requests" in found.block()
    assert re.search(r"\nrun lock +held by process \d+ on \S+, 0 s ago\n", found.block()), found.block()
    busy = bench.train(finished, **KEEP)
    assert busy.code == 2 and "is in use by another process" in busy.error
    holder.release()
    another = bench.train(finished, **KEEP, optim__lr=0.5)
    assert another.code == 2 and "holds step 24 of a run with another config: optim.lr: 0.01" in another.error


def test_a_silent_bucket_a_kill_and_faults_leave_the_run_as_on_a_disk(bench, cloud, monkeypatch):  # noqa: F811
    run = "gs://bucket/runs/killed"
    # Array data is taken and never answered: the libraries would try for hours.
    silence = cloud.fault("POST .*checkpoints%2F6%2F.*params", delay=SILENCE_S)
    (late,) = finish(bench.start(run, **KEEP, checkpoint__deadline_minutes=0.1))
    assert late.code == 1 and silence.seen, late.err
    assert (
        "checkpoint of step 6 in gs://bucket/runs/killed/checkpoints was not written in 6 s"
        in late.err.splitlines()[-1]
    )
    assert saved(run) == []
    cloud.heal()
    draw = random.Random(7)
    for status in (503, 429):
        cloud.fault("storage/v1", status=status, probability=0.03)
    cloud.fault("storage/v1", drop="after", probability=0.02)
    slow = cloud.fault("POST .*checkpoints%2F12%2F.*commit", delay=1.0, times=1)
    cloud.advance(100)  # the lock of who was killed becomes stale
    process = bench.start(run, **KEEP, command=IMPATIENTLY)
    wait_for(lambda: any("checkpoints/12/" in n for n in cloud.names("bucket", "runs/killed/")), process)
    wait_for(lambda: draw.random() < 0.05, process)
    process.kill()
    process.communicate()
    assert 12 not in saved(run) or last_step(run) >= 12
    cloud.advance(100)
    fake_gcs.impatient(monkeypatch)
    outcome = bench.train(run, **KEEP)
    assert outcome.code == 0, outcome.err
    assert "resumed    step " in outcome.out
    assert_as_on_disk(bench, run)
    assert saved(run) == [18, 24] and slow.seen


def test_two_processes_go_on_with_a_run_that_was_copied_from_a_disk(bench, cloud, tmp_path):  # noqa: F811
    run = "gs://bucket/runs/two"
    for name, data in files(cut_back(bench.reference, tmp_path / "run", 18)).items():
        cloud.write("bucket", f"runs/two/{name}", data)
    outcomes = finish(*bench.start_two(run, **KEEP))
    assert [o.code for o in outcomes] == [0, 0], [o.err for o in outcomes]
    assert f"resumed    step 18 of {STEPS}" in outcomes[0].out
    assert saved(run) == [18, 24]
    np.testing.assert_allclose(losses(run), losses(bench.reference), rtol=1e-4)
    ours, theirs = state_of(run, STEPS), state_of(bench.reference, STEPS)
    assert ours.keys() == theirs.keys()


def test_a_process_that_has_lost_the_lock_finishes_no_checkpoint(bench, cloud, monkeypatch):  # noqa: F811
    run, flush = "gs://bucket/runs/lost", bucket_run.BucketRun.flush

    def another_takes_over(self):
        flush(self)
        cloud.write("bucket", "runs/lost/.lock", b'{"host": "other", "process": 7}')

    monkeypatch.setattr(bucket_run.BucketRun, "flush", another_takes_over)
    outcome = bench.train(run, **KEEP)
    line = outcome.err.splitlines()[-1]
    assert outcome.code == 1 and line.startswith("error: checkpoint of step 6 in gs://bucket/runs/lost/checkpoints")
    assert "lock was taken over by process 7 on other" in line and "no checkpoint exists yet" in line
    assert saved(run) == [] and cloud.read("bucket", "runs/lost/.lock").endswith(b"7}")
    # The numbers up to there are in the bucket all the same, in whole lines.
    assert last_step(run) >= 6


def test_the_next_stage_starts_from_a_run_in_a_bucket(bench, cloud, finished, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "fetched"))
    monkeypatch.setattr(ranged_file, "LEAST", 1000)  # of a large run the weights stay where they are
    here, there = (
        bench.train(tmp_path / name, "stage2", init_from=start, steps=2, epochs=0, data__seq_len=256)
        for name, start in (("here", bench.reference), ("there", finished))
    )
    assert here.code == there.code == 0, there.err
    assert reproduced(tmp_path / "here") == reproduced(tmp_path / "there")
    assert list((tmp_path / "fetched").rglob("checkpoints/*/meta"))
    assert not list((tmp_path / "fetched").rglob("checkpoints/*/params"))


def test_a_run_in_a_bucket_is_exported_as_that_on_a_disk(bench, cloud, finished, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "fetched"))
    for model, output in ((finished, "gs://bucket/exports/there"), (bench.reference, tmp_path / "here")):
        outcome = call(export.main, f"--model={model}", f"--output={output}")
        assert outcome.code == 0, outcome.err
    here = {p.name: p.read_bytes() for p in (tmp_path / "here").iterdir() if p.suffix != ".md"}
    del here["mmed_jax_export.json"]
    # The card names the run by its address, not by where it lies here.
    assert str(tmp_path) not in cloud.read("bucket", "exports/there/README.md").decode()
    assert {name: cloud.read("bucket", f"exports/there/{name}") for name in here} == here
