"""The plan of a run on the devices it has: asked for before its first step, or said when their memory was too small."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.progress import Heartbeat
from mmed_jax.config.values import with_values
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel import peers
from mmed_jax.parallel.device_memory import no_room
from mmed_jax.parallel.xla_flags import refusal
from mmed_jax.planning import advice, host_memory, plan_report
from mmed_jax.planning.planner import plan_devices, plan_out_of_memory
from mmed_jax.training.program import Program


@contextlib.contextmanager
def device_failures(config: ConfigDict, cfg: LlamaConfig, mesh: Mesh) -> Iterator[None]:
    """Turns the loss of another process into one line, and a device's out-of-memory error into the plan's table, by
    arithmetic, with what to try next."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if jax.process_count() > 1 and any(word in str(e) for word in peers.PROCESS_LOST):
            raise peers.lost_process(one_line(e)) from e
        if complaint := refusal(str(e), config.xla_flags):
            raise UserError(complaint) from e
        if not (words := no_room(e)):
            raise
        raise _out_of_memory(config, cfg, mesh, words) from e
    except WorkError as e:  # of a checkpoint
        if jax.process_count() > 1 and any(word in str(e) for word in peers.COLLECTIVE_LOST):
            raise peers.lost_process(one_line(e)) from e
        if not (words := no_room(e)):
            raise
        raise _out_of_memory(config, cfg, mesh, words) from e


def _out_of_memory(config: ConfigDict, cfg: LlamaConfig, mesh: Mesh, message: str) -> WorkError:
    """Says the plan's table and the next thing to try."""
    result = plan_out_of_memory(config, cfg, mesh, message)
    platform = mesh.devices.flat[0].platform
    print(plan_report.table(result), flush=True)
    print(advice.next_line(config, cfg, result.mesh, platform, result.capacity_bytes), flush=True)
    return WorkError(f"out of device memory ({message}); what fills it and what to try next stands above")


def plan_here(
    program: Program, config: ConfigDict, cfg: LlamaConfig, *, tokens: int, say: Callable[[str], None]
) -> None:
    """Says the plan of a run's own program on the devices present. Compiles it; nothing is placed on a device.

    Args:
      tokens: that the whole run shows the model, padding included.

    Raises:
      WorkError: it does not fit; what fills the memory and what to try next is said before.
    """
    with Heartbeat("compiling the training step", show=jax.process_index() == 0):
        result = plan_devices(program, config, cfg)
    say(plan_report.table(result, run_tokens=tokens))
    if program.mesh.devices.flat[0].platform == "cpu":
        compiled = {"state": result.argument_bytes, "a step": result.needed_bytes - result.argument_bytes}
        own = sum(d.process_index == jax.process_index() for d in program.mesh.devices.flat)
        parts = host_memory.estimate(config, cfg, program.mesh) | {k: n * own for k, n in compiled.items()}
        say(f"host       {host_memory.describe(parts)}")
    if not result.fits:
        ran = with_values(config, {"attention": program.options.attention})
        factor = advice.off_by(ran, cfg, result)
        platform = program.mesh.devices.flat[0].platform
        say(advice.next_line(config, cfg, result.mesh, platform, result.capacity_bytes, factor))
        raise WorkError("the step does not fit on the devices here; what to try next stands above")
