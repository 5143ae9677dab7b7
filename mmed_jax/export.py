"""Hands a trained model on as an ordinary Hugging Face folder, or its adapter as a PEFT folder.

    python -m mmed_jax.export --model=runs/stage2 --output=exports/my-model
    python -m mmed_jax.export --model=HF_DIR --output=COPY          (the same tensors, byte for byte)
    python -m mmed_jax.export --model=runs/stage2-8b-lora --output=exports/merged
    python -m mmed_jax.export --model=runs/stage2-8b-lora --adapter --output=exports/adapter [--plain]
    python -m mmed_jax.export --model=BASE_DIR --adapter=PEFT_DIR --output=exports/merged

    python -m mmed_jax.export --model=runs/stage2 --output=exports/my-model-gguf --gguf=q8_0       (for llama.cpp)

    python -m mmed_jax.export --model=runs/stage2 --output=exports/my-model --results=results/mmedbench
    python -m mmed_jax.export --model=exports/my-model --push=ORG/NAME [--private]

The folder is written under a temporary name, read back, compared, and only then renamed; transformers, peft, vLLM and
other readers of Llama folders load it as it is. Runs on the CPU, whatever accelerator is there or busy. Weights are
read, written and checked one by one: of a Hugging Face folder the largest tensor is in memory a few times, of a run the
largest stacked leaf, whatever the model's size.

An adapter is merged into the base it was trained on, each weight the float32 sum rounded once, and what the rounding
took from the change is said. --adapter writes it alone.

--gguf writes one file for llama.cpp and its kin instead: f16, bf16, f32, or q8_0 (8 bits in blocks of 32).

README.md in the folder is the hub's model card: base and licences, data, settings, and the accuracies of evaluations
that --results names. --push uploads the folder (with --output: the one just written), with the token in HF_TOKEN; an
upload that broke off is continued by --model=THE_FOLDER --push.
"""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mmed_jax.common import console
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.byte_bar import ByteBar, bytes_text, folder_text
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command, warn
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import FreeText, InputPlace, ModelPlace, OutputPlace
from mmed_jax.common.places import is_bucket
from mmed_jax.inference.load import add_base, add_ignore_keys

if TYPE_CHECKING:
    from mmed_jax.data.chat_formats import ChatSyntax
    from mmed_jax.evaluation.card_writer import CardWriter
    from mmed_jax.hf.lora_model import LoraModel
    from mmed_jax.hf.model_source import ModelSource

DTYPES = ("bfloat16", "float32", "float16", "source")
WRITE = "(write it)"  # value of --adapter without a folder
MUCH = 0.1  # part of an adapter's change that rounding may take without a warning


def main(argv: list[str] | None = None) -> None:
    """The export command; see the module's docstring and `--help`."""
    args = _arguments(argv)
    console.outlive()
    if not args.output:
        push_export(args)
        return
    with local_places(args) as places:
        export(places)


def export(args: argparse.Namespace) -> None:
    """Opens the model and writes the folder. Raises UserError, WorkError."""
    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    from mmed_jax.checkpoints.best import best_checkpoint
    from mmed_jax.evaluation.card_writer import CardWriter
    from mmed_jax.hf.export_folder import output_folder
    from mmed_jax.hf.open_model import open_model
    from mmed_jax.hf.push import check_push

    if args.best:
        args.step, metric, value = best_checkpoint(args.model)
        print(f"best     step {args.step:,}, {metric} {value:.5g}", flush=True)
    source = open_model(
        args.model,
        args.step,
        args.ignore_keys,
        adapter="" if args.adapter == WRITE else args.adapter,
        base_dir=args.base,
        merge_into=args.merge_into or "trained",
        adapter_only=args.adapter == WRITE,
    )
    output = output_folder(args.output)
    _check_place(args, output, source)
    card = CardWriter(
        source,
        args.push.rpartition("/")[2] if args.push else output.name,
        base_name=args.base_name or "",
        evaluations=[part for part in (args.results or "").split(",") if part],
        adapter_alone=args.adapter == WRITE,
    )
    if args.push:
        check_push(args.push, card.licences)
    if args.adapter == WRITE:
        export_adapter(args, source, output, card)
    elif args.gguf:
        export_gguf(args, source, output, card)
    else:
        export_model(args, source, output, card)
    if args.push:
        _push(args, output)


def push_export(args: argparse.Namespace) -> None:
    """Uploads an export that is there. Raises UserError, WorkError."""
    from mmed_jax.hf.push import check_push, check_whole, recorded_licences

    if is_bucket(args.model):
        raise UserError(f"--model={args.model}: --push uploads a folder of this machine; with --output it makes one")
    folder = expand_home(args.model).resolve()
    check_whole(folder)
    check_push(args.push, recorded_licences(folder))
    _push(args, folder)


def _push(args: argparse.Namespace, folder: Path) -> None:
    from mmed_jax.hf.push import push

    print(f"pushing  {folder} to {args.push}", flush=True)
    print(f"pushed   {push(folder, args.push, private=args.private)}", flush=True)


def export_model(args: argparse.Namespace, source: "ModelSource", output: Path, card: "CardWriter") -> None:
    """Writes all weights, with the adapter in them where there is one."""
    import jax

    from mmed_jax.hf.export_folder import check_output
    from mmed_jax.hf.lora_model import LoraModel
    from mmed_jax.hf.mapping import hf_tensors
    from mmed_jax.hf.provenance import KEY
    from mmed_jax.hf.save import save_pretrained
    from mmed_jax.hf.tuning import export_info
    from mmed_jax.model.config import num_params

    if args.merge_into and not isinstance(source, LoraModel):
        raise UserError(f"--merge_into={args.merge_into}: {args.model} has no adapter; leave it out")
    dtype = args.dtype or ("source" if source.kind == "hf" else "bfloat16")
    count = num_params(source.cfg)
    shown, size = dtype, count * (4 if dtype in ("float32", "source") else 2)
    if dtype == "source" and (stored := source.stored_bytes):
        shown, size = f"as stored ({', '.join(sorted(stored))})", sum(stored.values())
    check_output(output, args.overwrite, size)
    _print_source(args, source)
    print(f"weights  {count:,} parameters in {len(hf_tensors(source.cfg))} tensors, {shown}, {bytes_text(size)}")
    chat = _print_tokens(source)
    print(f"output   {output}", flush=True)

    start = time.monotonic()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        save_pretrained(
            output,
            source.stream(None if dtype == "source" else dtype),
            source.cfg,
            source.tokenizer,
            source_generation=source.generation,
            info=lambda: {**export_info(source, "mmed_jax.export"), "results": card.results, KEY: card.provenance},
            card=card.text,
            overwrite=args.overwrite,
            progress=ByteBar("writing"),
            checking=ByteBar("checking"),
        )
    _print_written(source)
    print("checked  config, tokenizer, names, shapes, dtypes, bytes and logits of the folder as read back")
    _print_done(output, start)
    raw = "" if chat else " --raw"
    print(f"next     python -m mmed_jax.generate --model={args.output}{raw} --prompt=TEXT")


def export_gguf(args: argparse.Namespace, source: "ModelSource", output: Path, card: "CardWriter") -> None:
    """Writes all weights as one GGUF file, with the adapter in them where there is one."""
    import jax

    from mmed_jax.hf.export_folder import check_output
    from mmed_jax.hf.gguf_file import file_bytes
    from mmed_jax.hf.gguf_folder import gguf_file_name, save_gguf
    from mmed_jax.hf.lora_model import LoraModel
    from mmed_jax.hf.provenance import KEY
    from mmed_jax.hf.tuning import export_info
    from mmed_jax.model.config import num_params

    if args.merge_into and not isinstance(source, LoraModel):
        raise UserError(f"--merge_into={args.merge_into}: {args.model} has no adapter; leave it out")
    size = file_bytes(source.cfg, args.gguf)
    check_output(output, args.overwrite, size)
    file = gguf_file_name(card.name, args.gguf)
    _print_source(args, source)
    print(f"weights  {num_params(source.cfg):,} parameters, GGUF {args.gguf}, {bytes_text(size)}")
    _print_tokens(source)
    print(f"output   {output / file}", flush=True)
    start = time.monotonic()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        error = save_gguf(
            output,
            source.stream("float32"),
            source.tokenizer,
            args.gguf,
            name=card.name,
            fields=card.gguf_fields,
            pre=args.gguf_pre or "",
            info=lambda: {
                **export_info(source, "mmed_jax.export"),
                "gguf": args.gguf,
                "results": card.results,
                KEY: card.provenance,
            },
            card=lambda: card.text(gguf=file),
            overwrite=args.overwrite,
            progress=ByteBar("writing"),
            checking=ByteBar("checking"),
        )
    _print_written(source)
    print(f"rounded  to {args.gguf}, which took {error:.2%} of the weights (root mean square)")
    print("checked  metadata, tokenizer, names, shapes, kinds, bytes and logits of the file as read back")
    _print_done(output, start)
    print(f"next     llama-cli -m {Path(args.output) / file} -cnv")


def export_adapter(args: argparse.Namespace, source: "ModelSource", output: Path, card: "CardWriter") -> None:
    """Writes the adapter alone, as a PEFT folder."""
    from mmed_jax.hf.export_folder import check_output
    from mmed_jax.hf.lora_model import LoraModel
    from mmed_jax.hf.peft_folder import fold_patterns, save_adapter
    from mmed_jax.hf.provenance import KEY
    from mmed_jax.hf.push import check_base
    from mmed_jax.model.lora import num_adapter_params

    if not isinstance(source, LoraModel):
        raise UserError(f"--adapter: {args.model} has none; leave it out, or name the adapter's folder (--adapter=DIR)")
    count = num_adapter_params(source.spec, source.cfg)
    check_output(output, args.overwrite, 4 * count)
    _print_source(args, source)
    print(f"weights  {count:,} parameters, float32, {bytes_text(4 * count)}")
    _print_tokens(source)
    print(f"output   {output}", flush=True)
    name = _base_name(args, source)
    if args.push:
        check_base(name)
    start = time.monotonic()
    adapter, spec = source.load_adapter(), source.spec
    folded: list[str] = []
    if args.plain:
        adapter, spec, folded = fold_patterns(adapter, spec, source.cfg)
    if source.step is not None:
        print(f"step     {source.step}", flush=True)
    info = {"made_by": "mmed_jax.export", "source": source.path.resolve().name, "step": source.step, "folded": folded}
    save_adapter(
        output,
        adapter,
        spec,
        source.cfg,
        base_name=name,
        tokenizer=source.tokenizer,
        base_record=source.record or None,
        info={**info, KEY: card.provenance},
        card=lambda: card.text(name),
        overwrite=args.overwrite,
        progress=ByteBar("writing"),
    )
    print(f"base     {name}")
    for line in folded:
        print(f"folded   {line}")
    print("checked  config, names, shapes and values of the folder as read back")
    _print_done(output, start)
    print(f"next     python -m mmed_jax.generate --model=BASE --adapter={args.output} --prompt=TEXT")


def _base_name(args: argparse.Namespace, source: "LoraModel") -> str:
    """What adapter_config.json calls the base; warns of one that its readers would not find, or find changed."""
    name = args.base_name or source.base_name or source.base_path
    if source.base is None:
        warn(
            f"{source.base_path} is not there any more, or holds other weights than those that the adapter was trained "
            "on: only on those it means something"
        )
    if name == source.base_path:
        run = source.record.get("kind") == "run"
        where = "a bucket" if is_bucket(name) else "this machine"
        warn(
            f"adapter_config.json will name the base as a {'run' if run else 'folder'} of {where} ({name}); "
            + ("peft reads no runs: export that one too, and " if run else "")
            + "say what readers elsewhere call it with --base_name=ORG/MODEL"
        )
    return name


def _check_place(args: argparse.Namespace, output: Path, source: "ModelSource") -> None:
    """Refuses an output that holds, or is, what it is made from."""
    given = [source.path, args.model, args.base, "" if args.adapter == WRITE else args.adapter]
    for inside in [expand_home(p).resolve() for p in given if p and not is_bucket(p)]:
        if output == inside or output in inside.parents:
            raise UserError(f"--output={args.output}: would replace the model it is made from; name another folder")


def _print_source(args: argparse.Namespace, source: "ModelSource") -> None:
    where = f"checkpoint step {args.step}" if args.step is not None else "newest checkpoint"
    plain = "Hugging Face folder" if source.kind == "hf" else f"run directory, {where}"
    print(f"model    {args.model} ({plain if source.lora is None else source.description})")


def _print_tokens(source: "ModelSource") -> "ChatSyntax | None":
    from mmed_jax.data.chat_formats import syntax_of

    chat = syntax_of(source.tokenizer)
    stops = ", ".join(map(str, source.stop_ids)) or "none"
    print(f"tokens   {len(source.tokenizer):,} ids, stop ids {stops}, chat format {chat.name if chat else 'none'}")
    return chat


def _print_written(source: "ModelSource") -> None:
    """Of which checkpoint the weights are, and what became of an adapter."""
    from mmed_jax.hf.lora_model import LoraModel

    if source.step is not None:
        print(f"step     {source.step}", flush=True)
    if isinstance(source, LoraModel):
        _print_merge(source)


def _print_merge(source: "LoraModel") -> None:
    """What the rounding took from the adapter's change, by kind of module and in all; a warning when it is much."""
    merger = source.merger
    assert merger is not None
    onto = f" decoded from {source.quantization}" if source.quantization != "compute" else ""
    kinds = ", ".join(f"{target} {merger.error(target):.2%}" for target in merger.lost)
    print(f"merged   into the base{onto}; rounding took {merger.error():.2%} of the change ({kinds})", flush=True)
    if merger.error() > MUCH:
        warn(
            f"rounding took {merger.error():.0%} of what the adapter changes, so the folder is another model than the "
            "one that was trained; --dtype=float32 keeps it"
        )


def _print_done(output: Path, start: float) -> None:
    print(f"done     {folder_text(output)}, {time.monotonic() - start:.1f} s")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed_jax.export", description=__doc__)
    parser.add_argument(
        "--model", required=True, type=ModelPlace, metavar="DIR", help="run directory, Hugging Face or PEFT folder"
    )
    parser.add_argument("--output", type=OutputPlace, metavar="DIR", help="the folder to write")
    parser.add_argument("--step", type=int, help="checkpoint of a run (default: the newest good one)")
    parser.add_argument("--best", action="store_true", help="of a run: its best checkpoint, by checkpoint.best_metric")
    add_ignore_keys(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16; an HF folder's own)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--adapter",
        nargs="?",
        const=WRITE,
        default="",
        type=ModelPlace,
        metavar="DIR",
        help="alone: write the model's adapter as a PEFT folder; with DIR: merge that PEFT folder into --model",
    )
    add_base(parser)
    parser.add_argument(
        "--plain", action="store_true", help="of --adapter: one rank and scale, for readers without patterns (vLLM)"
    )
    parser.add_argument("--gguf", choices=("f16", "bf16", "q8_0", "f32"), help="one GGUF file, for llama.cpp")
    parser.add_argument(
        "--gguf_pre", metavar="NAME", type=FreeText, help="llama.cpp's name of how the tokenizer splits, if not known"
    )
    parser.add_argument(
        "--base_name", metavar="ORG/MODEL", help="what the card, and an adapter's config, call the base"
    )
    parser.add_argument(
        "--results", type=InputPlace, metavar="DIR,..", help="evaluations of this model, for the table of its card"
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="upload the folder to the Hugging Face hub (HF_TOKEN)")
    parser.add_argument("--private", action="store_true", help="of --push: make the repository a private one")
    parser.add_argument(
        "--merge_into",
        choices=("trained", "original"),
        help="weights that an adapter is added to: as they were held in training (default; of a quantised base what it "
        "was decoded to), or as the base's files have them",
    )
    args = parser.parse_args(argv)
    writes = args.adapter == WRITE
    if args.best and args.step is not None:
        raise UserError(f"--best --step={args.step}: two checkpoints; leave one out")
    if args.private and not args.push:
        raise UserError("--private: goes with --push; leave it out")
    if not args.output:
        if not args.push:
            parser.error("the following arguments are required: --output (or --push of an export that is there)")
        for flag in (
            "step",
            "best",
            "dtype",
            "gguf",
            "gguf_pre",
            "overwrite",
            "adapter",
            "base",
            "plain",
            "base_name",
            "results",
            "merge_into",
        ):
            if getattr(args, flag) not in (None, "", False):
                raise UserError(f"--{flag}: goes with --output; without it a folder is uploaded as it is")
    if args.gguf and (writes or args.dtype):
        what = "writes the adapter alone" if writes else "is for a Hugging Face folder"
        raise UserError(f"--gguf: is a form of whole weights, and {'--adapter' if writes else '--dtype'} {what}")
    if args.gguf_pre and not args.gguf:
        raise UserError("--gguf_pre: goes with --gguf; leave it out")
    for flag in ("plain",) if not writes else ("dtype", "merge_into"):
        if getattr(args, flag):
            what = "goes with --adapter, which writes the adapter alone" if not writes else "goes with merged weights"
            raise UserError(f"--{flag}: {what}; leave it out")
    return args


if __name__ == "__main__":
    run_command(main)
