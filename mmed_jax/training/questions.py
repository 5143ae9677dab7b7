"""Accuracy while training: the options of multiple-choice questions as packed rows, each scored by its log-likelihood.

Questions are put as `evaluate --mode=loglikelihood` puts them: the prompt of an answer without rationale, the letters
scored in the line that the model is trained to answer with, the largest log-likelihood is the answer. No key-value
cache: every option is a segment of its own with the whole prompt, and the rows go through the validation's own step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mmed_jax.data.batch import Batch, empty_batch
from mmed_jax.data.chat import encode_pieces
from mmed_jax.data.multiple_choice import letter_choices, mcq_prompt_pieces
from mmed_jax.data.pack import pack
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.training.state import BatchPlacer


@dataclass(frozen=True)
class Question:
    """A question to score: its right letter, the ids of its prompt, and of each letter those that continue it."""

    id: str
    language: str
    answer: str
    letters: tuple[str, ...]
    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]


def choose_questions(tok: Any, records: Iterable[dict], data: ConfigDict, number: int) -> list[Question]:
    """The first `number` questions of `records` that have one right letter and fit into a row.

    Args:
      data: config.data, whose prompt family and system message they are put with.
    """
    chosen: list[Question] = []
    usable = (r for r in records if "options" in r and "," not in r["answer_idx"])
    while len(chosen) < number and (some := list(islice(usable, number - len(chosen)))):
        chosen += [q for q in _encode(tok, some, data) if _fits(q, data.seq_len)]
    return chosen


def _encode(tok: Any, records: Sequence[dict], data: ConfigDict) -> Iterator[Question]:
    family, system = data.prompt_family, data.system_prompt
    pieces = [mcq_prompt_pieces(tok, r, "direct", family, system_prompt=system) for r in records]
    choices = letter_choices(tok, [(r, list(r["options"])) for r in records], family)
    for r, prompt, (lead, ids) in zip(records, encode_pieces(tok, pieces), choices, strict=True):
        yield Question(r["id"], r["language"], r["answer_idx"], tuple(r["options"]), (*prompt.ids, *lead), ids)


def _fits(question: Question, seq_len: int) -> bool:
    # The last token of a choice is predicted, not read.
    return len(question.prompt) + max(map(len, question.choices)) - 1 <= seq_len


class QuestionRows:
    """Questions packed into rows, an option a segment.

    Args:
      questions: of choose_questions. packing: several options in a row; False = one.
    """

    def __init__(self, questions: Sequence[Question], seq_len: int, *, packing: bool = True):
        self.questions, self._seq_len = list(questions), seq_len
        self._options = [(q, ids) for q in questions for ids in q.choices]
        slots = np.array([len(q.prompt) + len(ids) - 1 for q, ids in self._options], np.int64)
        self._rows = pack(slots, seq_len, packing=packing)

    def __len__(self) -> int:
        return len(self._rows)

    def score(
        self,
        eval_step: Callable[[Any, dict], dict],
        params: Any,
        placer: BatchPlacer,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[list[float]] | None:
        """log p(letter | prompt) of every letter of every question, in nats, float32; on every process all of them.

        Args:
          eval_step: (params, placed batch) -> {"nll_bt", ...}, as training.step.make_eval_step. stop: asked before
            every batch, on every process alike; True abandons the pass, which then gives None.
        """
        values = np.zeros(len(self._options), np.float32)
        for start in range(0, len(self._rows), placer.batch_size):
            if stop():
                return None
            sums = eval_step(params, placer(self._batch(start + placer.rows)))
            nll_bt = np.asarray(jax.device_get(sums["nll_bt"]))
            for nll_t, row in zip(nll_bt, range(start, len(self._rows))):
                for option, end, scored in self._segments(row):
                    # In order, in float32: the same sum wherever it stands.
                    values[option] = -np.add.accumulate(nll_t[end - scored : end], dtype=np.float32)[-1]
        each = iter(values.tolist())
        return [[next(each) for _ in q.choices] for q in self.questions]

    def _segments(self, row: int) -> Iterator[tuple[int, int, int]]:
        """(number of the option, slot behind its last, slots that are scored) of each segment of a row."""
        end = 0
        for option in self._rows[row].tolist():
            question, ids = self._options[option]
            end += len(question.prompt) + len(ids) - 1
            yield option, end, len(ids)

    def _batch(self, rows: np.ndarray) -> Batch:
        """These rows; those past the last are padding."""
        batch = empty_batch(len(rows), self._seq_len)
        for at, row in enumerate(rows.tolist()):
            begin = 0
            for number, (option, end, scored) in enumerate(self._segments(row) if row < len(self) else (), start=1):
                question, choice = self._options[option]
                ids, here = (*question.prompt, *choice), slice(begin, end)
                batch["tokens"][at, here], batch["targets"][at, here] = ids[:-1], ids[1:]
                batch["segment_ids"][at, here], batch["positions"][at, here] = number, np.arange(end - begin)
                batch["language"][at, here] = LANGUAGES.index(question.language) + 1
                batch["loss_mask"][at, end - scored : end] = 1
                begin = end
        return batch


def picked(question: Question, values: Sequence[float]) -> str:
    """The letter of the largest log-likelihood, the first of equals; "" where one is no number."""
    return "" if np.isnan(values).any() else question.letters[int(np.argmax(values))]


def accuracy(questions: Sequence[Question], values: Sequence[Sequence[float]]) -> dict[str, float]:
    """{"validation/accuracy": share of right answers, "validation/accuracy/zh": ..., and likewise
    "validation/accuracy_questions": how many were asked}."""
    right: dict[str, list[bool]] = {"": []}
    for question, each in zip(questions, values, strict=True):
        verdict = picked(question, each) == question.answer
        right[""].append(verdict)
        right.setdefault(f"/{question.language}", []).append(verdict)
    names = [name for name in ("", *(f"/{language}" for language in LANGUAGES)) if name in right]
    return {
        **{f"validation/accuracy{name}": float(np.mean(right[name])) for name in names},
        **{f"validation/accuracy_questions{name}": len(right[name]) for name in names},
    }
