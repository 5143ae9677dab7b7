"""The records of a run on the disk, with some fifty bytes of memory each: what their split and their weight need."""

import marshal
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from mmed_jax.data.flat_file import BytesFile
from mmed_jax.data.records.linked_rows import LinkedRows, stable_hash
from mmed_jax.data.records.schema import LANGUAGES, link_record

MOST_ROWS = 300  # of `contents`, which stands in every checkpoint


def uniform(*key: object) -> float:
    """A number in [0, 1) that is a pure function of `key`, the same on every machine."""
    return stable_hash(*key) / 2**64


class RecordStore(Sequence[dict]):
    """Checked records in their order; they come back without their provenance.

    Args:
      records: of schema.validate_record.
      folder: where files without names hold them. seed: of the run, decides `draws`.
      linked: whether questions will be asked for (`links`).

    Raises:
      WorkError: the files cannot be written. Whatever `records` raises.
    """

    def __init__(self, records: Iterable[dict], folder: Path, seed: int, *, linked: bool = True) -> None:
        self.links = LinkedRows()  # of records that ask the same
        self.source_names: dict[str, int] = {}
        self._license_names: dict[str, int] = {}
        self._records, self._ids = BytesFile(folder), BytesFile(folder)
        languages, sources, licenses, draws = array("B"), array("I"), array("I"), array("d")
        for record in records:
            self._ids.append(record["id"].encode())
            self._records.append(marshal.dumps({k: v for k, v in record.items() if k != "provenance"}))
            languages.append(LANGUAGES.index(record["language"]))
            sources.append(self.source_names.setdefault(record["source"], len(self.source_names)))
            licenses.append(self._license_names.setdefault(record["license"], len(self._license_names)))
            draws.append(uniform(seed, record["id"]))
            if linked:
                link_record(self.links, record)
        self.languages = np.frombuffer(languages, np.uint8)  # uint8 [n], index of LANGUAGES
        self.sources = np.frombuffer(sources, np.uint32)  # uint32 [n], as source_names numbers them
        self._licenses = np.frombuffer(licenses, np.uint32)  # uint32 [n], as _license_names numbers them
        self.draws = np.frombuffer(draws, np.float64)  # float64 [n], uniform(seed, id)

    def __len__(self) -> int:
        return len(self._ids)

    def contents(self, chosen: np.ndarray) -> list[dict[str, str | int]]:
        """Of the records `chosen` (int64 [m], no copies) how many there are of each source, licence and language.

        Returns:
          [{"source", "license", "language", "records"}] in the order of their first record; sources beyond the
          MOST_ROWS largest rows are together "others".
        """
        counts: dict[tuple[str, str, str], int] = {}
        sources, licenses = list(self.source_names), list(self._license_names)
        keys = np.stack([self.sources[chosen], self._licenses[chosen], self.languages[chosen].astype(np.uint32)])
        unique, first, sizes = np.unique(keys, axis=1, return_index=True, return_counts=True)
        kept = set(np.argsort(-sizes, kind="stable")[:MOST_ROWS].tolist())
        for column in np.argsort(first).tolist():
            source, license, language = unique[:, column].tolist()
            named = sources[source] if column in kept else "others"
            key = named, licenses[license], LANGUAGES[language]
            counts[key] = counts.get(key, 0) + int(sizes[column])
        return [{"source": s, "license": li, "language": la, "records": n} for (s, li, la), n in counts.items()]

    def id(self, index: int) -> str:
        """The id of a record. Raises WorkError."""
        return self._ids[index].decode()

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...
    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        """Raises WorkError."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return marshal.loads(self._records[index])
