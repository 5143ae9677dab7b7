"""Runs a study: arms of ordinary commands that are compared, and one page about what came of it.

    python -m mmed_jax.study --config=two_stage:demo --output=studies/two_stage
    python -m mmed_jax.study --config=two_stage:8b --output=DIR --dry_run [--topology=gpu:8xh100-80g --price=2.5]
    python -m mmed_jax.study --config=two_stage:8b --output=DIR --launcher=print > study.sh
    python -m mmed_jax.study --config=two_stage:8b --output=DIR --launcher=slurm --sbatch_train='--nodes=2'
    python -m mmed_jax.study --config=two_stage:8b --output=DIR --seeds=1,2,3

Every step is a command of its own (train, export, merge, evaluate) in its own process, with its log, in a folder of DIR
that its settings name. Steps that arms share are run once; what is done is not done again; a stopped study goes on
where it was when it is called again, and exits with 75 until then. DIR gets report.html, report.md and report.json;
--report writes them at any time from what is done.

--config.KEY=VALUE changes a setting of the study (its recipe in configs/ says which there are), --train.KEY=VALUE a key
of all its trainings, --evaluate.FLAG=VALUE a flag of all its evaluations. docs/studies.md says more.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common import console
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, one_line, run_command
from mmed_jax.common.output_files import check_folder
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import FreeText
from mmed_jax.config.overrides import split_overrides
from mmed_jax.planning.topology import parse as parse_topology
from mmed_jax.studies import run_here
from mmed_jax.studies.open_study import open_study
from mmed_jax.studies.shell_script import shell_script
from mmed_jax.studies.step_estimates import Estimate, estimate, total
from mmed_jax.studies.step_key import benchmark_files
from mmed_jax.studies.study_report import FILES, write_report
from mmed_jax.studies.submit_steps import refuse_queued, submit_tasks
from mmed_jax.studies.tasks import Plan, changed_settings, is_done, keep_name, lay_out

LAUNCHERS = ("local", "print", "slurm")
_OF_LAUNCHER = ("--launcher", "--sbatch", "--sbatch_train")


def main(argv: list[str] | None = None) -> int:
    """The study command; see the module's docstring and --help.

    Returns:
      0, or errors.UNFINISHED where it was stopped before its last step.
    """
    argv = sys.argv[1:] if argv is None else argv
    args, plan = open_plan(argv)
    if args.dry_run:
        print_steps(plan, args.topology or plan.study.settings.topology, args.price)
        return 0
    call = f"python -m mmed_jax.study {shlex.join(without_launcher(argv))}"
    if args.launcher == "print":
        print(shell_script(plan, call), end="")
        return 0
    console.outlive()
    check_folder(args.output, "--output")
    keep_name(plan)
    if args.launcher == "slurm" and not args.report:
        submit_tasks(plan, f"{call} --report", shlex.split(args.sbatch), shlex.split(args.sbatch_train))
        return 0
    if not args.report:
        refuse_queued(plan)
    code = 0 if args.report else run_here.run_tasks(plan)
    if not code:
        print_report(plan, args.price)
    return code


def without_launcher(argv: Sequence[str]) -> list[str]:
    """The arguments without those that say where steps are run."""
    out, skip = [], False
    for arg in argv:
        name, equals, _ = arg.partition("=")
        if not skip and name not in _OF_LAUNCHER:
            out.append(arg)
        skip = not skip and name in _OF_LAUNCHER and not equals
    return out


def print_report(plan: Plan, price: float) -> None:
    """Writes the report and prints what it says of each claim. Raises UserError."""
    for line in write_report(plan, price):
        print(f"claim      {line}")
    print(f"written    {plan.folder}/{', '.join(FILES)}")


def open_plan(argv: list[str]) -> tuple[argparse.Namespace, Plan]:
    """The flags, and the study that they describe laid out in its folder; nothing is written. Raises UserError."""
    rest, settings = split_overrides(argv, "--config")
    rest, keys = split_overrides(rest, "--train")
    rest, flags = split_overrides(rest, "--evaluate")
    args = parse_arguments(rest)
    if args.seeds is not None:
        if "seeds" in settings:
            raise UserError("--seeds and --config.seeds: give one of them")
        settings["seeds"] = args.seeds
    study = open_study(args.config, settings)
    args.price = args.price or study.settings.price
    if not 0 <= args.price < float("inf"):
        raise UserError(f"--price={args.price}: must be a number of at least 0")
    switches = {"true": True, "false": False}
    added: dict[str, dict[str, Any]] = {
        "train": {f"config.{k}": v for k, v in keys.items()},
        "evaluate": {k: switches.get(v.lower(), v) for k, v in flags.items()},
    }
    return args, lay_out(study, expand_home(args.output), added)


def print_steps(plan: Plan, topology: str, price: float) -> None:
    """What --dry_run prints: the question, the steps in order with what each needs, and the arms."""
    print(f"question   {plan.study.question}")
    if plan.study.expect:
        print(f"expect     {plan.study.expect}")
    if topology:
        parse_topology(topology)
        print(f"planned    for {topology}, by python -m mmed_jax.plan")
    estimates: list[Estimate] = []
    for number, task in enumerate(plan.tasks, start=1):
        place = f"[{number}/{len(plan.tasks)}]"
        done = is_done(task)
        needs = f" after {', '.join(t.label for t in task.needs)}" if task.needs else ""
        print(f"{place:<10} {task.label}: {task.step.command}{needs}; for {', '.join(task.arms)}")
        if done:
            print(f"{'':<10} done before: {task.result}")
            continue
        if difference := changed_settings(task, plan.tasks):
            print(f"{'':<10} {difference}")
        if task.step.command == "train":
            estimates.append(estimate(task, topology, price))
            print(f"{'':<10} {estimates[-1].text}")
        missing = run_here.missing_inputs(task.step)
        for line in missing:
            print(f"{'':<10} not there: {line}")
        if not missing:
            try:
                benchmark_files(task.step)
            except UserError as e:
                print(f"{'':<10} not there: {one_line(e)}")
    for trial in plan.trials:
        chain = " -> ".join(t.label for t in trial.chain) or str(trial.arm.model)
        print(f"arm        {trial.name}: {chain}")
    if line := total(estimates):
        print(line)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed_jax.study", description=__doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="NAME[:VARIANT]", help="a study in configs/, or a .py file with get_study")
    add("--output", required=True, metavar="DIR", help="of its steps and its report; the same one continues it")
    add("--launcher", choices=LAUNCHERS, default="local", help="here (default), as a shell script, or as Slurm jobs")
    add("--sbatch", type=FreeText, default="", metavar="FLAGS", help="of --launcher=slurm: sbatch's, for all jobs")
    add("--sbatch_train", type=FreeText, default="", metavar="FLAGS", help="the same, behind them, for trainings")
    add("--dry_run", action="store_true", help="print the steps and what the trainings would take, and stop")
    add("--report", action="store_true", help="run nothing, write the report of what is done")
    add("--seeds", metavar="1,2,3", help="seeds of the trainings (default: those of the study)")
    add("--topology", metavar="SLICE", help="of --dry_run: where trainings are planned for, as of mmed_jax.plan")
    add("--price", type=float, default=0.0, help="of one chip and hour: adds the cost")
    args = parser.parse_args(argv)
    if (args.sbatch or args.sbatch_train) and args.launcher != "slurm":
        raise UserError("--sbatch and --sbatch_train go with --launcher=slurm")
    if not str(args.output).strip():
        raise UserError("--output is empty: name a folder")
    args.output = Path(args.output)
    return args


if __name__ == "__main__":
    run_command(main)
