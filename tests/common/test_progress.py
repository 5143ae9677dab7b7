"""Bars on terminals of any size, and what a log gets. The steps of a run: tests/training/test_metric_log.py."""

import io
import os
import random
import select
import time

import pytest

from mmed_jax.common import progress
from mmed_jax.common.progress import Heartbeat, Progress, counting_bar, say_above_bars
from mmed_jax.common.time_left import TimeLeft


def test_a_terminal_without_a_size_has_a_bar_too():
    """As some containers and `script` give it: 0 columns and 0 lines."""
    master, slave = os.openpty()
    with open(slave, "w", encoding="utf-8") as terminal:
        assert os.get_terminal_size(slave) == (0, 0)
        with Progress(4, label="generate", stream=terminal) as bar:
            bar.update(1, {"tok/s": 12})
            bar.note("saved")
            bar.update(4)
        drawn = b""
        while not drawn.endswith(b"4/4 0:00 left  \r\n") and select.select([master], [], [], 5)[0]:
            drawn += os.read(master, 10_000)
        drawn = drawn.decode()
    os.close(master)
    assert "generate  25% |█████···············| 1/4" in drawn and "tok/s 12" in drawn
    assert "saved\r\n" in drawn and "100% |████████████████████| 4/4" in drawn and drawn.endswith("\r\n")


def test_marks_that_the_terminal_cannot_show():
    class Ascii(io.TextIOWrapper):
        def isatty(self):
            return True

    raw = io.BytesIO()
    terminal = Ascii(raw, encoding="ascii", write_through=True)
    with Progress(2, stream=terminal) as bar:
        bar.update(1)
    assert b"50% |##########..........| 1/2" in raw.getvalue()


def test_a_run_of_no_steps_draws_nothing():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with Progress(0, stream=terminal):
        pass
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("look", "lines"), [({}, False), ({"in_logs": True}, True), ({"in_logs": True, "show": False}, False)]
)
def test_what_a_log_gets_of_a_counting_bar(look, lines, capsys):
    with counting_bar("rows", 3, unit=" rows", leave=True, **look) as bar:
        for _ in range(3):
            bar.update()
        say_above_bars("note: a line")
    shown = capsys.readouterr().err
    assert "note: a line\n" in shown and ("3/3" in shown) == lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def seen(terminal):
    """The lines of a terminal at the end: what is written from the margin on lies over what was there."""
    lines = []
    for line in terminal.getvalue().split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def wait_for(stream, text):
    end = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.01)


def test_a_heartbeat_counts_at_a_terminal_and_is_wiped_out(monkeypatch):
    monkeypatch.setattr(progress, "BEATS", (0.01, 0.02))
    terminal = Terminal()
    with Heartbeat("compiling", stream=terminal) as beat:
        wait_for(terminal, "compiling ... 0:00")
        beat.stop()
        before = terminal.getvalue()
        time.sleep(0.1)
    assert terminal.getvalue() == before and seen(terminal) == [""]
    with Heartbeat("compiling", stream=terminal, show=False):
        time.sleep(0.05)
    assert terminal.getvalue() == before


def test_a_heartbeat_in_a_log_is_a_line_now_and_then(monkeypatch):
    assert progress.LOG_BEATS[1] >= 30
    monkeypatch.setattr(progress, "LOG_BEATS", (0.01, 60))
    log, quick = io.StringIO(), io.StringIO()
    with Progress(3, label="stage1", stream=log) as bar, bar.working("compiling the training step"):
        wait_for(log, "...")
    assert log.getvalue().splitlines() == [
        "stage1  compiling the training step ... 0:00",
        "stage1  compiling the training step took 0:00",
    ]
    monkeypatch.setattr(progress, "LOG_BEATS", (60, 60))
    with Heartbeat("compiling", stream=quick):
        pass
    assert quick.getvalue() == ""  # what is quick is no news


def test_a_bar_beats_before_its_first_step_and_between_steps(monkeypatch):
    monkeypatch.setattr(progress, "BEATS", (0.01, 0.02))
    terminal = Terminal()
    with Progress(4, start=1, stream=terminal, steady=True) as bar:
        with bar.working("compiling"):
            wait_for(terminal, "1/4 compiling ... 0:00")
        bar.update(2, {"loss": 2.5})
        with bar.working("validating", pause="validation"):
            wait_for(terminal, "2/4 validating ... 0:00")
        assert seen(terminal)[-1].endswith("2/4 ...  loss 2.5")  # as it was
        bar.keep({"val": 3.25})
        bar.update(4, {"loss": 2.0, "lr": 1e-5, "tok/s": 1234567})
    assert seen(terminal)[0].endswith("4/4 ...  loss 2  val 3.25  lr 1.00e-05")  # of 80 columns; no half numbers


def test_the_time_left_does_not_jump():
    """Steps of about 2 s, a validation every 50, a save every 120, now and then a slow step: the end that is foretold
    stays where it is once each kind of pause has come."""
    noise, now, total = random.Random(0), 0.0, 2000
    left, ends = TimeLeft(total, start=100), {}
    for step in range(101, total + 1):
        now += 60 if step == 101 else 8 if step % 333 == 0 else noise.uniform(1.8, 2.2)
        left.step(step, now)
        if step % 50 == 0:
            now += 30
            left.pause("validation", 30)
        if step % 120 == 0:
            now += 6
            left.pause("save", 6)
        if (seconds := left.seconds()) is not None:
            ends[step] = now + seconds
    assert min(ends) == 104  # three steps behind the first, which compiled
    assert max(ends[s] for s in ends if s > 240) - min(ends[s] for s in ends if s > 240) < 0.03 * now
    jumps = [abs(ends[s + 1] - ends[s]) for s in range(300, total)]
    assert max(jumps) < 0.02 * now and left.seconds() == 0
    assert ends[120] - 120 < now  # a pause that has not come is not foretold


def test_pauses_that_came_before_the_first_step_are_not_foretold():
    left = TimeLeft(100)
    left.pause("validation", 500)
    assert left.seconds() is None
    for step in range(1, 11):
        left.step(step, 10.0 * step)
    assert left.seconds() == 900
    left.pause("validation", 20)  # one in ten steps, as far as is known; their median is 260 s
    assert left.seconds() == 900 + 9 * 260
