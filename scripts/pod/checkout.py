"""This checkout on the workers: its commit and local changes as an archive, copied and installed where another is."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.paths import REPO
from scripts.pod.workers import Answer, Worker, Workers, first_problem

# Untracked files in these folders are code that is likely to be meant; elsewhere they are data.
CODE = ("mmed_jax", "data_gen", "configs", "scripts")
REQUIREMENTS = ("constraints.txt", "requirements.txt", "pyproject.toml")
STAMP = ".commit"
# jax[tpu] with libtpu and what goes with them take some 4 GB; compiled programs and logs come on top.
LEAST_FREE_MIB = 8 * 1024
EXTRAS = "tpu,gcs"


@dataclass(frozen=True)
class Checkout:
    """A commit and, where local changes are carried, the tree with them.

    changes: the first digits of the SHA-256 of the changes as a diff; "" for none.
    requirements: a hash of what pip installs from.
    """

    root: Path
    commit: str
    tree: str
    changes: str
    requirements: str

    @property
    def stamp(self) -> str:
        """The text of the file `.commit` on the workers, by which hosts are compared."""
        return self.commit + (f"\nchanges {self.changes}" if self.changes else "") + "\n"

    @property
    def title(self) -> str:
        return self.commit[:12] + (f" with local changes {self.changes}" if self.changes else "")

    def write_archive(self, folder: Path) -> Path:
        """Writes FOLDER/mmed_jax_COMMIT.tar.gz: the files, and `.commit`."""
        stamp = folder / STAMP
        stamp.write_text(self.stamp, encoding="utf-8")
        name = "_".join(filter(None, ("mmed_jax", self.commit[:12], self.changes)))
        archive = folder / f"{name}.tar.gz"
        _git(self.root, "archive", "--format=tar.gz", f"--add-file={stamp}", "-o", str(archive), self.tree)
        return archive


def read_checkout(carry_changes: bool, root: Path | None = None) -> Checkout:
    """The commit that goes to the workers.

    Raises:
      UserError: there are local changes and they are not to be carried; no git repository.
    """
    root = root or REPO
    commit = _git(root, "rev-parse", "HEAD").strip()
    with tempfile.TemporaryDirectory() as folder:
        # An index of its own: the user's stays as it is.
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(root, "read-tree", "HEAD", env=index)
        _git(root, "add", "--update", ".", env=index)
        there = [name for name in CODE if (root / name).is_dir()]
        if there:
            _git(root, "add", "--", *there, env=index)
        names = _git(root, "diff", "--cached", "--name-only", "HEAD", env=index).splitlines()
        if names and not carry_changes:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(f"local changes would not reach the workers ({shown}): commit them, or --carry_changes")
        tree = _git(root, "write-tree", env=index).strip()
        diff = _git(root, "diff", "--cached", "--binary", "HEAD", env=index) if names else ""
    changes = hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else ""
    return Checkout(root, commit, tree, changes, _requirements(root, tree))


def _requirements(root: Path, tree: str) -> str:
    listed = _git(root, "ls-tree", tree, "--", *REQUIREMENTS)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _git(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, env={**os.environ, **(env or {})}
        )
    except FileNotFoundError:
        raise UserError("git is not installed") from None
    if done.returncode:
        raise UserError(f"git {arguments[0]} in {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def install(workers: Workers, checkout: Checkout) -> None:
    """Brings every worker to the checkout; does nothing on one that has it.

    Raises:
      WorkError: a worker cannot be reached or set up; it is named, with the reason.
      UserError: a run is going on, or a disk is full.
    """
    states = workers.ask("installed")
    if problem := first_problem(states):
        raise WorkError(problem)
    stamp = checkout.stamp.strip().replace("\n", "+").replace(" ", "+")
    requirements = f"{checkout.requirements}-{EXTRAS}"
    old = [w for w, a in states.items() if a["commit"] != stamp or a["requirements"] != requirements]
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
                worker, "install", archive.name, requirements, EXTRAS, timeout=workers.gcloud.pace.install
            )

        answers = workers.each(bring, old)
    if problem := first_problem(answers):
        raise WorkError(problem)
    packages = sum(a["installed"] == "packages" for a in answers.values())
    print(f"installed: packages on {packages}, source alone on {len(answers) - packages} workers", flush=True)
