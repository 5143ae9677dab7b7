"""Validation split by question: parallel translations, paraphrase groups and duplicates stay on one side."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from mmed_jax.data.records.mixing import uniform
from mmed_jax.data.records.schema import group_ids


def by_question(records: Sequence[dict], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of (training, validation) records; about `fraction` of each language is held out, in whole questions.

    Records of one question (schema.group_ids: the same provenance.group or the same question, directly or through
    others) go to one side. Questions are taken in the order of a hash of (seed, smallest id), as long as one of
    their languages still lacks records, so a few more than asked may be taken. A question with more records than are
    wanted altogether stays in training. Each language with at least two records gets at least one, where possible.
    Order of the records is kept.
    """
    if fraction <= 0 or len(records) < 2:
        return list(range(len(records))), []
    members: dict[int, list[int]] = defaultdict(list)
    for i, question in enumerate(group_ids(records)):
        members[question].append(i)
    totals = Counter(r["language"] for r in records)
    lacking = {code: max(1, round(fraction * n)) if n > 1 else 0 for code, n in totals.items()}
    largest = max(sum(lacking.values()), len(lacking))
    order = sorted(members.values(), key=lambda group: uniform(seed, min(records[i]["id"] for i in group)))
    held_out: set[int] = set()
    for group in order[1:]:  # the first question is always trained on
        if len(group) <= largest and any(lacking[records[i]["language"]] > 0 for i in group):
            held_out.update(group)
            for i in group:
                lacking[records[i]["language"]] -= 1
    return [i for i in range(len(records)) if i not in held_out], sorted(held_out)


def without_overlap(train: Sequence[dict], validation: Sequence[dict]) -> list[int]:
    """Indices of the training records that share no question (schema.group_ids) with a validation record."""
    groups = group_ids([*validation, *train])
    asked = set(groups[: len(validation)])
    return [i for i, group in enumerate(groups[len(validation) :]) if group not in asked]
