"""Mixing weights: how often a record is seen in an epoch, by its source and its language."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import LANGUAGES

# Copies are written out; what repeats a record more often than this is a slip of the pen.
MAX_WEIGHT = 1000


def uniform(*key: object) -> float:
    """A number in [0, 1) that is a pure function of `key`, the same on every machine."""
    return stable_hash(*key) / 2**64


def copies(
    records: Sequence[dict],
    source_weights: Mapping[str, float],
    language_weights: Mapping[str, float],
    seed: int,
) -> np.ndarray:
    """How often each record stands in the table, int64 [n].

    A record's weight is that of its source times that of its language (1 where none is given) and is its expected
    number of repetitions an epoch: 2.3 gives every record two copies and three records of ten a third one. Which ones
    is decided by a hash of (seed, id), so it does not change when other records come or go.

    Raises:
        UserError: a weight for an unknown language or a source that no record has, a weight below 0 or above
            MAX_WEIGHT, or weights that leave nothing.
    """
    sources = sorted({r["source"] for r in records})
    for name in source_weights:
        if name not in sources:
            raise UserError(f"config.data.source_weights: no record has the source '{name}'{nearest(name, sources)}")
    for name in language_weights:
        if name not in LANGUAGES:
            raise UserError(f"config.data.language_weights: language '{name}' is unknown{nearest(name, LANGUAGES)}")
    for group, weights in (("source_weights", source_weights), ("language_weights", language_weights)):
        for name, weight in weights.items():
            if not 0 <= weight <= MAX_WEIGHT:
                raise UserError(
                    f"config.data.{group}: {name}={weight:g} must be a number of at least 0 and at most {MAX_WEIGHT}"
                )
    counts = np.ones(len(records), np.int64)
    for i, record in enumerate(records):
        weight = source_weights.get(record["source"], 1.0) * language_weights.get(record["language"], 1.0)
        if weight != 1.0:
            whole = math.floor(weight)
            counts[i] = whole + (uniform(seed, record["id"]) < weight - whole)
    if len(records) and not counts.any():
        raise UserError("config.data.source_weights and language_weights leave no record to train on")
    return counts
