"""Shows what a config trains on: counts, histograms, and packed rows with the trained tokens marked. Uses no device.

    python -m mmed_jax.inspect --config=stage1[:VARIANT] [--rows=N] [--first=ROW] [--split=validation] [--tokens]

Trained text is green on a terminal and stands between ⟦ and ⟧ elsewhere. The packed table is made when it is not in the
cache yet, exactly as `mmed_jax.train` makes it.
"""

import os
import sys
import unicodedata
from itertools import groupby

import numpy as np

from mmed_jax.common.errors import UserError, nearest, run_command, warn
from mmed_jax.config.overrides import parse_args
from mmed_jax.data.packed_table import Table
from mmed_jax.data.prepare import prepare
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.token_report import print_histograms, print_report
from mmed_jax.training import setup

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


def main(argv: list[str] | None = None) -> None:
    """Runs the inspection that the command line describes. Raises UserError for a wrong flag, config or record."""
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
