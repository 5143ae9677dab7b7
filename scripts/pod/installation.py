"""The checkout and its environment on every worker: copied where it is another, pip only where requirements changed."""

import tempfile
from pathlib import Path

from mmed_jax.common.errors import UserError, WorkError
from scripts.pod.checkout import Checkout
from scripts.pod.workers import Answer, Worker, Workers, first_problem

# jax[tpu] with libtpu and what goes with them take some 4 GB; compiled programs and logs come on top.
LEAST_FREE_MIB = 8 * 1024
EXTRAS = "tpu,gcs"


def install(workers: Workers, checkout: Checkout, extras: str = EXTRAS) -> None:
    """Brings every worker to the checkout; does nothing on one that has it.

    Raises:
      WorkError: a worker cannot be reached or set up; it is named, with the reason.
      UserError: a run is going on, or a disk is full.
    """
    states = workers.ask("installed")
    if problem := first_problem(states):
        raise WorkError(problem)
    stamp = checkout.stamp.strip().replace("\n", "+").replace(" ", "+")
    requirements = f"{checkout.requirements}-{extras}"
    old = [w for w, a in states.items() if a["commit"] != stamp or a["requirements"] != requirements]
    if workers.gcloud.dry_run:
        old = workers.all
    if not old:
        print(f"checkout {checkout.title}: on all workers", flush=True)
        return
    for worker, state in states.items():
        if worker in old and state["running"] == "yes":
            raise UserError(f"{worker}: a run of another commit is going on there; `logs` follows it, `stop` ends it")
        new = worker in old and state["requirements"] != requirements
        free = int(state["free_mib"] or LEAST_FREE_MIB)
        if new and free < LEAST_FREE_MIB:
            raise UserError(f"{worker}: only {free / 1024:.1f} GiB free, {LEAST_FREE_MIB // 1024} are needed")
    with tempfile.TemporaryDirectory() as folder:
        archive = checkout.write_archive(Path(folder))
        print(f"checkout {checkout.title}: to {len(old)} of {len(workers.all)} workers", flush=True)

        def bring(worker: Worker) -> Answer:
            copied = workers.copy_one(worker, archive)
            if copied.problem:
                return copied
            return workers.ask_one(
                worker, "install", archive.name, requirements, extras, timeout=workers.gcloud.pace.install
            )

        answers = workers.each(bring, old)
    if problem := first_problem(answers):
        raise WorkError(problem)
    if workers.gcloud.dry_run:
        return
    packages = sum(a["installed"] == "packages" for a in answers.values())
    print(f"installed: packages on {packages}, source alone on {len(answers) - packages} workers", flush=True)
