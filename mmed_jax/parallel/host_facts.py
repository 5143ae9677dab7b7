"""What a process states of itself before the first step: its config, code, versions, environment, clock and disks.

Everything here is cheap and touches no device: two hosts that mean different runs are found before they wait for each
other in a collective. mmed_jax/parallel/host_comparison.py compares.
"""

import glob
import os
import platform
import shlex
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmed_jax.common.hashes import json_hash
from mmed_jax.common.paths import REPO
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.resume import plain_config, training_hash, training_keys

# What decides how a step is compiled and what its numbers are.
PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-collections",
    "tokenizers",
    "transformers",
    "grain",
    "array-record",
)
# Variables of flags, whose every flag is a fact; and variables that jax reads.
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_VARIABLES = ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE")
_SOURCE = (".py", ".toml")
# A checkout without .git, as scripts.pod copies it, has in this file its commit, and in a second line "changes HASH"
# where there were local ones.
COMMIT_FILE = ".commit"

# Facts that need not be equal: host_comparison.py has their limits.
TIME, FREE = "time", "free GiB"


def host_facts(config: Any, more: Mapping[str, Any], folders: Mapping[str, Path], now: float) -> dict[str, Any]:
    """{name: JSON value}: what this process is about to run, and what it finds on its host.

    Args:
      config: the resolved config of the run.
      more: facts of other rooms (flags of the command, what is seen in the run directory).
      folders: {name: folder} whose disks must have space; one that is not there yet stands for the one above it.
      now: the time (s) of this host's clock at a moment that all hosts share.
    """
    return {
        **config_facts(config),
        **code_facts(),
        **version_facts(),
        **environment_facts(os.environ),
        **more,
        FREE: {name: free_gib(folder) for name, folder in folders.items()},
        TIME: now,
    }


def config_facts(config: Any) -> dict[str, Any]:
    """Every key but those that are a host's own, and the hash of those that decide what is trained."""
    own = [name for name, key in KEYS.items() if key.per_host]
    keys = {f"config.{k}": v for k, v in training_keys(plain_config(config), own).items()}
    return {"training hash": training_hash(config), **keys}


def code_facts(root: Path = REPO) -> dict[str, Any]:
    """Commit and local changes where git tells, and a hash of the source files whether it does or not."""
    commit, changes = _git_facts(root)
    return {"git commit": commit, "local changes": changes, "code": json_hash(source_files(root), 12)}


def source_files(root: Path = REPO) -> dict[str, str]:
    """{file: CRC-32 in hex} of the program: mmed_jax and its recipes."""
    folders = [root / "mmed_jax"] + ([root / "configs"] if (root / "configs" / "stage1.py").is_file() else [])
    paths = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in _SOURCE)
    return {p.relative_to(root).as_posix(): f"{zlib.crc32(p.read_bytes()):08x}" for p in paths}


def _git_facts(root: Path) -> tuple[str | None, str | None]:
    if not (root / ".git").exists():
        try:
            copied, _, changes = (root / COMMIT_FILE).read_text(encoding="utf-8").strip().partition("\n")
        except OSError:
            return None, None
        return copied[:12] or None, changes.strip().removeprefix("changes ") or "none"
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    if not commit or changed is None:  # no git here, or a checkout of somebody else
        return None, None
    files = [line[3:] for line in changed.splitlines()]
    if not files:
        return commit[:12], "none"
    named = ", ".join(files[:4]) + (", ..." if len(files) > 4 else "")
    return commit[:12], f"{zlib.crc32((_git(root, 'diff', 'HEAD') or '').encode()):08x} in {named}"


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def version_facts() -> dict[str, str]:
    """Python and the packages that decide what a step computes; a package that is not there has no fact."""
    versions = {"version of python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[f"version of {name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def environment_facts(environment: Mapping[str, str]) -> dict[str, str]:
    """Flags of the compiler, one by one; variables that change what jax computes; how many accelerators there are."""
    facts = {}
    for name in _FLAGS:
        for flag in _split(environment.get(name, "")):
            key, _, value = flag.partition("=")
            facts[f"{name} {key}"] = value
    facts |= {name: environment[name] for name in _VARIABLES if name in environment}
    for kind, pattern in (
        ("TPU", "/dev/accel[0-9]*"),
        ("TPU (vfio)", "/dev/vfio/[0-9]*"),
        ("GPU", "/dev/nvidia[0-9]*"),
    ):
        if devices := glob.glob(pattern):
            facts[f"{kind} device files"] = str(len(devices))
    return facts


def _split(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError:  # an open quotation mark
        return flags.split()


def free_gib(folder: Path) -> float | None:
    """GiB that are free where `folder` lies or will lie; None where that has no meaning (a bucket)."""
    try:
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        return round(shutil.disk_usage(existing).free / 2**30, 2)
    except (OSError, StopIteration, TypeError, ValueError):
        return None
