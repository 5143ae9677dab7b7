"""Averages models of one architecture: a Hugging Face folder with the weighted mean of several folders' weights.

    python -m mmed_jax.merge --models=exports/zh,exports/fr --output=exports/mean                  (equal weights)
    python -m mmed_jax.merge --models=A,B,C --weights=0.5,0.25,0.25 --output=DIR
    python -m mmed_jax.merge --models=CHAT,PRETRAINED,BASE --weights=1,1,-1 --output=DIR           (task arithmetic)

Each value is the float32 sum, rounded once to the dtype of the first model. Config, tokenizer and chat template are
those of the first; another architecture or vocabulary is refused before anything is written. Weights are read, summed,
written and checked tensor by tensor, whatever the models' size; the folder is written under a temporary name, read
back, compared, and only then renamed. Its README.md names the parents with the SHA-256 of their weights. Runs on the
CPU.

Runs and adapters are exported first (python -m mmed_jax.export).
"""

import argparse
import os
import time
from typing import TYPE_CHECKING

from mmed_jax.common import console
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.byte_bar import ByteBar, bytes_text, folder_text
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.place_flags import ModelPlace, OutputPlace
from mmed_jax.inference.load import add_ignore_keys

if TYPE_CHECKING:
    from mmed_jax.hf.model_source import ModelSource

DTYPES = ("bfloat16", "float32", "float16")


def main(argv: list[str] | None = None) -> None:
    """The merge command; see the module's docstring and `--help`."""
    args = _arguments(argv)
    console.outlive()
    with local_places(args) as places:
        merge(places)


def merge(args: argparse.Namespace) -> None:
    """Opens the models, compares them and writes their mean. Raises UserError, WorkError."""
    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    from mmed_jax.hf.average import AverageStream, check_alike, read_shares
    from mmed_jax.hf.export_folder import check_output, output_folder
    from mmed_jax.hf.licences import names_problem
    from mmed_jax.hf.merge_record import MergeRecord
    from mmed_jax.hf.save import save_pretrained
    from mmed_jax.model.config import num_params

    names = [part.strip() for part in args.models.split(",")]
    if "" in names or len(names) < 2:
        raise UserError(f"--models={args.models}: give two folders or more, with commas between them")
    if twice := {n for n in names if names.count(n) > 1}:
        raise UserError(f"--models: {min(twice)} is named twice")
    shares = read_shares(args.weights, len(names))
    sources = [_open(name, args.ignore_keys) for name in names]
    output = output_folder(args.output)
    for name, source in zip(names, sources):
        if output == source.path.resolve() or output in source.path.resolve().parents:
            raise UserError(f"--output={args.output}: would replace {name}, which it is made from; name another folder")
    check_alike(names, sources)
    first = sources[0]
    stored = first.stored_bytes
    count = num_params(first.cfg)
    size = count * (4 if args.dtype == "float32" else 2) if args.dtype else sum(stored.values())
    check_output(output, args.overwrite, size)

    for name, share in zip(names, shares):
        print(f"model    {share:.6g} x {name}")
    shown = args.dtype or f"as the first model's ({', '.join(sorted(stored))})"
    print(f"weights  {count:,} parameters, {shown}, {bytes_text(size)}")
    print(f"output   {output}", flush=True)
    start = time.monotonic()
    record = MergeRecord(output.name, names, sources, shares, ByteBar("hashing"))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        save_pretrained(
            output,
            AverageStream(sources, shares, args.dtype),
            first.cfg,
            first.tokenizer,
            source_generation=first.generation,
            info=record.info,
            card=record.card,
            overwrite=args.overwrite,
            progress=ByteBar("writing"),
            checking=ByteBar("checking"),
        )
    for parent in record.provenance["merged"]:
        print(f"parent   {parent['name']}: sha256 {parent['sha256']}")
    if problem := names_problem(record.licences, output.name):
        print(f"name     {problem}")
    print("checked  config, tokenizer, names, shapes, dtypes, bytes and logits of the folder as read back")
    print(f"done     {folder_text(output)}, {time.monotonic() - start:.1f} s")
    raw = "" if record.chat else " --raw"
    print(f"next     python -m mmed_jax.generate --model={args.output}{raw} --prompt=TEXT")


def _open(name: str, ignore_keys: tuple[str, ...]) -> "ModelSource":
    """One of --models. Raises UserError: nothing there, or no Hugging Face folder of a whole model."""
    from mmed_jax.common.buckets.download import fetch_model
    from mmed_jax.common.paths import expand_home
    from mmed_jax.hf.model_source import open_whole
    from mmed_jax.hf.peft_folder import is_peft_folder

    folder = fetch_model(name, flag="--models")
    first = f"; export it first (python -m mmed_jax.export --model={name} --output=DIR)"
    if is_peft_folder(expand_home(folder)):
        raise UserError(f"--models: {name} is an adapter{first}")
    source = open_whole(folder, None, ignore_keys)
    if source.kind != "hf":
        raise UserError(f"--models: {name} is a run directory{first}")
    return source


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed_jax.merge", description=__doc__)
    parser.add_argument(
        "--models", required=True, type=ModelPlace, metavar="DIR,DIR,..", help="Hugging Face folders, two or more"
    )
    parser.add_argument(
        "--weights", default="", metavar="W,W,..", help="of each model; their sum is 1 (default: equal ones)"
    )
    parser.add_argument("--output", required=True, type=OutputPlace, metavar="DIR", help="the folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: the first model's)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    add_ignore_keys(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
