"""The flags of `data_gen corpus` that say where tasks run."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from data_gen.corpus.executor import PRELOAD, Executor, LocalExecutor
from data_gen.corpus.executor_settings import parse_settings
from data_gen.corpus.ray_executor import RayExecutor, RaySettings
from data_gen.corpus.slurm_executor import SlurmExecutor, SlurmSettings
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.config.overrides import split_overrides

# Clusters and their flags.
CLUSTERS = {"slurm": SlurmSettings, "ray": RaySettings}
EXECUTORS = ("local", *CLUSTERS)
CLUSTER_FLAGS = "\n".join(
    f"--{name}.NAME=VALUE: {', '.join(f.name for f in dataclasses.fields(kind))}." for name, kind in CLUSTERS.items()
)


def add_executor(parser: Parser) -> None:
    """Adds the flags."""
    parser.add_argument("--executor", metavar="|".join(EXECUTORS), default="local", help="where tasks run")
    parser.add_argument("--tasks", type=int, default=0, help="tasks a stage is divided into (default: one a unit)")
    parser.add_argument("--workers", type=int, default=0, help="local: processes at a time (default: one a core)")
    parser.add_argument("--memory_gb", type=float, default=0.0, help="local: memory that a process may take (0: any)")


def split_clusters(argv: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The other flags, and --CLUSTER.NAME=VALUE as {cluster: {NAME: VALUE}}. Raises UserError for one without value."""
    flags, given = list(argv), {}
    for name in CLUSTERS:
        flags, given[name] = split_overrides(flags, f"--{name}")
    return flags, given


def make_executor(args: Any, given: dict[str, dict[str, str]], preload: tuple[str, ...] = PRELOAD) -> Executor:
    """What runs the tasks. Raises UserError for flags that make no sense.

    Args:
      given: of split_clusters. preload: modules that local workers begin with.
    """
    for name in ("tasks", "workers", "memory_gb"):
        if not 0 <= getattr(args, name) < math.inf:  # nan is neither
            raise UserError(f"--{name}={getattr(args, name)}: must be 0 or more")
    if args.executor not in EXECUTORS:
        raise UserError(f"--executor={args.executor}: unknown{nearest(args.executor, EXECUTORS)}")
    for cluster, flags in given.items():
        if flags and cluster != args.executor:
            raise UserError(f"--{cluster}.{next(iter(flags))}: is for --executor={cluster}")
    if args.executor == "slurm":
        return SlurmExecutor(parse_settings(SlurmSettings, given["slurm"], "slurm"), args.tasks, say=say)
    if args.executor == "ray":
        return RayExecutor(parse_settings(RaySettings, given["ray"], "ray"), args.tasks, say=say)
    return LocalExecutor(args.workers, args.tasks, args.memory_gb, say=say, preload=preload)


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)
