"""Packing: many samples in rows of one length, none split, as little padding as possible."""

import numpy as np


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
    row_of = [0] * len(lengths)
    rows = 0
    for item, length in zip(order.tolist(), lengths[order].tolist()):
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
    return np.asarray(row_of, np.int64)


def pack(lengths: np.ndarray, capacity: int, *, seed: int = 0, packing: bool = True) -> list[np.ndarray]:
    """Rows of items, in random order by `seed`: which equally long items share a row, and the order of the rows.

    Args:
        lengths: int [n], slots of each item, 1 .. capacity.
        packing: False puts one item into each row.

    Returns:
        One int64 array of item numbers per row; every item is in exactly one row. The same for the same arguments on
        any machine.
    """
    lengths = np.asarray(lengths, np.int64)
    # Keys that no epoch (0, 1, ...) uses.
    shuffled = permutation(len(lengths), (seed, -1))
    row_of = best_fit(lengths[shuffled], capacity) if packing else np.arange(len(lengths))
    by_row = np.argsort(row_of, kind="stable")
    counts = np.bincount(row_of) if len(row_of) else np.zeros(0, np.int64)
    rows = np.split(shuffled[by_row], np.cumsum(counts)[:-1]) if len(counts) else []
    return [rows[i] for i in permutation(len(rows), (seed, -2))]


def permutation(n: int, key: tuple[int, int]) -> np.ndarray:
    """A random order of 0 .. n-1, int64 [n], a pure function of (n, key).

    Sorts the raw 64-bit stream of numpy's Philox(key), which numpy keeps stable across versions (NEP 19) as it does not
    for Generator.permutation: a run that is resumed after an upgrade must see the same order.
    """
    words = np.array([k % 2**64 for k in key], np.uint64)
    return np.argsort(np.random.Philox(key=words).random_raw(n), kind="stable")
