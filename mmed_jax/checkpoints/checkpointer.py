"""Checkpoints of a training run: asynchronous, checked when read, restored on any mesh.

    <run_dir>/checkpoints/<step>/params/       what is trained, parameters or an adapter (orbax, OCDBT), a nested dict
                                 opt_state/    {"opt_state": optimizer moments and counts, "step": int32}
                                 meta/         meta.json: step, tokens seen, data position, config, versions, leaves;
                                               of an adapter what it is and whose weights it belongs to
                                 manifest.json sizes and checksums of all of these

A checkpoint is written under a temporary name and renamed when whole. `<step>.corrupt` is one that could not be read:
it is kept for inspection and never used. (Without renaming, in a bucket: bucket_run.py.)
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmed_jax.checkpoints.best import cost
from mmed_jax.checkpoints.lost_checkpoints import SAVED_KEY, check_lost, say_odd_steps, say_older
from mmed_jax.checkpoints.restore import (
    available_steps,
    check_files,
    in_order,
    passing,
    quiet_orbax,
    read_item,
    reason,
    restore_params,
    say,
)
from mmed_jax.checkpoints.retention import Keep, space_problem
from mmed_jax.checkpoints.run_directory import (
    META_FILE,
    META_ITEM,
    guard_run_dir,
    read_meta,
    run_storage,
)
from mmed_jax.checkpoints.save_deadline import Deadline
from mmed_jax.checkpoints.save_interval import SaveInterval
from mmed_jax.checkpoints.stored_arrays import plain_path, stored_problems
from mmed_jax.checkpoints.tree import compare, describe, from_dict, package_versions, to_dict
from mmed_jax.common.checksums import MANIFEST, CannotRead, cannot_read, is_gone, shorten, write_manifest
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.places import Place, is_bucket
from mmed_jax.config.resume import plain_config, training_hash
from mmed_jax.parallel.barriers import agree_on, any_text, on_main, same_storage
from mmed_jax.parallel.host_allocator import give_back_freed_memory
from mmed_jax.parallel.preemption import PreemptionGuard

__all__ = ["Checkpointer", "PreemptionGuard", "available_steps", "guard_run_dir", "restore_params"]

State = dict[str, Any]  # params, opt_state: trees; step: int32 []

# Reading and hashing a large checkpoint on slow shared storage takes long, and the other processes wait for it.
_TIMEOUT_SECONDS = 3600
_PACKAGES = ("mmed_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Checkpointer:
    """Saves and restores the state of one run. Every process of the run makes one and calls it in the same order.

    Args:
      run_dir: the run directory, on storage that all processes share.
      every_steps: save when the step is a multiple; 0 = not by steps.
      every_minutes: save when this long has passed since the last save; 0 = not by time; "auto" and
        mean_hours_between_interruptions: see save_interval.SaveInterval. With several processes the measures and the
        clock of process 0 counts, asked every `sync_every` steps.
      keep_last: newest checkpoints kept. keep_best: kept as well, those with the best `best_metric`.
      best_metric: key in `metrics` of `maybe_save`, see best.cost; a checkpoint saved without it is never best.
      deadline_minutes: of a run in a bucket, after which a checkpoint that is not written or read ends this process
        with one line and exit code 1; 0 = never.
      async_: write in the background; the call returns when the arrays have left the devices.

    Raises:
      UserError: the directory is in use by another run, or the processes do not see the same storage.
    """

    def __init__(
        self,
        run_dir: str | Place,
        *,
        every_steps: int,
        every_minutes: float | str,
        keep_last: int,
        keep_best: int,
        mean_hours_between_interruptions: float = 24.0,
        best_metric: str = "validation/loss",
        deadline_minutes: float = 60.0,
        async_: bool = True,
        sync_every: int = 10,
    ):
        self._storage = run_storage(run_dir)
        self.run_dir = self._storage.place
        self.every_steps = every_steps
        self._interval = SaveInterval(every_minutes, mean_hours_between_interruptions)
        self.best_metric, self._sync_every = best_metric, sync_every
        self._folder = self._storage.checkpoints
        on_main(self._storage.lock, "the lock of run_dir")
        same_storage(self.run_dir)
        recorded = self._metrics()
        self._best = {step: value for step, value in recorded.items() if value is not None}
        self._keep = Keep(max(1, keep_last), keep_best, self._best)
        self._keep.aside.update(agree_on(self._storage.aside_in_place()))
        self._async = async_
        self._names = contextlib.ExitStack()
        self._deadline = Deadline(deadline_minutes * 60 if is_bucket(self.run_dir) else 0)
        with self._deadline.around(lambda s: f"{self._folder}: was not listed in {s:,.0f} s"):
            self._manager = self._make_manager()
        self._pending: int | None = None  # the step being written
        self._leaves: dict[str, Any] = {}  # what its stores must hold
        self.newest: int | None = None  # the newest step that is known to be whole
        self._last_saved = time.monotonic()
        self.blocked_seconds = 0.0  # for which the newest save held the steps up

    def _make_manager(self) -> ocp.CheckpointManager:
        quiet_orbax()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add(META_ITEM, ocp.args.JsonSave, ocp.JsonCheckpointHandler(filename=META_FILE))
        # The callback runs on process 0 after the files are written, before they get their final name, and before an
        # older checkpoint is removed. (Without orbax's background there is no such place.)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=_TIMEOUT_SECONDS, post_finalization_callback=self._seal),
            # Else a damaged metadata file would stop us here, before it can be reported.
            lightweight_initialize=True,
        )
        folder = self._names.enter_context(plain_path(self._folder))
        return ocp.CheckpointManager(folder, options=options, handler_registry=registry)

    def last_save(self) -> dict[str, float]:
        """Of the newest save: seconds for which it held the steps up, and those to the next one, if the clock asks."""
        seconds = self._interval.seconds
        return {"blocked_seconds": self.blocked_seconds} | ({"next_save_seconds": seconds} if seconds else {})

    def last_whole(self) -> dict[str, int]:
        """For the numbers of a step: the newest checkpoint that is whole, {} before there is one."""
        return {} if self.newest is None else {SAVED_KEY: self.newest}

    def is_best(self, metrics: Mapping[str, float] | None) -> bool:
        """Whether these numbers are better than those of every checkpoint there is, by `best_metric`."""
        value = cost(self.best_metric, metrics)
        return value is not None and value < min(self._best.values(), default=float("inf"))

    # Saving

    def maybe_save(
        self,
        step: int,
        state: State,
        *,
        data_state: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        config: Mapping[str, Any],
        adapter: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
        before: Callable[[], object] | None = None,
    ) -> bool:
        """Saves when the step or the clock says so, or when forced (last step, preemption); never one step twice.

        Args:
          step: updates done. Call after every step.
          state: {"params", "opt_state", "step"}; arrays may be donated to the next step as soon as this returns.
          data_state: position in the data (seed, tokens_seen, ...), JSON values; or a function, called after `before`.
          config: the resolved config.
          adapter: where params are an adapter, what it is and the weights beneath it ({"spec", "base"}, JSON values).
          metrics: numbers of this step; `best_metric` decides which checkpoints are best.
          force: save now; the same on every process.
          before: called once it is sure that something will be saved; raises to forbid it (numbers not finite).

        Returns:
          Whether a save was started.

        Raises:
          WorkError: this or an earlier save in the background failed (disk full, ...).
        """
        self._storage.check_lock()
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()  # returns at once; raises what went wrong in the background
        due = force or (self.every_steps > 0 and step % self.every_steps == 0) or self._time_is_up(step)
        if not due or step in self._saved_steps():
            return False
        if before is not None:
            before()
        if callable(data_state):
            data_state = data_state()
        begun = time.monotonic()
        self.wait()
        best = cost(self.best_metric, metrics)
        if best is not None:
            self._best[step] = best
        params, optimizer = to_dict(state["params"]), _optimizer_item(state)
        meta = {
            "step": int(step),
            "tokens_seen": data_state.get("tokens_seen"),
            "data_state": dict(data_state),
            "metrics": {k: float(v) for k, v in (metrics or {}).items()},
            "best_metric": None if best is None else float((metrics or {})[self.best_metric]),
            "config": plain_config(config),
            "config_hash": training_hash(config),
            "versions": package_versions(_PACKAGES),
            "device_count": jax.device_count(),
            "process_count": jax.process_count(),
            "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "leaves": {"params": describe(params), "opt_state": describe(optimizer)},
            **({"lora": adapter} if adapter else {}),
        }
        self._leaves = meta["leaves"]
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            opt_state=ocp.args.StandardSave(optimizer),
            **{META_ITEM: ocp.args.JsonSave(json.loads(json.dumps(meta, default=list)))},
        )
        self._pending = step
        self._deadline.begin(self._late)
        with self._as_work_error():
            self._clear(step)
            self._manager.save(step, args=items, force=True)
        self._deadline.begin(self._late, is_over=lambda: not self._manager.is_saving_in_progress())
        self._last_saved = time.monotonic()
        if not self._async:
            self.wait()
        self.blocked_seconds = time.monotonic() - begun
        self._interval.add(self.blocked_seconds)
        return True

    def _late(self, seconds: float) -> str:
        kept = f"step {self.newest} is the newest whole checkpoint" if self.newest is not None else "none is whole yet"
        return (
            f"checkpoint of step {self._pending} in {self._folder} was not written in {seconds:,.0f} s: the bucket "
            f"does not answer, or --config.checkpoint.deadline_minutes is too short; {kept}"
        )

    def _saved_steps(self) -> set[int]:
        """The steps that need not be saved."""
        return set(self._manager.all_steps()) - self._keep.aside

    def _time_is_up(self, step: int) -> bool:
        every = self._interval.seconds  # 0 on all processes or on none, otherwise that of process 0 counts
        if every <= 0:
            return False
        if jax.process_count() == 1:
            return time.monotonic() - self._last_saved >= every
        if step % self._sync_every:
            return False  # asking waits for the devices, so not after every step
        mine = time.monotonic() - self._last_saved >= every
        return bool(multihost_utils.broadcast_one_to_all(np.int32(mine)))

    def _clear(self, step: int) -> None:
        """Removes a damaged checkpoint that stands where a new one is about to be written; all processes call this."""
        if step in self._keep.aside:
            self._manager.delete(step)
            on_main(lambda: self._storage.forget_aside(step))
            self._keep.aside.discard(step)

    def _seal(self) -> None:
        """Reads back what was written and writes its manifest; raises when a leaf is not there.

        A checkpoint that is not what it should be never gets its name, and those before it stay.
        """
        folder = self._storage.being_written(self._pending)
        if folder is None:
            raise WorkError(f"nothing was written for {self._folder / str(self._pending)}")
        if problems := stored_problems(folder, self._leaves):
            raise WorkError(f"{len(problems)} leaves did not arrive in the store: {shorten(problems)}")
        self._storage.before_commit()
        write_manifest(folder)

    def wait(self) -> None:
        """Waits until the save in the background is whole. Raises WorkError when it failed."""
        if self._pending is None:
            return
        with self._as_work_error():
            self._manager.wait_until_finished()
        self._deadline.end()
        self.newest, self._pending = self._pending, None
        # The copy of the state that was written lies freed in the allocator's arenas, a new one each time.
        give_back_freed_memory()

    def close(self) -> None:
        """Waits for the save in the background and ends the threads. Raises WorkError when the save failed."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what a failed save left behind was reported by wait()
                self._manager.close()
            self._names.close()
            self._storage.unlock()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _as_work_error(self) -> Iterator[None]:
        step = self._pending
        try:
            yield
        except Exception as e:
            self._pending = None
            self._best.pop(step, None)
            kept = self._newest_there()
            raise WorkError(f"checkpoint of step {step} in {self._folder} was not written: {reason(e)}; {kept}") from e

    def _newest_there(self) -> str:
        """For the error of a save: what is there."""
        try:
            steps = available_steps(self.run_dir)
        except (WorkError, UserError) as e:
            return f"which checkpoints are whole cannot be asked now ({one_line(e)})"
        return f"step {steps[-1]} is the newest whole checkpoint" if steps else "no checkpoint exists yet"

    # Restoring

    def restore_latest(self, abstract_state: State, *, restart: bool = False) -> tuple[State, dict[str, Any]] | None:
        """The newest good checkpoint, placed as `abstract_state` says: any mesh, any number of devices.

        Args:
          abstract_state: {"params", "opt_state", "step"} with jax.ShapeDtypeStruct leaves that carry a sharding (real
            arrays do as well).
          restart: starting at step 0 is meant where the run's checkpoints are gone.

        Returns:
          (state, meta), or None when the run has no checkpoint at all. Newer checkpoints that turned out damaged are
          reported and renamed to `<step>.corrupt`, so that their steps can be saved again. One without a manifest is
          damaged when another has one; else it is read and that is said.

        Raises:
          UserError: the checkpoint is whole but of another model or optimizer, every differing leaf is named; or the
            run had saved checkpoints, none is there, and no `restart` is asked for.
          WorkError: checkpoints exist and none can be read, or the newest cannot be read now (no permission, storage
            out of reach). Nothing is renamed then, and nothing starts at step 0.

        Warns when the disk cannot hold the checkpoints that the run will keep.
        """
        self.wait()
        on_main(lambda: say_odd_steps(self.run_dir))
        if jax.process_index() == 0 and (problem := space_problem(self.run_dir, abstract_state, self._keep.most)):
            say(f"warning: {problem}")
        damaged: dict[int, str] = {}
        # Process 0 says what there is: another process's view of shared storage may lag.
        steps = in_order({s: self._folder / str(s) for s in agree_on(available_steps(self.run_dir))})
        for step in steps:
            state, meta, problem = self._try(step, abstract_state)
            if not problem:
                for newer in (s for s in steps if s > step and s not in damaged):
                    damaged[newer] = f"{MANIFEST} is missing"
                    say(f"checkpoint {self._folder / str(newer)} is damaged and is not used: {damaged[newer]}")
                if jax.process_index() == 0 and not damaged:
                    say_older(self.run_dir, step)
                self._set_aside(damaged)
                self.newest = step
                give_back_freed_memory()
                return state, meta
            damaged[step] = problem
            say(f"checkpoint {self._folder / str(step)} is damaged and is not used: {problem}")
        aside = self._storage.all_set_aside()
        if damaged or agree_on([len(aside)])[0]:
            what = shorten([f"step {s}: {p}" for s, p in damaged.items()] or [f"set aside earlier: {', '.join(aside)}"])
            raise WorkError(
                f"no checkpoint in {self._folder} can be read ({what}); not starting again at step 0: restore the "
                f"folder from a backup, or name another --config.run_dir"
            )
        on_main(lambda: None if restart else check_lost(self.run_dir))
        return None

    def _try(self, step: int, abstract_state: State) -> tuple[State | None, dict[str, Any], str]:
        """(state, meta, "") or (None, {}, why the checkpoint is damaged), the same on every process."""
        folder = self._folder / str(step)
        damage, unreadable, sealed = check_files(folder)
        if unreadable:
            raise CannotRead(unreadable)
        if damage:
            return None, {}, damage
        problem, fatal, state, meta = "", "", None, {}
        try:
            meta = read_meta(self.run_dir, step)
            optimizer, params = _optimizer_item(abstract_state), to_dict(abstract_state["params"])
            compare(params, meta["leaves"]["params"], f"parameters of step {step} in {self._folder}")
            compare(optimizer, meta["leaves"]["opt_state"], f"optimizer state of step {step} in {self._folder}")
            with self._deadline.around(lambda s: f"checkpoint {folder}: was not read in {s:,.0f} s"):
                read = read_item(folder / "params", params), read_item(folder / "opt_state", optimizer)
            state = {
                "params": from_dict(abstract_state["params"], read[0]),
                "opt_state": from_dict(abstract_state["opt_state"], read[1].get("opt_state", {})),
                "step": read[1]["step"],
            }
        except UserError:
            raise
        except Exception as e:
            problem = reason(e)
            # Every byte is as it was written, or the fault is this machine's: setting it aside would lose good work.
            if sealed or passing(e):
                fatal = problem
        if fatal := any_text(fatal):
            raise WorkError(f"checkpoint of step {step} in {self._folder} is whole but cannot be restored: {fatal}")
        if problem := any_text(problem):
            return None, {}, problem
        if not sealed:
            say(f"checkpoint of step {step} has no {MANIFEST}: it was read, its checksums could not be compared")
        return state, meta, ""

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        def mark() -> None:
            for step in damaged:
                say(f"checkpoint of step {step} {self._storage.set_aside(step)}")

        if damaged:
            on_main(mark)
            for step in damaged:
                self._best.pop(step, None)
            self._keep.aside.update(agree_on(self._storage.aside_in_place()))
            self._manager.reload()

    def _metrics(self) -> dict[int, float | None]:
        """The cost by `best_metric` of every checkpoint there is, None where it has none or is damaged.

        Raises:
          CannotRead: a record cannot be read now; without it the best checkpoint might be removed.
        """
        found: dict[int, float | None] = {}
        unreadable = ""
        for step in available_steps(self.run_dir):
            try:
                found[step] = cost(self.best_metric, read_meta(self.run_dir, step)["metrics"])
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                found[step] = None
            except OSError as e:
                found[step] = None
                unreadable = unreadable or ("" if is_gone(e) else str(cannot_read(e.filename or self._folder, e)))
        if unreadable := any_text(unreadable):
            raise CannotRead(unreadable)
        return found


def _optimizer_item(state: State) -> dict[str, Any]:
    moments = to_dict(state["opt_state"])
    return {"step": state["step"], **({"opt_state": moments} if moments else {})}
