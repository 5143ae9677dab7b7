"""From command-line flags to an engine: what `generate` and `evaluate` share."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmed_jax.common.errors import UserError, printable
from mmed_jax.common.place_flags import ModelPlace

if TYPE_CHECKING:
    from mmed_jax.hf.open_model import ModelSource
    from mmed_jax.inference.engine import Engine
    from mmed_jax.inference.pretrained import Llama
    from mmed_jax.inference.text_scorer import TextScorer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --adapter, --base, --step, --ignore_keys, --dtype, --batch_size, --mesh_data, --mesh_tensor."""
    parser.add_argument(
        "--model", required=True, type=ModelPlace, metavar="DIR", help="run directory, Hugging Face or PEFT folder"
    )
    parser.add_argument(
        "--adapter", type=ModelPlace, metavar="DIR", default="", help="PEFT folder whose adapter goes onto --model"
    )
    add_base(parser)
    parser.add_argument("--step", type=int, help="checkpoint of a run (default: the newest good one)")
    add_ignore_keys(parser)
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, help="of compute (default: float32 on a CPU, else bfloat16)")
    parser.add_argument("--batch_size", type=int, default=16, help="answers written at a time; changes speed only")
    parser.add_argument("--mesh_data", type=int, default=1, help="devices over which answers are spread")
    parser.add_argument("--mesh_tensor", type=int, default=1, help="devices over which the weights are spread")


def add_base(parser: argparse.ArgumentParser) -> None:
    """--base, where the frozen model beneath an adapter lies."""
    parser.add_argument(
        "--base",
        type=ModelPlace,
        metavar="DIR",
        default="",
        help="of a LoRA run or a PEFT folder: where its base lies now, if it moved",
    )


def add_ignore_keys(parser: argparse.ArgumentParser) -> None:
    """--ignore_keys, a tuple of names."""
    parser.add_argument(
        "--ignore_keys",
        metavar="a,b",
        default=(),
        type=lambda text: tuple(k.strip() for k in text.split(",")),
        help="keys of config.json, not known here, of which you know that they change nothing",
    )


def load_engine(args: argparse.Namespace, source: "ModelSource", stop_ids: Sequence[int]) -> "Engine":
    """Loads the weights to generate with and says on stderr where they run. Raises UserError, WorkError (_load)."""
    with _loading():
        return _load(args, source).engine(max_batch=args.batch_size, stop_ids=stop_ids, release=True)


def load_scorer(args: argparse.Namespace, source: "ModelSource") -> "TextScorer":
    """Loads the weights to score texts with and says on stderr where they run. Raises UserError, WorkError (_load)."""
    from mmed_jax.inference.text_scorer import TextScorer

    with _loading():
        model = _load(args, source)
    return TextScorer(model.params, model.cfg, mesh=model.mesh, dtype=model.dtype, max_batch=args.batch_size)


def _load(args: argparse.Namespace, source: "ModelSource") -> "Llama":
    """The weights on the devices that the flags name.

    Raises:
      UserError: flags that the model or the machine can't follow.
      WorkError: unreadable checkpoints, devices that don't start.
    """
    if args.batch_size < 1:
        raise UserError(f"--batch_size={args.batch_size}: must be at least 1")
    from mmed_jax.inference.pretrained import Llama
    from mmed_jax.model.config import num_params
    from mmed_jax.parallel.devices import COMPILE_CACHE, enable_compile_cache, start_devices
    from mmed_jax.parallel.sharding import make_mesh

    enable_compile_cache(COMPILE_CACHE)
    devices = start_devices()
    mesh = None
    count = args.mesh_data * args.mesh_tensor
    if count != 1:
        check_mesh(args, source.cfg, len(devices))
        mesh = make_mesh(data=args.mesh_data, fsdp=1, tensor=args.mesh_tensor, devices=devices[:count])
    say("platform", f"{devices[0].platform}, {count} of {len(devices)} x {devices[0].device_kind}")
    model = Llama.from_pretrained(source, dtype=args.dtype, mesh=mesh)
    say("model", f"{args.model} ({source.description}), {num_params(source.cfg):,} parameters")
    say("precision", model.dtype.name)
    return model


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    from mmed_jax.parallel.device_memory import device_memory

    with device_memory(lambda: "the weights alone", hint="; --mesh_tensor=N spreads them over N devices"):
        yield


@contextlib.contextmanager
def flags_to_lower(shorter: str, kept: bool = False) -> Iterator[None]:
    """Within, OutOfDeviceMemory of a model of load_engine or load_scorer names the flags that need less.

    Args:
      shorter: what else needs less where the rows cannot be fewer. kept: what was done by then is written, and the same
        command goes on behind it.
    """
    from mmed_jax.parallel.device_memory import OutOfDeviceMemory

    try:
        yield
    except OutOfDeviceMemory as e:
        goes_on = "what is done is kept, and the same command goes on with" if kept else "try"
        less = f"--batch_size={e.fewer}, or " if e.fewer else ""
        more = "" if e.fewer else f", or {shorter}"
        raise e.with_hint(f"; {goes_on} {less}--mesh_tensor=N on more devices{more}") from e


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
