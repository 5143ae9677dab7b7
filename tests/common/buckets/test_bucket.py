"""Objects of a bucket: whole or not there, by precondition, in spite of faults, and failures in one line."""

import hashlib
import random

import pytest

from mmed_jax.common.buckets.bucket import (
    Bucket,
    Damaged,
    NoAnswer,
    PreconditionFailed,
    Refused,
    checksum_of,
    open_bucket,
)
from mmed_jax.common.places import parse_place


@pytest.fixture
def bucket(cloud):
    return Bucket("bucket", deadline_s=20)


def test_what_is_put_is_read_listed_and_removed(cloud, bucket, tmp_path):
    assert bucket.stat("a/one") is None and bucket.list("a/") == []
    one = bucket.put("a/one", "é 1".encode())
    big = tmp_path / "big"
    big.write_bytes(random.Random(1).randbytes(20 << 20))
    two = bucket.put("a/b/two", big)
    assert (one.size, one.crc32c) == (4, checksum_of("é 1".encode()))
    assert (two.size, two.crc32c) == (20 << 20, checksum_of(big))
    assert cloud.requests["POST session"] == 1
    assert bucket.list("a/") == [two, one] and bucket.stat("a/one") == one
    assert bucket.list_folder("a") == (["b"], [one]) and bucket.list_folder("none") == ([], [])
    assert bucket.get("a/b/two", 5, 105) == big.read_bytes()[5:105]
    assert bucket.get("a/b/two", (20 << 20) - 3) == big.read_bytes()[-3:]
    assert bucket.get("a/b/two", 3, 3) == bucket.get("a/b/two", 21 << 20) == b""
    bucket.download("a/b/two", tmp_path / "copy")
    assert hashlib.sha256((tmp_path / "copy").read_bytes()).digest() == hashlib.sha256(big.read_bytes()).digest()
    bucket.delete("a/one")
    bucket.delete("a/one")
    for read in (lambda: bucket.get("a/one"), lambda: bucket.download("a/one", tmp_path / "x")):
        with pytest.raises(FileNotFoundError, match="gs://bucket/a/one: there is no such object"):
            read()
    for n in range(12):
        cloud.write("bucket", f"many/{n:02}", b"")
    assert [s.name for s in bucket.list("many/")] == [f"many/{n:02}" for n in range(12)]


def test_a_write_by_generation_is_done_once(cloud, bucket):
    first = bucket.put("lock", b"one", if_generation=0)
    with pytest.raises(PreconditionFailed, match="gs://bucket/lock: was changed by another process"):
        bucket.put("lock", b"two", if_generation=0)
    second = bucket.put("lock", b"two", if_generation=first.generation)
    with pytest.raises(PreconditionFailed):
        bucket.delete("lock", if_generation=first.generation)
    # The answer is lost on its way: the second try finds its own bytes.
    lost = cloud.fault("POST .*lock", drop="after", times=1)
    third = bucket.put("lock", b"three", if_generation=second.generation)
    assert bucket.get("lock", generation=third.generation) == b"three" and lost.seen


def test_faults_that_pass_are_not_seen(cloud, bucket):
    kinds = ({"status": 503}, {"status": 429}, {"drop": "before"}, {"drop": "after"})
    faults = [cloud.fault("faulty", probability=0.4, times=3, **kind) for kind in kinds]
    for n in range(6):
        name = f"faulty/{n}"
        assert bucket.put(name, bytes([n]) * 100, if_generation=0).size == 100
        assert bucket.get(name) == bytes([n]) * 100 and bucket.stat(name).size == 100
    assert len(bucket.list("faulty/")) == 6 and all(fault.seen for fault in faults)


def test_a_large_object_may_take_longer_and_other_bytes_are_an_error(cloud, bucket, tmp_path):
    cloud.write("bucket", "large", bytes(4 << 20))
    slow = cloud.fault("GET .*large.*media", delay=1.2, drop="before", times=1)
    Bucket("bucket", deadline_s=1.0).download("large", tmp_path / "large", size=4 << 20)
    assert slow.seen and (tmp_path / "large").stat().st_size == 4 << 20
    cloud.fault("GET .*large.*media", damage=True)
    for read in (lambda: bucket.get("large"), lambda: bucket.download("large", tmp_path / "large")):
        with pytest.raises(Damaged, match="^gs://bucket/large: came with another checksum than the bucket says"):
            read()


def test_what_does_not_pass_is_one_line(cloud, tmp_path):
    bucket = Bucket("bucket", deadline_s=1.0)
    cloud.write("bucket", "there", b"1")
    for line, call in {
        "GET .*alt=media": lambda: bucket.get("there"),
        "GET .*there": lambda: bucket.stat("there"),
        "POST ": lambda: bucket.put("there", b"2"),
        "DELETE ": lambda: bucket.delete("there"),
        "GET .*prefix": lambda: bucket.list("th"),
    }.items():
        cloud.fault(line, status=403)
        with pytest.raises(Refused, match=r"^gs://bucket/th(ere)?: refused by Google Cloud Storage \(.*fault 403"):
            call()
        cloud.heal()
        cloud.fault(line, status=503)
        with pytest.raises(NoAnswer, match=r"^gs://bucket/th(ere)?: no usable answer from the bucket in \d+ s \(.*503"):
            call()
        cloud.heal()
    silent = cloud.fault("there", delay=100)
    with pytest.raises(NoAnswer, match="no usable answer"):
        bucket.get("there")
    assert silent.seen
    cloud.heal()
    for call in (lambda: Bucket("gone").put("x", b""), lambda: Bucket("gone").list()):
        with pytest.raises(Refused, match="gs://gone does not exist, or may not be seen"):
            call()


def test_a_place_is_its_bucket_and_key(cloud):
    one, key = open_bucket(parse_place("gs://bucket/a/b/"))
    assert (one.name, key, open_bucket("gs://bucket")) == ("bucket", "a/b", (one, ""))
