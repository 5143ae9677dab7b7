"""How a question is asked and what becomes of the answer: generated, or read off log-likelihoods.

direct          the model writes the letter alone
rationale       it explains, then writes the letter
loglikelihood   nothing is written: of every option the log-probability is taken, of its letter (`score` letter) or of
                its whole text (`score` option), and the largest one is the answer. Longer texts are less probable, so
                texts are compared a byte (lm-eval's acc_bytes), a character (its acc_norm), a token, or as they are
                (its acc). One option is picked: questions with several right answers are never answered rightly.

A results folder holds one mode, one score, one prompt family; mmed_jax.inference.journal refuses another.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmed_jax.errors import WorkError
from mmed_jax.evaluation.answers import is_correct, split_rationale
from mmed_jax.evaluation.items import Item
from mmed_jax.evaluation.language import response_language
from mmed_jax.evaluation.results import judge

if TYPE_CHECKING:
    from mmed_jax.inference.engine import Completion, Engine

MODES = ("direct", "rationale", "loglikelihood")
SCORES = ("letter", "option")
# What a log-probability is divided by before options are compared; the default for each score.
NORMALISE = ("none", "tokens", "bytes", "characters")
DEFAULT_NORMALISE = {"letter": "none", "option": "bytes"}
# Enough for "###Answer: OPTION A,C IS CORRECT." in a byte-level vocabulary, for a rationale, for an answer.
MAX_NEW_TOKENS = {"direct": 64, "rationale": 1024, "exact_match": 512}

_ROWS = 16  # of a padded batch of the adapter below


def ask(
    engine: "Engine", items: Sequence[Item], numbers: Sequence[int], max_new_tokens: int,
    on_done: Callable[[int, Any], None],
) -> None:  # fmt: skip
    """Answers every item; `on_done(index, result)` gets a Completion, or the list of log-likelihoods of its choices.

    `numbers` are the items' places in the whole evaluation, for an engine that is asked only the rest of it.
    """
    prompts = [i.prompt for i in items]
    if items[0].choices:
        choices = [i.choices for i in items]
        if hasattr(engine, "loglikelihood"):
            engine.loglikelihood(prompts, choices, on_done=on_done)
        else:
            loglikelihood(engine, prompts, choices, on_done=on_done)
        return
    shared = {}
    if any(i.prefix for i in items) and "prefixes" in inspect.signature(engine.generate).parameters:
        shared["prefixes"] = [i.prefix for i in items]
    engine.generate(prompts, max_new_tokens=max_new_tokens, items=numbers, on_done=on_done, **shared)


def loglikelihood(
    engine: "Engine", prompts: Sequence[Sequence[int]], choices: Sequence[tuple[tuple[int, ...], ...]], *,
    on_done: Callable[[int, list[float]], None] | None = None,
) -> list[list[float]]:  # fmt: skip
    """log p(choice | prompt), the sum over its tokens in nats (float32), of every choice of every prompt.

    A row for each choice, prompt and all, in padded batches of one length class: every row's numbers are its own.
    """
    import jax
    import numpy as np

    from mmed_jax.inference.engine import size_class

    score = _scorer(engine.cfg, engine.dtype)
    out = [[math.nan] * len(c) for c in choices]
    left = [len(c) for c in choices]
    rows = [(i, k) for i, c in enumerate(choices) for k in range(len(c))]
    width = 1 << (max(len(ids) for c in choices for ids in c) - 1).bit_length()

    def length(row: tuple[int, int]) -> int:
        return size_class(len(prompts[row[0]]) + len(choices[row[0]][row[1]]))

    rows.sort(key=lambda r: (length(r), r))
    batch = engine.rows(min(_ROWS, len(rows)))
    with engine._on_mesh():
        while rows:
            t = length(rows[0])
            chosen = [r for r in rows[:batch] if length(r) == t]
            rows = rows[len(chosen) :]
            tokens, starts, ends = np.zeros((batch, t), np.int32), np.ones(batch, np.int32), np.ones(batch, np.int32)
            for b, (i, k) in enumerate(chosen):
                whole = [*prompts[i], *choices[i][k]]
                tokens[b, : len(whole)] = whole
                starts[b], ends[b] = len(prompts[i]), len(whole)
            values = jax.device_get(score(engine.params, tokens, starts, ends, width=min(width, t)))
            for (i, k), value in zip(chosen, values.tolist()):
                out[i][k] = value
                left[i] -= 1
                if not left[i] and on_done:
                    on_done(i, out[i])
    return out


@functools.cache
def _scorer(cfg: Any, dtype: Any) -> Callable:
    """The compiled score(params, tokens_bt, starts_b, ends_b, width) -> [B]: log p of ids start..end-1."""
    import jax
    import jax.numpy as jnp

    from mmed_jax.model import llama

    def score(params, tokens_bt, starts_b, ends_b, width):
        hidden = llama.forward(params, cfg, tokens_bt, compute_dtype=dtype)
        at = starts_b[:, None] + jnp.arange(width)  # position of each token of the choice
        here = jnp.take_along_axis(hidden, jnp.clip(at - 1, 0, hidden.shape[1] - 1)[..., None], axis=1)
        logits = llama.unembed(params, cfg, here)
        target = jnp.take_along_axis(tokens_bt, jnp.clip(at, 0, tokens_bt.shape[1] - 1), axis=1)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), target[..., None], axis=-1)[..., 0]
        return jnp.where(at < ends_b[:, None], logp, 0).sum(-1)

    return jax.jit(score, static_argnames="width")


def pick(item: Item, values: Sequence[float], normalise: str) -> str:
    """The letter of the largest log-likelihood, `values` divided as `normalise` says; the first of equals.

    Raises WorkError for a value that is no number.
    """
    if any(math.isnan(v) for v in values):
        raise WorkError("the model's logits are NaN: its weights are damaged or overflow in this compute dtype")
    sizes = {
        "none": lambda ids, text: 1,
        "tokens": lambda ids, text: len(ids),
        "bytes": lambda ids, text: len(text.encode()),
        "characters": lambda ids, text: len(text),
    }[normalise]
    scored = [v / sizes(ids, t.strip()) for v, ids, t in zip(values, item.choices, item.options.values(), strict=True)]
    return list(item.options)[scored.index(max(scored))]


def prediction(
    item: Item, result: "Completion | list[float]", *, mode: str, prompt: str, output: str = "", normalise: str = "none"
) -> dict[str, Any]:
    """The line of predictions.jsonl for one answer; `output` is the decoded completion."""
    scored = bool(item.choices)
    if scored:
        output = pick(item, result, normalise)
        verdict = {"extracted": output, "rule": "loglikelihood", "correct": is_correct(output, item.answer)}
    else:
        verdict = judge(item, output)
    explained = split_rationale(output, item.options, item.language) if mode == "rationale" else None
    return {
        "benchmark": item.benchmark, "id": item.id, "language": item.language, "part": item.part or None,
        **question(item.record), "prompt": prompt, "output": output, **verdict, "answer": item.answer,
        "finish_reason": "scored" if scored else result.finish_reason, "prompt_tokens": len(item.prompt),
        "new_tokens": 0 if scored else len(result.ids), "mode": mode, "options": item.options, "order": item.order,
        **reference(item.record), "generated_rationale": explained,
        "response_language": None if scored else response_language(output),
        **({"loglikelihoods": [float(v) for v in result]} if scored else {}),
    }  # fmt: skip


def question(record: dict) -> dict[str, str]:
    """{"question", "context"} of the record as asked: the passage only where one was shown; {} for instructions."""
    found = {"question": record.get("question"), "context": record.get("context")}
    return {k: text for k, text in found.items() if text}


def reference(record: dict) -> dict[str, Any]:
    """{"rationale", "rationale_checked"} of a record: the reference text, and whether people have passed it."""
    checked = record.get("human_checked") and record.get("human_check_passed")
    has = "human_checked" in record and bool(record.get("rationale"))
    return {"rationale": record.get("rationale") or None, "rationale_checked": bool(checked) if has else None}
