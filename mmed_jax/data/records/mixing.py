"""Mixing weights: how often a record is seen in an epoch, by its source and its language."""

from collections.abc import Mapping

import numpy as np

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.records.store import RecordStore

# Copies are written out; what repeats a record more often than this is a slip of the pen.
MAX_WEIGHT = 1000


def copies(
    records: RecordStore,
    which: np.ndarray,
    source_weights: Mapping[str, float],
    language_weights: Mapping[str, float],
) -> np.ndarray:
    """How often each of the records `which` (int64 [k], their indices) stands in the table, int64 [k].

    A record's weight is that of its source times that of its language (1 where none is given) and is its expected
    number of repetitions an epoch: 2.3 gives every record two copies and three records of ten a third one. Which ones
    is decided by a hash of (seed, id), so it does not change when other records come or go.

    Raises:
        UserError: a weight for an unknown language or a source that no record has, a weight below 0 or above
            MAX_WEIGHT, or weights that leave nothing.
    """
    names = list(records.source_names)
    sources = sorted(names[i] for i in np.unique(records.sources[which]).tolist())
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
    of_source = np.array([source_weights.get(name, 1.0) for name in names])
    of_language = np.array([language_weights.get(code, 1.0) for code in LANGUAGES])
    weights = of_source[records.sources[which]] * of_language[records.languages[which]] if names else np.zeros(0)
    whole = np.floor(weights)
    counts = whole.astype(np.int64) + (records.draws[which] < weights - whole)
    if len(which) and not counts.any():
        raise UserError("config.data.source_weights and language_weights leave no record to train on")
    return counts
