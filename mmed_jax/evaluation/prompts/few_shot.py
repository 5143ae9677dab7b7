"""Few-shot examples: which records stand answered before a question.

The same for every question of a benchmark, language and part (an MMLU subject, a KorMedMCQA exam: tasks of their own,
as in lm-eval): those whose id has the smallest SHA-256 in a split that is not asked.
"""

import hashlib
from collections.abc import Sequence

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGE_NAMES, question_keys

MAX_EXAMPLES = 5
Examples = dict[tuple[str, str], list[dict]]  # (language, part) -> records


def choose_examples(
    benchmark: str, pools: dict[str, list[dict]], questions: Sequence[dict], count: int, mode: str, part_field: str = ""
) -> Examples:
    """`count` examples for each (language, part) of the `questions`, the records that are asked.

    Args:
      pools: {split: records} to choose from, the best split first; never the one that is asked.
      mode: "rationale" takes examples that have a rationale.
    Raises UserError when there are too few.
    """
    wordings = {key for r in questions for key in question_keys(r)}
    groups = {r["provenance"].get("group") for r in questions} - {None}
    examples: Examples = {}
    for key in dict.fromkeys((r["language"], record_part(r, part_field)) for r in questions):
        most = 0  # of what any pool has, for the message
        for pool in pools.values():
            fit = [
                r
                for r in pool
                if (r["language"], record_part(r, part_field)) == key
                and not r.get("needs_image")
                and (mode != "rationale" or r["rationale"].strip())
                and wordings.isdisjoint(question_keys(r))
                and r["provenance"].get("group") not in groups
            ]
            most = max(most, len(fit))
            if len(fit) >= count:
                examples[key] = sorted(fit, key=lambda r: (hashlib.sha256(r["id"].encode()).digest(), r["id"]))[:count]
                break
        else:
            name = " ".join(p for p in (benchmark, key[1], f"in {LANGUAGE_NAMES[key[0]]}") if p)
            what = " with a rationale" if mode == "rationale" else ""
            where = f"{' and '.join(pools)} has {most}" if pools else "no other split is there that has"
            raise UserError(
                f"--few_shot={count}: {where} examples{what} for {name}; name a file of them with --few_shot_data=FILE"
            )
    return examples


def record_part(record: dict, field: str) -> str:
    """The part of its benchmark that a record belongs to, by provenance[field]; "" without a field."""
    return str(record["provenance"].get(field, "")) if field else ""
