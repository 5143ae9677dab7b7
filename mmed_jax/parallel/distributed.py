"""Start of jax.distributed: TPU pods and Slurm by themselves, other places by config."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from mmed_jax.common import errors
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.parallel import peers
from mmed_jax.parallel.peers import several_processes

# How long processes that fail together may lie apart.
_LEAVE_SECONDS = 10
# After so long without a sign of a process jax counts it as gone and ends the others.
HEARTBEAT_SECONDS = 100


def initialize(config: ConfigDict) -> tuple[int, int]:
    """Joins the other processes of this run, if there are any, before the first device is touched.

    Order: config.distributed.coordinator; Slurm, Open MPI or a TPU pod when their environment says that there are
    several processes; else a single process.

    Returns:
      (index of this process, number of processes). A single process touches no device here.

    Raises:
      UserError: coordinator given without process count and index, or fewer processes than expect_processes.
      WorkError: the others did not come within config.distributed.timeout_seconds.
    """
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
    late = (
        f"{socket.gethostname()}: the other processes did not answer within {d.timeout_seconds} s: start the same "
        "command on every host, or raise --config.distributed.timeout_seconds"
    )
    try:
        # jax aborts the process when its own time is up, with a stack of C++ calls for a message.
        with _deadline(d.timeout_seconds, late), peers.own_end():
            jax.distributed.initialize(
                initialization_timeout=d.timeout_seconds + 60, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments
            )
    except (RuntimeError, ValueError) as e:
        raise WorkError(f"{late} ({e})") from e
    errors.before_failing = _leave_together
    _expect(d.expect_processes, jax.process_count())
    if jax.process_count() > 1:
        from jax._src import distributed

        state = distributed.global_state
        peers.follow(state.client, jax.process_index(), jax.process_count(), state.coordinator_address)
    return jax.process_index(), jax.process_count()


def first_process_first(work: Callable[[], Any], timeout_seconds: int = 24 * 3600) -> Any:
    """Runs `work` on process 0 and then on the others; when process 0 fails, all do, with its error.

    The others wait at the coordinator; a collective would time out. Every process calls it, once a run.

    Returns:
      What `work` returned on this process.
    """
    client = _client()
    if client is None or jax.process_count() == 1:
        return work()
    key = "mmed_jax/first_process_first"
    if jax.process_index() > 0:
        said = client.blocking_key_value_get(key, timeout_seconds * 1000)
        if said != "done":
            raise (UserError if said[0] == "u" else WorkError)(said[1:])
        return work()
    said = "done"
    try:
        return work()
    except BaseException as e:
        said = ("u" if isinstance(e, UserError) else "w") + one_line(e)
        raise
    finally:
        client.key_value_set(key, said)


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
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with `message` and exit code 1 unless the block is done within `seconds`."""

    def end() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _expect(wanted: int, found: int) -> None:
    if wanted and wanted != found:
        raise UserError(
            f"config.distributed.expect_processes={wanted} but {found} take part: start the same command on every host"
        )
