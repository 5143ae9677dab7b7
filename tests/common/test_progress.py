"""Bars on terminals of any size, and what a log gets. The steps of a run: tests/training/test_metric_log.py."""

import io
import os
import select

import pytest

from mmed_jax.common.progress import Progress, counting_bar, say_above_bars


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
