"""A log that grows reaches the bucket as whole lines, each once, whatever is lost on the way."""

import json
import random
import time

import pytest

from mmed_jax.common.buckets import bucket as bucket_module
from mmed_jax.common.buckets.growing_files import GrowingFiles, read_segments
from mmed_jax.common.errors import WorkError
from mmed_jax.common.places import parse_place
from tests.support.fake_gcs import fake_gcs


@pytest.fixture
def cloud(monkeypatch):
    with fake_gcs("bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def append(files, *lines, end="\n"):
    with open(files.folder / "metrics.jsonl", "a") as f:
        f.write("\n".join(lines) + end)


@pytest.mark.parametrize("run", ["gs://bucket/run", "gs://bucket"])
def test_every_line_arrives_once_in_order_in_spite_of_faults(cloud, run):
    place = parse_place(run)
    assert read_segments(place, "metrics.jsonl") == b""
    cloud.fault("POST .*upload", drop="after", probability=0.3)
    cloud.fault("POST .*upload", status=503, probability=0.3)
    draw, said = random.Random(3), []
    for start in range(2):
        files = GrowingFiles(place, "metrics.jsonl", interval_s=0.02)
        for step in range(8):
            said.append(json.dumps({"start": start, "step": step}))
            append(files, said[-1])
            if draw.random() < 0.5:
                files.flush()
        (files.folder / "tensorboard").mkdir()
        (files.folder / "tensorboard" / f"events.{start}").write_text("x" * start)
        append(files, '{"torn', end="")  # as a kill leaves it: no segment has half a line
        files.close()
        assert not files.folder.exists()
    assert read_segments(place, "metrics.jsonl").decode().splitlines() == said
    prefix = run.removeprefix("gs://bucket").lstrip("/")
    names = cloud.names("bucket", f"{prefix}/tensorboard" if prefix else "tensorboard")
    assert [n.rpartition(".")[2] for n in names] == ["0", "1"]


def test_what_could_not_be_sent_goes_later_with_the_same_bytes(cloud, monkeypatch, capfd):
    monkeypatch.setattr(bucket_module.open_bucket, "__defaults__", (1.0,))
    place = parse_place("gs://bucket/run")
    files = GrowingFiles(place, "metrics.jsonl", interval_s=0.05)
    # All is stored, no answer comes back.
    cloud.fault("POST .*upload", drop="after")
    append(files, "one")
    with pytest.raises(WorkError, match="no usable answer"):
        files.flush()
    append(files, "two")
    with pytest.raises(WorkError, match="what was not uploaded lies in"):
        files.close()
    cloud.heal()
    files.close()
    assert read_segments(place, "metrics.jsonl") == b"one\ntwo\n"
    # Of itself, after its interval.
    files = GrowingFiles(place, "metrics.jsonl", interval_s=0.05)
    append(files, "three")
    end = time.monotonic() + 10
    while not read_segments(place, "metrics.jsonl").endswith(b"three\n") and time.monotonic() < end:
        time.sleep(0.05)
    assert read_segments(place, "metrics.jsonl") == b"one\ntwo\nthree\n"
    files.close()


def test_segments_are_read_side_by_side(cloud):
    for n in range(32):
        cloud.write("bucket", f"run/metrics/00001-{n + 1:06}.jsonl", b"%d\n" % n)
    cloud.fault("GET .*media", delay=0.1)
    begun = time.monotonic()
    assert read_segments(parse_place("gs://bucket/run"), "metrics.jsonl").split() == [b"%d" % n for n in range(32)]
    assert time.monotonic() - begun < 2
