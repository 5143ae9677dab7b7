"""Splits for a source that is published without any, by hash of the question."""

from collections.abc import Iterable, Iterator, Sequence

from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import question_key

PARTS = ("train", "validation", "test")


def divided(rows: Iterable[dict], shares: Sequence[int], part: str, seed: int) -> Iterator[dict]:
    """The rows of one part, in the order of the source, with provenance.split.

    Questions are put in the order of a hash of (seed, question with its options, or their family), so that neither
    their order nor their names matter and copies and translations of one stand side by side. The first rows are test,
    the next validation, the rest train; the first two have their share of all rows rounded, and a few more where a
    family would be divided.

    Args:
      rows: all of the source. shares: of train, validation and test, as (8, 1, 1). part: one of PARTS.
    """
    rows = list(rows)
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        family = row["provenance"].get("group") or question_key(row)
        groups.setdefault(stable_hash(seed, "divide", family), []).append(i)
    part_of, order = dict.fromkeys(range(len(rows)), "train"), sorted(groups)
    for name in ("test", "validation"):
        wanted, taken = round(len(rows) * shares[PARTS.index(name)] / sum(shares)), 0
        while taken < wanted and order:
            group = groups[order.pop(0)]
            part_of.update(dict.fromkeys(group, name))
            taken += len(group)
    for i, row in enumerate(rows):
        if part_of[i] == part:
            yield {**row, "provenance": {**row["provenance"], "split": part}}
