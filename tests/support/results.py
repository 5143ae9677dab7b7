"""Folders as `python -m mmed_jax.evaluate` leaves them, with answers from a function in place of a model."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common.output_files import write_json
from mmed_jax.data.languages.identify import language_of
from mmed_jax.evaluation.extraction.extract import RULES_VERSION, split_rationale
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.results_json import add_rationale_metrics, summarise
from mmed_jax.evaluation.results_page import make_page
from mmed_jax.evaluation.scoring import grade, question, reference

OPTIONS = {"A": "aspirin", "B": "warfarin", "C": "heparin", "D": "clopidogrel"}


def record(n: int, language: str, answer: str = "", **more: Any) -> dict[str, Any]:
    """A question; its right letter turns with n."""
    return {
        "id": f"{language}{n}",
        "language": language,
        "question": f"Question {n}?",
        "options": OPTIONS,
        "answer_idx": answer or "ABCD"[n % 4],
        "rationale": f"Because of reason {n}.",
        "provenance": {},
        **more,
    }


def items_of(records: Iterable[dict], benchmark: str, part_field: str = "") -> list[Item]:
    return [
        Item(
            benchmark,
            r["id"],
            r["language"],
            [1, 2],
            r["answer_idx"],
            r["options"],
            record=r,
            part=r["provenance"].get(part_field, ""),
        )
        for r in records
    ]


def evaluated(
    folder: Path,
    items: Sequence[Item],
    answer: Callable[[Item], Any],
    *,
    mode: str = "direct",
    info: dict | None = None,
    metrics: Sequence[str] = (),
    model: str = "runs/stage2",
    tuning: dict | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Writes results.json, predictions.jsonl and report.html; returns the results. `answer` gives the output's text, or
    log-likelihoods in that mode; `info` adds to what is said of every benchmark."""
    lines = []
    for item in items:
        said = answer(item)
        scored = mode == "loglikelihood"
        if scored:
            letter = list(item.options)[said.index(max(said))]
            verdict = {"extracted": letter, "rule": "loglikelihood", "correct": letter == item.answer}
        else:
            verdict = grade(item, said)
        lines.append(
            {
                "benchmark": item.benchmark,
                "id": item.id,
                "language": item.language,
                "part": item.part or None,
                **question(item.record),
                "prompt": f"<|user|>{item.record['question']}",
                "output": letter if scored else said,
                **verdict,
                "answer": item.answer,
                "finish_reason": "scored" if scored else "stop",
                "prompt_tokens": 2,
                "new_tokens": 3,
                "mode": mode,
                "options": item.options,
                "order": item.order,
                **reference(item.record),
                "generated_rationale": split_rationale(said, item.options, item.language)
                if mode == "rationale"
                else None,
                "response_language": None if scored else language_of(said),
                **({"loglikelihoods": said} if scored else {}),
            }
        )
    names = list(dict.fromkeys(i.benchmark for i in items))
    asked = {n: sum(i.benchmark == n for i in items) for n in names}
    data = {
        n: {
            "split": "test",
            "expected": None,
            "counted": asked[n],
            "asked": asked[n],
            "needs_image": 0,
            "count_mismatch": None,
            "licence": "CC-BY-4.0",
            "revision": None,
            "sha256": "ab" * 32,
            **(info or {}),
            "published_average": "mean_over_languages" if n == "mmedbench" else "overall",
        }
        for n in names
    }
    told = {
        "kind": "mcq",
        "mode": mode,
        "score": "letter" if mode == "loglikelihood" else None,
        "normalise": "none",
        "prompt_family": "mmedbench",
        "system_prompt": "",
        "few_shot": 0,
        "shuffle_seed": None,
        "book": "closed",
        "languages": None,
        "limit": 0,
        "max_new_tokens": 64,
        "dtype": "bfloat16",
        "stop_ids": [128009],
        "rules_version": RULES_VERSION,
        "prompts_sha256": "cd" * 32,
        **settings,
    }
    identity = {"path": model, "kind": "run", "step": 1200, "fingerprint": "0123456789abcdef", "tuning": tuning}
    results = summarise(items, lines, settings=told, model=identity, data=data)
    folder.mkdir(parents=True, exist_ok=True)
    if metrics:
        add_rationale_metrics(results, lines, metrics, False, None, folder)
    write_json(folder / "results.json", results)
    write_lines(folder / "predictions.jsonl", lines)
    (folder / "report.html").write_text(make_page(results, items, lines), encoding="utf-8")
    return results


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]
