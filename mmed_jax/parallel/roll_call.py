"""A roll call of the hosts over plain TCP: who is there, what each reports, and how its clock and its network are.

Process 0 listens where the run's coordinator would. Nothing here needs jax, whose start waits for all hosts and then
cannot say who was missing. Messages are lines of JSON; the speed of the network is that of bytes sent to process 0.
"""

import contextlib
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.jsonl import loads
from mmed_jax.parallel.host_comparison import SKEW_SECONDS, compare
from mmed_jax.parallel.meeting import MeetingPoint, expected_hosts

_NAME = "mmed_jax doctor"
_PINGS = 5
Stream = io.BufferedRWPair  # of a connection
_SENT_BYTES = 8 << 20
_LONGEST_MESSAGE = 1 << 20


@dataclass
class Answer:
    """What is known of a process: its host ("" = it never came), its report (None = it did not finish), its clock."""

    host: str = ""
    report: dict[str, Any] | None = None
    ahead_s: float | None = None  # of process 0's clock, as exact as half a round trip
    round_trip_s: float | None = None
    mib_per_s: float | None = None


class RollCall:
    """Process 0's side: listens from `with` on, every other process in a thread.

    Args:
      port: to listen at. count: processes of the run, this one included.
      mark: what the others look for to know whether they share a folder with process 0.

    Raises:
      UserError: the port is taken.
    """

    def __init__(self, port: int, count: int, mark: str):
        self.answers = {process: Answer() for process in range(1, count)}
        self.doubled: list[str] = []
        self._mark, self._open, self._changed = mark, count - 1, threading.Condition()
        try:
            if socket.has_dualstack_ipv6():
                self._socket = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                self._socket = socket.create_server(("", port))
        except OSError as e:
            raise UserError(f"--all_hosts: port {port} of {socket.gethostname()} is taken ({e.strerror or e})") from e

    def __enter__(self) -> "RollCall":
        threading.Thread(target=self._accept, daemon=True, name="roll call").start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def wait(self, join_seconds: float, report_seconds: float) -> None:
        """Returns when all have reported; at the latest when those that came had `report_seconds` more for it."""
        start = time.monotonic()
        with self._changed:
            while self._open:
                all_came = all(answer.host for answer in self.answers.values())
                waiting = any(a.host and a.report is None for a in self.answers.values())
                limit = report_seconds if all_came or waiting else 0.0
                left = start + join_seconds + limit - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, 1.0))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # Whatever goes wrong with one host shows as what is missing of its answer.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = connection.makefile("rwb")
            hello = _read(stream)
            if hello["name"] != _NAME:
                return
            process, host = int(hello["process"]), str(hello["host"])
            with self._changed:
                answer = self.answers.get(process)
                if answer is None or answer.host:
                    other = f"{answer.host} is that already" if answer else f"there are {len(self.answers) + 1}"
                    self.doubled.append(f"{host} calls itself process {process}, but {other}")
                    return
                answer.host = host
                self._changed.notify()
            try:
                _write(stream, {"mark": self._mark})
                answer.report = _read(stream)
                self._measure(stream, answer)
                _write(stream, {"ask": "end"})
            finally:  # one that ended in the midst of it is not waited for
                with self._changed:
                    self._open -= 1
                    self._changed.notify()

    def _measure(self, stream: Stream, answer: Answer) -> None:
        for _ in range(_PINGS):
            before, began = time.time(), time.perf_counter()
            _write(stream, {"ask": "time"})
            there = float(_read(stream)["time"])
            seconds = time.perf_counter() - began
            if answer.round_trip_s is None or seconds < answer.round_trip_s:
                answer.round_trip_s, answer.ahead_s = seconds, there - before - seconds / 2
        began = time.perf_counter()
        _write(stream, {"ask": "bytes"})
        if len(stream.read(_SENT_BYTES)) == _SENT_BYTES:
            answer.mib_per_s = _SENT_BYTES / 2**20 / (time.perf_counter() - began)


def answer_call(
    point: MeetingPoint, seconds: float, report: Callable[[str], Mapping[str, Any]], clock: Callable[[], float]
) -> None:
    """Another process's side: comes, reports, and answers what process 0 asks.

    Args:
      seconds: how long process 0 is looked for.
      report: called with process 0's mark; gives JSON values.

    Raises:
      WorkError: nothing answers at the coordinator, or process 0 left.
    """
    end = time.monotonic() + seconds
    where = f"{point.host}:{point.port}"
    while True:
        try:
            connection = socket.create_connection((point.host, point.port), timeout=5)
            break
        except OSError as e:
            if time.monotonic() > end:
                raise WorkError(
                    f"nothing answers at {where} (process 0) within {seconds:g} s ({e.strerror or e}): start the same "
                    "command on every host"
                ) from e
            time.sleep(0.5)
    connection.settimeout(None)
    try:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = connection.makefile("rwb")
            _write(stream, {"name": _NAME, "process": point.process, "host": socket.gethostname()})
            _write(stream, report(_read(stream)["mark"]))
            while (request := _read(stream)["ask"]) != "end":
                if request == "time":
                    _write(stream, {"time": clock()})
                else:
                    stream.write(os.urandom(_SENT_BYTES))
                    stream.flush()
    except (OSError, ValueError, KeyError) as e:
        raise WorkError(f"process 0 at {where} has left the roll call ({e}); its own output says why") from e


def _write(stream: Stream, message: Mapping[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _read(stream: Stream) -> dict[str, Any]:
    line = stream.readline(_LONGEST_MESSAGE)
    if not line.endswith(b"\n"):
        raise ValueError("it closed the connection")
    return loads(line, dict)


def expected_host(process: int, count: int, environment: Mapping[str, str]) -> str:
    """The host a process should be on, as far as the environment of a TPU pod tells; "" where it does not."""
    names = expected_hosts(count, environment)
    return names[process] if names else ""


def host_table(own: Answer, answers: Mapping[int, Answer], environment: Mapping[str, str]) -> list[str]:
    """Lines: a row a process. `report` of an answer has in "shown" the text of each column between host and clock."""
    every = {0: own, **answers}
    names = list(dict.fromkeys(k for a in every.values() if a.report for k in a.report["shown"]))
    rows = [["process", "host", *names, "clock", "network to process 0"]]
    for process, answer in every.items():
        host = answer.host or expected_host(process, len(every), environment) or "?"
        if answer.report is None:
            rows.append([str(process), host, "its checks did not end" if answer.host else "NEVER ANSWERED"])
            continue
        clock, network = "", ""
        if answer.ahead_s is not None and answer.round_trip_s is not None:
            clock, network = f"{answer.ahead_s:+.2f} s", f"{1000 * answer.round_trip_s:.1f} ms"
        if answer.mib_per_s is not None:
            network += f", {answer.mib_per_s:,.0f} MiB/s"
        rows.append([str(process), host, *(answer.report["shown"].get(k, "") for k in names), clock, network])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return ["  ".join(f"{text:{width}s}" for text, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def host_problems(own: Answer, call: RollCall, environment: Mapping[str, str]) -> list[str]:
    """What is wrong between hosts, and on any of them; a line each."""
    every = {0: own, **call.answers}
    problems = list(call.doubled)
    for process, answer in every.items():
        who = f"process {process}" + (f" ({answer.host})" if answer.host else "")
        if not answer.host:
            host = expected_host(process, len(every), environment)
            problems.append(f"{who}{f' ({host})' if host else ''} never answered: is the command running there?")
        elif answer.report is None:
            problems.append(f"{who} came, but its checks did not end")
        else:
            problems += [f"{who}: {line}" for line in answer.report["problems"]]
        if answer.ahead_s is not None and abs(answer.ahead_s) > SKEW_SECONDS:
            limit = f"(limit {SKEW_SECONDS:g} s)"
            problems.append(f"the clock of {who} is {answer.ahead_s:+.1f} s off that of process 0 {limit}")
        if answer.report is not None and answer.mib_per_s is None and process:
            problems.append(f"{who}: the network to process 0 broke off")
    facts = {process: a.report["facts"] for process, a in every.items() if a.report is not None}
    differences, _ = compare(facts, {process: a.host for process, a in every.items()})
    return problems + differences
