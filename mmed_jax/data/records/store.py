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
        self._records, self._ids = BytesFile(folder), BytesFile(folder)
        languages, sources, draws = array("B"), array("I"), array("d")
        for record in records:
            self._ids.append(record["id"].encode())
            self._records.append(marshal.dumps({k: v for k, v in record.items() if k != "provenance"}))
            languages.append(LANGUAGES.index(record["language"]))
            sources.append(self.source_names.setdefault(record["source"], len(self.source_names)))
            draws.append(uniform(seed, record["id"]))
            if linked:
                link_record(self.links, record)
        self.languages = np.frombuffer(languages, np.uint8)  # uint8 [n], index of LANGUAGES
        self.sources = np.frombuffer(sources, np.uint32)  # uint32 [n], as source_names numbers them
        self.draws = np.frombuffer(draws, np.float64)  # float64 [n], uniform(seed, id)

    def __len__(self) -> int:
        return len(self._ids)

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
