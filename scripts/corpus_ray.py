"""`corpus build` on Ray beside processes: a cluster on this machine, one build by each, the same bytes.

    pip install -c constraints.txt -e ".[corpus,ray]"
    python -m scripts.corpus_ray --documents=200

The cluster is the build's own (--ray.address=local) and ends with it; no other one is asked or stopped.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from data_gen.corpus.ray_executor import RayExecutor, RaySettings  # noqa: E402
from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import WorkError, run_command  # noqa: E402
from tests.support.corpora import finish, result, write_inputs  # noqa: E402


def main() -> None:
    """The command."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=8)
    args = parser.parse_args()
    RayExecutor(RaySettings())  # Ray is installed
    import ray

    with tempfile.TemporaryDirectory(prefix="corpus-ray-") as name:
        folder = Path(name)
        write_inputs(folder / "raw", args.documents)
        finish(folder / "raw", folder / "local")
        flags = ["--executor=ray", "--ray.address=local", "--ray.reserve_gb=0.5", f"--tasks={args.tasks}"]
        printed = finish(folder / "raw", folder / "ray", *flags)
        one, other = result(folder / "local"), result(folder / "ray")
    again = printed.count("tried again")
    differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    print(f"Ray {ray.__version__}: {again} tasks again; files compared {len(one)}, differing {len(differing)}")
    if differing:
        raise WorkError(f"differing: {', '.join(differing[:5])}")


if __name__ == "__main__":
    run_command(main)
