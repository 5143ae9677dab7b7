"""Checks the machine and prints one block to paste into a question.

    python -m mmed_jax.doctor [--run_dir=DIR]
    python -m mmed_jax.doctor --all_hosts       started on every host of a pod or job: one table of all of them

Exit code 0: fine, or warnings only; 1: something is broken. Names of keys and tokens are shown, never their values.
"""

import json
import os

from mmed_jax.checkup.all_hosts import check_all_hosts
from mmed_jax.checkup.findings import Findings
from mmed_jax.checkup.installation import check_environment, check_packages, check_python, read_requirements
from mmed_jax.checkup.machine import check_host, check_jax, check_tpu_lock, find_accelerators, probe
from mmed_jax.checkup.storage import check_bucket, check_run_lock, check_storage
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import WorkError, run_command
from mmed_jax.common.place_flags import OutputPlace
from mmed_jax.common.places import Place, is_bucket, parse_place


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module."""
    parser = Parser(prog="python -m mmed_jax.doctor", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--run_dir", default="runs", type=OutputPlace, metavar="DIR", help="where runs will be written (default: runs)"
    )
    parser.add_argument("--all_hosts", action="store_true", help="started on every host: one table of all of them")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    parser.add_argument("--num_processes", default=0, type=int, metavar="N", help="where no scheduler tells")
    parser.add_argument("--process_id", default=-1, type=int, metavar="I", help="of this host, from 0")
    parser.add_argument("--timeout_seconds", default=300, type=int, metavar="S", help="how long hosts are waited for")
    parser.add_argument("--probe", action="store_true", help="only what jax finds, as one line of JSON")
    args = parser.parse_args(argv)
    if args.probe:
        print(json.dumps(probe()))
        return
    run_dir = parse_place(args.run_dir, "--run_dir")
    problems = check_all_hosts(args, run_dir, check_machine) if args.all_hosts else check_machine(run_dir).problems
    if problems:
        raise WorkError(f"{len(problems)} broken: {problems[0]}")


def check_machine(run_dir: Place) -> Findings:
    """All checks of this host; prints their block."""
    from mmed_jax.config.defaults import base

    out = Findings()
    check_python(out)
    check_packages(out, read_requirements())
    check_host(out)
    check_tpu_lock(out)
    check_jax(out, find_accelerators())
    folders = {"compile cache": parse_place(base().compile_cache).absolute()}
    if is_bucket(run_dir):
        check_bucket(out, run_dir)
    else:
        folders = {"run dir": run_dir.absolute(), **folders}
    check_storage(out, folders)
    check_run_lock(out, run_dir)
    check_environment(out, os.environ)
    print(out.block(), flush=True)
    return out


if __name__ == "__main__":
    run_command(main)
