"""From command-line flags to an engine: what `generate` and `evaluate` share."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmed_jax.checkpoints.run_directory import CONFIG_FILE, step_folders
from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, WorkError, printable

if TYPE_CHECKING:
    from mmed_jax.hf.open_model import ModelSource
    from mmed_jax.inference.engine import Engine

_SAMPLE = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --step, --ignore_keys, --dtype, --batch_size, --mesh_data, --mesh_tensor."""
    parser.add_argument("--model", required=True, metavar="DIR", help="run directory or Hugging Face folder")
    parser.add_argument("--step", type=int, help="checkpoint of a run (default: the newest good one)")
    add_ignore_keys(parser)
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, help="of compute (default: float32 on a CPU, else bfloat16)")
    parser.add_argument("--batch_size", type=int, default=16, help="answers written at a time; changes speed only")
    parser.add_argument("--mesh_data", type=int, default=1, help="devices over which answers are spread")
    parser.add_argument("--mesh_tensor", type=int, default=1, help="devices over which the weights are spread")


def add_ignore_keys(parser: argparse.ArgumentParser) -> None:
    """--ignore_keys, a tuple of names."""
    parser.add_argument(
        "--ignore_keys",
        metavar="a,b",
        default=(),
        type=lambda text: tuple(k.strip() for k in text.split(",")),
        help="keys of config.json, not known here, of which you know that they change nothing",
    )


def identity(source: "ModelSource") -> dict[str, Any]:
    """Which weights these are, whatever their folder is called: kind, step and a fingerprint of the files.

    A run's checkpoint is known by its manifest of checksums; a Hugging Face folder by config.json and, per safetensors
    file, size and the first, middle and last MiB.
    """
    digest, step = hashlib.sha256(), source.step
    if source.kind == "run":
        folders = step_folders(source.path)
        step = max(folders) if step is None else step
        manifest = folders[step] / "manifest.json"
        digest.update(manifest.read_bytes() if manifest.is_file() else str(source.path.resolve()).encode())
    else:
        digest.update((source.path / "config.json").read_bytes())
        for path in sorted(p for p in source.path.glob("*.safetensors") if p.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as f:
                for start in (0, size // 2, max(0, size - _SAMPLE)):
                    f.seek(start)
                    digest.update(f.read(_SAMPLE))
    return {"kind": source.kind, "step": step, "fingerprint": digest.hexdigest()[:16]}


def trained_prompts(source: "ModelSource") -> dict[str, str]:
    """{"system_prompt", "prompt_family"} that a run was trained with; the defaults for a Hugging Face folder."""
    defaults = {"system_prompt": "", "prompt_family": "llama3"}
    if source.kind == "run":
        try:
            data = jsonl.loads((source.path / CONFIG_FILE).read_bytes(), dict)["data"]
            trained = {k: data.get(k) for k in defaults}
        except (OSError, ValueError, KeyError, AttributeError):
            return defaults
        return {k: trained[k] if trained[k] and isinstance(trained[k], str) else v for k, v in defaults.items()}
    return defaults


def load_engine(args: argparse.Namespace, source: "ModelSource", stop_ids: Sequence[int]) -> "Engine":
    """Loads the weights and says on stderr where they run.

    Raises:
      UserError: flags that the model or the machine can't follow.
      WorkError: unreadable checkpoints, devices that don't start, or not enough memory.
    """
    if args.batch_size < 1:
        raise UserError(f"--batch_size={args.batch_size}: must be at least 1")
    import jax

    from mmed_jax.inference.engine import Engine
    from mmed_jax.model.config import num_params
    from mmed_jax.model.llama import logical_axes
    from mmed_jax.parallel.sharding import make_mesh, param_shardings
    from mmed_jax.training.setup import COMPILE_CACHE, enable_compile_cache

    enable_compile_cache(COMPILE_CACHE)
    try:
        devices = jax.devices()
    except RuntimeError as e:
        raise WorkError(f"jax cannot start its devices; `python -m mmed_jax.doctor` looks for the cause: {e}") from e
    mesh = shardings = None
    count = args.mesh_data * args.mesh_tensor
    if count != 1:
        check_mesh(args, source.cfg, len(devices))
        mesh = make_mesh(data=args.mesh_data, fsdp=1, tensor=args.mesh_tensor, devices=devices[:count])
        shardings = param_shardings(mesh, logical_axes(source.cfg))
    platform = devices[0].platform
    dtype = args.dtype or ("float32" if platform == "cpu" else "bfloat16")
    say("platform", f"{platform}, {count} of {len(devices)} x {devices[0].device_kind}")
    try:
        params = source.load_params(shardings=shardings, dtype=dtype)
        engine = Engine(
            params,
            source.cfg,
            mesh=mesh,
            compute_dtype=dtype,
            max_batch=args.batch_size,
            stop_ids=stop_ids,
            owned=True,
        )
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        raise WorkError(f"out of device memory; spread the weights with --mesh_tensor=N ({str(e)[:150]})") from e
    what = "Hugging Face folder" if source.kind == "hf" else f"run directory, step {source.step}"
    say("model", f"{args.model} ({what}), {num_params(source.cfg):,} parameters")
    say("precision", dtype)
    return engine


def check_mesh(args: argparse.Namespace, cfg: Any, devices: int) -> None:
    """Raises UserError for mesh flags that the machine or the model can't follow."""
    if args.mesh_data < 1 or args.mesh_tensor < 1:
        raise UserError("--mesh_data and --mesh_tensor: must be at least 1")
    if args.mesh_data * args.mesh_tensor > devices:
        raise UserError(
            f"--mesh_data={args.mesh_data} --mesh_tensor={args.mesh_tensor}: "
            f"{args.mesh_data * args.mesh_tensor} devices asked for, there are {devices}"
        )
    for name in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size"):
        size = getattr(cfg, name)
        if size % args.mesh_tensor:
            good = [n for n in range(1, devices + 1) if size % n == 0]
            raise UserError(f"--mesh_tensor={args.mesh_tensor}: does not divide the model's {name}={size}; try {good}")


def say(name: str, text: str) -> None:
    """One line of the head of a command, on stderr."""
    print(f"{name:10s} {printable(text)}", file=sys.stderr, flush=True)
