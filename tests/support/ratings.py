"""Evaluations to rate, and somebody who fills in sheets."""

import csv
import json
import random

import openpyxl

from mmed_jax.evaluation.ratings.sheets import CRITERIA

QUALITY = {"good": 4, "fair": 3, "poor": 1}  # of the runs below; also how much of the reference they repeat
LANGUAGES = ("en", "zh", "ko")


def make_runs(tmp_path):
    """Folders of three evaluations over 12 items in three languages: {"good": folder, ...}."""
    rng = random.Random(0)
    folders = {}
    for name, quality in QUALITY.items():
        folder = folders[name] = tmp_path / name
        folder.mkdir()
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as f:
            for i in range(12):
                words = [f"w{i}x{k}" for k in range(10)]
                text = " ".join(w if rng.random() < quality / 5 else "other" for w in words)
                row = {
                    "benchmark": "b",
                    "id": f"q{i}",
                    "language": LANGUAGES[i % 3],
                    "options": {"A": "x", "B": "y"},
                    "answer": "A",
                    "question": f"Question {i}?",
                    "rationale": " ".join(words),
                    "rationale_checked": i % 2 == 0,
                    "generated_rationale": "=" + text if i == 4 else text,
                }
                f.write(json.dumps(row) + "\n")
    return folders


def names(runs):
    return ",".join(f"{k}={v}" for k, v in runs.items())


def fill(path, number):
    """Fills in a sheet: number(row as dict, criterion) for every cell to fill."""
    if path.suffix == ".csv":
        rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
        for row in rows[1:]:
            for c, name in enumerate(rows[0]):
                row[c] = str(number(dict(zip(rows[0], row)), name)) if name in (*CRITERIA, "overall") else row[c]
        csv.writer(path.open("w", encoding="utf-8-sig", newline="")).writerows(rows)
        return
    book = openpyxl.load_workbook(path)
    sheet = book["ratings"]
    head = [c.value for c in sheet[1]]
    for row in sheet.iter_rows(min_row=2):
        values = dict(zip(head, (c.value for c in row)))
        for c, name in zip(row, head):
            if name in (*CRITERIA, "overall"):
                c.value = number(values, name)
    book.save(path)
