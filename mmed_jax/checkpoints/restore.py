"""Reading parameters from a run directory without touching it: for evaluation, generation, export and a next stage."""

import contextlib
import errno
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmed_jax.checkpoints.run_directory import CHECKPOINTS, odd_steps, read_meta, step_folders
from mmed_jax.checkpoints.save_deadline import Deadline
from mmed_jax.checkpoints.stored_arrays import plain_path, without_alias
from mmed_jax.checkpoints.tree import Described, compare, flatten, targets, to_dict, unflatten
from mmed_jax.common.buckets.download import WEIGHTS, address_of
from mmed_jax.common.checksums import MANIFEST, CannotRead, cannot_read, is_gone, shorten, verify_manifest
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.place_files import is_there, read_bytes
from mmed_jax.common.places import Place, is_bucket, parse_place
from mmed_jax.parallel.barriers import agree_on, any_text
from mmed_jax.parallel.device_memory import no_room

IN_FLIGHT_BYTES = 2**30
# After which weights in a bucket that are not read end the process: the libraries try a silent server for hours.
DEADLINE_S = 3600.0
# Faults of the machine or the storage at this moment. The libraries that read arrays give them as text only.
_PASSING = tuple(
    os.strerror(n)
    for n in (
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ESTALE,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EINTR,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ETIMEDOUT,
        errno.ENXIO,
        errno.ENODEV,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.EREMOTEIO,
        errno.ENOLINK,
        errno.ESHUTDOWN,
    )
) + ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "DEADLINE_EXCEEDED", "UNAVAILABLE")


def available_steps(run_dir: str | Path) -> list[int]:
    """Steps of the finished checkpoints of a run, ascending; reads no array and checks nothing."""
    return list(step_folders(run_dir))


def passing(e: BaseException) -> bool:
    """Whether reading failed for a reason that says nothing of the bytes: access, memory, storage out of reach."""
    if isinstance(e, MemoryError | CannotRead | TimeoutError):
        return True
    if isinstance(e, OSError) and e.errno is not None:
        return not is_gone(e)
    return any(text in str(e) for text in _PASSING)


def has_manifest(folder: Place) -> bool:
    """Whether a checkpoint is sealed; one that cannot be looked at counts as sealed, and reading it says why."""
    try:
        return is_there(folder / MANIFEST)
    except OSError:
        return True


def check_files(folder: Place, under: str | tuple[str, ...] = "") -> tuple[str, str, bool]:
    """Compares a checkpoint's files with its manifest; the processes share the reading and get the same answer.

    Args:
      under: only files whose names start with this, or with one of these.

    Returns:
      (what is damaged, what cannot be read now, whether there is a manifest)
    """
    try:
        found, unreadable = verify_manifest(folder, under, (jax.process_index(), jax.process_count())), ""
    except CannotRead as e:
        found, unreadable = [], str(e)
    return any_text(shorten(found or [])), any_text(unreadable), found is not None


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
    return read_params_by(run_dir, step, expected, lambda folder, saved: _read_params(folder, saved, shardings, dtype))


def read_params_by(
    run_dir: str | Path, step: int | None, expected: Any, read: Callable[[Path, Described], Any]
) -> tuple[Any, int]:
    """What `read` makes of the parameters of the newest good checkpoint, or of one step; see `restore_params`.

    Args:
      read: called with the folder of the item "params" and what it holds, after the checksums are compared. When it
        fails because the bytes are damaged, it is called again for the checkpoint before.
    """
    fetched = run_dir
    run_dir, step = _where_weights_lie(run_dir, step)
    checkpoints = parse_place(run_dir) / CHECKPOINTS
    folders = {s: checkpoints / str(s) for s in agree_on(available_steps(run_dir))}
    if not folders:
        raise UserError(f"{run_dir}: no checkpoint there (looked in {checkpoints})")
    if step is not None and step not in folders:
        raise UserError(f"{run_dir}: no checkpoint of step {step}; there are {', '.join(map(str, folders))}")
    for s, what in odd_steps(run_dir).items():
        say(f"warning: checkpoint {checkpoints / str(s)} is {what}; it is not used")
    damaged = []
    for s in in_order(folders) if step is None else [step]:
        problem, unreadable, _ = check_files(folders[s], ("params/", "meta/"))
        result = None
        if not problem and not unreadable:
            try:
                saved = read_meta(run_dir, s)["leaves"]["params"]
                if expected is not None:
                    compare(to_dict(expected), saved, f"parameters in {folders[s]}", dtypes=False)
                result = read(folders[s] / "params", saved)
                if run_dir is not fetched:  # they were read over some time
                    problem = _changed_in_bucket(Path(fetched), str(run_dir), s)
            except UserError:
                raise
            except Exception as e:
                if no_room(e):  # the checkpoint is whole, the devices are full
                    raise
                problem, unreadable = ("", str(cannot_read(folders[s], e))) if passing(e) else (reason(e), "")
        if unreadable := any_text(unreadable):
            raise CannotRead(unreadable)
        if not (problem := any_text(problem)):
            return result, s
        damaged.append(f"step {s}: {problem}")
        say(f"checkpoint {folders[s]} is damaged and is not used: {problem}")
    raise WorkError(f"no checkpoint in {run_dir} can be read ({shorten(damaged)})")


def _where_weights_lie(run_dir: str | Path, step: int | None) -> tuple[str | Path, int | None]:
    """Of a run that was fetched without its weights its address and its step; of any other what was given.

    Every process has fetched for itself, perhaps while the run was saved: all of them read one step, or none does.

    Raises:
      WorkError: the checkpoint there is not that of which all else was fetched, or another process fetched another one.
    """
    step_there, address, problem = _left_in_bucket(run_dir, step), address_of(run_dir), ""
    if step_there is not None:
        problem = _changed_in_bucket(Path(run_dir), address, step_there)
    if not (problem := any_text(problem)):
        own = [] if step_there is None else [step_there]
        if agree_on(own) != own:
            fetched = "no" if step_there is None else f"step {step_there}"
            problem = f"{address or run_dir}: processes fetched different checkpoints, process {jax.process_index()} "
            problem += f"{fetched}: it was saved or removed meanwhile; run the command again"
        problem = any_text(problem)
    if problem:
        raise WorkError(problem)
    return (run_dir, step) if step_there is None else (address, step_there)


def _left_in_bucket(run_dir: str | Path, step: int | None) -> int | None:
    """The step whose weights a fetched run has left in the bucket; None for any other folder."""
    if not address_of(run_dir):
        return None
    steps = available_steps(run_dir)
    if (
        len(steps) != 1
        or step not in (None, *steps)
        or (Path(run_dir) / CHECKPOINTS / str(steps[0]) / WEIGHTS).exists()
    ):
        return None
    return steps[0]


def _changed_in_bucket(run_dir: Path, address: str, step: int) -> str:
    """Why the weights in the bucket may not be those of the fetched manifest; "" where they are."""
    there = parse_place(address) / CHECKPOINTS / str(step) / MANIFEST
    try:
        if not (fetched := run_dir / CHECKPOINTS / str(step) / MANIFEST).is_file():
            return ""
        if read_bytes(there) == fetched.read_bytes():
            return ""
    except FileNotFoundError:
        pass
    except OSError as e:
        return str(cannot_read(there, e))
    return f"{there.parent}: was changed or removed while it was read; run the command again"


@contextlib.contextmanager
def _within_deadline(folder: Place) -> Iterator[None]:
    """A limit for what reads the weights of a checkpoint in a bucket."""
    limit = Deadline(DEADLINE_S if is_bucket(folder) else 0)
    with limit.around(lambda s: f"{folder}: was not read in {s:,.0f} s; the bucket does not answer"):
        yield


def in_order(folders: Mapping[int, Place]) -> list[int]:
    """Steps in the order in which their checkpoints are tried: the newest first, those without a manifest last.

    This program never leaves a checkpoint without one, so that it is gone says that something happened to the folder.
    """
    sealed = set(agree_on([s for s, folder in sorted(folders.items()) if has_manifest(folder)]))
    return sorted(folders, key=lambda s: (s in sealed, s), reverse=True)


def _read_params(folder: Place, saved: Described, shardings: Any, dtype: Any) -> dict[str, Any]:
    wanted = {path: jax.ShapeDtypeStruct(shape, dtype or saved_dtype) for path, (shape, saved_dtype) in saved.items()}
    if isinstance(shardings, jax.sharding.Sharding):
        wanted = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings) for p, x in wanted.items()}
    elif shardings is not None:
        by_path = flatten(to_dict(shardings))
        if missing := sorted(set(wanted) ^ set(by_path)):
            raise UserError(f"parameters in {folder.parent}: not the leaves that were expected: {', '.join(missing)}")
        wanted = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_path[p]) for p, x in wanted.items()}
    with _within_deadline(folder):
        return read_item(folder, unflatten(wanted))


def read_item(folder: Place, wanted: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """The arrays of one item of a checkpoint, placed as `wanted` says (a nested dict; see `targets`).

    Unless `partial`, all of them must be wanted, and the caller sets the limit for what is read from a bucket.

    What is on its way through host memory at one time is the largest leaf, or IN_FLIGHT_BYTES of smaller ones. Orbax's
    own bound, 96 GB, is a second copy of most models.
    """
    # A leaf can be stored wider than it is wanted, and orbax refuses one that alone reaches the bound.
    largest = max(4 * math.prod(x.shape) for x in jax.tree.leaves(wanted))
    bound = max(IN_FLIGHT_BYTES, 1.1 * largest) / 1e9
    places = targets(wanted)
    restore_args = ocp.checkpoint_utils.construct_restore_args(places)
    asked = ocp.args.PyTreeRestore(item=places, restore_args=restore_args, partial_restore=True)
    with plain_path(folder) as path:
        if partial:
            handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=bound)
            with _within_deadline(folder), ocp.Checkpointer(handler) as reader:
                return dict(reader.restore(path, args=asked))
        with ocp.StandardCheckpointer(restore_concurrent_gb=bound) as reader:
            return dict(reader.restore(path, places))


def reason(e: BaseException) -> str:
    text = without_alias(str(e) if isinstance(e, UserError | WorkError) else f"{type(e).__name__}: {e}")
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
