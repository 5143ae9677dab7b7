"""Validation split by question: parallel translations, paraphrase groups and duplicates stay on one side."""

import numpy as np

from mmed_jax.data.records.linked_rows import LinkedRows
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.records.store import RecordStore


def by_question(records: RecordStore, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of (training, validation) records; about `fraction` of each language is held out, in whole questions.

    Records of one question (schema.group_ids: the same provenance.group or the same question, directly or through
    others) go to one side. Questions are taken in the order of a hash of (seed, smallest id), as long as one of
    their languages still lacks records, so a few more than asked may be taken. A question with more records than are
    wanted altogether stays in training. Each language with at least two records gets at least one, where possible.
    Order of the records is kept.
    """
    n = len(records)
    held_out = np.zeros(n, bool)
    if fraction > 0 and n > 1:
        questions = records.links.numbers()
        members, sizes = np.argsort(questions, kind="stable"), np.bincount(questions)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        totals = np.bincount(records.languages, minlength=len(LANGUAGES)).tolist()
        lacking = [max(1, round(fraction * total)) if total > 1 else 0 for total in totals]
        largest = max(sum(lacking), sum(total > 0 for total in totals))
        order = np.argsort(_question_draws(records, members, sizes, starts), kind="stable")
        for question in order[1:]:  # the first question is always trained on
            group = members[starts[question] : starts[question + 1]]
            languages = records.languages[group].tolist()
            if len(group) <= largest and any(lacking[language] > 0 for language in languages):
                held_out[group] = True
                for language in languages:
                    lacking[language] -= 1
                if max(lacking) <= 0:
                    break
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _question_draws(records: RecordStore, members: np.ndarray, sizes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float64 [questions], the draw of the record with the smallest id of each."""
    first = members[starts[:-1]].copy()
    for question in np.flatnonzero(sizes > 1).tolist():
        first[question] = min(members[starts[question] : starts[question + 1]].tolist(), key=records.id)
    return records.draws[first]


def without_overlap(train: RecordStore, validation: RecordStore) -> np.ndarray:
    """Indices of the training records that share no question (schema.group_ids) with a validation record."""
    questions = LinkedRows.joined(validation.links, train.links).numbers()
    asked = np.unique(questions[: len(validation)])
    return np.flatnonzero(~np.isin(questions[len(validation) :], asked))
