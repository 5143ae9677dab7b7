"""The flags of `data_gen corpus` that say where tasks run and where what they make is kept."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_gen.corpus.executor import PRELOAD, Executor, LocalExecutor
from data_gen.corpus.executor_settings import parse_settings
from data_gen.corpus.ray_executor import RayExecutor, RaySettings
from data_gen.corpus.slurm_executor import SlurmExecutor, SlurmSettings
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.place_flags import OutputPlace, addresses
from mmed_jax.config.overrides import split_overrides

# Clusters and their flags.
CLUSTERS = {"slurm": SlurmSettings, "ray": RaySettings}
EXECUTORS = ("local", *CLUSTERS)
# What a worker loads before it puts a part into a bucket.
_BUCKETS = ("data_gen.corpus.bucket_parts", "google.cloud.storage")
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
    if addresses(args.output, OutputPlace):
        preload = (*preload, *_BUCKETS)
    return LocalExecutor(args.workers, args.tasks, args.memory_gb, say=say, preload=preload)


class BuildPlace(NamedTuple):
    """Where a build writes. work: of the folders of stages, None: in output; store: its address in a bucket, or ""."""

    output: str
    work: Path | None = None
    store: str = ""


@contextlib.contextmanager
def build_place(output: str, folders: Sequence[str], files: Sequence[str]) -> Iterator[BuildPlace]:
    """Where to write what --output names; of an address in a bucket a folder of this machine that goes up at the end.

    Args:
      folders, files: of built_folder.

    Raises:
      UserError, WorkError: of built_folder.
    """
    if not addresses(output, OutputPlace):
        yield BuildPlace(output)
        return
    from mmed_jax.common.buckets.built_folder import built_folder

    with built_folder(output, "--output", folders, files) as built:
        yield BuildPlace(str(built.path), built.work, built.store)


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)
