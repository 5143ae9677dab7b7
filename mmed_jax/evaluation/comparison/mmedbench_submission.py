"""Files for the MMedBench leaderboard, as SubmissionTutorial.md of github.com/MAGIC-AI4Med/MMedLM asks for them.

    multi_choice_results.csv           Language, ModelInput, ModelOutput, GT_Answer ("A", "A,B,C"): the whole test set
    rationale_results.csv              the same columns, GT_Answer the reference rationale; only items whose reference
                                       people have checked and passed
    accuracy_metric.csv                a column for each language; per cent
    rationale_similarity_metric.csv    metric (BLEU-1 to BLEU-4, ROUGE-1, ROUGE-2, ROUGE-L), a column for each language;
                                       times 100

Languages are written as the files of MMedBench are named ("English"). ModelInput is the prompt word for word,
ModelOutput of multi_choice_results.csv the output; that of rationale_results.csv is the rationale without the statement
of the answer, so that the metrics can be computed again from the file. Files are UTF-8 with the quoting of RFC 4180.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.common.output_files import csv_text, write_text
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.benchmarks.registry import ENTRIES
from mmed_jax.evaluation.comparison.published_tables import place
from mmed_jax.evaluation.comparison.runs import Run
from mmed_jax.evaluation.metrics.text_similarity import average, pairs_of, score_rationales

COLUMNS = ("Language", "ModelInput", "ModelOutput", "GT_Answer")
METRICS = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-1", "rouge-2", "rouge-l")
_ALIKE = {"prompt_family": "the prompt family", "few_shot": "the number of examples"}
_SIZES = ENTRIES["mmedbench"].counts["test"]
LANGUAGES = tuple(_SIZES)


def write_submission(
    folder: Path, direct: Run, rationale: Run | None = None, *, count_mismatch: bool = False
) -> list[str]:
    """Writes the two files of each run; returns lines that say what was written.

    Raises:
      UserError: a run of another mode or with shuffled options, no MMedBench test set in it or not all of it, two
        models or ways of asking, references that nobody has checked.
    """
    runs = [direct] if rationale is None else [direct, rationale]
    lines = []
    for run, mode in zip(runs, ("direct", "rationale")):
        _check(run, mode)
        lines.append(_mmedbench(run, count_mismatch))
    for key, what in _ALIKE.items():
        values = [run.settings.get(key) or 0 for run in runs]
        if len(set(values)) > 1:
            raise UserError(
                f"{direct.name} and {rationale.name}: differ in {what} ({values[0]}, {values[1]}); the runs of a "
                "submission are asked alike"
            )
    prints = [run.results["model"].get("fingerprint") for run in runs]
    if len(set(prints)) > 1:
        raise UserError(f"{direct.name} and {rationale.name}: are of different weights ({prints[0]}, {prints[1]})")
    files = {
        "multi_choice_results.csv": _csv(COLUMNS, ([*_first_cells(p), p["output"], p["answer"]] for p in lines[0])),
        "accuracy_metric.csv": _csv([LANGUAGE_NAMES[k] for k in LANGUAGES], [_accuracy(lines[0])]),
    }
    report = [f"{len(lines[0]):,} answers, {sum(p['correct'] for p in lines[0]):,} right"]
    if rationale is not None:
        checked = [p for p in lines[1] if p.get("rationale_checked") and p.get("rationale")]
        if not checked:
            raise UserError(
                f"{rationale.name}: no reference is marked as checked by people; the files of MMedBench's test split "
                "have the fields human_checked and human_check_passed"
            )
        files["rationale_results.csv"] = _csv(
            COLUMNS, ([*_first_cells(p), p["generated_rationale"] or "", p["rationale"]] for p in checked)
        )
        files["rationale_similarity_metric.csv"] = _csv(
            ["Metric", *(LANGUAGE_NAMES[k] for k in LANGUAGES)], _similarity(checked)
        )
        report.append(f"{len(checked):,} rationales with a checked reference")
    for name, text in files.items():
        write_text(folder / name, text)
    return [*report, f"written    {folder}/{', '.join(files)}"]


def _check(run: Run, mode: str) -> None:
    if run.settings["mode"] != mode:
        first = "RUN_DIRECT, the first one," if mode == "direct" else "RUN_RATIONALE, the second one,"
        raise UserError(f"{run.name}: is of mode {run.settings['mode']}; {first} must be of mode {mode}")
    if run.settings.get("shuffle_seed") is not None:
        raise UserError(f"{run.name}: its options were shuffled; a submission is of the questions as published")


def _mmedbench(run: Run, count_mismatch: bool) -> list[dict[str, Any]]:
    """The lines of MMedBench's test set, languages in the order of the leaderboard's columns."""
    of: dict[str, list[dict]] = {k: [] for k in LANGUAGES}
    for p in run.lines:
        board, _ = place(p["benchmark"], run.results["data"].get(p["benchmark"], {}), p["language"], p.get("part"))
        if board.name == "mmedbench" and p["language"] in of:
            of[p["language"]].append(p)
    if not any(of.values()):
        raise UserError(f"{run.name}: has no items of mmedbench's test split; evaluate with --benchmark=mmedbench")
    off = [f"{k} {len(of[k]):,} of {n:,}" for k, n in _SIZES.items() if len(of[k]) != n]
    if off and not count_mismatch:
        raise UserError(
            f"{run.name}: is not the whole test set ({', '.join(off)}); --allow_count_mismatch writes it all the same"
        )
    return [p for there in of.values() for p in there]


def _first_cells(p: dict[str, Any]) -> list[str]:
    return [LANGUAGE_NAMES[p["language"]], p["prompt"]]


def _accuracy(lines: Sequence[dict[str, Any]]) -> list[str]:
    out = []
    for language in LANGUAGES:
        right = [p["correct"] for p in lines if p["language"] == language]
        out.append(f"{100 * sum(right) / len(right):.2f}" if right else "")
    return out


def _similarity(checked: Sequence[dict[str, Any]]) -> list[list[str]]:
    # An output without a rationale is an empty one: leaving it out would raise the mean.
    pairs = pairs_of({**p, "generated_rationale": p["generated_rationale"] or ""} for p in checked)
    means = average(score_rationales(pairs, METRICS))
    return [
        [metric.upper(), *(f"{100 * means[metric][k]['mean']:.2f}" if k in means[metric] else "" for k in LANGUAGES)]
        for metric in METRICS
    ]


def _csv(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return csv_text(head, rows, end="\r\n")
