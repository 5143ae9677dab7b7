"""The lock in a bucket: one holder, taken over from a dead one only, and lost by a frozen one."""

import json
import time

import pytest

from mmed_jax.common.buckets import lease as lease_module
from mmed_jax.common.buckets.bucket import Bucket, NoAnswer
from mmed_jax.common.buckets.lease import Lease
from mmed_jax.common.errors import UserError, WorkError

BEAT = 0.1


def lease(lines=None, beat=BEAT):
    say = print if lines is None else lines.append
    return Lease(Bucket("bucket", deadline_s=10), "run/.lock", "run_dir=gs://bucket/run", beat, say)


def test_one_holder_at_a_time_and_a_dead_one_is_followed(cloud):
    first, said = lease(), []
    first.take()
    with pytest.raises(UserError, match="run_dir=gs://bucket/run is in use by another process .process [0-9]+ on "):
        lease(said).take()
    assert len(said) == 1 and "for at most 0 s: run_dir=gs://bucket/run was locked" in said[0]
    first.check()
    first.release()
    assert cloud.names("bucket") == []

    # One that was killed renews nothing more; it is waited for by the clock of the bucket.
    killed = lease(beat=30)
    killed.take()
    cloud.advance(91)
    second, began = lease(beat=30), time.monotonic()
    second.take()
    assert time.monotonic() - began < 5
    # The killed one was only frozen: its next word is refused, and it gives back nothing that is another's.
    with pytest.raises(WorkError, match="its lock was taken over by process .* this process stops"):
        killed.renew()
    with pytest.raises(WorkError, match="taken over"):
        killed.check()
    killed.release()
    second.renew()
    # What a copied folder of a disk holds is nobody's.
    cloud.write("bucket", "copy/.lock", b"process 7 on other\n")
    third = Lease(Bucket("bucket", deadline_s=10), "copy/.lock", "a copy", 30)
    third.take()
    third.release()
    assert cloud.names("bucket") == ["run/.lock"]
    second.release()


def test_a_heartbeat_outlives_faults_and_sees_that_the_lock_is_gone(cloud):
    cloud.fault("POST .*run%2F.lock|POST /upload", drop="after", times=1)
    held = lease()
    held.take()
    cloud.fault("POST ", status=503, times=2)
    time.sleep(6 * BEAT)
    cloud.heal()
    held.check()
    cloud.write("bucket", "run/.lock", b'{"host": "other", "process": 7}')
    end = time.monotonic() + 10
    with pytest.raises(WorkError, match="taken over by process 7 on other"):
        while time.monotonic() < end:
            held.check()
            time.sleep(BEAT / 2)
    held.release()
    assert cloud.read("bucket", "run/.lock").startswith(b'{"host": "other"')


def test_a_write_that_arrived_without_its_answer_is_no_other_process(cloud):
    held = Lease(Bucket("bucket", deadline_s=1), "own/.lock", "run_dir=gs://bucket/own", 30)
    held.take()
    before = cloud.read("bucket", "own/.lock")
    cloud.fault("POST ", drop="after")
    with pytest.raises(NoAnswer):
        held.renew()
    cloud.heal()
    assert cloud.read("bucket", "own/.lock") != before
    held.renew()
    held.check()
    held.release()
    assert cloud.names("bucket", "own/") == []


def test_a_heartbeat_that_is_not_answered_is_sent_again_before_the_lock_is_stale(cloud, monkeypatch):
    monkeypatch.setattr(lease_module, "_LEAST_ANSWER_S", 0.5)
    held = Lease(Bucket("bucket", deadline_s=30), "beat/.lock", "run_dir=gs://bucket/beat", BEAT)
    held.take()
    taken = json.loads(cloud.read("bucket", "beat/.lock"))["time"]
    silent = cloud.fault("POST ", delay=30, times=1)
    end = time.monotonic() + 5
    while not silent.seen or json.loads(cloud.read("bucket", "beat/.lock"))["time"] < taken + 0.5:
        assert time.monotonic() < end
        time.sleep(BEAT)
    held.release()
