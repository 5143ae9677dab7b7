"""Shows what a config trains on: counts, histograms, and packed rows with the trained tokens marked. Uses no device.

    python -m mmed_jax.inspect --config=stage1[:VARIANT] [--rows=N] [--first=ROW] [--split=validation] [--tokens]
    python -m mmed_jax.inspect --table=DIR [--check]                                what a packed table holds
    python -m mmed_jax.inspect --adapter=RUN_OR_PEFT_DIR [--base=DIR] [--step=N]    what an adapter is, by module

Trained text is green on a terminal and stands between ⟦ and ⟧ elsewhere. The packed table is made when it is not in the
cache yet, exactly as `mmed_jax.train` makes it. --check reads every shard of a table and compares checksums.
"""

import os
import sys
import unicodedata
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest, run_command, warn
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import InputPlace, ModelPlace
from mmed_jax.common.progress import counting_bar
from mmed_jax.config.overrides import parse_args
from mmed_jax.data.packed_table import Table
from mmed_jax.data.prepare import prepare
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.table_check import check_table, open_table
from mmed_jax.data.token_report import group_lines, print_histograms, print_report
from mmed_jax.inference.load import add_base
from mmed_jax.training import setup

if TYPE_CHECKING:
    from mmed_jax.hf.lora_model import LoraModel

FLAGS = {
    "rows": (2, "how many rows to show"),
    "first": (0, "the first row to show"),
    "split": ("train", "train or validation"),
    "tokens": (False, "one line per token instead of running text"),
}
SPLITS = ("train", "validation")
# Green on a terminal; in a file brackets that no record uses (guillemets stand in French, Spanish and Russian text).
COLOR, PLAIN = ("\033[32m", "\033[0m"), ("⟦", "⟧")


def segments(batch: dict[str, np.ndarray], row: int = 0) -> list[tuple[list[int], list[bool], str]]:
    """(ids, trained, language code) of every segment of a row, as they were before packing.

    A segment's ids are its inputs and its last target; trained[i] says that ids[i] is a supervised target.
    """
    out = []
    for number in range(1, int(batch["segment_ids"][row].max(initial=0)) + 1):
        here = np.flatnonzero(batch["segment_ids"][row] == number)
        ids = [*batch["tokens"][row, here].tolist(), int(batch["targets"][row, here[-1]])]
        trained = [False, *(batch["loss_mask"][row, here] > 0).tolist()]
        out.append((ids, trained, LANGUAGES[int(batch["language"][row, here[0]]) - 1]))
    return out


def marked_text(tok, ids: list[int], trained: list[bool], marks: tuple[str, str]) -> str:
    """The text of `ids` with every trained stretch between the two marks; line by line, so that colors never leak."""
    parts = []
    for is_trained, run in groupby(zip(ids, trained), key=lambda pair: pair[1]):
        text = visible(tok.decode([i for i, _ in run]))
        if is_trained and marks is COLOR:
            text = "\n".join(f"{marks[0]}{line}{marks[1]}" for line in text.split("\n"))
        elif is_trained:
            text = marks[0] + text + marks[1]
        parts.append(text)
    return "".join(parts)


def visible(text: str) -> str:
    """`text` with control characters (which could steer a terminal) as \\x.. escapes; line feeds and tabs stay."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else f"\\x{ord(c):02x}" for c in text
    )


def show_row(table: Table, row: int, tok, *, marks: tuple[str, str], tokens: bool) -> None:
    """Prints one packed row: every segment with its id, language, slots, positions and text."""
    batch = table.batch([row])
    used, trained_total = int((batch["segment_ids"] > 0).sum()), int(batch["loss_mask"].sum())
    parts = segments(batch)
    print(f"\nrow {row}: {len(parts)} segments, {used} of {table.seq_len} slots used, {trained_total} trained")
    at = 0
    for number, ((ids, trained, language), name) in enumerate(zip(parts, table.describe_row(row)), 1):
        slots = len(ids) - 1
        place = f"slots {at}-{at + slots - 1}, positions 0-{slots - 1}"
        print(f"-- segment {number}: {visible(name)} ({language}), {place}, {sum(trained)} trained")
        if tokens:
            for i, (token, is_trained) in enumerate(zip(ids, trained)):
                text = visible(tok.decode([token])).replace("\n", "\\n")
                mark = f"{marks[0]}{text}{marks[1]}" if is_trained else text
                print(f"   {i:>6} {token:>7} {mark}")
        else:
            print("   " + marked_text(tok, ids, trained, marks).replace("\n", "\n   "))
        at += slots


def _tokenizer(config):
    """The run's tokenizer, checked with its model. With config.tokenizer the weights of init_from need not be there."""
    source = None
    try:
        source = setup.open_init(config)
    except UserError as e:
        if not config.tokenizer:
            raise
        warn(f"{e} (the data can be looked at without it)")
    tok = setup.open_tokenizer(config, source)
    if source is not None or not config.init_from:
        setup.model_config(config, source, tok)
    return tok


def show_table(argv: list[str]) -> None:
    """Prints the groups of a packed table; --check compares all of it. Raises UserError, and WorkError for damage."""
    parser = Parser(prog="python -m mmed_jax.inspect")
    parser.add_argument(
        "--table", required=True, type=InputPlace, metavar="DIR", help="a packed table, of documents or of records"
    )
    parser.add_argument("--check", action="store_true", help="read every shard and compare its checksum")
    with local_places(parser.parse_args(argv)) as args:
        folder = expand_home(args.table)
        info = open_table(folder, "--table")
        tokenizer = str(info["inputs"].get("tokenizer", ""))[:12] or "not known"
        kind = f"kind {info['kind']}, rows of {info['seq_len']:,}, key {info['key']}"
        print(f"table {folder}: {kind}, tokenizer {tokenizer}")
        for line in group_lines(info):
            print(line)
        if args.check:
            shards = [shard for part in info["splits"].values() for shard in part["shards"]]
            total = sum(shard["size"] for shard in shards)
            with counting_bar("reading", total, unit="B", unit_scale=True, in_logs=True) as bar:
                check_table(folder, info, bar.update)
            print(f"all {len(shards):,} shards are as they were written ({total:,} bytes read)")


def show_adapter(argv: list[str]) -> None:
    """Prints what the adapter of a LoRA run or of a PEFT folder is. Raises UserError for one that is refused."""
    parser = Parser(prog="python -m mmed_jax.inspect")
    parser.add_argument("--adapter", required=True, type=ModelPlace, metavar="DIR", help="a LoRA run or a PEFT folder")
    parser.add_argument("--step", type=int, help="checkpoint of a run (default: the newest good one)")
    add_base(parser)
    args = parser.parse_args(argv)
    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    from mmed_jax.hf.lora_model import LoraModel
    from mmed_jax.hf.open_model import open_model
    from mmed_jax.model.config import num_params
    from mmed_jax.model.lora import num_adapter_params, scales

    source = open_model(args.adapter, args.step, base_dir=args.base, adapter_only=True)
    if not isinstance(source, LoraModel):
        raise UserError(f"--adapter={args.adapter}: {source.path} has no adapter")
    spec, sizes = source.spec, changes(source)
    print(f"adapter    {source.description}")
    held = f", held as {source.quantization}" if source.quantization != "compute" else ""
    print(f"base       {source.base_name or source.base_path or 'not known'}{held}")
    count, total = num_adapter_params(spec, source.cfg), num_params(source.cfg)
    print(f"trained    {count:,} parameters, {count / total:.2%} of {total:,}; dropout {spec.dropout:g}\n")
    print(f"{'module':8} {'layers':>7} {'rank':>9} {'alpha':>9} {'scale':>13} {'|s B A|':>9}")
    scale = scales(spec)
    for target, ranks, alphas in spec.modules:
        used = [i for i, r in enumerate(ranks) if r]
        columns = [_range(values[i] for i in used) for values in (ranks, alphas, scale[target])]
        of = f"{len(used)}/{len(ranks)}"
        print(f"{target:8} {of:>7} {columns[0]:>9} {columns[1]:>9} {columns[2]:>13} {sizes[target]:9.3g}")


def changes(source: "LoraModel") -> dict[str, float]:
    """{target: Frobenius norm of scale B A over its layers}, from the small products A A^T and B^T B."""
    from mmed_jax.model.lora import scales

    adapter, scale = source.load_adapter(), scales(source.spec)
    norms = {}
    for target in scale:
        leaves = adapter["layers"].get(target) or adapter[target]
        a, b = (np.asarray(leaves[name], np.float64) for name in ("lora_a", "lora_b"))
        squares = np.einsum("...ri,...si->...rs", a, a) * np.einsum("...or,...os->...rs", b, b)
        norms[target] = float(np.sqrt((squares.sum((-1, -2)) * np.square(scale[target], dtype=np.float64)).sum()))
    return norms


def _range(values: Iterable[float]) -> str:
    in_order = sorted(set(values))
    return f"{in_order[0]:g}" if len(in_order) == 1 else f"{in_order[0]:g}-{in_order[-1]:g}"


def main(argv: list[str] | None = None) -> None:
    """Runs the inspection that the command line describes. Raises UserError for a wrong flag, config or record."""
    argv = sys.argv[1:] if argv is None else argv
    if any(a.partition("=")[0] == "--table" for a in argv):
        show_table(argv)
        return
    if any(a.partition("=")[0] == "--adapter" for a in argv):
        show_adapter(argv)
        return
    config, flags = parse_args(argv, description=__doc__, extra=FLAGS)
    for name in ("rows", "first"):
        if getattr(flags, name) < 0:
            raise UserError(f"--{name}={getattr(flags, name)}: must not be negative")
    if flags.split not in SPLITS:
        raise UserError(f"--split={flags.split}{nearest(flags.split, SPLITS)}")
    prepared = prepare(config, tok := _tokenizer(config))
    tables = {"train": prepared.train, **prepared.validation}
    if flags.split not in tables:
        raise UserError(f"--split={flags.split}: no such split{nearest(flags.split, tables)}")
    table = tables[flags.split]
    if flags.first >= len(table):
        raise UserError(f"--first={flags.first}: {flags.split} has rows 0 to {len(table) - 1}")
    print_report(prepared.report)
    print(f"\n{flags.split}:")
    print_histograms(table.report)
    marks = COLOR if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else PLAIN
    for row in range(flags.first, min(flags.first + flags.rows, len(table))):
        show_row(table, row, tok, marks=marks, tokens=flags.tokens)


if __name__ == "__main__":
    run_command(main)
