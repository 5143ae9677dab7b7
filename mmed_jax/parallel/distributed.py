"""Start of jax.distributed: TPU pods and Slurm by themselves, other places by config."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from mmed_jax.common import errors
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.parallel import meeting, peers
from mmed_jax.parallel.coordinator import Coordinator
from mmed_jax.parallel.host_comparison import agree as agree_on
from mmed_jax.parallel.host_comparison import failure
from mmed_jax.parallel.peers import several_processes

# How long processes that fail together may lie apart.
_LEAVE_SECONDS = 10
# How long a process that is refused looks for the others, to tell them.
_REFUSED_SECONDS = 60
# How often one that waits for the others says for whom.
_SAY_SECONDS = 15.0
# After so long without a sign of a process jax counts it as gone and ends the others, which takes it some seconds more.
HEARTBEAT_SECONDS = 40


def initialize(
    config: ConfigDict, agree: Callable[[Coordinator], object] | None = None, refused: Exception | None = None
) -> tuple[int, int]:
    """Joins the other processes of this run, if there are any, before the first device is touched.

    Order: config.distributed.coordinator; Slurm, Open MPI or a TPU pod when their environment says that there are
    several processes; else a single process.

    Args:
      agree: called at the moment when all have joined and still before a device is touched; a run that is not the same
        on all hosts is refused here.
      refused: why this process takes no part; all end with it.

    Returns:
      (index of this process, number of processes). A single process touches no device here.

    Raises:
      UserError: coordinator given without process count and index, or its host is not known; fewer processes than
        expect_processes; one was refused; hosts with other devices.
      WorkError: the others did not come within config.distributed.timeout_seconds.
    """
    global coordinator
    d = config.distributed
    arguments: dict = {}
    if d.coordinator:
        if d.num_processes < 1 or not 0 <= d.process_id < d.num_processes:
            raise UserError(
                f"config.distributed: coordinator={d.coordinator} needs num_processes >= 1 and 0 <= process_id < "
                f"num_processes (got {d.num_processes} and {d.process_id})"
            )
        arguments = {"coordinator_address": d.coordinator, "num_processes": d.num_processes, "process_id": d.process_id}
    elif not several_processes(config):
        _expect(d.expect_processes, 1)
        return 0, 1
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    place = meeting.find(d)
    seconds = d.timeout_seconds if refused is None else min(d.timeout_seconds, _REFUSED_SECONDS)
    print(meeting.announce(place, seconds), flush=True)
    meeting.check_address(place)
    try:
        # jax aborts the process when its own time is up, with a stack of C++ calls for a message.
        with _deadline(seconds, lambda: meeting.nobody(place, seconds)), _saying(d, seconds), peers.own_end():
            jax.distributed.initialize(
                initialization_timeout=seconds + 60, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments
            )
    except (RuntimeError, ValueError) as e:
        raise WorkError(f"{meeting.nobody(place, seconds)} ({e})") from e
    errors.before_failing = _leave_together
    from jax._src import distributed

    state = distributed.global_state
    _expect(d.expect_processes, state.num_processes)
    if state.num_processes > 1:
        peers.follow(state.client, state.process_id, state.num_processes, state.coordinator_address)
        coordinator = Coordinator(state.client, state.process_id, state.num_processes, seconds)
        agree_on(coordinator, "start", {} if refused is None else failure(refused))
        if agree is not None:
            agree(coordinator)
        compare_devices(coordinator)
    if refused is not None:
        raise refused
    return jax.process_index(), jax.process_count()


# Of this run, once it was joined; None in a single process.
coordinator: Coordinator | None = None


def compare_devices(coordinator: Coordinator) -> None:
    """Refuses hosts with other devices. The first to touch a device, for which jax lets the processes wait."""
    # Started apart they would wait in C++, which names nobody.
    agree_on(coordinator, "devices", {})
    local = jax.local_devices()
    kinds = sorted({f"{device.platform} {device.device_kind}" for device in local})
    agree_on(coordinator, "kinds of devices", {"kind of devices": ", ".join(kinds), "devices of a process": len(local)})


def join_refused(config: ConfigDict, error: Exception, code: int) -> None:
    """Joins the others only to let them end with `error`, of which this process has said that it was refused for it.

    Looks for them for a minute at most; does not return where they did not come, but ends the process with `code`.
    """
    with contextlib.suppress(Exception, KeyboardInterrupt):
        initialize(config, refused=error)
    _leave_together(code)


def _client() -> Any:
    """jax's connection to the coordinator; None in a single process. (Not public; orbax uses it as well.)"""
    from jax._src import distributed

    return distributed.global_state.client


def _leave_together(code: int) -> None:
    """Lets a failed process end with its exit code, whether or not the others fail with it.

    At its exit jax waits minutes for the others and then aborts, which is right only when they are about to come.
    """
    try:
        _client().wait_at_barrier("mmed_jax/failed", _LEAVE_SECONDS * 1000)
    except Exception:
        sys.stdout.flush()
        os._exit(code)


@contextlib.contextmanager
def _deadline(seconds: float, message: Callable[[], str]) -> Iterator[None]:
    """Ends the process with `message()` and exit code 1 unless the block is done within `seconds`."""

    timer = threading.Timer(seconds, errors.end_process, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _saying(distributed: Any, seconds: float, every: float = _SAY_SECONDS) -> Iterator[None]:
    """Says during the block, `every` so many seconds, who has not come and how long it goes on (`seconds` in all)."""
    over, start = threading.Event(), time.monotonic()

    def speak() -> None:
        # Of a pod asked here, where an answer may take its time.
        place = None if over.wait(every) else meeting.find(distributed, ask=True)
        while place is not None and not over.is_set():
            line = meeting.waiting(place, time.monotonic() - start, seconds)
            if not over.is_set():  # it takes a moment, in which the last may have come
                print(line, flush=True)
            over.wait(every)

    threading.Thread(target=speak, daemon=True, name="joining").start()
    try:
        yield
    finally:
        over.set()


def _expect(wanted: int, count: int) -> None:
    if wanted and wanted != count:
        raise UserError(
            f"config.distributed.expect_processes={wanted} but {count} take part: start the same command on every host"
        )
