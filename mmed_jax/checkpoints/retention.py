"""Which checkpoints stay, and whether the disk can hold them."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmed_jax.checkpoints.run_directory import CHECKPOINTS, step_folders
from mmed_jax.common.places import Place, is_bucket


class Keep(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest `last` checkpoints, and the `best` ones with the lowest recorded cost."""

    def __init__(self, last: int, best: int, metric: Mapping[int, float]):
        self._last, self._best, self._metric = last, best, metric
        self.most = last + best
        self.aside: set[int] = set()  # damaged ones, which stand beside the others and are kept as well

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        steps = [c.step for c in checkpoints if c.step not in self.aside]
        # Of two equally good ones the older: a later tie is no improvement.
        ranked = sorted((self._metric[s], s) for s in steps if s in self._metric)
        kept = set(steps[-self._last :]) | {s for _, s in ranked[: self._best]} | self.aside
        return [c.step in kept for c in checkpoints]


def space_problem(run_dir: Place, state: Any, kept: int) -> str:
    """What to say when the disk cannot hold `kept` checkpoints and the one being written, "" when it can.

    Args:
      state: what a checkpoint holds, arrays or jax.ShapeDtypeStructs. kept: most checkpoints that stay; those that are
        there already count as room.
    """
    if is_bucket(run_dir):
        return ""
    folder = Path(run_dir) / CHECKPOINTS
    try:
        disk = shutil.disk_usage(folder)
        there = sum(p.stat().st_size for f in step_folders(run_dir).values() for p in f.rglob("*") if p.is_file())
    except OSError:
        return ""
    if disk.total == 0:  # some network file systems do not say
        return ""
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    wanted = (kept + 1) * size
    if disk.free + there >= wanted:
        return ""
    free, need, each = (f"{n / 1e9:,.1f} GB" for n in (disk.free, wanted - there, size))
    return (
        f"{folder} has {free} free and may need {need}: a checkpoint takes up to {each}, and up to {kept} are kept "
        "while another is written; make room, or lower --config.checkpoint.keep_last or keep_best"
    )
