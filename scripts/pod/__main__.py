"""Command line of the launcher.

    python -m scripts.pod up --tpu=v5e-64 --name=mmed --zone=us-east5-a [--spot]
    python -m scripts.pod run -- python -m mmed_jax.train --config=stage1:8b --config.run_dir=gs://BUCKET/stage1-8b
    python -m scripts.pod watch --tpu=v5e-64 --spot -- python -m mmed_jax.train ..
    python -m scripts.pod logs | stop | down
    python -m scripts.pod up --gke --tpu=tpu7x-128 --image=IMAGE --output=pod.yaml -- python -m mmed_jax.train ..

--name, --zone, --project and --tpu default to TPU_NAME, ZONE, PROJECT and TPU_TYPE of the environment.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, run_command
from scripts.pod import attempts
from scripts.pod.checkout import install, read_checkout
from scripts.pod.gcloud import Gcloud, Pace
from scripts.pod.jobset import make_manifest
from scripts.pod.resources import OVER, Order, Pod, check_type, parse_slice
from scripts.pod.watch import Watch
from scripts.pod.workers import Answer, Worker, Workers, find_workers, show_tail

ACTIONS = {
    "up": "asks for the slices, waits until they are there, installs this checkout; --gke: writes a manifest instead",
    "run": "starts one command on all workers, shows the logs, ends with the run's exit code",
    "watch": "as run, and asks for slices that are gone and starts again until the run is finished",
    "logs": "follows the run that is going on, or shows how the last one ended; ends with its exit code",
    "stop": "SIGTERM to the run, and waits until it has saved and ended",
    "down": "deletes the slices",
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; `command` is what stands behind `--`."""
    parser = Parser(prog="python -m scripts.pod", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=ACTIONS, help="\n".join(f"{a}: {text}" for a, text in ACTIONS.items()))
    environment = os.environ.get
    parser.add_argument("--name", default=environment("TPU_NAME", ""), help="of the queued resource (TPU_NAME)")
    parser.add_argument("--zone", default=environment("ZONE", ""), help="for example us-east5-a (ZONE)")
    parser.add_argument("--project", default=environment("PROJECT", ""), help="default: gcloud's (PROJECT)")
    parser.add_argument("--tpu", default=environment("TPU_TYPE", ""), help="v5e-64, v6e-256, 2xv5p-128, .. (TPU_TYPE)")
    order = parser.add_argument_group("up, watch")
    order.add_argument("--runtime", default="", help="software version of the machines, where another is wanted")
    order.add_argument("--spot", action="store_true", help="cheaper, may be taken away at any time")
    order.add_argument("--flex_start", action="store_true", help="flex-start; with --max_run_duration")
    order.add_argument("--max_run_duration", default="", metavar="DURATION", help="12h, 7d: at most seven days")
    order.add_argument("--reserved", action="store_true", help="from a reservation")
    order.add_argument("--network", default="", help="where it is not the default one")
    order.add_argument("--dry_run", action="store_true", help="up: print the request instead of making it")
    runs = parser.add_argument_group("up, run, watch, logs")
    runs.add_argument("--carry_changes", action="store_true", help="local changes go to the workers as well")
    runs.add_argument("--follow", type=int, default=8, metavar="N", help="show the logs of N workers (default: 8)")
    gke = parser.add_argument_group("up --gke")
    gke.add_argument("--gke", action="store_true", help="write the manifest of a JobSet; nothing is created")
    gke.add_argument("--image", default="", help="of the containers")
    gke.add_argument("--output", default="", metavar="FILE", help="default: stdout")
    gke.add_argument("--max_restarts", type=int, default=10, metavar="N", help="after failures (default: 10)")
    gke.add_argument("--service_account", default="default", help="of Kubernetes, that may write into the bucket")
    own, dashes, command = _split(argv)
    args = parser.parse_args(own)
    if dashes and args.action not in ("run", "watch") and not args.gke:
        raise UserError(f"{args.action} takes no command behind --")
    if not command and args.action in ("run", "watch"):
        raise UserError(f"{args.action} -- COMMAND, for example -- python -m mmed_jax.train --config=stage1:8b ..")
    if args.dry_run and args.action != "up":
        raise UserError("--dry_run goes with up")
    if args.follow < 0:
        raise UserError(f"--follow={args.follow}: a number of workers, 0 for none")
    args.command = command
    return args


def _split(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    words = list(argv)
    if "--" not in words:
        return words, False, []
    cut = words.index("--")
    return words[:cut], True, words[cut + 1 :]


def _order(args: argparse.Namespace) -> Order:
    order = Order(
        parse_slice(args.tpu) if args.tpu else None,
        args.runtime,
        args.spot,
        args.flex_start,
        args.max_run_duration,
        args.reserved,
        args.network,
    )
    order.check()
    return order


def _workers(pod: Pod) -> Workers:
    """The workers that are there."""
    resource = pod.describe()
    if resource is None:
        raise UserError(f"there is no queued resource {pod.name} in {pod.gcloud.zone}: `up` asks for one")
    if resource.state != "ACTIVE":
        raise WorkError(f"{pod.name} is {resource.state or 'in no state'}{resource.why}, not ACTIVE")
    return Workers(pod.gcloud, find_workers(pod.nodes(resource)))


def up(pod: Pod, args: argparse.Namespace) -> int:
    """Slices that are there, with this checkout on all workers; what is done already is not done again."""
    order = _order(args)
    if args.dry_run:
        print(shlex.join(["gcloud", *pod.create_arguments(order, {})]))
        return 0
    checkout = read_checkout(args.carry_changes)
    resource = pod.describe()
    if resource is None:
        pod.create(order, {})
    else:
        check_type(resource, order, pod.name)
        if resource.state in OVER:
            raise WorkError(f"{pod.name} is {resource.state}{resource.why}: `down` first, or let `watch` do it")
    pod.wait_until_active()
    workers = _workers(pod)
    install(workers, checkout)
    print(f"{pod.name}: {len(workers.all)} workers; they cost money until `down`", flush=True)
    return 0


def write_manifest(args: argparse.Namespace) -> int:
    """The JobSet's manifest, to a file or stdout."""
    if not args.tpu:
        raise UserError("--tpu=NAME, for example --tpu=tpu7x-128")
    text = make_manifest(
        args.name or "mmed",
        parse_slice(args.tpu),
        args.image,
        args.command,
        args.spot,
        args.max_restarts,
        args.service_account,
    )
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")
        print(f"kubectl apply -f {shlex.quote(args.output)}")
    else:
        print(text, end="")
    return 0


def run(pod: Pod, args: argparse.Namespace) -> int:
    """Starts the command and waits for its end."""
    checkout = read_checkout(args.carry_changes)
    workers = _workers(pod)
    attempts.refuse_second(attempts.newest(workers))
    install(workers, checkout)
    attempt = attempts.start(workers, args.command, attempts.Progress())
    return _wait(pod, workers, attempt, args.follow)


def watch(pod: Pod, args: argparse.Namespace) -> int:
    """Looks after the run until it is finished."""
    watched = Watch(pod, _order(args), read_checkout(args.carry_changes), args.command, args.follow)
    outcome = watched.run()
    print(f"{pod.name} is still there and costs money: `down` deletes it", flush=True)
    return outcome.code


def _wait(pod: Pod, workers: Workers, attempt: str, shown: int) -> int:
    outcome = attempts.wait(pod, workers, attempt, shown)
    attempts.show(outcome)
    return outcome.code


def logs(pod: Pod, args: argparse.Namespace) -> int:
    """Follows the newest attempt, or shows its end."""
    workers = _workers(pod)
    states = attempts.newest(workers)
    attempt = max(s["attempt"] for s in states.values())
    if not attempt:
        raise UserError(f"nothing was started on {pod.name} yet")
    if _is_running(states):
        return _wait(pod, workers, attempt, args.follow)
    show_tail(workers, attempt, 200, workers.all[: args.follow])
    return _wait(pod, workers, attempt, 0)


def _is_running(states: dict[Worker, Answer]) -> bool:
    return any(s["status"] == "running" for s in states.values())


def stop(pod: Pod, args: argparse.Namespace) -> int:
    """Ends the run that is going on, and no other process; says what each worker's log says of it."""
    workers = _workers(pod)
    states = attempts.newest(workers)
    if not _is_running(states):
        print(f"nothing is going on on {pod.name}", flush=True)
        return 0
    return attempts.stop(workers, max(s["attempt"] for s in states.values() if s["status"] == "running"))


def down(pod: Pod, args: argparse.Namespace) -> int:
    """Deletes the slices; a run on them is lost back to its newest checkpoint."""
    if pod.describe() is None:  # a wrong name or zone: what is meant would cost money on
        where = f"{pod.gcloud.zone}{f' of {pod.gcloud.project}' if pod.gcloud.project else ''}"
        raise UserError(f"there is no queued resource {pod.name} in {where}: nothing was deleted")
    pod.delete()
    print(f"{pod.name}: deleted", flush=True)
    return 0


def main(argv: Sequence[str] | None = None, pace: Pace | None = None) -> None:
    """Runs an action and exits with its code."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    if args.gke:
        if args.action != "up":
            raise UserError("--gke goes with up")
        sys.exit(write_manifest(args))
    for flag, variable in (("name", "TPU_NAME"), ("zone", "ZONE")):
        if not getattr(args, flag):
            raise UserError(f"--{flag} is missing, or {variable} in the environment")
    pod = Pod(Gcloud(args.project, args.zone, pace or Pace()), args.name)
    actions = {"up": up, "run": run, "watch": watch, "logs": logs, "stop": stop, "down": down}
    try:
        code = actions[args.action](pod, args)
    except KeyboardInterrupt:
        if args.action in ("run", "watch", "logs"):
            print("\na run that has begun goes on: `logs` follows it, `stop` ends it", file=sys.stderr)
        raise
    sys.exit(code)


if __name__ == "__main__":
    run_command(main)
