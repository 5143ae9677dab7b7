"""Which split the rows of a file without one belong to, where other files of the download name theirs.

HEAD-QA, MedQA and PubMedQA come with the whole set in one file beside the files of its splits. Reading the rows of that
file as "train" puts the official test set into the training data.
"""

import hashlib
from collections.abc import Callable, Iterator

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.reading import SPLIT_NAMES
from mmed_jax.data.sources.raw_file import RANK
from mmed_jax.data.sources.source import Drop, Row, record_content


def is_split(split: str, wanted: str) -> bool:
    """Whether a row's split is the one that was asked for, "dev" being "validation" where there is no such split."""
    return split in (wanted, SPLIT_NAMES.get(wanted))


class Splits:
    """Sorts rows by split as they come.

    Args:
      wanted: the split that was asked for, or None.
      convert: a row to its record or Drop; may raise what adapters raise.
      named: holds True and False once files with and without a split were met (Download.named).
    """

    def __init__(self, wanted: str | None, convert: Callable[[Row], dict | Drop], named: set[bool]) -> None:
        self.wanted, self.convert, self.named = wanted, convert, named
        self._splits: dict[bytes, str] = {}  # of each question in a file that names its split
        self._met: dict[bool, Row] = {}

    def sort(self, rows: Iterator[Row]) -> Iterator[tuple[Row, Drop | None]]:
        """(row, why it is dropped or None); rows of files without a split last where other files have one.

        Raises UserError for a row that is in none of the splits, when one was asked for.
        """
        held = []
        for row in rows:
            if len(self.named) == 2:
                if not row.split:
                    held.append(row)
                    continue
                self._remember(row)
            elif self.wanted is not None:
                self._met.setdefault(bool(row.split), row)
                if len(self._met) == 2:
                    raise UserError(
                        f"{self._met[False].where}: names no split while other rows do ({self._met[True].where}); "
                        "leave the split open, or name one in every row"
                    )
            yield row, None
        yield from self._place(held)

    def _place(self, held: list[Row]) -> Iterator[tuple[Row, Drop | None]]:
        alone = []
        for row in held:
            result = self._try(row)
            split = self._splits.get(_hash(result)) if result is not None and _content(result) else None
            if split is not None:
                mine = self.wanted is None or is_split(split, self.wanted)
                yield row, Drop("also in the file of its split" if mine else "another split")
            elif self.wanted is not None and isinstance(result, dict):
                alone.append(row)
            else:
                yield row, None
        if alone:
            file = alone[0].where.rpartition(":")[0]
            raise UserError(
                f"{file}: names no split, and {len(alone):,} rows of such files stand in none of the files that do "
                f"(first: {alone[0].where}); take out or name one file alone, or leave the split open"
            )

    def _try(self, row: Row) -> dict | Drop | None:
        if row.problem:
            return None
        try:
            return self.convert(row)
        except (UserError, KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError):
            return None

    def _remember(self, row: Row) -> None:
        result = self._try(row)
        if result is not None and _content(result):
            key = _hash(result)
            known = self._splits.get(key, row.split)
            self._splits[key] = min(known, row.split, key=lambda s: RANK.get(s, 2))


def _content(result: dict | Drop) -> tuple:
    return result.content if isinstance(result, Drop) else record_content(result)


def _hash(result: dict | Drop) -> bytes:
    return hashlib.sha256(repr(_content(result)).encode("utf-8", "surrogatepass")).digest()[:16]
