"""Families of rows: a question, its parallel versions, and all that was made from them. A family is never divided.

Rows belong together when they share provenance.group, an id and a parent, or the question, directly or through others:
the rules of mmed_jax.data.records.schema.group_ids and parentage, on arrays, so that millions of rows fit.
"""

import re

import numpy as np

from mmed_jax.data.records.linked_rows import LinkedRows
from mmed_jax.data.records.schema import DEFAULTS, LANGUAGES, question_keys

# What methods put behind the id of a parent: "q7@ko", "q7+full", "q7#2".
MADE = re.compile(r"(?:@[a-z]{2}|\+full|#\d+)+$")


class Families(LinkedRows):
    """Takes rows with `add`, in order; `numbers` gives the family of each."""

    def add(self, record: dict) -> None:
        """Takes one row: a record, or a passage with an id and provenance."""
        self.link(*family_keys(record))


def bare(name: str) -> bool:
    """Whether a name is a number, which says nothing outside its source."""
    return not any(c.isalpha() for c in MADE.sub("", name))


def named_source(record: dict) -> str:
    """The source of a record, "" where it names none."""
    source = str(record.get("source", ""))
    return "" if source == DEFAULTS["mcq"]["source"] else source


def family_keys(record: dict) -> list[tuple[str, str]]:
    """What a row is tied to others by: its id and parent, group, and question."""
    about = record.get("provenance", {})
    # A group is often named after the record it comes from: ids, parents and groups are one space of names.
    names = (str(name) for name in (record["id"], about.get("parent"), about.get("group")) if name)
    keys = [("id", f"{named_source(record)}\n{name}" if bare(name) else name) for name in names]
    if "messages" in record or "question" in record:
        keys += [("question", key) for key in question_keys(record)]
    return keys


def validation_rows(
    families: np.ndarray, languages: np.ndarray, hashes: np.ndarray, fraction: float, largest: int = 50
) -> np.ndarray:
    """Which rows are held out, bool [rows]: about `fraction` of each language, in whole families.

    Args:
      families: int [rows]. languages: index into LANGUAGES, int [rows].
      hashes: uint64 [rows] of (seed, id); families are taken in the order of their smallest.
      largest: families of more rows stay in training, lest one of them be the whole validation set.
    A family is taken while one of its languages still lacks rows, so a few more than asked may be held out.
    """
    held = np.zeros(len(families), bool)
    if fraction <= 0 or len(families) < 2:
        return held
    size = np.bincount(families)
    smallest = np.full(len(size), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, families, hashes)
    counts = np.bincount(languages, minlength=len(LANGUAGES))
    lacking = np.where(counts > 1, np.maximum(1, np.round(fraction * counts)), 0).astype(np.int64)
    order = np.argsort(families, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)])
    for family in np.argsort(smallest, kind="stable")[1:]:  # the first is always trained on
        if not (lacking > 0).any():
            break
        rows = order[starts[family] : starts[family + 1]]
        if size[family] <= largest and (lacking[languages[rows]] > 0).any():
            held[rows] = True
            np.subtract.at(lacking, languages[rows], 1)
    return held
