"""Whether the place of an option decides: accuracy and share of the answers, letter by letter."""

import statistics
from collections.abc import Sequence
from typing import Any

from mmed_jax.evaluation.prompts.items import Item


def order_bias(pairs: Sequence[tuple[Item, dict]]) -> dict[str, Any] | None:
    """How much the place of an option matters, over the questions with one right letter; None when there are none.

    Returns:
      "letters": {letter: {"right", "correct", "accuracy" (of questions whose right letter it is), "answered",
      "answer_share" (of answers that are one letter)}}, "recall_std": the standard deviation of those accuracies (RStd
      of Zheng et al. 2023, arXiv:2309.03882), "share_distance": half the sum of |answer share - right share|, and
      "shuffled": only then is it the order, and not what the authors put where.
    """
    single = [(i, p) for i, p in pairs if i.options and "," not in i.answer]
    if not single:
        return None
    answered = [p["extracted"] for _, p in single if p["extracted"] and "," not in p["extracted"]]
    letters = {}
    for letter in sorted({k for i, _ in single for k in i.options}):
        mine = [p["correct"] for i, p in single if i.answer == letter]
        letters[letter] = {
            "right": len(mine),
            "correct": sum(mine),
            "accuracy": sum(mine) / len(mine) if mine else None,
            "answered": answered.count(letter),
            "answer_share": answered.count(letter) / len(answered) if answered else 0.0,
        }
    recalls = [c["accuracy"] for c in letters.values() if c["accuracy"] is not None]
    distance = sum(abs(c["answer_share"] - c["right"] / len(single)) for c in letters.values()) / 2
    return {
        "letters": letters,
        "count": len(single),
        "recall_std": statistics.pstdev(recalls),
        "share_distance": distance if answered else None,
        "shuffled": bool(single[0][0].order),
    }
