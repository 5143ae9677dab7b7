"""What results are set side by side in: columns of a benchmark, sizes as published, and the published rows.

The figures lie in mmed_jax/assets/published; README.md there names their source and how they were asked.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mmed_jax.common.paths import ASSETS
from mmed_jax.evaluation.benchmarks.registry import ENTRIES, Entry, lookup
from mmed_jax.evaluation.comparison.runs import describe

FOLDER = ASSETS / "published"
ENGLISH = "english"
_PASSAGES = ("pubmedqa", "rumeddanet")
# How the fine-tuned rows of MMedBench were asked; of the others it is not published.
_AS_DIRECT = {"kind": "mcq", "mode": "direct", "prompt_family": "mmedbench"}
_OVER_API = {
    "zero-shot": "over an API, no examples, prompts not published",
    "five-shot-cot": "over an API, 5 examples, chain of thought, prompts not published",
}
_SETTINGS = {
    "lora": "published: LoRA on MMedBench's training split",
    "full": "published: fine-tuned on MMedBench's training split",
    "zero-shot": "published: zero-shot",
    "five-shot-cot": "published: five-shot",
    "as published": "published",
}


@dataclass(frozen=True)
class Board:
    """The columns that the results of a benchmark fall into.

    Attributes:
      name: of the benchmark, or "english" for the nine columns of the English table.
      columns: in order. sizes: items published in each, where known. averaged: the printed average is the unweighted
        mean of the columns; else all items are pooled.
    """

    name: str
    columns: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    averaged: bool = False


@dataclass(frozen=True)
class Published:
    """A row as printed. values: {column: per cent}, None where nothing is printed. conditions: as of runs.describe."""

    group: str
    method: str
    values: Mapping[str, float | None]
    average: float | None
    conditions: str
    note: str = ""

    @property
    def mean(self) -> float | None:
        """The mean of the row; None where it has gaps."""
        values = list(self.values.values())
        return None if None in values else sum(values) / len(values)

    @property
    def notes(self) -> list[str]:
        """What a reader of the row should know."""
        out = [self.note] if self.note else []
        # Both have two decimals: more than half a hundredth is more than rounding.
        if self.average is not None and self.mean is not None and abs(self.average - self.mean) > 0.005 + 1e-9:
            out.append(f"prints the average {self.average:.2f}, the mean of its row is {self.mean:.2f}")
        return out


def place(name: str, info: Mapping[str, Any], language: str, part: str | None) -> tuple[Board, str]:
    """(board, column) of an item or cell of benchmark `name`, as results.json calls it.

    Args:
      info: what results.json says of the benchmark under "data".
    """
    known = lookup(name) if "count_mismatch" in info else None  # files of one's own are not counted
    if known is None:
        return Board(f"{name} (a file of one's own)", (language,)), language
    entry, split = known[0], info.get("split")
    meant = entry.split or "all"
    column = (part or known[1] or language) if entry.parts else language
    if split == meant and (english := _english(entry, column)):
        return english_board(), english
    sizes = entry.counts.get("" if split == "all" else split or "", {})
    title = entry.name if split == meant else f"{entry.name} ({split} split)"
    columns = entry.asked_parts or entry.parts or entry.languages
    averaged = entry.published_average == "mean_over_languages" and split == meant
    return Board(title, columns, sizes, averaged), column


def passages(name: str, info: Mapping[str, Any], book: str | None, seen: bool) -> str | None:
    """Whether the passages of benchmark `name` were "shown" or "hidden"; None where it has none.

    Args:
      info: as in `place`. book, seen: for results that don't say it: the run's setting, and whether a line has one.
    """
    if "passages" in info:
        return info["passages"]
    known = lookup(name) if "count_mismatch" in info else None
    if known is None:
        return "shown" if seen else "hidden"
    if known[0].name not in _PASSAGES:
        return None
    return "shown" if book == "open" else "hidden"


def _english(entry: Entry, column: str) -> str | None:
    """The column of the English table; None where it has none."""
    name = {"medqa_us": "medqa", "mmlu_medical": f"mmlu_{column}"}.get(entry.name, entry.name)
    return name if name in _english_sizes() else None


@cache
def _english_sizes() -> dict[str, int]:
    one = {"medqa": ("medqa_us", "en"), "medmcqa": ("medmcqa", "en"), "pubmedqa": ("pubmedqa", "en")}
    one |= {f"mmlu_{part}": ("mmlu_medical", part) for part in ENTRIES["mmlu_medical"].asked_parts}
    return {c: ENTRIES[name].counts[ENTRIES[name].split][cell] for c, (name, cell) in one.items()}


@cache
def english_board() -> Board:
    """MedQA, MedMCQA, PubMedQA and six subjects of MMLU, as the English table has them."""
    sizes = _english_sizes()
    return Board(ENGLISH, tuple(sizes), sizes, True)


@cache
def published_rows(board: str, metric: str = "accuracy") -> tuple[Published, ...]:
    """The rows printed for a board, in order; none for boards of which no table is shipped."""
    name = {"mmedbench": "mmedbench_accuracy", ENGLISH: "english_accuracy"}.get(board)
    if metric != "accuracy":
        name = "mmedbench_rationale" if board == "mmedbench" else None
    if name is None:
        return ()
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as f:
        rows = [r for r in csv.DictReader(f) if r.get("metric", metric) == metric]
    return tuple(_row(r, board, metric) for r in rows)


def published_methods() -> list[str]:
    """The names of all rows that are shipped, each once."""
    boards = (("mmedbench", "accuracy"), ("mmedbench", "bleu-1"), (ENGLISH, "accuracy"))
    return list(dict.fromkeys(row.method for board, metric in boards for row in published_rows(board, metric)))


def _row(row: dict[str, str], board: str, metric: str) -> Published:
    values = {k: float(v) if v else None for k, v in row.items() if k not in _OTHERS}
    setting = row["setting"]
    if board == ENGLISH:
        conditions = "prompts and number of examples not published"
    elif setting in ("lora", "full"):
        mode = "direct" if metric == "accuracy" else "rationale"
        conditions = describe({**_AS_DIRECT, "mode": mode})
        conditions += "" if metric == "accuracy" else ", human-checked references"
    else:
        conditions = _OVER_API[setting]
    average = float(row["average"]) if row["average"] else None
    return Published(_SETTINGS[setting], row["method"], values, average, conditions, row["note"])


_OTHERS = ("setting", "method", "metric", "average", "note")
