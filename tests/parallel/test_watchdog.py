"""A process that is alive and stuck is named with the line in which it stands."""

import re
import threading
import time

from mmed_jax.parallel.watchdog import Watchdog, describe_progress
from tests.support.hosts import hosts


def stand_still(over):
    over.wait(20)


def wait_for_the_others(moved):
    moved.wait(20)


def test_who_is_behind_and_where():
    said, over, moved = [], threading.Event(), threading.Event()

    def say(line):
        said.append(line)
        over.set()  # the stuck one goes on

    def work(c):
        with Watchdog(c, say, least_seconds=0.6, interval=0.05) as watchdog:
            for step in range(1, 9):
                watchdog.beat(step)
                time.sleep(0.01)
            if c.index == 1:
                stand_still(over)
                moved.set()
            else:
                watchdog.beat(9)
                wait_for_the_others(moved)
            watchdog.beat(10)
            time.sleep(0.5)

    with hosts(3) as three:
        assert three.run(work) == [None] * 3
    with Watchdog(None, said.append, 0.0, 0.01) as alone:  # in a single process there is nobody to ask
        alone.beat(1)
    first, second = said
    start, _, who = first.partition(": ")
    assert re.fullmatch(r"no step for \d s \(median 0\.\d+ s\), all hosts are alive", start), first
    behind, others = (re.sub(r"\.py:\d+", "", text) for text in who.split("; "))
    assert behind == "process 1 (host-b) is behind, after step 8 in tests/parallel/test_watchdog (stand_still)"
    place = "tests/parallel/test_watchdog (wait_for_the_others)"
    assert others == f"processes 0, 2 (host-a, host-c) after step 9 in {place}"
    assert second.startswith("steps go on, after ")


def test_the_odd_one_out_comes_first():
    words = {0: '[4, 4, "a.py:1 (f)"]', 1: '[4, 4, "b.py:2 (g)"]', 2: '[4, 4, "a.py:1 (f)"]'}
    wanted = "process 1 (h1) after step 4 in b.py:2 (g); processes 0, 2 (h0, h2) after step 4 in a.py:1 (f)"
    assert describe_progress(words, {i: f"h{i}" for i in words}) == wanted


def test_a_save_or_validation_is_waited_for_longer():
    """A pause that is expected is no news before its own limit, nor do its beats count as steps or end it."""
    lines = []

    def work(c):
        with Watchdog(c, lines.append, least_seconds=0.2, patient_seconds=1.5, interval=0.05) as watchdog:
            for step in range(1, 9):
                watchdog.beat(step)
                time.sleep(0.06)
            watchdog.expect_pause()
            watchdog.beat()
            time.sleep(0.9)  # quiet, though longer than ten steps
            watchdog.beat(8)  # asked once more behind a validation
            time.sleep(0.9)
            assert not lines
            time.sleep(0.8)
            assert len(lines) <= 1
            watchdog.beat(9)
            time.sleep(0.9)
            return len(watchdog._seconds)

    with hosts(2) as two:
        assert two.run(work) == [8, 8]
    assert [line.partition(",")[0] for line in lines][1:2] == ["steps go on"], lines
    assert len([line for line in lines if line.startswith("no step for ")]) == 2, lines


def test_batches_of_a_validation_are_no_steps():
    """Steps take seconds and batches none: a step that takes as long as ever is no news after them."""
    lines = []

    def work(c):
        with Watchdog(c, lines.append, least_seconds=0.0, interval=0.02) as watchdog:
            for step in range(1, 7):
                watchdog.beat(step)
                time.sleep(0.15)
            for _ in range(100):
                watchdog.beat()
            time.sleep(0.15)
            watchdog.beat(7)

    with hosts(2) as two:
        assert two.run(work) == [None, None] and not lines
