"""Start of jax.distributed: TPU pods and Slurm by themselves, other places by config."""

import importlib.util
import os
import socket

import jax
from ml_collections import ConfigDict

from mmed_jax.errors import UserError, WorkError


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
        arguments = {
            "coordinator_address": d.coordinator, "num_processes": d.num_processes, "process_id": d.process_id
        }  # fmt: skip
    elif not _several_processes():
        _expect(d.expect_processes, 1)
        return 0, 1
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(initialization_timeout=d.timeout_seconds, **arguments)
    except (RuntimeError, ValueError) as e:
        raise WorkError(
            f"{socket.gethostname()}: the other processes did not answer within {d.timeout_seconds} s "
            f"(start the same command on every host): {e}"
        ) from e
    _expect(d.expect_processes, jax.process_count())
    return jax.process_index(), jax.process_count()


def _expect(wanted: int, found: int) -> None:
    if wanted and wanted != found:
        raise UserError(
            f"config.distributed.expect_processes={wanted} but {found} take part: start the same command on every host"
        )


def _several_processes() -> bool:
    env = os.environ
    slurm = int(env.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_STEP_ID" in env
    open_mpi = int(env.get("OMPI_COMM_WORLD_SIZE", "1") or 1) > 1
    return slurm or open_mpi or _on_tpu_vm()


def _on_tpu_vm() -> bool:
    """TPU chips are attached and will be used; jax then finds the other workers of the pod, possibly none."""
    chips = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    wanted = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu")
    return chips and wanted and importlib.util.find_spec("libtpu") is not None
