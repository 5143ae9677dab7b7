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
