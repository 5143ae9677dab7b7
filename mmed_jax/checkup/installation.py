"""Python, the checkout, packages, and variables that change what happens."""

import platform
import re
from collections.abc import Mapping
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from mmed_jax.checkup.findings import Findings, output_of
from mmed_jax.common.paths import REPO

_ENVIRONMENT = re.compile(
    r"^(JAX_|XLA_|LIBTPU|TPU_|CUDA_VISIBLE|NVIDIA_VISIBLE|NCCL_|SLURM_(NTASKS|PROCID|JOB_NUM_NODES|STEP_ID)|OMPI_COMM_WORLD_"
    r"|HF_|TRANSFORMERS_|TOKENIZERS_|WANDB_|OPENAI_|MMED_JAX_|TF_CPP|OMP_NUM_THREADS|PYTHONPATH|VIRTUAL_ENV|LD_PRELOAD)"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_ACCELERATOR_PACKAGES = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def check_python(out: Findings) -> None:
    """Interpreter, system, and the commit of the checkout."""
    out.add("python", f"{platform.python_version()} ({platform.python_implementation()}), {platform.platform()}")
    if (REPO / ".git").exists():
        revision = output_of(["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"])
        changed = output_of(["git", "-C", str(REPO), "status", "--porcelain", "--untracked-files=no"])
        out.add("checkout", (revision or "unknown") + (" with local changes" if changed else ""))


def check_packages(out: Findings, requirements: list[str]) -> None:
    """Each direct dependency: its version, and whether it lies in the tested range."""
    shown = []
    for text in requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            out.warnings.append(f"requirements: cannot read {text!r}")
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            out.problems.append(f"{wanted} is not installed: pip install -r requirements.txt")
            continue
        inside = wanted.specifier.contains(version, prereleases=True)
        shown.append(f"{wanted.name} {version}" + ("" if inside else "(!)"))
        if not inside:
            out.warnings.append(f"{wanted.name} {version} is outside the tested range {wanted.specifier}")
    for name in _ACCELERATOR_PACKAGES:
        try:
            shown.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    rows = [", ".join(shown[i : i + 5]) for i in range(0, len(shown), 5)]
    out.add("packages", "\n".join(rows) or "no requirements found")


def read_requirements() -> list[str]:
    """requirements.txt of the checkout, else what the installed package declares."""
    path = REPO / "requirements.txt"
    if path.is_file():
        lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line and not line.startswith("-")]
    try:
        return metadata.requires("mmed_jax") or []
    except metadata.PackageNotFoundError:
        return []


def check_environment(out: Findings, environment: Mapping[str, str]) -> None:
    """Variables that change what happens; of secrets and addresses with a password only that they are set."""
    rows = []
    for name in sorted(environment):
        value = environment[name]
        if not _ENVIRONMENT.match(name):
            continue
        hidden = _SECRET.search(name) or "@" in value
        if name.endswith(("_URL", "_ENDPOINT")):
            value = re.split(r"[?#]", value)[0]
        rows.append(f"{name} {'is set' if hidden else '= ' + (value if len(value) <= 160 else value[:160] + ' ...')}")
    out.add("environment", "\n".join(rows) or "nothing special")
