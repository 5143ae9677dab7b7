"""Which row stands at which position of the stream, when a table has groups that are read at shares of their own.

The shares follow from the rows of the groups and from weights (`shares_of`). `Mixture` turns them into a pure function
of (seed, position): nothing is written, so that other weights, another mesh or a run that is continued need no other
table. It holds a schedule of a few megabytes at most, and no permutation: those are computed at each place.
"""

import heapq
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import LANGUAGES

# Positions in a period of the schedule: so many that the smallest share is right to a thousandth, within these bounds.
SHORTEST, LONGEST = 1 << 12, 1 << 20
_FINENESS = 1024
_ROUNDS = 6


class Group(Protocol):
    """Rows of a table that are read at one share: they are numbered start .. start + rows - 1."""

    @property
    def name(self) -> str: ...
    @property
    def language(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def start(self) -> int: ...


def shares_of(
    groups: Sequence[Group],
    *,
    languages: Collection[str] = (),
    language_weights: Mapping[str, float] | None = None,
    source_weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    replay: Collection[int] = (),
    replay_share: float = 0.0,
) -> np.ndarray:
    """Share of the stream that each group gets, float64 [groups], summing to 1.

    A group counts by its rows times the weight of its source. Languages get shares in proportion to
    weight x (sum of that over their groups) ^ (1 / temperature), as multilingual pretraining samples them (arXiv
    1911.02116, where 1/temperature is alpha); within a language each group gets its part of the sum. Groups of
    replay are mixed by the same rule among themselves, and get replay_share of the stream together.

    Args:
        languages: the ones to read; empty = all.
        language_weights, source_weights: 1 where none is given, 0 = never read.
        replay: numbers of the groups of general data.

    Raises:
        UserError: a language or a source that no group has, or nothing left to read.
    """
    language_weights, source_weights = dict(language_weights or {}), dict(source_weights or {})
    _check_names(groups, languages, language_weights, source_weights)
    sizes = np.array([g.rows * source_weights.get(g.source, 1.0) for g in groups], np.float64)
    sizes *= [not languages or g.language in languages for g in groups]
    is_replay = np.isin(np.arange(len(groups)), list(replay))
    shares = np.zeros(len(groups))
    for part, whole in ((~is_replay, 1.0 - replay_share if replay else 1.0), (is_replay, replay_share)):
        weights = np.zeros(len(groups))
        for code in {g.language for g in groups}:
            members = part & np.array([g.language == code for g in groups])
            total = sizes[members].sum()
            if total > 0:
                language = language_weights.get(code, 1.0) * total ** (1.0 / temperature)
                weights[members] = language * sizes[members] / total
        if whole > 0 and part.any():
            if not weights.sum() > 0:
                data = "config.data.replay" if part is is_replay else "config.data.train"
                raise UserError(f"{data}: languages and weights leave no row to train on")
            shares += whole * weights / weights.sum()
    return shares


def _check_names(
    groups: Sequence[Group], languages: Collection[str], language_weights: Mapping, source_weights: Mapping
) -> None:
    sources, codes = sorted({g.source for g in groups}), sorted({g.language for g in groups})
    for key, names in (("languages", languages), ("language_weights", language_weights)):
        for name in names:
            if name not in (*LANGUAGES, *codes):
                raise UserError(f"config.data.{key}: language '{name}' is unknown{nearest(name, LANGUAGES)}")
            if name not in codes:
                raise UserError(f"config.data.{key}: no row is in '{name}'; the tables have {', '.join(codes)}")
    for name in source_weights:
        if name not in sources:
            raise UserError(f"config.data.source_weights: no row has the source '{name}'{nearest(name, sources)}")


class Mixture:
    """position -> row of a table with groups.

    Which group a position belongs to is a schedule that repeats: of every `period` positions a group has as many as
    its share says, by largest remainder and at least one, and each of them within its window (Baruah and others,
    "Proportionate progress", Algorithmica 15, 1996), so that at every position p a group has been read within one row
    of counts / period x p. Of the rows of a group the stream reads one permutation after another: none is read again
    before all were.
    """

    def __init__(self, groups: Sequence[Group], shares: Sequence[float] | np.ndarray, seed: int):
        """
        Args:
            groups: of the table, each with at least one row.
            shares: by group, any positive sum; 0 = never read.
            seed: of the permutations.

        Raises:
            UserError: more groups than positions of the longest period.
        """
        shares = np.asarray(shares, np.float64)
        if len(groups) != len(shares) or not shares.sum() > 0:
            raise ValueError(f"{len(groups)} groups with shares {shares}")
        self.groups, self.seed = tuple(groups), seed
        self.counts = _counts(shares / shares.sum(), np.array([g.rows for g in groups], np.int64))
        self.period = int(self.counts.sum())
        self._order, self._rank = _schedule(self.counts)
        self._starts = np.array([g.start for g in groups], np.int64)
        self._rows = np.array([g.rows for g in groups], np.int64)
        # By name, so that a group keeps its order when others come or go.
        self._keys = np.array([stable_hash(seed, g.name) for g in groups], np.uint64)

    @property
    def shares(self) -> np.ndarray:
        """The shares as they are read, float64 [groups]: counts / period."""
        return self.counts / self.period

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(group, number of its rows that were read before) at each position, both int64 [k]."""
        periods, offsets = np.divmod(np.asarray(positions, np.int64), self.period)
        group = self._order[offsets].astype(np.int64)
        return group, periods * self.counts[group] + self._rank[offsets]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows of the table at positions of the stream, both int64 [k]."""
        group, read = self.places(positions)
        epochs, places = np.divmod(read, self._rows[group])
        with np.errstate(over="ignore"):
            keys = _mix(self._keys[group] + epochs.astype(np.uint64) * _GOLDEN)
        return self._starts[group] + permuted(places, self._rows[group], keys)

    def read(self, positions: int) -> np.ndarray:
        """Rows of each group among the first `positions` of the stream, int64 [groups]."""
        periods, rest = divmod(positions, self.period)
        return periods * self.counts + np.bincount(self._order[:rest], minlength=len(self.groups))

    def repeats(self, positions: int) -> dict[str, float]:
        """{name of a group: how often the first `positions` of the stream read each of its rows}."""
        read = self.read(positions)
        return {g.name: int(n) / g.rows for g, n in zip(self.groups, read)}


def describe_repeats(mixture: Mixture, positions: int, limit: float) -> str | None:
    """A line about the groups that a stream of `positions` rows reads more than `limit` times; None when none is."""
    often = {name: n for name, n in mixture.repeats(positions).items() if n > limit}
    if not often:
        return None
    first = sorted(often.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {n:.1f} times" for name, n in first[:6]) + (", ..." if len(first) > 6 else "")
    return (
        f"config.data.max_repeats={limit:g}: this run reads the same rows more often: {shown}; fewer steps, a lower "
        "weight or temperature lessens it"
    )


def evenly(groups: Sequence[Group]) -> np.ndarray:
    """All rows of a table once, int64 [rows]: groups in turn by size, so that any beginning has them all in proportion.

    Rows of a group come in a random order by its name: its shards stand in the order of their files, so that the first
    rows would be those of a few files.
    """
    ranks = [(np.arange(g.rows) + 0.5) / g.rows for g in groups]
    rows = []
    for g in groups:
        size, key = np.full(g.rows, g.rows, np.int64), np.full(g.rows, stable_hash("evenly", g.name), np.uint64)
        rows.append(g.start + permuted(np.arange(g.rows), size, key))
    return np.concatenate(rows)[np.argsort(np.concatenate(ranks), kind="stable")]


def _counts(shares: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Positions of each group in a period, int64 [groups]: largest remainder, and no share is rounded to nothing."""
    total = int(rows.sum())
    if total <= LONGEST and np.allclose(shares, rows / total, rtol=1e-12, atol=0):
        return rows  # a period is an epoch
    used = shares > 0
    wanted = min(_FINENESS / shares[used].min(), LONGEST)
    period = max(SHORTEST, 1 << int(np.ceil(np.log2(wanted))))
    if used.sum() > period:
        raise UserError(f"config.data.train: {used.sum():,} groups; at most {LONGEST:,} can be mixed")
    exact = shares * period
    counts = np.floor(exact).astype(np.int64)
    left = period - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    for group in np.flatnonzero(used & (counts == 0)).tolist():
        counts[np.argmax(counts)] -= 1
        counts[group] = 1
    return counts


def _schedule(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(group int16 or int32, its earlier positions int32) of each position of a period, both [period].

    Of a group that has c of n positions, the j-th (from 0) lies within floor(j n / c) .. ceil((j + 1) n / c) - 1; to
    take the group whose window ends first keeps all windows, since the c sum to n.
    """
    n, used = int(counts.sum()), np.flatnonzero(counts)
    dtype = np.int16 if len(counts) < 1 << 15 else np.int32
    if len(used) == 1:
        return np.full(n, used[0], dtype), np.arange(n, dtype=np.int32)
    lanes = len(counts)
    waiting = [(0, int(g), 0) for g in used]  # (release, group, j)
    heapq.heapify(waiting)
    ready: list[int] = []  # end of the window x lanes + group
    totals, done, order = counts.tolist(), [0] * lanes, [0] * n
    for position in range(n):
        while waiting and waiting[0][0] <= position:
            _, g, j = heapq.heappop(waiting)
            heapq.heappush(ready, -(-(j + 1) * n // totals[g]) * lanes + g)
        g = heapq.heappop(ready) % lanes
        order[position] = g
        done[g] += 1
        if done[g] < totals[g]:
            heapq.heappush(waiting, (done[g] * n // totals[g], g, done[g]))
    group = np.array(order, dtype)
    by_group = np.argsort(group, kind="stable")
    rank = np.empty(n, np.int32)
    rank[by_group] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    return group, rank


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, a bijection without pattern (Stafford's variant 13 of the finaliser of MurmurHash3)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permuted(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where places go in random orders of 0 .. size-1, int64 [k]; each element has a size and a key of its own.

    A Feistel network on the bits that size needs is a bijection of them; what falls outside is sent through it again
    until it lies inside ("cycle walking": Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), at most
    every second time. So a permutation takes no memory and no sorting, whatever its size.

    Args:
        places, sizes: int64 [k], 0 <= place < size.
        keys: uint64 [k].
    """
    value, last = places.astype(np.uint64), np.asarray(sizes, np.uint64) - np.uint64(1)
    bits = np.maximum(np.ceil(np.log2(np.maximum(sizes, 2))), 2).astype(np.uint64)
    low = bits // np.uint64(2)
    outside = np.arange(len(value))
    with np.errstate(over="ignore"):
        while len(outside):
            value[outside] = _feistel(value[outside], bits[outside], low[outside], keys[outside])
            outside = outside[value[outside] > last[outside]]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, bits: np.ndarray, low: np.ndarray, keys: np.ndarray) -> np.ndarray:
    one = np.uint64(1)
    high = bits - low
    for number in range(_ROUNDS):
        # The halves change their widths in turn, so that an odd number of bits does as well.
        right_bits, left_bits = (low, high) if number % 2 == 0 else (high, low)
        right, left = value & ((one << right_bits) - one), value >> right_bits
        left ^= _mix(keys + _GOLDEN * np.uint64(number + 1) + right) & ((one << left_bits) - one)
        value = (right << left_bits) | left
    return value
