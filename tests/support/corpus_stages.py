"""Functions of stages for tests of the executors: each makes a part, and some go wrong on the way."""

import os
import signal
import time
from pathlib import Path

from data_gen.corpus.stage_folder import Result
from mmed_jax.common.errors import UserError


def count_up(part, settings, context, folder: Path) -> Result:
    """A file with `n` lines of the setting `word`."""
    time.sleep(context.get("seconds", 0))
    (folder / "lines.txt").write_text(f"{settings['word']}\n" * part["n"])
    return Result(part["n"], {"lines": part["n"]})


def die(part, settings, context, folder: Path) -> Result:
    """Ends its own process with `signal`, the first `times` times."""
    marks = Path(context["marks"])
    before = len(list(marks.glob(f"{part['n']}-*")))
    (folder / "half.txt").write_text("half")
    if part["n"] in context["dying"] and before < context["times"]:
        (marks / f"{part['n']}-{before}").touch()
        os.kill(os.getpid(), getattr(signal, context["signal"]))
    return count_up(part, settings, context, folder)


def fail(part, settings, context, folder: Path) -> Result:
    """A UserError, a fault or too much memory, as settings say."""
    if settings["kind"] == "user":
        raise UserError("raw/x.parquet: has no text")
    if settings["kind"] == "memory":
        return Result(len(bytearray(3 << 30)))
    raise ZeroDivisionError("1 / 0")
