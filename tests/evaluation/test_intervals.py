"""Intervals against scipy and against theory; what results.json says of letters."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmed_jax.evaluation.metrics.accuracy import confusion, summarise
from mmed_jax.evaluation.metrics.intervals import (
    bootstrap,
    mcnemar,
    mean_interval,
    mean_of_groups,
    paired_difference,
    ratio_interval,
    wilson,
)
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.results_text import accuracy_table


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(b, c):
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9) and mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_of_thousands_of_items():
    assert mcnemar(4000, 4500) == pytest.approx(stats.binomtest(4000, 8500, 0.5).pvalue, rel=1e-9)
    assert mcnemar(0, 8500) == 0.0 and mcnemar(6, 0) == 2 / 64


@given(st.lists(st.floats(0, 50), min_size=2, max_size=20), st.floats(0.5, 9))
def test_of_equal_sizes_a_ratio_has_the_interval_of_a_mean(values, size):
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95) if len(set(values)) > 1 else (values[0],) * 2
    found = ratio_interval(values, [size] * len(values))
    assert [x * size for x in found] == pytest.approx(list(expected), abs=1e-6)
    assert ratio_interval(values[:1], [size]) is None


def test_the_interval_of_a_ratio_covers_in_95_of_100_cases():
    """Documents of very different lengths, the long ones easier: 1,000 draws of 60."""
    rng = np.random.default_rng(0)
    size = rng.lognormal(6, 1, (1000, 60))
    nats = size * (0.6 + 0.3 * rng.standard_normal(size.shape) - 0.05 * np.log(size))
    everything = rng.lognormal(6, 1, 1_000_000)
    truth = 0.6 - 0.05 * (everything * np.log(everything)).sum() / everything.sum()
    inside = [low < truth < high for low, high in map(ratio_interval, nats, size)]
    assert 0.9 < np.mean(inside) < 0.97


# Printed by the closed form of Wilson's interval and by whole-number binomial sums, before scipy computed both.
@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 1, 0.0, 0.7934506856227626),
        (1, 2, 0.09453120573423074, 0.9054687942657693),
        (7, 8, 0.5291118177871464, 0.9775825085499433),
        (13, 40, 0.20084502231782697, 0.47982253810122333),
        (100, 137, 0.6500611819065205, 0.7972502882210757),
        (5000, 8518, 0.5764991046748313, 0.5974069703397451),
        (8518, 8518, 0.9995492219798672, 1.0),
    ],
)
def test_wilson_is_what_it_was(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (6, 0, 0.03125),
        (3, 2, 1.0),
        (10, 25, 0.01667384780012071),
        (130, 170, 0.02418198247326276),
        (4000, 4500, 6.166035429959582e-08),
        (900, 1400, 1.5282546629843161e-25),
    ],
)
def test_mcnemar_is_what_it_was(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p, rel=1e-12, abs=1e-12) and mcnemar(c, b) == mcnemar(b, c)


@pytest.mark.parametrize(("k", "n"), [(0, 9), (3, 9), (500, 1273), (9, 9)])
def test_wilson_against_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_depends_on_the_seed_and_not_on_the_order():
    rng = random.Random(0)
    groups = [[rng.random() for _ in range(n)] for n in (40, 7)]
    turned = [rng.sample(g, len(g)) for g in groups]
    assert bootstrap(groups, seed=1) == bootstrap(turned, seed=1) != bootstrap(groups, seed=2)


def test_bootstrap_of_one_group_is_the_normal_interval_for_many_items():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap([values])
    half = 1.96 * values.std() / 2000**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03 * half)


def test_mean_interval_weighs_groups_and_not_items():
    """A mean of proportions has the variance sum(p (1 - p) / n) / groups^2, whatever the sizes."""
    cells = [(60, 100), (1500, 3000), (30, 200)]
    low, high = mean_interval(cells)
    mean = sum(k / n for k, n in cells) / 3
    half = 1.96 * (sum(k / n * (1 - k / n) / n for k, n in cells) ** 0.5) / 3
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.04 * half)
    assert mean_interval(cells[:1]) == wilson(60, 100)


def test_interval_covers_the_truth_about_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    truth = (0.3 + 0.6) / 2
    hits = 0
    for _ in range(200):
        cells = [(int(rng.binomial(150, 0.3)), 150), (int(rng.binomial(300, 0.6)), 300)]
        low, high = mean_interval(cells)
        hits += low <= truth <= high
    assert 180 <= hits <= 198


def test_mean_interval_does_not_collapse_where_all_are_wrong_or_right():
    nothing, everything = (mean_interval([(k, 6)] * 6) for k in (0, 6))
    assert nothing[0] == 0.0 and nothing[1] == pytest.approx(wilson(0, 6)[1] / 6**0.5)
    assert everything == pytest.approx((1 - nothing[1], 1.0))
    half = wilson(0, 6)[1] / 2
    assert mean_interval([(0, 6), (6, 6)]) == pytest.approx((0.5 - half, 0.5 + half))


def test_mean_interval_covers_rare_answers_of_few_items():
    rng = np.random.default_rng(1)
    drawn = rng.binomial(8, 0.05, size=(400, 6))
    found = [mean_interval([(int(k), 8) for k in row]) for row in drawn]
    assert sum(low <= 0.05 <= high for low, high in found) >= 360 and min(high - low for low, high in found) > 0.1


@given(st.lists(st.integers(1, 50).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=9))
def test_mean_interval_is_around_the_mean(cells):
    low, high = mean_interval(cells)
    mean = sum(k / n for k, n in cells) / len(cells)
    assert -1e-12 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1 + 1e-12 and high - low > 0.01


def test_pairing_takes_out_what_both_runs_share():
    rng = np.random.default_rng(3)
    a = (rng.random(500) < 0.6).astype(float)
    b = a.copy()
    b[rng.choice(500, 20, replace=False)] = 1.0
    difference, low, high = paired_difference([a], [b])
    assert difference == pytest.approx(b.mean() - a.mean()) and low <= difference <= high
    unpaired = bootstrap([b])[1] - bootstrap([b])[0]
    assert high - low < unpaired / 3
    assert paired_difference([a], [a]) == (0.0, 0.0, 0.0)
    turned = paired_difference([b], [a])
    assert turned == pytest.approx((-difference, -high, -low), abs=0.004)


def test_paired_difference_is_over_group_means():
    a, b = [[0.0] * 10, [1.0] * 90], [[1.0] * 10, [1.0] * 90]
    assert paired_difference(a, b)[0] == 0.5 == mean_of_groups(b) - mean_of_groups(a)


def test_items_are_drawn_in_pairs():
    with pytest.raises(ValueError):
        paired_difference([[1.0, 0.0]], [[1.0, 0.0], [1.0]])


# ---- results.json ---------------------------------------------------------------------------------------------------

DRUGS = {"A": "aspirin", "B": "warfarin", "C": "heparin"}


def asked(n, answer, got, language="en", *, benchmark="quiz", options=DRUGS):
    item = Item(benchmark, f"{language}{n}", language, [1], answer, options)
    line = {
        "answer": answer,
        "extracted": got,
        "correct": got == answer,
        "options": options,
        "rule": "mark:en",
        "finish_reason": "stop",
    }
    return item, line


def test_confusion_counts_every_item_once():
    made = [
        asked(0, "A", "A"),
        asked(1, "A", "B"),
        asked(2, "B", None),
        asked(3, "A,C", "A,C"),
        asked(4, "A,C", "A"),
        asked(5, "B", "A,B"),
        asked(6, "A", "A"),
    ]
    found = confusion([line for _, line in made])
    assert found == {
        "A": {"A": 2, "B": 1, "C": 0, "several": 0, "unparsed": 0},
        "B": {"A": 0, "B": 0, "C": 0, "several": 1, "unparsed": 1},
        "several": {"A": 1, "B": 0, "C": 0, "several": 1, "unparsed": 0},
    }
    assert sum(n for row in found.values() for n in row.values()) == len(made)
    assert confusion([{"answer": "text", "extracted": None, "options": {}}]) is None


def test_summary_averages_languages_as_the_papers_do():
    made = [asked(n, "A", "A" if n < 3 else "B") for n in range(4)]
    made += [asked(n, "A", "A" if n < 2 else None, "ja") for n in range(8)]
    result = summarise(*zip(*made))
    block = result["benchmarks"]["quiz"]
    assert block["overall"]["accuracy"] == 5 / 12 and block["mean_over_languages"] == (0.75 + 0.25) / 2
    assert block["mean_interval95"] == list(mean_interval([(3, 4), (2, 8)])) == result["mean_interval95"]
    assert block["confusion"]["A"] == {"A": 5, "B": 1, "C": 0, "unparsed": 6}
    text = accuracy_table({**result, "mode": "direct"})
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [
        ["quiz", "en"],
        ["quiz", "ja"],
        ["quiz", "all"],
        ["quiz", "mean"],
    ]
    assert "a sample" not in text and accuracy_table({**result, "settings": {"limit": 8}}).startswith(
        "a sample (--limit=8): "
    )
    assert "parsed" in text and "cut" in text and "50.0%" in text.splitlines()[-1]


def test_log_likelihoods_have_neither_parse_rate_nor_cut_answers():
    item, line = asked(0, "A", "B")
    text = accuracy_table(
        {**summarise([item], [{**line, "rule": "loglikelihood", "finish_reason": "scored"}]), "mode": "loglikelihood"}
    )
    assert "chance" in text and "parsed" not in text and "cut" not in text


def test_order_of_predictions_changes_nothing():
    made = [asked(n, "ABC"[n % 3], "ABC"[n * n % 3], lang) for lang in ("en", "fr", "ru") for n in range(20)]
    turned = random.Random(1).sample(made, len(made))
    first, second = (summarise(*zip(*m)) for m in (made, turned))
    assert first == second
