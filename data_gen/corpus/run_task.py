"""One task: some parts of one stage, in this process. What both the local executor and a Slurm array start.

    python -m data_gen.corpus.run_task --stage=FOLDER --tasks=FILE --task=N

FILE is a JSON list of lists of part numbers. Parts that are there already are passed over.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from data_gen.corpus.stage_folder import StageFolder
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import ReportedError, UserError, one_line


def run_parts(folder: StageFolder, numbers: Iterable[int]) -> None:
    """Makes parts of a stage. Raises whatever its function raises, with the number of the part as a note."""
    module, _, name = folder.key["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    for number in numbers:
        if folder.part(number).exists():
            continue
        try:
            with folder.put(number) as (path, result):
                made = function(folder.parts[number], folder.key["settings"], folder.context, path)
                result.rows, result.counts = made.rows, made.counts
        except BaseException as e:
            e.add_note(f"part {number} of {folder.path.name}")
            raise


def run_reporting(stage: Path, numbers: Iterable[int]) -> int:
    """`run_parts`; the exit code: 0, 2 for a UserError (no use in a second try), 1 for the rest. The last line of
    stderr says what was wrong."""
    try:
        run_parts(StageFolder(stage), numbers)
        return 0
    except BaseException as e:  # MemoryError and KeyboardInterrupt too
        if not isinstance(e, ReportedError):
            traceback.print_exc()
        where = ", ".join(getattr(e, "__notes__", []))
        problem = str(e) if isinstance(e, ReportedError) else f"{type(e).__name__}: {one_line(e)}"
        print(f"error: {where}: {problem}" if where else f"error: {problem}", file=sys.stderr, flush=True)
        return 2 if isinstance(e, UserError) else 1


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = Parser(prog="python -m data_gen.corpus.run_task", description=__doc__.partition("\n")[0])
    parser.add_argument("--stage", required=True, metavar="DIR", help="folder of the stage")
    parser.add_argument("--tasks", required=True, metavar="FILE", help="JSON list of lists of part numbers")
    parser.add_argument("--task", type=int, default=int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)), help="which of them")
    args = parser.parse_args(argv)
    tasks = json.loads(Path(args.tasks).read_bytes())
    return run_reporting(Path(args.stage), tasks[args.task])


if __name__ == "__main__":
    sys.exit(main())
