"""Rows that belong together because they share a key, directly or through others; on arrays, for millions of rows."""

from array import array
from hashlib import blake2b

import numpy as np


def stable_hash(*parts: object) -> int:
    """A number of 64 bits that is a pure function of `parts`, the same on every machine."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class LinkedRows:
    """Takes rows with `link`, in order; `numbers` gives the group of each."""

    def __init__(self) -> None:
        self.count = 0
        self._keys, self._rows = array("Q"), array("I")

    @classmethod
    def joined(cls, first: "LinkedRows", second: "LinkedRows") -> "LinkedRows":
        """The rows of both, those of `first` before those of `second`."""
        both = cls()
        both.count = first.count + second.count
        both._keys = first._keys + second._keys
        both._rows = first._rows + array(
            "I", (np.frombuffer(second._rows, np.uint32) + np.uint32(first.count)).tobytes()
        )
        return both

    def link(self, *keys: tuple[str, str]) -> None:
        """Takes one row that belongs to whatever else has one of `keys`."""
        for key in keys:
            self._keys.append(stable_hash(*key))
            self._rows.append(self.count)
        self.count += 1

    def numbers(self) -> np.ndarray:
        """The group of each row, int32 [rows], counting up from 0 in order of first appearance."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        keys, rows = np.frombuffer(self._keys, np.uint64), np.frombuffer(self._rows, np.uint32)
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        same = np.flatnonzero(keys[1:] == keys[:-1])
        links = coo_array((np.ones(len(same), np.int8), (rows[same], rows[same + 1])), shape=(self.count, self.count))
        del keys, order
        _, labels = connected_components(links, directed=False)
        _, first, where = np.unique(labels, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int32)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[where]
