"""Where runs will be written: whether they can be, how fast, and whether another process holds the place."""

import os
import shutil
import time
from pathlib import Path

from mmed_jax.checkpoints.run_directory import run_storage
from mmed_jax.checkup.findings import Findings
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.output_files import check_writable
from mmed_jax.common.places import Place


def check_bucket(out: Findings, run_dir: Place) -> None:
    """Whether objects can be written, read and removed where runs will lie, and how long that takes."""
    start = time.perf_counter()
    try:
        run_storage(run_dir).check(())
        out.add("run dir", f"{run_dir}: writable, three requests in {time.perf_counter() - start:.2f} s")
    except (UserError, WorkError) as e:
        out.add("run dir", f"{run_dir}: cannot be used ({one_line(e)})")
        out.problems.append(f"run dir {run_dir} cannot be used")


def check_storage(out: Findings, folders: dict[str, Path]) -> None:
    """Whether the run directory and the compile cache can be written, how fast, and what is free."""
    for name, folder in folders.items():
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        try:
            if not existing.is_dir():
                raise NotADirectoryError(20, f"{existing} is a file")
            check_writable(existing)
            speed = _write_speed(existing) if name == "run dir" else ""
            free = shutil.disk_usage(existing).free / 2**30
            state = "" if existing == folder else f" (not there yet; {existing} is)"
            out.add(name, f"{folder}{state}: writable, {free:.1f} GiB free{speed}")
            if free < 5:
                out.warnings.append(f"{existing}: only {free:.1f} GiB free")
        except OSError as e:
            out.add(name, f"{folder}: cannot be written ({e.strerror or e})")
            (out.problems if name == "run dir" else out.warnings).append(f"{name} {folder} cannot be written")


def check_run_lock(out: Findings, run_dir: Place) -> None:
    """Who holds a run directory, or held it last; a place that holds no run, only runs, has no lock."""
    try:
        holder, is_held = run_storage(run_dir).lock_holder()
    except (UserError, WorkError):  # of the place itself other checks speak
        return
    if holder:
        out.add("run lock", f"held by {holder}" if is_held else f"left by {holder}; nobody holds it")
    if is_held:
        out.warnings.append(f"{run_dir} is in use by {holder}: no other run starts there before that has ended")


def _write_speed(folder: Path, mib: int = 16) -> str:
    probe, block = folder / f".speed_test.{os.getpid()}", os.urandom(mib << 20)
    try:
        start = time.perf_counter()
        with open(probe, "wb") as f:
            f.write(block)
            os.fsync(f.fileno())
        return f", {mib / (time.perf_counter() - start):,.0f} MiB/s"
    finally:
        probe.unlink(missing_ok=True)
