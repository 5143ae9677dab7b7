"""Duplicates over all units: keys of each unit, compared in partitions; what is removed is a list of ids.

    keys         of a unit, in the filter stage: text key and id of each document, sorted by text key
    exact        a part is a range of text keys, over all units; it gives Removals
    signatures   of a unit's documents that are left, by language
    near         a part is a language, over all units; it gives Removals. 240 bytes a document are in memory, twice
    earlier      keys and signatures of corpora that were built before: what stands there goes here
    clean stage  looks the ids of a unit up in the Removals of all parts

A document is known by its id as 16 bytes (document_files.py), so that Removals name documents. Partitions are ranges of
hash values: their number follows from the number of documents alone, and changes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_gen.corpus.document_files import as_document, read_documents
from data_gen.corpus.exact_duplicates import exact_duplicates, text_key
from data_gen.corpus.near_duplicates import NearSettings, Signatures, near_duplicates
from data_gen.corpus.output_stage import read_file
from data_gen.corpus.removal import id_key, key_array
from data_gen.corpus.stage_folder import Result, StageFolder
from mmed_jax.common.errors import UserError
from mmed_jax.common.hashes import file_hash

KEYS, REMOVED = "keys.npy", "removed.npy"
# Documents a partition: about half a gigabyte while it is sorted.
PARTITION_DOCUMENTS = 4_000_000
_SIGNED_AT_ONCE = 256


def partitions(documents: int) -> list[dict[str, int]]:
    """The parts of a stage that compares keys of so many documents."""
    count = max(1, -(-documents // PARTITION_DOCUMENTS))
    return [{"partition": i, "of": count} for i in range(count)]


def write_keys(path: Path, text_keys: Sequence[bytes], ids: Sequence[str]) -> None:
    """Keys of a unit's documents, uint64 [n, 6]: four words of the text key and two of the id, sorted by the first.

    Args:
      text_keys: 32 bytes each. ids: 32 hex digits each.
    """
    words = np.frombuffer(b"".join(text_keys), ">u8").astype(np.uint64).reshape(-1, 4)
    ids = np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64).reshape(-1, 2)
    keys = np.concatenate([words, ids], axis=1)
    np.save(path, keys[np.lexsort(keys.T[::-1])])


def slice_of(keys: np.ndarray, partition: int, of: int) -> np.ndarray:
    """Rows of sorted keys whose first word is in a partition's range."""
    bounds = [(i << 64) // of for i in (partition, partition + 1)]
    start = np.searchsorted(keys[:, 0], np.uint64(bounds[0]))
    end = len(keys) if bounds[1] >> 64 else np.searchsorted(keys[:, 0], np.uint64(bounds[1]))
    return keys[start:end]


def find_exact(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: Removals of the documents whose text another one has, of one partition."""
    sides = [gather(StageFolder(Path(context[side])), part) for side in ("filter", "earlier") if context[side]]
    keys = np.concatenate(sides)
    earlier = np.arange(len(keys)) >= len(sides[0])
    removals = exact_duplicates(keys[:, :4].astype(">u8").view(np.uint8).reshape(-1, 32), keys[:, 4:], earlier)
    removals.save(folder / REMOVED)
    return Result(len(removals), {})


def sign_unit(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: LANGUAGE.npz, signatures of the documents of part["unit"] that no exact duplicate removes."""
    unit = StageFolder(Path(context["filter"])).part(part["unit"])
    gone: dict[str, str] = {}
    if context["exact"]:
        gone = removed_among(np.load(unit / KEYS)[:, 4:], StageFolder(Path(context["exact"])))
    return _sign((doc for doc in read_documents(unit) if doc.id not in gone), settings, folder)


def sign_earlier(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: keys and signatures of a file of an earlier corpus. Raises UserError where it is damaged."""
    path = Path(context["roots"][part["corpus"]]) / part["path"]
    if file_hash(path) != part["sha256"]:
        raise UserError(f"{path}: is not the file that corpus.json beside it names")
    documents = [as_document(line) for line in read_file(path)]
    language = part["language"]
    write_keys(folder / KEYS, [text_key(doc.text, language) for doc in documents], [doc.id for doc in documents])
    return _sign(documents, settings, folder) if settings else Result(len(documents), {"rows": {}})


def _sign(documents: Iterable[Document], settings: dict[str, Any], folder: Path) -> Result:
    """Writes LANGUAGE.npz of all documents, of which a few hundred are in memory at a time."""
    near = NearSettings(**settings)
    waiting: dict[str, list[tuple[str, str, str | None]]] = {}
    signed: dict[str, list[Signatures]] = {}
    for doc in documents:
        language = doc.metadata.get("language") or ""
        listed = waiting.setdefault(language, [])
        listed.append((doc.id, doc.text, language))
        if len(listed) == _SIGNED_AT_ONCE:
            signed.setdefault(language, []).append(_signatures_by_id(listed, near))
            listed.clear()
    rows = {}
    for language, listed in sorted(waiting.items()):
        table = Signatures.joined([*signed.get(language, ()), _signatures_by_id(listed, near)])
        table.save(folder / _signature_file(language))
        rows[language] = len(table.ids)
    return Result(sum(rows.values()), {"rows": rows})


def _signatures_by_id(listed: Sequence[tuple[str, str, str | None]], settings: NearSettings) -> Signatures:
    """Signatures under the ids themselves, where Signatures.of has a hash of each."""
    signed = Signatures.of(listed, settings)
    names = {id_key(ident): bytes.fromhex(ident) for ident, _, _ in listed}
    return replace(signed, ids=key_array([names[key.astype(">u8").tobytes()] for key in signed.ids]))


def languages_signed(stage: StageFolder) -> list[str]:
    """Languages of the signatures of a stage, sorted."""
    return sorted({code for n in range(len(stage.parts)) for code in stage.marker(n)["counts"]["rows"]})


def find_near(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: Removals of the documents of part["language"] that almost repeat another one."""
    sides = [
        _signatures(StageFolder(Path(context[s])), part["language"]) for s in ("signatures", "earlier") if context[s]
    ]
    table = Signatures.joined(signed for side in sides for signed in side)
    earlier = np.arange(len(table.ids)) >= sum(len(signed.ids) for signed in sides[0])
    removals = near_duplicates(table, NearSettings(**settings), earlier)
    removals.save(folder / REMOVED)
    return Result(len(removals), {})


def _signatures(stage: StageFolder, language: str) -> list[Signatures]:
    """Those of a language of all parts."""
    paths = [stage.part(n) / _signature_file(language) for n in range(len(stage.parts))]
    return [Signatures.load(path) for path in paths if path.is_file()]


def _signature_file(language: str) -> str:
    return f"{language or 'unknown'}.npz"


def gather(stage: StageFolder, part: dict[str, Any]) -> np.ndarray:
    """Rows of a partition out of the sorted key files of all parts of a stage."""
    rows = [np.empty((0, 6), np.uint64)]
    for number in range(len(stage.parts)):
        keys = np.load(stage.part(number) / KEYS, mmap_mode="r")
        rows.append(np.array(slice_of(keys, part["partition"], part["of"])))
    return np.concatenate(rows)


def removed_among(ids: np.ndarray, stage: StageFolder) -> dict[str, str]:
    """{id: id of the document that stays for it} of those ids (uint64 [n, 2]) that Removals of a stage's parts have."""
    removed: dict[str, str] = {}
    for number in range(len(stage.parts)):
        gone, kept = np.load(stage.part(number) / REMOVED, mmap_mode="r")
        for i in _matches(ids, gone):
            removed[_id(gone[i])] = _id(kept[i])
    return removed


def _id(key: np.ndarray) -> str:
    return key.astype(">u8").tobytes().hex()


def _matches(wanted: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Numbers of the rows of `gone`, which are sorted, that are rows of `wanted`."""
    first = np.searchsorted(gone[:, 0], wanted[:, 0], side="left")
    last = np.searchsorted(gone[:, 0], wanted[:, 0], side="right")
    hits = [np.flatnonzero(gone[a:b, 1] == w) + a for a, b, w in zip(first, last, wanted[:, 1]) if a < b]
    return np.concatenate(hits) if hits else np.empty(0, np.int64)
