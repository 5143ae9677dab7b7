"""Documents and a model together: the line of predictions.jsonl of each, as soon as all its tokens are scored."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmed_jax.data.batch import Batch
from mmed_jax.evaluation.perplexity.texts import Entry, Owners

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmed_jax.inference.text_scorer import TextScorer


class Texts(Protocol):
    """What is scored: texts.FileTexts, table_texts.TableTexts."""

    @property
    def documents(self) -> Sequence[Entry]: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def info(self) -> dict[str, Any]: ...

    def begin(self, index: int, size: int) -> str: ...

    def batches(self, wanted: Sequence[int], rows_for: Callable[[int], int]) -> "Iterator[tuple[Owners, Batch]]": ...


def score_documents(
    scorer: "TextScorer", texts: Texts, wanted: Sequence[int], on_line: Callable[[dict[str, Any]], None]
) -> None:
    """Scores the documents `wanted` (their indices); `on_line` gets the line of each, in any order.

    Sums over a document are taken in float64 over the float32 values of its tokens. Raises WorkError (TextScorer).
    """
    nll: Counter[int] = Counter()
    left = {i: texts.documents[i].tokens for i in wanted}
    for owners, batch, nll_bt in scorer.score(texts.batches(wanted, scorer.rows)):
        for row, of_row in enumerate(owners):
            segments, trained = batch["segment_ids"][row], batch["loss_mask"][row]
            sums = np.bincount(segments, nll_bt[row].astype(np.float64), len(of_row) + 1)
            counts = np.bincount(segments, trained, len(of_row) + 1)
            for i, value, count in zip(of_row, sums[1:].tolist(), counts[1:].tolist()):
                if not count or i not in left:
                    continue
                nll[i] += value
                left[i] -= round(count)
                if not left[i]:
                    del left[i]
                    on_line(_line(texts.documents[i], nll.pop(i)))
    if left:
        raise AssertionError(f"{len(left)} documents were not scored whole")


def _line(entry: Entry, nll: float) -> dict[str, Any]:
    return {
        "id": entry.id,
        "language": entry.language,
        "source": entry.source,
        "tokens": entry.tokens,
        "bytes": entry.bytes,
        "nll": nll,
        "bits_per_byte": nll / (math.log(2) * entry.bytes) if entry.bytes else None,
    }
