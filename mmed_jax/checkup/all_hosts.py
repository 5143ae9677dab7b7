"""One table of all hosts of a pod or job."""

import argparse
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from mmed_jax.checkup.findings import Findings
from mmed_jax.checkup.machine import LOCKFILE, PROBE_SECONDS
from mmed_jax.common.errors import UserError
from mmed_jax.common.places import Place, is_bucket
from mmed_jax.parallel import meeting, roll_call
from mmed_jax.parallel.host_facts import code_facts, environment_facts, version_facts


def check_all_hosts(args: argparse.Namespace, run_dir: Place, check_machine: Callable[[Place], Findings]) -> list[str]:
    """The checks of this host; process 0 also waits for the others and prints one table.

    Args:
      args: coordinator, num_processes, process_id and timeout_seconds, as config.distributed has them.
      check_machine: makes and prints the checks of this host.

    Returns:
      What is broken on any host, on process 0; on the others nothing.

    Raises:
      UserError: nothing says where the processes meet. WorkError: process 0 is not there.
    """
    point = meeting.find(args, ask=True)
    if not point.host or not 0 <= point.process < point.count:
        raise UserError(
            "--all_hosts: no scheduler says which processes there are: give --coordinator=HOST:PORT, --num_processes=N "
            "and --process_id=I (0 to N-1) on every host"
        )
    print(meeting.announce(point, args.timeout_seconds), flush=True)
    meeting.check_address(point)
    bucket = is_bucket(run_dir)
    storage = run_dir if bucket else next(p for p in (run_dir.absolute(), *run_dir.absolute().parents) if p.exists())

    def report(mark: str) -> dict[str, Any]:
        seen = mark == str(storage) if bucket else bool(mark) and (storage / mark).exists()
        out = check_machine(run_dir)
        return _host_report(out, "shared with process 0" if seen else "NOT SHARED with process 0", seen)

    if point.process:
        roll_call.answer_call(point, args.timeout_seconds, report, time.time)
        print(f"reported   to process 0 on {point.host}: the table is there")
        return []
    mark = str(storage) if bucket else _write_mark(storage)
    try:
        with roll_call.RollCall(point.port, point.count, mark) as call:
            out = check_machine(run_dir)
            own = roll_call.Answer(socket.gethostname(), _host_report(out, "", True))
            call.wait(args.timeout_seconds, 2 * PROBE_SECONDS)
    finally:
        if mark and not bucket:
            (storage / mark).unlink(missing_ok=True)
    print("\n".join(["", *roll_call.host_table(own, call.answers, os.environ)]))
    problems = roll_call.host_problems(own, call, os.environ)
    print("\n".join(f"BROKEN  {problem}" for problem in problems) or "all hosts fine")
    return problems


def _write_mark(folder: Path) -> str:
    """The name of a new file in `folder`, by which others see whether it is the same one; "" when it is read-only."""
    name = f".shared.{uuid4().hex}"
    try:
        (folder / name).write_bytes(b"")
    except OSError:
        return ""
    return name


def _host_report(out: Findings, shared: str, seen: bool) -> dict[str, Any]:
    """What a host says of itself in a roll call: columns of the table, what is broken, and what has to be equal."""
    lines = dict(out.lines)
    storage = lines.get("run dir", "").rpartition(": ")[2]
    shown = {
        "devices": lines.get("jax", "jax does not start").partition(", started")[0],
        "checkout": lines.get("checkout", ""),
        "run dir": ", ".join(filter(None, (storage, shared))),
        "run lock": lines.get("run lock", ""),
        "tpu lock": "held" if any(LOCKFILE in w for w in out.warnings) else "",
    }
    facts = {**code_facts(), **version_facts(), **environment_facts(os.environ), "devices": shown["devices"]}
    unshared = [] if seen else ["does not see in its run dir what process 0 writes there"]
    return {"shown": shown, "problems": [*out.problems, *unshared], "facts": facts}
