"""Mixing at read time: shares at every prefix, each row once an epoch of its group, whatever the batch or the host."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.data import mixture as mixture_module
from mmed_jax.data.loader import BatchStream
from mmed_jax.data.mixture import Mixture, describe_repeats, evenly, permuted, shares_of


@dataclass(frozen=True)
class Rows:
    name: str
    language: str
    source: str
    rows: int
    start: int = 0


@pytest.fixture(autouse=True)
def short_periods(monkeypatch):
    """What holds of them holds of longer ones, which take a second."""
    monkeypatch.setattr(mixture_module, "LONGEST", 1 << 13)


def groups_of(*sizes, languages=("en", "fr", "zh", "ja")):
    """A group for each size, in languages by turns; sources a, b, c ... in turns of four."""
    starts = np.cumsum([0, *sizes])
    return [
        Rows(f"g{i}", languages[i % len(languages)], "abcdefgh"[i // len(languages)], n, int(starts[i]))
        for i, n in enumerate(sizes)
    ]


def random_mixture(seed):
    rng = np.random.default_rng(seed)
    groups = groups_of(*rng.integers(1, 60, rng.integers(1, 14)).tolist())
    shares = rng.random(len(groups)) ** rng.choice([0.0, 1.0, 3.0]) * (rng.random(len(groups)) < 0.8)
    shares[0] = 0.5
    return groups, shares / shares.sum(), Mixture(groups, shares, seed)


@pytest.mark.parametrize("seed", range(8))
def test_shares_hold_within_a_row_at_every_prefix_and_rows_are_read_once_an_epoch(seed):
    groups, shares, mixture = random_mixture(seed)
    positions = np.arange(min(mixture.period + 500, 9000))
    group, read = mixture.places(positions)
    counts = np.cumsum(group[:, None] == np.arange(len(groups)), axis=0)
    ideal = mixture.shares * (positions[:, None] + 1)
    assert np.abs(counts - ideal).max() < 1
    raised = ((shares > 0) & (shares * mixture.period < 1)).sum()
    assert len(groups) == 1 or np.abs(mixture.shares - shares).max() <= (1 + raised) / mixture.period
    assert not counts[:, shares == 0].any()
    rows = mixture.rows(positions)
    for i, g in enumerate(groups):
        mine = rows[group == i]
        assert read[group == i].tolist() == list(range(len(mine)))
        for start in range(0, len(mine) - g.rows + 1, g.rows):
            assert sorted(mine[start : start + g.rows]) == list(range(g.start, g.start + g.rows))
    assert mixture.read(1234).tolist() == counts[1233].tolist()


def test_without_weights_a_period_is_an_epoch_of_all_rows():
    groups = groups_of(7, 300, 41, 1, 90)
    mixture = Mixture(groups, shares_of(groups), 3)
    for epoch in range(2):
        rows = mixture.rows(np.arange(439) + 439 * epoch)
        assert sorted(rows) == list(range(439))
    assert mixture.repeats(439) == {g.name: 1.0 for g in groups}


def test_orders_are_another_for_each_epoch_seed_and_group_and_stay_when_groups_come():
    groups = groups_of(50, 50, 50)
    orders = {}
    for seed, chosen in ((0, groups[:2]), (0, groups), (1, groups)):
        mixture = Mixture(chosen, [1] * len(chosen), seed)
        positions = np.arange(4 * 50 * len(chosen))
        group = mixture.places(positions)[0]
        for i, g in enumerate(chosen):
            mine = mixture.rows(positions)[group == i].reshape(-1, 50) - g.start
            for epoch, order in enumerate(mine):
                orders[seed, len(chosen), g.name, epoch] = tuple(order.tolist())
    assert all(orders[0, 2, name, e] == orders[0, 3, name, e] for name in ("g0", "g1") for e in range(4))
    assert len(set(orders.values())) == len(orders) - 8


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 31, 32, 33, 1000, 4097])
def test_a_permutation_is_one_and_has_no_pattern(size):
    places, sizes = np.arange(size), np.full(size, size)
    orders = [permuted(places, sizes, np.full(size, key, np.uint64)) for key in range(40)]
    assert all(sorted(o) == places.tolist() for o in orders)
    if size >= 1000:  # neighbours lie as far apart as in any random order, and no place is preferred
        steps = np.abs(np.diff(np.array(orders), axis=1)).mean()
        assert abs(steps / (size / 3) - 1) < 0.05
        assert abs(np.mean(orders, axis=0).std() / (size / np.sqrt(12 * 40)) - 1) < 0.1


class Numbers:
    """As much of a table as a stream needs: a row is its number."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def batch(self, rows):
        return {"row_ids": np.array(rows)}


def test_batches_hosts_and_beginnings_see_one_stream():
    groups, _, mixture = random_mixture(5)
    table = Numbers(sum(g.rows for g in groups))
    whole = mixture.rows(np.arange(96)).tolist()
    for size, hosts in ((1, 1), (8, 2), (32, 4), (96, 3)):
        streams = [BatchStream(table, size, 0, 0, i, hosts, mixture=mixture) for i in range(hosts)]
        steps = [np.concatenate([s.batch(step)["row_ids"] for s in streams]) for step in range(96 // size)]
        assert np.concatenate(steps).tolist() == whole
    later = BatchStream(table, 8, 0, start_step=7, mixture=mixture)
    assert [b["row_ids"].tolist() for b in itertools.islice(later, 2)] == [whole[56:64], whole[64:72]]


def test_shares_follow_rows_weights_temperature_and_replay():
    groups = groups_of(800, 100, 50, 50, 200, 100)  # a: en fr zh ja, b: en fr
    assert shares_of(groups) == pytest.approx(np.array([800, 100, 50, 50, 200, 100]) / 1300)
    even = shares_of(groups, temperature=1e9)
    assert even == pytest.approx([0.2, 0.125, 0.25, 0.25, 0.05, 0.125], abs=1e-6)
    tempered = shares_of(groups, temperature=2.0)
    assert tempered[0] + tempered[4] == pytest.approx(1000**0.5 / (1000**0.5 + 200**0.5 + 2 * 50**0.5))
    weighted = shares_of(groups, language_weights={"fr": 2.0, "ja": 0.0}, source_weights={"b": 0.5})
    assert weighted == pytest.approx(np.array([800, 200, 50, 0, 100, 100]) / 1250)
    assert shares_of(groups, languages=("fr",)) == pytest.approx([0, 0.5, 0, 0, 0, 0.5])
    replayed = shares_of(groups, replay={4, 5}, replay_share=0.1)
    assert replayed == pytest.approx([0.72, 0.09, 0.045, 0.045, 0.1 * 2 / 3, 0.1 / 3])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"language_weights": {"xx": 1}}, ["language_weights", "'xx' is unknown"]),
        ({"language_weights": {"ko": 1}}, ["language_weights", "no row is in 'ko'", "en, fr"]),
        ({"languages": ("ko",)}, ["data.languages", "'ko'"]),
        ({"source_weights": {"pubmet": 2}}, ["source_weights", "did you mean 'pubmed'?"]),
        ({"language_weights": {"en": 0, "fr": 0}}, ["config.data.train", "no row"]),
        ({"source_weights": {"web": 0}, "replay": {1}, "replay_share": 0.1}, ["config.data.replay", "no row"]),
    ],
)
def test_what_no_group_has_is_one_line(settings, words):
    groups = [Rows("en/pubmed", "en", "pubmed", 5), Rows("fr/web", "fr", "web", 5, 5)]
    with pytest.raises(UserError) as e:
        shares_of(groups, **settings)
    assert all(word in str(e.value) for word in words), str(e.value)


def test_rows_that_are_read_too_often_are_named():
    groups = groups_of(1000, 10)
    mixture = Mixture(groups, [0.9, 0.1], 0)
    assert describe_repeats(mixture, 400, 4.0) is None
    line = describe_repeats(mixture, 1000, 4.0)
    assert "g1 10.0 times" in line and "g0" not in line and "max_repeats=4" in line


def test_a_small_share_is_still_read_and_memory_does_not_follow_the_rows():
    groups = groups_of(3_000_000, 100_000, 1, 1)
    mixture = Mixture(groups, [1.0, 0.03, 1e-9, 0.0], 0)
    assert mixture.counts.tolist()[2:] == [1, 0] and mixture.period == mixture_module.LONGEST
    held = sum(a.nbytes for a in vars(mixture).values() if isinstance(a, np.ndarray))
    assert held < 8 * mixture_module.LONGEST


def test_any_beginning_of_an_even_order_has_all_groups():
    groups = groups_of(60, 30, 10)
    rows = evenly(groups)
    assert sorted(rows) == list(range(100))
    for end in (10, 20, 50, 77):
        got = np.bincount(np.searchsorted([60, 90], rows[:end], side="right"), minlength=3)
        assert np.abs(got - np.array([0.6, 0.3, 0.1]) * end).max() <= 1
    # And of each group rows from all over it, though files stand there one behind another.
    long = evenly(groups_of(6000, 20))[:600]
    assert np.bincount(long[long < 6000] // 1000, minlength=6).min() > 70
