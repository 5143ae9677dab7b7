"""What a process sees in the run directory, to be compared with what the others see."""

from typing import Any

from mmed_jax.checkpoints.run_directory import CONFIG_FILE, step_folders
from mmed_jax.common.jsonl import loads
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import Place, is_bucket
from mmed_jax.config.resume import training_hash


def view_run_dir(run_dir: Place, *, shared: bool) -> dict[str, Any]:
    """Facts for host_comparison: whether it is the folder of process 0, its newest checkpoint, its config's hash.

    Inodes are named and not compared: a mounted bucket gives every host its own.

    Args:
      shared: whether this process sees there what process 0 has written.
    """
    try:
        text = read_bytes(run_dir / CONFIG_FILE)
        config = training_hash(loads(text, dict))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        config = None  # not there, or damaged: run_directory.py judges it
    return {
        "run_dir": "one folder" if shared else f"another folder, {run_dir}{_inode(run_dir)},",
        "newest checkpoint in run_dir": max(step_folders(run_dir), default=None),
        "config.json in run_dir": config,
    }


def _inode(path: Place) -> str:
    try:
        return "" if is_bucket(path) else f" with inode {path.stat().st_ino}"
    except (OSError, AttributeError):
        return ""
