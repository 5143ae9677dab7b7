"""Reading parameters from a run directory without touching it: for evaluation, generation, export and a next stage."""

import errno
import logging
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmed_jax.agreement import agree_on, any_text
from mmed_jax.checkpoint_tree import Described, compare, flatten, targets, to_dict, unflatten
from mmed_jax.errors import UserError, WorkError, one_line
from mmed_jax.manifest import shorten, verify_manifest
from mmed_jax.run_dir import CHECKPOINTS, read_meta, step_folders

IN_FLIGHT_BYTES = 2**30


def available_steps(run_dir: str | Path) -> list[int]:
    """Steps of the finished checkpoints of a run, ascending; reads no array and checks nothing."""
    return list(step_folders(run_dir))


def restore_params(
    run_dir: str | Path, step: int | None = None, shardings: Any = None, dtype: Any = None, expected: Any = None
) -> tuple[dict[str, Any], int]:
    """Parameters only, from the newest good checkpoint of a run or from one step; changes nothing on disk.

    Args:
      run_dir: a run directory; it may be one that is being trained in.
      step: None = the newest; a damaged one is reported and the one before used.
      shardings: None = the first device, one Sharding for all leaves, or a tree of them.
      dtype: of the result; None = as saved.
      expected: tree whose leaves have .shape; every leaf that differs from it is named.

    Returns:
      (nested dict of arrays, the step they are from)

    Raises:
      UserError: no checkpoint, no such step, or leaves that are missing, unexpected or of another shape.
      WorkError: checkpoints exist and none can be read, or the one asked for cannot.
    """
    folders = {s: step_folders(run_dir)[s] for s in agree_on(available_steps(run_dir))}
    if not folders:
        raise UserError(f"{run_dir}: no checkpoint there (looked in {Path(run_dir) / CHECKPOINTS})")
    if step is not None and step not in folders:
        raise UserError(f"{run_dir}: no checkpoint of step {step}; there are {', '.join(map(str, folders))}")
    damaged = []
    for s in sorted(folders, reverse=True) if step is None else [step]:
        found = verify_manifest(folders[s], part=(jax.process_index(), jax.process_count()))
        problem = shorten([p for p in found or [] if not p.startswith("opt_state/")])
        params = None
        if not any_text(problem):
            try:
                params = _read_params(folders[s], read_meta(run_dir, s)["leaves"]["params"], shardings, dtype, expected)
            except UserError:
                raise
            except Exception as e:
                if "RESOURCE_EXHAUSTED" in str(e):  # the checkpoint is whole, the devices are full
                    raise
                problem = reason(e)
        if not (problem := any_text(problem)):
            return params, s
        damaged.append(f"step {s}: {problem}")
        say(f"checkpoint {folders[s]} is damaged and is not used: {problem}")
    raise WorkError(f"no checkpoint in {run_dir} can be read ({shorten(damaged)})")


def _read_params(folder: Path, saved: Described, shardings: Any, dtype: Any, expected: Any) -> dict[str, Any]:
    if expected is not None:
        compare(to_dict(expected), saved, f"parameters in {folder}", dtypes=False)
    wanted = {path: jax.ShapeDtypeStruct(shape, dtype or saved_dtype) for path, (shape, saved_dtype) in saved.items()}
    if isinstance(shardings, jax.sharding.Sharding):
        wanted = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings) for p, x in wanted.items()}
    elif shardings is not None:
        by_path = flatten(to_dict(shardings))
        if missing := sorted(set(wanted) ^ set(by_path)):
            raise UserError(f"parameters in {folder}: not the leaves that were expected: {', '.join(missing)}")
        wanted = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_path[p]) for p, x in wanted.items()}
    return read_item(folder / "params", unflatten(wanted))


def read_item(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of one item of a checkpoint, placed as `wanted` says (a nested dict; see `targets`).

    What is on its way through host memory at one time is the largest leaf, or IN_FLIGHT_BYTES of smaller ones. Orbax's
    own bound, 96 GB, is a second copy of most models.
    """
    # A leaf can be stored wider than it is wanted, and orbax refuses one that alone reaches the bound.
    largest = max(4 * math.prod(x.shape) for x in jax.tree.leaves(wanted))
    with ocp.StandardCheckpointer(restore_concurrent_gb=max(IN_FLIGHT_BYTES, 1.1 * largest) / 1e9) as reader:
        return dict(reader.restore(folder.resolve(), targets(wanted)))


def reason(e: BaseException) -> str:
    text = f"{type(e).__name__}: {e}"
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        text = f"the disk is full ({text})"
    return one_line(WorkError(text))[:400]


def say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def quiet_orbax() -> None:
    """Failures of a save are raised by us in one line; orbax would print its own traceback of each before that."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _OrbaxTracebacks) for f in logger.filters):
            logger.addFilter(_OrbaxTracebacks())
    if not isinstance(sys.unraisablehook, _LateWrites):
        sys.unraisablehook = _LateWrites(sys.unraisablehook)


class _LateWrites:
    """Passes over what array writes report to the event loop of a save that has failed already."""

    def __init__(self, before: Callable[[Any], object]):
        self._before = before

    def __call__(self, problem: Any) -> None:
        if not (isinstance(problem.exc_value, RuntimeError) and "Event loop is closed" in str(problem.exc_value)):
            self._before(problem)


class _OrbaxTracebacks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        frames = traceback.walk_tb(record.exc_info[2]) if record.exc_info else ()
        files = (frame.f_code.co_filename for frame, _ in frames)
        return not (record.exc_info and any("orbax" in name for name in (record.pathname, *files)))
