"""The published tables that are shipped: as printed, and what is said of them."""

import csv

from mmed_jax.evaluation.benchmarks.registry import ENTRIES
from mmed_jax.evaluation.comparison.published_tables import published_rows

SIZES = ENTRIES["mmedbench"].counts["test"]


def test_published_rows_are_the_tables(shared_dir):
    for name, board in (("mmedbench_accuracy", "mmedbench"), ("english_accuracy", "english")):
        with (shared_dir / "published" / f"{name}.csv").open() as f:
            expected = list(csv.DictReader(f))
        assert len(published_rows(board)) == len(expected)
        for row, there in zip(published_rows(board), expected):
            assert row.method == there["method"] and row.average == (float(there["avg_as_published"] or 0) or None)
            assert row.values == {k: float(there[k]) if there[k] else None for k in row.values} and len(row.values) > 5
    with (shared_dir / "published" / "mmedbench_rationale.csv").open() as f:
        expected = {(r["setting"], r["method"], r["language"]): r for r in csv.DictReader(f)}
    for metric, column in (("bleu-1", "bleu1"), ("rouge-1", "rouge1")):
        rows = published_rows("mmedbench", metric)
        assert len(rows) * 7 == len(expected)
        for row in rows:
            setting = {"published: zero-shot": "zero-shot"}.get(row.group, "lora" if "LoRA" in row.group else "full")
            for language, value in row.values.items():
                assert value == float(expected[setting, row.method, language][column])
            assert row.average == float(expected[setting, row.method, "avg_as_published"][column])


def test_fine_tuned_rows_are_numbers_of_right_answers_out_of_the_registered_test_sizes():
    """Only k of the true n gives figures that round to the printed ones, so the sizes are those of the papers."""
    checked = 0
    for row in published_rows("mmedbench"):
        if "split" not in row.group:
            continue
        for language, percent in row.values.items():
            n = SIZES[language]
            nearest = 100 * round(percent * n / 100) / n
            assert abs(nearest - percent) < (0.06 if percent * 10 % 1 == 0 else 0.011), (row, language)
            checked += 1
    assert checked == 31 * 6


def test_averages_that_are_not_the_mean_of_their_row_are_noted():
    noted = {(r.group, r.method): r.notes for b in ("mmedbench", "english") for r in published_rows(b) if r.notes}
    assert noted["published: zero-shot", "GPT-4"] == ["prints the average 74.27, the mean of its row is 75.31"]
    assert "the leaderboard page prints 51.82" in noted["published: zero-shot", "GPT-3.5"]
    assert noted["published", "Mistral 7B"] == ["prints the average 62.97, the mean of its row is 62.86"]
    for board in ("mmedbench", "english"):
        for row in published_rows(board):
            off = row.average is not None and row.mean is not None and abs(row.average - row.mean) > 0.005 + 1e-9
            assert any(n.startswith("prints the average") for n in row.notes) == off, row
    wrong = [
        r.method
        for b in ("mmedbench", "english")
        for r in published_rows(b)
        if r.mean is not None and abs(r.mean - r.average) > 0.03
    ]
    assert wrong == ["GPT-4", "Mistral 7B"]
