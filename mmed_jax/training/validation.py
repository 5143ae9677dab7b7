"""Evaluation during training: loss, perplexity, bits per byte and accuracy, overall and by language; answers.

Bits per byte are the nats of the trained targets over ln 2 and the UTF-8 bytes of the text that these spell. They do
not depend on the tokenizer, and are comparable between languages as far as their bytes are.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError
from mmed_jax.config.values import batch_rows
from mmed_jax.data.loader import eval_batches, eval_rows
from mmed_jax.data.packed_table import Table
from mmed_jax.data.prepared import Prepared
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel.coordinator import Coordinator
from mmed_jax.training.answers import Answers, Prompt, choose_prompts
from mmed_jax.training.host_agreement import compiled_together
from mmed_jax.training.program import Program
from mmed_jax.training.questions import Question, QuestionRows, accuracy, choose_questions
from mmed_jax.training.state import BatchPlacer


def by_language(nll: np.ndarray, count: np.ndarray, prefix: str) -> dict[str, float]:
    """Mean loss of each language that has supervised tokens: {"<prefix>/zh": ...}.

    Args:
      nll, count: float [1 + len(LANGUAGES)], sums by language slot; slot 0 is padding.
    """
    return {f"{prefix}/{lang}": float(nll[i] / count[i]) for i, lang in enumerate(LANGUAGES, 1) if count[i] > 0}


def validation_losses(
    eval_step: Callable[[Any, dict], dict],
    params: Any,
    table: Table,
    placer: BatchPlacer,
    limit: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Loss, perplexity and bits per byte over the table (each row once; at most `limit` rows when not 0).

    Args:
      eval_step: (params, placed batch) -> {"nll", "count"} sums by language slot, and more that is not read.
      placer: puts global batches of its size on the devices.
      stop: asked before every batch, on every process alike; True abandons the pass.

    Returns:
      None when abandoned: a part of the rows is no result. Else
      {"validation/loss": sum over all supervised tokens / their number, "validation/perplexity": its exponential,
       "validation/bits_per_byte": left out where no text is spelt; each also with "/zh", ... for the languages that
       are there; "validation/tokens": supervised tokens}.
    """
    total: dict[str, jax.Array] | None = None
    before: dict[str, jax.Array] | None = None
    for host_batch in eval_batches(table, placer.batch_size, local_rows=placer.rows, limit=limit):
        if stop():
            return None
        # One batch waits on the devices, not all of them: they could not be called back.
        jax.block_until_ready(before)
        before = total
        sums = {k: v for k, v in eval_step(params, placer(host_batch)).items() if k in ("nll", "count")}
        total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    # Of all rows on every process, while the devices are busy with the last ones.
    size = _text_bytes(table, limit)
    sums = jax.device_get(total)
    nll, count = np.asarray(sums["nll"], np.float64), np.asarray(sums["count"], np.float64)
    tokens = count.sum()
    losses = {"": float(nll.sum() / max(tokens, 1.0)), **by_language(nll, count, "")}
    nats = {"": nll.sum() / max(size.sum(), 1), **by_language(nll, size, "")}
    return {
        **{f"validation/loss{k}": v for k, v in losses.items()},
        **{f"validation/perplexity{k}": math.inf if v > 700 else math.exp(v) for k, v in losses.items()},
        **({f"validation/bits_per_byte{k}": float(v / math.log(2)) for k, v in nats.items()} if size.any() else {}),
        "validation/tokens": float(tokens),
    }


@functools.lru_cache(maxsize=8)
def _text_bytes(table: Table, limit: int) -> np.ndarray:
    """int64 [1 + len(LANGUAGES)], bytes of the text of the rows that are validated on; the same at every step."""
    return table.text_bytes(eval_rows(table, limit).tolist())


def describe_losses(losses: dict[str, float]) -> str:
    """The line of an evaluation: "validation loss 2.3, perplexity 10, 0.91 bits/byte  en 2.1, 0.85  zh 2.5, 0.95", and
    of questions "  accuracy 41.0 % of 200 questions  en 45.0 %  zh 37.0 %"."""
    parts = []
    for name in losses:
        _, is_loss, language = name.partition("validation/loss")
        if is_loss:
            bits = losses.get(f"validation/bits_per_byte{language}")
            more = "" if language else f", perplexity {losses['validation/perplexity']:.5g}"
            more += "" if bits is None else f", {bits:.4f}" + ("" if language else " bits/byte")
            parts.append(f"{language[1:] or 'validation loss'} {losses[name]:.4f}{more}")
    if "validation/accuracy" in losses:
        number = losses["validation/accuracy_questions"]
        parts.append(f"accuracy {losses['validation/accuracy']:.1%} of {number:,.0f} questions")
        shares = {k.removeprefix("validation/accuracy/"): v for k, v in losses.items() if "accuracy/" in k}
        parts += [f"{language} {share:.1%}" for language, share in shares.items() if len(shares) > 1]
    return "  ".join(parts)


def newest_numbers(losses: Mapping[str, float]) -> dict[str, float]:
    """What the line of every step says of the newest validation: {"val": 2.3}, and its accuracy where one was taken."""
    names = {"val": "validation/loss", "acc": "validation/accuracy"}
    return {short: losses[name] for short, name in names.items() if name in losses}


@dataclass(frozen=True)
class HeldOut:
    """What a run is evaluated on: a table, questions that are scored and prompts that are answered. table: None where
    nothing is held out; then nothing is evaluated."""

    table: Table | None
    questions: list[Question]
    prompts: list[Prompt]

    def describe(self, config: ConfigDict) -> str:
        """The line of the banner on evaluations: what of, and when; "" where none are asked for and there are none."""
        if self.table is None:
            wanted = config.eval_at_start or config.eval_epochs or config.eval_questions or config.eval_answers
            return "none, for nothing is held out (config.data.validation)" if wanted else ""
        rows = min(len(self.table), config.eval_rows or len(self.table))
        of = [f"{rows:,} rows"]
        if config.eval_questions:
            of.append(f"{len(self.questions):,} questions" if self.questions else "no multiple choice is held out")
        if config.eval_answers:
            of.append(f"{len(self.prompts)} prompts")
        when = ["before the first step"] if config.eval_at_start else []
        when += [f"every {config.eval_every:,} steps"] if config.eval_every else []
        when += ["every epoch"] if config.eval_epochs else []
        return f"{', '.join(of)}; {', '.join([*when, 'at the end'])}"


def held_out(config: ConfigDict, tok: Any, prepared: Prepared) -> HeldOut:
    """What of the run's data it is evaluated on.

    Raises:
      UserError: the run is to be decided by evaluations that it has not, or by an accuracy and no question is there.
    """
    table = prepared.validation.get("validation")
    if table is None and config.stop_after:
        raise UserError(
            f"config.stop_after={config.stop_after}: nothing is held out, so nothing is evaluated; name "
            "config.data.validation or a config.data.validation_fraction"
        )
    questions = choose_questions(tok, prepared.held_out, config.data, config.eval_questions)
    if table is not None and config.checkpoint.best_metric == "validation/accuracy" and not questions:
        raise UserError(
            "config.checkpoint.best_metric=validation/accuracy: among what is held out is no multiple-choice question "
            "with one right answer that fits into a row; choose by validation/loss"
        )
    return HeldOut(table, questions, choose_prompts(tok, prepared.held_out, config.data, config.eval_answers))


class Evaluation:
    """Evaluates what is being trained. Every process calls it alike; it changes nothing of the training.

    Args:
      of: see held_out. base: the frozen weights beneath an adapter. coordinator: None in a single process. steps:
        length of the run. rows: of an epoch.
    """

    def __init__(
        self,
        of: HeldOut,
        config: ConfigDict,
        cfg: LlamaConfig,
        tok: Any,
        program: Program,
        base: Any,
        coordinator: Coordinator | None,
        *,
        steps: int,
        rows: int,
    ):
        self._of, self._config, self._steps, self._rows = of, config, steps, rows
        self._batch_rows, seq_len = batch_rows(config), config.data.seq_len
        # As many rows at a time as a part of the training step has: what trains has the memory to be evaluated.
        self._placer = BatchPlacer(program.mesh, self._batch_rows // config.grad_accum, seq_len)
        eval_step = compiled_together(program.eval_step, coordinator, "the validation's step")
        answer_step = compiled_together(program.answer_step, coordinator, "the answers' step")
        self._eval_step = functools.partial(eval_step, base=base)
        self._answer_step = functools.partial(answer_step, base=base)
        packing = config.data.packing
        self._questions = QuestionRows(of.questions, seq_len, packing=packing) if of.questions else None
        self._answers = Answers(of.prompts, tok, cfg, program.mesh, seq_len) if of.prompts else None

    def is_due(self, step: int) -> bool:
        """Whether there is one after `step` updates; 0: before the first."""
        if self._of.table is None or step == 0:
            return self._of.table is not None and self._config.eval_at_start
        every, done = self._config.eval_every, step * self._batch_rows
        # Whether this step has taken the last row of an epoch.
        ends_epoch = self._config.eval_epochs and done // self._rows > (done - self._batch_rows) // self._rows
        return step == self._steps or bool(ends_epoch) or bool(every and step % every == 0)

    def numbers(self, params: Any, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Those of validation_losses, and of questions.accuracy where questions are held out; None when abandoned.

        Args:
          stop: asked before every batch, on every process alike; True abandons.
        """
        assert self._of.table is not None
        limit = self._config.eval_rows
        losses = validation_losses(self._eval_step, params, self._of.table, self._placer, limit, stop)
        if losses is None or self._questions is None:
            return losses
        values = self._questions.score(self._eval_step, params, self._placer, stop)
        return None if values is None else losses | accuracy(self._of.questions, values)

    def answers(self, params: Any) -> list[dict[str, str]]:
        """[{"language", "question", "answer"}] of the fixed prompts, greedy; [] without prompts."""
        return [] if self._answers is None else self._answers.write(self._answer_step, params)
