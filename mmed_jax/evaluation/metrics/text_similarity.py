"""How close generated rationales come to the reference: BLEU, ROUGE, chrF, BERTScore, per item and per language.

As in the MMedLM code (metrics/rationale_similarity.py): BLEU is NLTK's sentence_bleu with SmoothingFunction.method1,
ROUGE the F-score of the `rouge` package, over the words of word_split.py; averages are over items, then over languages
without weights. The tables print BLEU-1 and ROUGE-1, so those are weights (1, 0, 0, 0) and "rouge-1", although the
code as published computes BLEU-4 and ROUGE-L. Two differences, on purpose: a text equal to its reference scores 1
(smoothing gives an equal text of three words 0.56 BLEU-4), and line breaks stay (the original deletes them and glues
words together). chrF is sacrebleu's chrF2 (character 6-grams, no words), the same in every language.

Means come with 95 % intervals by a seeded bootstrap over items (intervals.py), for the mean over languages within each
language: how far they would move with other questions of the same kind, not with another answer of the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.metrics.intervals import bootstrap_columns
from mmed_jax.evaluation.metrics.rouge import rouge
from mmed_jax.evaluation.metrics.word_split import join_words, missing, words

# (hypothesis, reference, language) -> {metric: score from 0 to 1}
Metric = Callable[[str, str, str], dict[str, float]]
# What computes each metric, in the order of the tables; `text_metric` below enters them. BERTScore, which needs a model
# and takes all pairs at once, comes after them and only where it is asked for.
METRICS: dict[str, Metric] = {}
BERTSCORE = "bertscore"
AVERAGE = "average"  # beside the languages in what `average` returns
_WEIGHTS = [(1.0,), (0.5, 0.5), (1 / 3,) * 3, (0.25,) * 4]


# ---- The metrics ----------------------------------------------------------------------------------------------------


def text_metric(*names: str) -> Callable[[Metric], Metric]:
    """Makes the decorated function the one that computes the metrics `names`, here and in every table."""

    def register(function: Metric) -> Metric:
        METRICS.update(dict.fromkeys(names, function))
        return function

    return register


@text_metric("bleu-1", "bleu-2", "bleu-3", "bleu-4")
def bleu_scores(hypothesis: str, reference: str, language: str) -> dict[str, float]:
    """NLTK's sentence BLEU of one to four n-gram orders, smoothed."""
    hypothesis_words, reference_words = list(words(hypothesis, language)), list(words(reference, language))
    try:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ImportError:
        raise missing("nltk", "BLEU") from None
    scores = sentence_bleu(
        [reference_words],
        hypothesis_words,
        weights=_WEIGHTS,
        smoothing_function=SmoothingFunction().method1,
    )
    return {f"bleu-{n}": float(score) for n, score in enumerate(scores, 1)}


@text_metric("rouge-1", "rouge-2", "rouge-l")
def rouge_scores(hypothesis: str, reference: str, language: str) -> dict[str, float]:
    """F-scores of the `rouge` package."""
    return rouge(join_words(hypothesis, language), join_words(reference, language))


@text_metric("chrf")
def chrf_score(hypothesis: str, reference: str, language: str) -> dict[str, float]:
    """sacrebleu's chrF2."""
    return {"chrf": _chrf().sentence_score(hypothesis, [reference]).score / 100}


@cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise missing("sacrebleu", "chrF") from None
    return CHRF()


def default_metrics() -> tuple[str, ...]:
    """The metrics that need no model, in the order of the tables."""
    return tuple(METRICS)


def all_metrics() -> tuple[str, ...]:
    """Every metric, in the order of the tables."""
    return (*METRICS, BERTSCORE)


# ---- Scores and means -----------------------------------------------------------------------------------------------


def with_both(predictions: Iterable[Mapping[str, Any]], checked: bool = False) -> list[Mapping[str, Any]]:
    """The lines of predictions.jsonl that have a generated rationale and a reference.

    Args:
      checked: only those whose reference people have checked and passed ("rationale_checked" true), as the MMedBench
        tables do.
    """
    return [
        p
        for p in predictions
        if p.get("rationale") and p.get("generated_rationale") is not None
        if p.get("rationale_checked") or not checked
    ]


def pairs_of(predictions: Iterable[Mapping[str, Any]], checked: bool = False) -> list[tuple[str, str, str]]:
    """(language, generated, reference) of with_both's lines."""
    return [(p["language"], p["generated_rationale"], p["rationale"]) for p in with_both(predictions, checked)]


def score_rationales(
    pairs: Iterable[tuple[str, str, str]], metrics: Sequence[str] | None = None, *, bertscore_model: str | None = None
) -> list[dict[str, Any]]:
    """A row {"language", metric: score, ...} for each pair (language, hypothesis, reference), in their order.

    `metrics`: names; all that need no model by default. Scores are floats from 0 to 1; all None where the reference has
    no text, all 0 where the hypothesis has none.

    Raises:
      UserError: an unknown metric or language, a library that is not installed, or bertscore without its model.
    """
    pairs = list(pairs)
    metrics = default_metrics() if metrics is None else metrics
    for name in metrics:
        if name not in all_metrics():
            raise UserError(f"metric '{name}' is unknown{nearest(name, all_metrics())}")
    for language, _, _ in pairs:
        if language not in LANGUAGES:
            raise UserError(f"language '{language}' is unknown{nearest(language, LANGUAGES)}")
    if BERTSCORE in metrics and not bertscore_model:
        raise UserError("bertscore: needs the folder of its model (bert-base-multilingual-cased in the papers)")
    rows = [{"language": language, **_scores(language, h, r, metrics)} for language, h, r in pairs]
    if BERTSCORE in metrics:
        from mmed_jax.evaluation.metrics.bertscore import BertScore

        left = [i for i, row in enumerate(rows) if row[BERTSCORE] is _TO_DO]
        scores = BertScore(bertscore_model).scores([pairs[i][1] for i in left], [pairs[i][2] for i in left])
        for i, score in zip(left, scores):
            rows[i][BERTSCORE] = score
    return rows


def check_metrics(metrics: Sequence[str], bertscore_model: str | None) -> None:
    """Raises UserError, before anything is asked, for metrics that could not be computed afterwards."""
    if bertscore_model and not Path(bertscore_model).is_dir():
        raise UserError(f"--bertscore_model={bertscore_model}: no such folder")
    score_rationales([], [m for m in metrics if m != BERTSCORE or not bertscore_model])
    score_rationales([("en", "a b", "b c")], [m for m in metrics if m != BERTSCORE])


def average(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{metric: {language: cell, .., "average": cell}} of score_rationales' rows; cell: {"mean", "count", "interval95"}.

    A language's mean is over its items, the average over the languages' means without weights. Rows without a score do
    not count; a metric without any row is left out. "interval95" is [low, high]; None where a language has one item
    only, whose spread nobody knows.
    """
    # Scores of one item are drawn together, so metrics are grouped by the rows that have them: nearly always all.
    shared: dict[tuple[int, ...], list[str]] = {}
    for metric in all_metrics():
        if scored := tuple(i for i, row in enumerate(rows) if row.get(metric) is not None):
            shared.setdefault(scored, []).append(metric)
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for scored, metrics in shared.items():
        groups = {}
        for language in LANGUAGES:
            if there := [[rows[i][m] for m in metrics] for i in scored if rows[i]["language"] == language]:
                groups[language] = np.asarray(there, np.float64)
        spreads, spread = bootstrap_columns(list(groups.values()))
        single = any(len(g) < 2 for g in groups.values())
        for k, metric in enumerate(metrics):
            block = {
                language: _cell(sum(g[:, k].tolist()) / len(g), len(g), None if len(g) < 2 else s[:, k])
                for (language, g), s in zip(groups.items(), spreads)
            }
            mean = sum(c["mean"] for c in block.values()) / len(block)
            out[metric] = {**block, AVERAGE: _cell(mean, len(scored), None if single else spread[:, k])}
    return {metric: out[metric] for metric in all_metrics() if metric in out}


def _cell(mean: float, count: int, interval: np.ndarray | None) -> dict[str, Any]:
    return {"mean": mean, "count": count, "interval95": None if interval is None else interval.tolist()}


_TO_DO = object()


def _scores(language: str, hypothesis: str, reference: str, metrics: Sequence[str]) -> dict[str, Any]:
    hypothesis, reference = hypothesis.strip(), reference.strip()
    if not reference or not hypothesis or hypothesis.split() == reference.split():
        return dict.fromkeys(metrics, None if not reference else float(bool(hypothesis)))
    scores: dict[str, Any] = {BERTSCORE: _TO_DO}
    for function in dict.fromkeys(METRICS[m] for m in metrics if m != BERTSCORE):
        scores |= function(hypothesis, reference, language)
    return {m: scores[m] for m in metrics}
