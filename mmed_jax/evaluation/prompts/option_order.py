"""Options in another order, where nothing in them speaks of the others (about_options.py)."""

import hashlib

from mmed_jax.evaluation.prompts.option_references import stays, tied


def shuffled(record: dict, seed: int, benchmark: str) -> tuple[dict, str]:
    """The record with its options in an order drawn from (seed, benchmark, id), and the original letters in that order.

    "None of the above" and its like keep their place, and those above it stay above it; a question with an option such
    as "A and C" keeps its order.
    """
    letters = list(record["options"])
    if tied(record["options"]):
        return record, "".join(letters)

    def draw(letter: str) -> bytes:
        return hashlib.sha256("\0".join((str(seed), benchmark, record["id"], letter)).encode()).digest()

    order, between = [], []
    for letter in letters:
        if len(letters) > 2 and stays(record["options"][letter]):  # of two, 有 and 无, neither speaks of others
            order += [*sorted(between, key=draw), letter]
            between = []
        else:
            between.append(letter)
    order += sorted(between, key=draw)
    shown = dict(zip(order, letters))
    answer = ",".join(sorted(shown[k] for k in record["answer_idx"].split(",")))
    options = {new: record["options"][old] for new, old in zip(letters, order)}
    return {**record, "options": options, "answer_idx": answer}, "".join(order)
