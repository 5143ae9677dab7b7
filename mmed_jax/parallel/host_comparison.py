"""All hosts mean the same run, or none takes a step: process 0 compares what every process states of itself."""

import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from mmed_jax.common.errors import ReportedError, UserError, WorkError, one_line, warn
from mmed_jax.common.jsonl import loads
from mmed_jax.parallel.coordinator import Coordinator, describe_processes, to_text
from mmed_jax.parallel.host_facts import FREE, TIME, source_files

# Beyond these a warning is said: a clock that is off by so many seconds, a disk with so few GiB free.
SKEW_SECONDS, LEAST_FREE_GIB = 5.0, 5.0
# A clock that is off by more than this forbids the run: what is timed by several hosts would be wrong.
MOST_SKEW_SECONDS = 30.0
# Facts that some process cannot know count only between those that can.
_IF_KNOWN = ("git commit", "local changes")
# A process that waits for the verdict waits a little longer than process 0 for the last of the others.
_VERDICT_SECONDS = 30.0
_LONGEST_VALUE = 200
FAILED = "failed with"


class HostsDiffer(UserError):
    """The hosts of a run do not mean the same run; a line for each difference.

    Args:
      differences: what `compare` gives.
    """

    def __init__(self, differences: list[str]) -> None:
        self._lines = tuple(differences)
        super().__init__("; ".join(differences))

    @property
    def lines(self) -> tuple[str, ...]:
        """A line a difference."""
        return self._lines


def compare(facts: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> tuple[list[str], list[str]]:
    """(differences that forbid the run, warnings): a line each, with the fact, its values and who has them.

    Args:
      facts: of every process, as host_facts.host_facts gives them; a fact that is missing is a value of its own.
      hosts: names of hosts by process.
    """
    names = dict.fromkeys(name for stated in facts.values() for name in stated)
    differences = []
    for name in names:
        if name in (TIME, FREE):
            continue
        known = {i: stated.get(name) for i, stated in facts.items() if name not in _IF_KNOWN or stated.get(name)}
        if line := _difference(name, known, hosts):
            differences.append(line)
    # The hash only sums up keys that are named.
    named = [line for line in differences if not line.startswith("training hash ")]
    if any(line.startswith("config.") for line in named):
        differences = named
    refused, warnings = _clocks(facts, hosts)
    return differences + refused, warnings + _disks(facts, hosts)


def _difference(name: str, values: Mapping[int, Any], hosts: Mapping[int, str]) -> str:
    """The line of one fact, "" when all have the same value."""
    groups: dict[str, list[int]] = {}
    for process, value in values.items():
        groups.setdefault(json.dumps(value, sort_keys=True), []).append(process)
    if len(groups) < 2:
        return ""
    shown = [f"{_show(text)} on {describe_processes(who, hosts)}" for text, who in groups.items()]
    more = f"; and {len(shown) - 6} other values" if len(shown) > 6 else ""
    return f"{name} differs between hosts: {'; '.join(shown[:6])}{more}"


def _show(text: str) -> str:
    value = json.loads(text)
    plain = "not set" if value is None else value if isinstance(value, str) and value else text
    return plain if len(plain) <= _LONGEST_VALUE else plain[:_LONGEST_VALUE] + "..."


def _clocks(facts: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> tuple[list[str], list[str]]:
    """(clocks that forbid the run, clocks that are warned of)."""
    times = {i: float(stated[TIME]) for i, stated in facts.items() if stated.get(TIME) is not None}
    if not times:
        return [], []
    middle = statistics.median(times.values())
    off = {i: t - middle for i, t in times.items() if abs(t - middle) > SKEW_SECONDS}
    if len(times) == 2 and max(times.values()) - min(times.values()) > SKEW_SECONDS:
        last = max(times, key=lambda i: times[i])
        off = {last: times[last] - min(times.values())}
    refused: list[str] = []
    warnings: list[str] = []
    for process, seconds in off.items():
        limit = MOST_SKEW_SECONDS if abs(seconds) > MOST_SKEW_SECONDS else SKEW_SECONDS
        (refused if limit == MOST_SKEW_SECONDS else warnings).append(
            f"the clock of {describe_processes([process], hosts)} is {abs(seconds):,.1f} s "
            f"{'ahead' if seconds > 0 else 'behind'} (limit {limit:g} s)"
            + (": set the clocks" if limit == MOST_SKEW_SECONDS else ": times in its files are off by as much")
        )
    return refused, warnings


def _disks(facts: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> list[str]:
    few: dict[str, dict[int, float]] = {}
    for process, stated in facts.items():
        for name, free in (stated.get(FREE) or {}).items():
            if free is not None and free < LEAST_FREE_GIB:
                few.setdefault(name, {})[process] = free
    return [
        f"{name}: only {min(free.values()):g} GiB free on {describe_processes(free, hosts)} "
        f"(limit {LEAST_FREE_GIB:g} GiB)"
        for name, free in few.items()
    ]


def agree(
    coordinator: Coordinator,
    subject: str,
    facts: Mapping[str, Any],
    *,
    seconds: float | None = None,
    say: Callable[[str], object] = print,
    warning: Callable[[str], object] = warn,
    files: Callable[[], Mapping[str, str]] = source_files,
) -> None:
    """Returns on every process when all state the same; called by all of them.

    Args:
      subject: names this comparison, once a run.
      facts: of this process.
      seconds: how long the others are waited for; default the coordinator's limit.
      say, warning: of process 0, for a long wait and for what is no difference.
      files: the source files of this process, with their checksums.

    Raises:
      HostsDiffer: on every process, with a line a difference.
      WorkError: a process did not answer in time; it is named.
    """
    seconds = coordinator.seconds if seconds is None else seconds
    # Who compares reads the files' hashes only where the code differs.
    if "code" in facts:
        coordinator.state(f"{subject} files", to_text(files()))
    coordinator.state(subject, to_text(facts))
    if coordinator.index:
        verdict = loads(coordinator.hear(f"{subject} verdict", 0, seconds + _VERDICT_SECONDS, say), dict)
    else:
        verdict = _verdict(coordinator, subject, seconds, say)
        coordinator.state(f"{subject} verdict", to_text(verdict))
        for line in verdict["warnings"]:
            warning(line)
    if failed := verdict["failed"]:
        raise (UserError if failed[0] == "u" else WorkError)(failed[1:])
    if verdict["differences"]:
        raise HostsDiffer(verdict["differences"])


def _verdict(coordinator: Coordinator, subject: str, seconds: float, say: Callable[[str], object]) -> dict[str, Any]:
    """{"failed": "" or kind and message, "differences", "warnings"}."""
    try:
        # One that has failed is not kept waiting for the others.
        texts = coordinator.gather(subject, seconds, say, lambda t: any(f'"{FAILED}"' in text for text in t.values()))
    except WorkError as e:
        return {"failed": f"w{one_line(e)}", "differences": [], "warnings": []}
    stated = {i: loads(text, dict) for i, text in texts.items()}
    for process, facts in stated.items():
        if FAILED in facts:
            who = f"{coordinator.describe([process])}: " if process else ""
            return {"failed": f"{facts[FAILED][0]}{who}{facts[FAILED][1:]}", "differences": [], "warnings": []}
    differences, warnings = compare(stated, coordinator.stated("host"))
    if len({f.get("code") for f in stated.values()}) > 1:
        differences = [d + _files(coordinator, subject) if d.startswith("code ") else d for d in differences]
    return {"failed": "", "differences": differences, "warnings": warnings}


def failure(error: BaseException) -> dict[str, str]:
    """The facts of a process that could not get to any: all end with its error."""
    # Of a fault of this program the message alone may say nothing.
    kind = "" if isinstance(error, ReportedError | OSError) else f"{type(error).__name__}: "
    return {FAILED: ("u" if isinstance(error, UserError) else "w") + kind + one_line(error)}


def _files(coordinator: Coordinator, subject: str) -> str:
    """Behind the line that the code differs: in which files."""
    listed = [loads(text, dict) for text in coordinator.gather(f"{subject} files").values()]
    names = dict.fromkeys(name for files in listed for name in files)
    other = [name for name in names if len({files.get(name) for files in listed}) > 1]
    return f", in {', '.join(other[:5])}" + (f" and {len(other) - 5} more files" if len(other) > 5 else "")
