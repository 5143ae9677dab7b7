"""Which documents of a corpus are held out for validation.

By a hash of the document's id, so it stays on its side when others come or go; one without an id is named by its text.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.corpus.readers import Reject
from data_gen.corpus.stage_folder import Result, StageFolder
from data_gen.corpus.unit_documents import read_unit
from data_gen.corpus.units import Unit
from mmed_jax.data.records.linked_rows import stable_hash

# Documents of a language that are held out at least, one in twenty where there are few.
FEW, ONE_IN = 8, 20
_ALL = 1 << 64  # hashes are below


def hold_out(documents: Mapping[str, int], smallest: Mapping[str, Sequence[int]], fraction: float) -> dict[str, int]:
    """{language: number that the hashes of held-out documents are below}.

    Args:
      documents: how many there are of each language. smallest: its FEW smallest hashes, ascending.
      fraction: share of the documents that are held out; more of a language where that is fewer than FEW.
    """
    limits = {}
    for language, count in documents.items():
        few = min(FEW, count // ONE_IN) if fraction else 0
        least = smallest[language][few - 1] + 1 if few else 0
        limits[language] = max(round(fraction * _ALL), least)
    return limits


def id_hash(ident: str) -> int:
    """What decides whether a document is held out: 64 bits of its id."""
    return stable_hash("held out", ident)


def scan_unit(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: counts documents by language, and finds the smallest hashes of each."""
    documents: Counter[str] = Counter()
    smallest: dict[str, list[int]] = {}
    for found in read_unit(Unit.from_dict(part), context["roots"], settings["language"]):
        if not isinstance(found, Reject):
            language, (ident, _) = found
            documents[language] += 1
            hashes = smallest.setdefault(language, [])
            value = id_hash(ident)
            if len(hashes) < FEW or value < hashes[-1]:
                hashes.append(value)
                hashes.sort()
                del hashes[FEW:]
    return Result(documents.total(), {"documents": dict(documents), "smallest": smallest})


def held_out_limits(stage: StageFolder, fraction: float) -> dict[str, int]:
    """`hold_out` of all units that `scan_unit` has read."""
    documents: Counter[str] = Counter()
    smallest: dict[str, list[int]] = {}
    for number in range(len(stage.parts)):
        counts = stage.marker(number)["counts"]
        documents.update(counts["documents"])
        for language, hashes in counts["smallest"].items():
            smallest[language] = sorted([*smallest.get(language, []), *hashes])[:FEW]
    return hold_out(documents, smallest, fraction)
