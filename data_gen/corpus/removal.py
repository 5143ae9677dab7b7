"""Duplicates are removed by document id, never by position: what stands between finding them and dropping them.

A document goes by id_key(id), 16 bytes. Both searches give Removals: who goes, and which document stays for it. The one
that stays is the one with the smallest key, which depends on the ids alone: the order of input, the number of
tasks and the names of files decide nothing. Where an earlier corpus has the text, nothing of the new one stays.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_gen.corpus.document_steps import DocumentFilter
from mmed_jax.common.errors import WorkError


def id_key(document_id: str) -> bytes:
    """16 bytes that stand for a document's id."""
    return hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def key_array(keys: list[bytes]) -> np.ndarray:
    """Keys as two big-endian words each, uint64 [n, 2]: their order is that of the bytes, which S16 would cut at 0."""
    return np.frombuffer(b"".join(keys), ">u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Removals:
    """Documents to drop, in the order of their keys.

    gone: their keys, uint64 [n, 2]. kept: the key of the document that stays in place of each, uint64 [n, 2].
    """

    gone: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.gone)

    def save(self, path: Path) -> None:
        """Writes both as one .npy file, uint64 [2, n, 2]."""
        with path.open("wb") as file:
            np.save(file, np.stack([self.gone, self.kept]))

    @classmethod
    def load(cls, path: Path) -> "Removals":
        try:
            gone, kept = np.load(path)
        except (ValueError, EOFError) as error:
            raise WorkError(f"not a list of removals: {error}", place=path) from error
        return cls(gone, kept)

    def stays_for(self) -> dict[bytes, bytes]:
        """{key of a document that goes: key of the one that stays}."""
        return {_bytes(gone): _bytes(kept) for gone, kept in zip(self.gone, self.kept)}


def groups_to_removals(keys: np.ndarray, group: np.ndarray, earlier: np.ndarray) -> Removals:
    """Of every group all but one.

    Args:
      keys: of the documents, uint64 [n, 2]. group: number of the group of each, int [n]; documents that share it are
        the same text. earlier: whether it belongs to an earlier corpus, bool [n]; those are never removed, and where a
        group has one, every other document of it is.
    """
    # Groups together; in a group the earlier ones first, then the smallest key.
    order = np.lexsort((keys[:, 1], keys[:, 0], ~earlier, group))
    keys, group, earlier = keys[order], group[order], earlier[order]
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.empty(0, int)
    leader = np.repeat(first, np.diff(np.r_[first, len(group)]))
    gone = (leader != np.arange(len(group))) & ~earlier
    removed, stays = keys[gone], keys[leader[gone]]
    order = np.lexsort((removed[:, 1], removed[:, 0]))
    return Removals(removed[order], stays[order])


class RemoveDocuments(DocumentFilter):
    """Step: drops the documents of a list of removals, whatever their order and place in the input."""

    name = "removal"
    _lazy = ("_stays_for",)

    def __init__(self, path: Path | str, reason: str, exclusion_writer=None) -> None:
        """path: of Removals.save. reason: what is counted: "exact duplicate" or "near duplicate"."""
        super().__init__(exclusion_writer)
        self.path, self.reason = str(path), reason
        self._stays_for: dict[bytes, bytes] | None = None

    def judge(self, doc) -> str | None:
        if self._stays_for is None:
            self._stays_for = Removals.load(Path(self.path)).stays_for()
        kept = self._stays_for.get(id_key(doc.id))
        if kept is None:
            return None
        doc.metadata["duplicate_of"] = kept.hex()
        return self.reason


def _bytes(key: np.ndarray) -> bytes:
    return key.astype(">u8").tobytes()
