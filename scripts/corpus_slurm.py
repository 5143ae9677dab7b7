"""A corpus built by Slurm on this machine, compared byte by byte with one built by processes.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
    python -m scripts.corpus_slurm                      as root, in a container or a virtual machine of your own

Starts munged, slurmctld and slurmd of Debian with a configuration of their own in a temporary folder (other daemons and
/etc/slurm are left alone), a partition `cpu` of this one machine, and ends them when it is done. Needs a checkout.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, WorkError, run_command  # noqa: E402
from tests.support.corpora import finish, result, write_inputs  # noqa: E402
from tests.support.slurm_cluster import cluster, output_of, why_not  # noqa: E402


def main() -> None:
    """The command."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=8)
    args = parser.parse_args()
    if reason := why_not():
        raise UserError(reason)
    with tempfile.TemporaryDirectory(prefix="corpus-slurm-") as name:
        folder = Path(name)
        write_inputs(folder / "raw", args.documents)
        finish(folder / "raw", folder / "local")
        folder.chmod(0o755)
        (folder / "cluster").mkdir()
        with cluster(folder / "cluster"):
            flags = ["--executor=slurm", "--slurm.partition=cpu", "--slurm.mem_gb=1", "--slurm.poll_s=0.5"]
            printed = finish(folder / "raw", folder / "slurm", *flags, f"--tasks={args.tasks}")
            version = output_of("sinfo", "--version").strip()
        one, other = result(folder / "local"), result(folder / "slurm")
    jobs = printed.count(" tasks in job ")
    differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    print(f"{version}: {jobs} array jobs; files compared {len(one)}, differing {len(differing)}")
    if differing:
        raise WorkError(f"differing: {', '.join(differing[:5])}")


if __name__ == "__main__":
    run_command(main)
