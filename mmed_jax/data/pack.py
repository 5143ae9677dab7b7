"""Packing: many samples in rows of one length, none split, as little padding as possible."""

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import overload

import numpy as np

_BLOCK = 1 << 16  # items that are numbers of Python at a time


class Rows(Sequence[np.ndarray]):
    """Items of rows laid end to end: row i has items[starts[i]:starts[i + 1]], int64 both."""

    def __init__(self, items: np.ndarray, starts: np.ndarray) -> None:
        self.items, self.starts = items, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> list[np.ndarray]: ...
    def __getitem__(self, row: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.items[self.starts[row] : self.starts[row + 1]]


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Assigns items to rows: longest first, each to the row where the least room would be left.

    Best-fit decreasing (Johnson et al., "Worst-case performance bounds for simple one-dimensional packing algorithms",
    SIAM J. Comput. 3, 1974). Rows are kept in one stack per free length, and a bit mask says which stacks are not
    empty, so an item costs one shift of `capacity` bits: a million items take seconds.

    Args:
        lengths: int [n], each 1 .. capacity. Items of equal length are taken in the order given.
        capacity: slots of a row.

    Returns:
        int64 [n], the row of each item; rows count up from 0.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not (1 <= lengths.min() and lengths.max() <= capacity):
        raise ValueError(f"lengths must lie in 1 .. {capacity}, got {lengths.min()} .. {lengths.max()}")
    order = np.argsort(-lengths, kind="stable")
    stacks: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_stacks = 0  # bit f: some row has f free slots
    row_of = array("q", bytes(8 * len(lengths)))
    rows = 0
    blocks = (order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK))
    for item, length in chain.from_iterable(zip(block.tolist(), lengths[block].tolist()) for block in blocks):
        fitting = open_stacks >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = stacks[free].pop()
            if not stacks[free]:
                open_stacks ^= 1 << free
        else:
            free, row = capacity, rows
            rows += 1
        row_of[item] = row
        free -= length
        if free:
            if not stacks[free]:
                open_stacks |= 1 << free
            stacks[free].append(row)
    return np.frombuffer(row_of, np.int64)


def pack(lengths: np.ndarray, capacity: int, *, seed: int = 0, packing: bool = True) -> Rows:
    """Rows of items, in random order by `seed`: which equally long items share a row, and the order of the rows.

    Args:
        lengths: int [n], slots of each item, 1 .. capacity.
        packing: False puts one item into each row.

    Returns:
        The item numbers of each row; every item is in exactly one row. The same for the same arguments on any machine.
    """
    lengths = np.asarray(lengths, np.int64)
    # Keys that no epoch (0, 1, ...) uses.
    shuffled = permutation(len(lengths), (seed, -1))
    row_of = best_fit(lengths[shuffled], capacity) if packing else np.arange(len(lengths))
    by_row = np.argsort(row_of, kind="stable")
    counts = np.bincount(row_of) if len(row_of) else np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    chosen = permutation(len(counts), (seed, -2))
    ends = np.concatenate([[0], np.cumsum(counts[chosen])])
    # Item k of all rows in their new order is by_row[starts[its row] + its place in it].
    places = np.arange(ends[-1]) - np.repeat(ends[:-1], counts[chosen]) + np.repeat(starts[chosen], counts[chosen])
    return Rows(shuffled[by_row[places]], ends)


def permutation(n: int, key: tuple[int, int]) -> np.ndarray:
    """A random order of 0 .. n-1, int64 [n], a pure function of (n, key).

    Sorts the raw 64-bit stream of numpy's Philox(key), which numpy keeps stable across versions (NEP 19) as it does not
    for Generator.permutation: a run that is resumed after an upgrade must see the same order.
    """
    words = np.array([k % 2**64 for k in key], np.uint64)
    return np.argsort(np.random.Philox(key=words).random_raw(n), kind="stable")
