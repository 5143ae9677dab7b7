"""Test questions that the training split has as well, exactly or almost: reported, never removed.

Examinations repeat their questions over the years, and a published split stays what it is; who reads a result should
know how many of its questions were in the training data. Likeness is that of data_gen/sets/dedup.py, without
rationales, which a test question may lack.
"""

from collections.abc import Callable, Iterator

from data_gen.sets.dedup import Deduplicator

_FIELDS = ("question", "context", "language", "answer_idx", "options")


def near_duplicates(read: Callable[[str], Iterator[dict]], threshold: float) -> list[dict]:
    """One line for each test question with a close one in training: {"test", "train", "language", "similarity"}.

    Args:
      read: records of "train" and of "test". threshold: Jaccard similarity of n-grams; 0 = equal questions only.
    """
    dedup, ids, languages, train = Deduplicator(threshold), [], [], 0
    for split in ("train", "test"):
        for record in read(split):
            bare = {name: record[name] for name in _FIELDS if name in record}
            dedup.add({**bare, "rationale": ""})
            ids.append(record["id"])
            languages.append(record["language"])
        if split == "train":
            train = len(ids)
    stands: dict[int, int] = {}  # a test question that repeats another leads to that one's training question
    lines = []
    for row, earlier, alike in dedup.duplicates():
        origin = stands.get(earlier, earlier)
        if row >= train > origin:
            stands[row] = origin
            lines.append(
                {
                    "test": ids[row],
                    "train": ids[origin],
                    "language": languages[row],
                    "similarity": round(alike, 3),
                }
            )
    return lines
