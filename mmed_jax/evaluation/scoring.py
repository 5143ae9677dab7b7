"""How a question is asked and what becomes of the answer: generated, or read off log-likelihoods.

direct          the model writes the letter alone
rationale       it explains, then writes the letter
loglikelihood   nothing is written: of every option the log-probability is taken, of its letter (`score` letter) or of
                its whole text (`score` option), and the largest one is the answer. Longer texts are less probable, so
                texts are compared a byte (lm-eval's acc_bytes), a character (its acc_norm), a token, or as they are
                (its acc). One option is picked: questions with several right answers are never answered rightly.

A results folder holds one mode, one score, one prompt family; mmed_jax.common.journal refuses another.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmed_jax.common.errors import WorkError
from mmed_jax.data.languages.identify import language_of
from mmed_jax.data.records.schema import fold_text
from mmed_jax.evaluation.extraction.extract import extract, is_correct, split_rationale
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.llm_api.finish_reasons import is_cut

if TYPE_CHECKING:
    from mmed_jax.inference.engine import Completion

MODES = ("direct", "rationale", "loglikelihood")
SCORES = ("letter", "option")
# What a log-probability is divided by before options are compared; the default for each score.
NORMALISE = ("none", "tokens", "bytes", "characters")
DEFAULT_NORMALISE = {"letter": "none", "option": "bytes"}
# Enough for "###Answer: OPTION A,C IS CORRECT." in a byte-level vocabulary, for a rationale, for an answer.
MAX_NEW_TOKENS = {"direct": 64, "rationale": 1024, "exact_match": 512}


def grade(item: Item, output: str, finish_reason: str | None = None) -> dict[str, Any]:
    """{"extracted", "rule", "correct"} of one output: letters for multiple choice, exact match for instructions.

    `finish_reason` is why the output ends ("stop", "length"; None: not known).
    """
    if not item.options:
        return {"extracted": None, "rule": "exact_match", "correct": fold_text(output) == fold_text(item.answer)}
    letters, rule = extract(output, item.options, item.language, finish_reason)
    return {"extracted": letters, "rule": rule, "correct": is_correct(letters, item.answer)}


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
    cut = not scored and is_cut(result.finish_reason)
    ended = "length" if cut else "stop"  # to those who read it; the endpoint may have a word of its own, or none
    if scored:
        output = pick(item, result, normalise)
        verdict = {"extracted": output, "rule": "loglikelihood", "correct": is_correct(output, item.answer)}
    else:
        verdict = grade(item, output, ended)
    explained = split_rationale(output, item.options, item.language, ended) if mode == "rationale" else None
    return {
        "benchmark": item.benchmark,
        "id": item.id,
        "language": item.language,
        "part": item.part or None,
        **question(item.record),
        "prompt": prompt,
        "output": output,
        **verdict,
        "answer": item.answer,
        "finish_reason": "scored" if scored else result.finish_reason,
        "cut": cut,
        "prompt_tokens": len(item.prompt),
        "new_tokens": 0 if scored else len(result.ids),
        "mode": mode,
        "options": item.options,
        "order": item.order,
        **reference(item.record),
        "generated_rationale": explained,
        "response_language": None if scored else language_of(output),
        **({"loglikelihoods": [float(v) for v in result]} if scored else {}),
    }


def question(record: dict) -> dict[str, str]:
    """{"question", "context"} of the record as asked: the passage only where one was shown; {} for instructions."""
    texts = {"question": record.get("question"), "context": record.get("context")}
    return {k: text for k, text in texts.items() if text}


def reference(record: dict) -> dict[str, Any]:
    """{"rationale", "rationale_checked"} of a record: the reference text, and whether people have passed it."""
    checked = record.get("human_checked") and record.get("human_check_passed")
    has = "human_checked" in record and bool(record.get("rationale"))
    return {"rationale": record.get("rationale") or None, "rationale_checked": bool(checked) if has else None}
