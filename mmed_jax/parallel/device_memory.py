"""A device that has no room: which of jax's failures say so, and the one that commands report in their place."""

import contextlib
import re
from collections.abc import Callable, Iterator

import jax

from mmed_jax.common.errors import WorkError, one_line

# Other libraries hand the runtime's words on, and call a full disk RESOURCE_EXHAUSTED as well.
_HANDED_ON = re.compile("RESOURCE_EXHAUSTED.*(out of memory|allocat|reserve)", re.IGNORECASE)


def no_room(error: BaseException) -> str:
    """The runtime's words where `error` says that a device is out of memory, "" where it says something else."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Lines behind the first list buffers.
        return str(error).splitlines()[0][:200] if "RESOURCE_EXHAUSTED" in str(error) else ""
    return one_line(error)[:400] if _HANDED_ON.search(one_line(error)) else ""


class OutOfDeviceMemory(WorkError):
    """A device had no room for a program of ours.

    Attributes:
      fewer: rows at a time that a next try would take, 0 where there were as few as can be.
    """

    def __init__(self, what: str, words: str, *, fewer: int = 0, hint: str = ""):
        super().__init__(f"out of device memory with {what} ({words})", hint=hint)
        self.fewer = fewer


def describe_rows(rows: int, length: int) -> str:
    """What a program was to hold, in words."""
    return f"{rows:,} {'row' if rows == 1 else 'rows'} of {length:,} positions"


def fewer_rows(rows: int, shards: int) -> int:
    """Half of so many rows that are split over `shards`; 0 where there are no fewer."""
    return rows // 2 // shards * shards


@contextlib.contextmanager
def device_memory(what: Callable[[], str], fewer: int = 0, hint: str = "") -> Iterator[None]:
    """Turns a device's lack of memory into OutOfDeviceMemory, within which `what` was to be held."""
    try:
        yield
    except Exception as e:
        if not (words := no_room(e)):
            raise
        raise OutOfDeviceMemory(what(), words, fewer=fewer, hint=hint) from e
