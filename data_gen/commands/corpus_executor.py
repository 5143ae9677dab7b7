"""The flags of `data_gen corpus` that say where tasks run."""

import dataclasses
from typing import Any

from data_gen.corpus.executor import PRELOAD, Executor, LocalExecutor
from data_gen.corpus.slurm_executor import SlurmExecutor, SlurmSettings, parse_settings
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest

EXECUTORS = ("local", "slurm")
SLURM_FLAGS = f"--slurm.NAME=VALUE: {', '.join(f.name for f in dataclasses.fields(SlurmSettings))}."


def add_executor(parser: Parser) -> None:
    """Adds the flags."""
    parser.add_argument("--executor", metavar="|".join(EXECUTORS), default="local", help="where tasks run")
    parser.add_argument("--tasks", type=int, default=0, help="tasks a stage is divided into (default: one a unit)")
    parser.add_argument("--workers", type=int, default=0, help="local: processes at a time (default: one a core)")
    parser.add_argument("--memory_gb", type=float, default=0.0, help="local: memory that a process may take (0: any)")


def make_executor(args: Any, slurm: dict[str, str], preload: tuple[str, ...] = PRELOAD) -> Executor:
    """What runs the tasks. Raises UserError for flags that make no sense.

    Args:
      preload: modules that local workers begin with.
    """
    for name in ("tasks", "workers", "memory_gb"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name}={getattr(args, name)}: must be 0 or more")
    if args.executor not in EXECUTORS:
        raise UserError(f"--executor={args.executor}: unknown{nearest(args.executor, EXECUTORS)}")
    if args.executor == "slurm":
        return SlurmExecutor(parse_settings(slurm), args.tasks, say=say)
    if slurm:
        raise UserError(f"--slurm.{next(iter(slurm))}: is for --executor=slurm")
    return LocalExecutor(args.workers, args.tasks, args.memory_gb, say=say, preload=preload)


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)
