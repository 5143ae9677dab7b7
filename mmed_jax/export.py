"""Hands a trained model on as an ordinary Hugging Face folder.

    python -m mmed_jax.export --model=runs/stage2 --output=exports/my-model
    python -m mmed_jax.export --model=HF_DIR --output=COPY          (the same tensors, byte for byte)

The folder is written under a temporary name, read back, compared, and only then renamed; transformers, vLLM and other
readers of Llama folders load it as it is. Runs in host memory on the CPU, whatever accelerator is there or busy, and
needs about as much memory as the folder will have bytes.
"""

import argparse
import os
import sys
import time

from tqdm import tqdm

from mmed_jax.common import console
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.progress import counting_bar
from mmed_jax.inference.load import add_ignore_keys

DTYPES = ("bfloat16", "float32", "float16", "source")


def main(argv: list[str] | None = None) -> None:
    """The export command; see the module's docstring and `--help`."""
    args = _arguments(argv)
    console.outlive()
    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    from mmed_jax.data.chat_formats import syntax_of
    from mmed_jax.hf.mapping import hf_tensors
    from mmed_jax.hf.open_model import open_model
    from mmed_jax.hf.save import check_output, output_folder
    from mmed_jax.inference.pretrained import Llama
    from mmed_jax.model.config import num_params

    source = open_model(args.model, args.step, args.ignore_keys)
    output = output_folder(args.output)
    inside = source.path.resolve()
    if output == inside or output in inside.parents:
        raise UserError(f"--output={args.output}: would replace the model it is made from; name another folder")
    dtype = args.dtype or ("source" if source.kind == "hf" else "bfloat16")
    count = num_params(source.cfg)
    shown, size = dtype, count * (4 if dtype in ("float32", "source") else 2)
    if dtype == "source" and (stored := source.stored_bytes):
        shown, size = f"as stored ({', '.join(sorted(stored))})", sum(stored.values())
    check_output(output, args.overwrite, size)
    tokenizer = source.tokenizer

    where = f"checkpoint step {args.step}" if args.step is not None else "newest checkpoint"
    print(f"model    {args.model} ({'Hugging Face folder' if source.kind == 'hf' else f'run directory, {where}'})")
    print(f"weights  {count:,} parameters in {len(hf_tensors(source.cfg))} tensors, {shown}, {_bytes(size)}")
    chat = syntax_of(tokenizer)
    stops = ", ".join(map(str, source.stop_ids)) or "none"
    print(f"tokens   {len(tokenizer):,} ids, stop ids {stops}, chat format {chat.name if chat else 'none'}")
    print(f"output   {output}", flush=True)

    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    start = time.monotonic()
    model = Llama.from_pretrained(source, dtype=dtype, shardings=host, progress=_ByteBar("reading"))
    if source.step is not None:
        print(f"step     {source.step}", flush=True)
    model.save_pretrained(
        output, overwrite=args.overwrite, release=True, made_by="mmed_jax.export", progress=_ByteBar("writing")
    )
    files = sorted(output.iterdir())
    total = sum(p.stat().st_size for p in files)
    print("checked  config, tokenizer, names, shapes, dtypes and logits of the folder as read back")
    print(f"done     {len(files)} files, {_bytes(total)}, {time.monotonic() - start:.1f} s")
    raw = "" if chat else " --raw"
    print(f"next     python -m mmed_jax.generate --model={args.output}{raw} --prompt=TEXT")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mmed_jax.export",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="run directory or Hugging Face folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--step", type=int, help="checkpoint of a run (default: the newest good one)")
    add_ignore_keys(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16; an HF folder's own)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser.parse_args(argv)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.2f} {unit}"
        n /= 1000
    raise AssertionError


class _ByteBar:
    """A bar of bytes read or written, called with (done, total). Silent for what takes no time."""

    def __init__(self, label: str):
        self._label = label
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            delay = 0.2 if sys.stderr.isatty() else 10
            self._bar = counting_bar(
                self._label, total, unit="B", unit_scale=True, in_logs=True, leave=True, delay=delay
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()


if __name__ == "__main__":
    run_command(main)
