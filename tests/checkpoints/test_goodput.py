"""Goodput: each stretch of a run's time goes to its part, over kills, resumes and broken clocks."""

import json

import pytest

from mmed_jax.checkpoints.goodput import PARTS, Goodput
from mmed_jax.checkpoints.metrics_file import read_metrics


def line(kind, step, time, event=None, **more):
    return {"kind": kind, "step": step, "time": time, **({"event": event} if event else {}), **more}


RUN = [
    line("event", 0, 1010, "start", startup_seconds=10),  # the process began at 1000
    line("event", 1, 1040, "compiled", compile_seconds=25),  # 30 s of tracing and compiling
    line("train", 1, 1042),  # 2 s
    line("train", 2, 1045, data_wait_seconds=1),  # 2 + 1 s
    line("event", 2, 1049, "save", blocked_seconds=4),
    line("event", 2, 1049, "output_lost"),  # counts with what follows
    line("train", 3, 1052, data_wait_seconds=0),  # 3 s, redone
    line("eval", 3, 1060),  # 8 s
    line("event", 4, 1067, "recompiled", compile_seconds=30),  # 5 s of these compiling, 2 s step 3, redone
    line("train", 4, 1069, data_wait_seconds=5),  # 2 s, all waiting
    line("event", 2, 1130, "start", startup_seconds=20),  # nothing from 1069 to 1110
    line("event", 3, 1140, "compiled", compile_seconds=1),
    line("train", 3, 1141),
    line("train", 4, 1143, data_wait_seconds="NaN"),
    line("event", 4, 1144, "save", blocked_seconds=0.5),  # half a second of something else
    line("event", 4, 1144.25, "stopped", signal="SIGTERM"),
    line("event", 4, 1150, "end"),
]
EXPECTED = {
    "productive": 2 + 2 + 1 + 2,
    "redone": 3 + 2,
    "data_wait": 1 + 2,
    "compile": 30 + 5 + 10,
    "start_up": 10 + 20,
    "save": 4 + 0.5 + 5.75,
    "validation": 8,
    "other": 0.5 + 0.25,
    "between": 41,
}


def test_each_stretch_of_time_goes_to_its_part(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in RUN))
    goodput = read_metrics(tmp_path).goodput
    assert goodput.seconds == pytest.approx(EXPECTED) and set(EXPECTED) == set(PARTS)
    assert goodput.wall == pytest.approx(150) and goodput.share == pytest.approx(7 / 150) and goodput.starts == 2
    assert goodput.describe() == "4.7% of 2:30 in 2 starts went into steps that count (compile 30.0%, between 27.3%)"
    assert goodput.rows()[0] == ("steps that count", "0:07", "4.7%") and len(goodput.rows()) == len(PARTS)

    # Begun again at step 0: nothing of before counts.
    goodput.add(line("event", 0, 1160, "start", startup_seconds=1))
    assert goodput.seconds["productive"] == 0 and goodput.seconds["redone"] == pytest.approx(12)


def test_files_of_earlier_versions_and_odd_clocks_give_parts_that_sum_to_the_time():
    empty = Goodput()
    assert empty.share is None and empty.describe() == "" and empty.rows() == [] and empty.wall == 0
    odd = Goodput()
    for record in [
        line("train", 7, 50.0),  # the lines before were lost
        line("train", 8, 53.0, data_wait_seconds=99.0),  # more than the time there was
        line("event", 8, 40.0, "start", startup_seconds=-5),  # the clock was set back by 13 s
        line("train", 9, 54.0),
        {"kind": "train", "step": 10},  # no time
        line("event", 9, 60.0, "start"),  # of an earlier version
        line("train", 10, 61.0, data_wait_seconds=True),
    ]:
        odd.add(record)
    assert odd.wall == pytest.approx(61 - 50) and all(s >= 0 for s in odd.seconds.values())
    assert odd.seconds["data_wait"] == 3 and odd.seconds["productive"] == 2 and odd.seconds["between"] == 6
