"""Decisions that every process of a run must take alike; each function is a barrier and is called by all of them."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.parallel import distributed
from mmed_jax.parallel.coordinator import LONGEST_SECONDS

_DONE = "done"
_calls = itertools.count()  # names of messages are used once
_TEXT_BYTES = 512
_MOST_NUMBERS = 1024


def agree_on(numbers: Sequence[int]) -> list[int]:
    """Process 0's numbers (the last 1024 of them, each >= 0 and < 2^31) on every process."""
    numbers = list(numbers)[-_MOST_NUMBERS:]
    if jax.process_count() == 1:
        return numbers
    padded = np.full(_MOST_NUMBERS, -1, np.int32)
    padded[: len(numbers)] = numbers
    return [int(n) for n in multihost_utils.broadcast_one_to_all(padded) if n >= 0]


def any_text(text: str) -> str:
    """The first non-empty text of any process (at most 512 bytes), "" when all are empty."""
    if jax.process_count() == 1:
        return text
    own = np.zeros(_TEXT_BYTES, np.uint8)
    data = text.encode()[:_TEXT_BYTES]
    own[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(own)).reshape(-1, _TEXT_BYTES)
    return next((bytes(r).rstrip(b"\0").decode(errors="replace") for r in rows if r.any()), "")


def on_main(work: Callable[[], object], name: str = "what it does alone") -> None:
    """Runs `work` on process 0 while the others wait; its UserError, WorkError or OSError is raised on all.

    Where this run was joined by distributed.initialize, without a collective and however long it takes.

    Args:
      name: for the line of those who wait for long.
    """
    coordinator = distributed.coordinator
    error: Exception | None = None
    is_main = (jax.process_index() if coordinator is None else coordinator.index) == 0
    if is_main:
        try:
            work()
        except (UserError, WorkError, OSError) as e:
            error = e
    text = "" if error is None else f"{'u' if isinstance(error, UserError) else 'w'}{one_line(error)}"
    if coordinator is None:
        text = any_text(text)
    else:
        key = f"{name} {next(_calls)}"
        if is_main:
            coordinator.state(key, text or _DONE)
        else:
            text = coordinator.hear(key, 0, LONGEST_SECONDS).removeprefix(_DONE)
    if error is not None:
        raise error
    if text:
        raise (UserError if text[0] == "u" else WorkError)(text[1:])


def same_storage(folder: Path) -> None:
    """Raises UserError on every process unless all of them see what process 0 writes into `folder`."""
    if jax.process_count() == 1:
        return
    # The name is drawn by process 0, so that a copy left on another machine's disk cannot be mistaken for it.
    name = f".shared.{agree_on([uuid4().int % 2**31])[0]}"
    on_main(lambda: (folder / name).write_text("x"))
    missing = "" if (folder / name).exists() else f"process {jax.process_index()}"
    problem = any_text(missing)
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if problem:
        raise UserError(f"run_dir={folder}: {problem} does not see what process 0 wrote; it must be shared storage")
