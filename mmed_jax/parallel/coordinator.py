"""What the processes of a run tell each other through the coordinator's key-value store, without a collective.

A collective needs devices, programs that are equal, and on CPUs processes that come to the first within 30 seconds; the
store needs none of these. Every wait has a limit, and says at its end who did not answer.
"""

import json
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from mmed_jax.common.errors import WorkError, one_line

_KEY = "mmed_jax/run"
# A wait in C++ cannot be interrupted; it is made of short ones.
_SLICE_SECONDS = 2.0
# A long wait says every so often for whom.
SAY_SECONDS = 60.0
# Who makes something may need long, and is waited for as long as it is there: jax ends the others when it is not.
LONGEST_SECONDS = 24 * 3600


class Coordinator:
    """The store of a run as one of its processes sees it. Names of messages are used once a run.

    Args:
      client: jax's connection to the coordinator. index, count: of this process, of all.
      seconds: the limit of a wait that names none.
      host: what this process calls its host.
    """

    def __init__(self, client: Any, index: int, count: int, seconds: float, host: str = ""):
        self._client, self.index, self.count, self.seconds = client, index, count, seconds
        self.host = host or socket.gethostname()
        self._client.key_value_set(f"{_KEY}/host/{index}", self.host, allow_overwrite=True)

    def state(self, name: str, text: str, *, again: bool = False) -> None:
        """Tells the others what this process has to say under `name`; `again`: in the place of what it said before."""
        self._client.key_value_set(f"{_KEY}/{name}/{self.index}", text, allow_overwrite=again)

    def hear(self, name: str, process: int, seconds: float | None = None, say: Callable[[str], object] = print) -> str:
        """What `process` states under `name`, waited for. Raises WorkError when it does not answer in time."""
        wait = _Wait(self, name, self.seconds if seconds is None else seconds, say)
        while True:
            try:
                slice_ms = max(1, int(1000 * min(wait.left, _SLICE_SECONDS)))
                return self._client.blocking_key_value_get(f"{_KEY}/{name}/{process}", slice_ms)
            except Exception as e:
                wait.check(e, [process])

    def gather(
        self,
        name: str,
        seconds: float | None = None,
        say: Callable[[str], object] = print,
        enough: Callable[[Mapping[int, str]], bool] = lambda _: False,
    ) -> dict[int, str]:
        """What every process states under `name`, by process; what some state, once that is `enough`.

        Raises:
          WorkError: not all within `seconds`; it names those that have not answered.
        """
        wait = _Wait(self, name, self.seconds if seconds is None else seconds, say)
        pause = 0.01
        while True:
            stated = self.stated(name)
            if len(stated) == self.count or enough(stated):
                return dict(sorted(stated.items()))
            wait.check(None, set(range(self.count)) - stated.keys())
            time.sleep(pause)
            pause = min(1.0, 2 * pause)

    def stated(self, name: str) -> dict[int, str]:
        """What was stated under `name` so far."""
        entries = self._client.key_value_dir_get(f"{_KEY}/{name}/")
        return {int(key.rpartition("/")[2]): text for key, text in entries}

    def no_answer(self, name: str, missing: Collection[int], seconds: float, error: Exception | None) -> WorkError:
        """The failure of a wait for `missing`, or that of the connection."""
        if error is not None and not _is_late(error):
            return WorkError(f"process {self.index} on {self.host}: the coordinator is gone ({one_line(error)[:200]})")
        return WorkError(
            f"{self.describe(missing)} did not answer within {seconds:g} s ({name}); the output there says why"
        )

    def describe(self, processes: Iterable[int]) -> str:
        """ "process 0 (host-a)", "processes 1, 2 and 60 more (host-b, host-c, ...)"."""
        try:
            hosts = self.stated("host")
        except Exception:  # the coordinator is gone
            hosts = {}
        return describe_processes(processes, hosts)


class _Wait:
    """A wait for others: when it is over, what is said in between and at its end."""

    def __init__(self, coordinator: Coordinator, name: str, seconds: float, say: Callable[[str], object]):
        self._coordinator, self._name, self._seconds, self._say = coordinator, name, seconds, say
        self._start = self._spoke = time.monotonic()

    @property
    def left(self) -> float:
        return self._start + self._seconds - time.monotonic()

    def check(self, error: Exception | None, missing: Collection[int]) -> None:
        """Raises WorkError when the time is over, or for an error that is another than that."""
        if self.left <= 0 or (error is not None and not _is_late(error)):
            raise self._coordinator.no_answer(self._name, missing, self._seconds, error) from error
        if time.monotonic() - self._spoke >= SAY_SECONDS:
            self._spoke = time.monotonic()
            who = self._coordinator.describe(missing)
            self._say(f"waiting    for {who}: {self._name}, {self._spoke - self._start:,.0f} s so far")


def _is_late(error: Exception) -> bool:
    return any(word in str(error) for word in ("DEADLINE_EXCEEDED", "timed out"))


def describe_processes(processes: Iterable[int], hosts: Mapping[int, str], most: int = 4) -> str:
    """ "process 0 (host-a)", "processes 1, 2 and 60 more (host-b, host-c, ...)"; hosts that are not known: none."""
    listed = sorted(processes)
    names = list(dict.fromkeys(hosts[i] for i in listed if i in hosts))
    shown = ", ".join(map(str, listed[:most])) + (f" and {len(listed) - most} more" if len(listed) > most else "")
    where = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"process{'es' if len(listed) > 1 else ''} {shown}" + (f" ({where})" if where else "")


def to_text(value: Any) -> str:
    """A JSON value as it is stated."""
    return json.dumps(value, ensure_ascii=False, default=str)
