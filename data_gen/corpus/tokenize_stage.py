"""Documents of a corpus -> shards of a packed table: which are held out, and the rows of one unit.

A shard is a pure function of its unit, the tokenizer and the settings. A document is held out for validation by a hash
of its id, so it stays on its side when others come or go; one without an id is named by its text.
"""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.corpus.readers import Fields, Reject, reader_of
from data_gen.corpus.stage_folder import Result, StageFolder
from data_gen.corpus.units import Unit
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.documents import Document, RowSettings, pack_documents
from mmed_jax.data.packed_table import table_report, write_shard
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash

UNKNOWN = "unknown"  # of documents in none of LANGUAGES
SPLITS = ("train", "validation")
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


def read_unit(unit: Unit, roots: Mapping[str, str], language: str) -> Iterator[tuple[str, Document] | Reject]:
    """(language, (id, text)) of the documents of a unit; UNKNOWN for what is none of LANGUAGES.

    Args:
      language: of documents that say none.
    """
    for piece in unit.pieces:
        path = Path(roots[unit.source]) / piece.name
        for found in reader_of(piece.format).read(path, piece.cut, Fields()):
            if isinstance(found, Reject):
                place = f"{piece.name}, {found.place}" if found.place else piece.name
                yield Reject(found.reason, place, found.detail)
                continue
            code = found.metadata.get("language") or language
            ident = found.id or hashlib.sha256(found.text.encode()).hexdigest()[:32]
            yield (code if code in LANGUAGES else UNKNOWN), (ident, found.text)


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


def tokenize_unit(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: SPLIT.LANGUAGE.array_record of a unit's documents.

    Raises:
      UserError: no end token, a tokenizer that makes control tokens of text. WorkError: another tokenizer than that of
        the table; a document of a finished corpus that cannot be read.
    """
    tok = _tokenizer(context["tokenizer"], settings["tokenizer"])
    rows = RowSettings(settings["seq_len"], settings["overlap"], settings["attend_across"])
    unit, limits = Unit.from_dict(part), settings["limits"]
    chosen: dict[tuple[str, str], list[Document]] = {}
    rejects: Counter[str] = Counter()
    first = ""
    for found in read_unit(unit, context["roots"], settings["language"]):
        if isinstance(found, Reject):
            rejects[found.reason] += 1
            first = first or f"{found.place}: {found.reason}"
            continue
        language, document = found
        split = SPLITS[id_hash(document[0]) < limits.get(language, 0)]
        chosen.setdefault((split, language), []).append(document)
    if rejects and settings["finished"]:
        raise WorkError(f"{first}: a document of a finished corpus cannot be read")
    shards, empty = {}, 0
    for (split, language), documents in sorted(chosen.items()):
        name = f"{split}.{language}.array_record"
        code = "" if language == UNKNOWN else language
        packed = pack_documents(tok, documents, rows, language=code, source=unit.source)
        empty += packed.empty
        documents.clear()
        if len(packed.rows):
            shard = write_shard(folder / name, packed.samples, packed.rows)
            report = table_report(packed.samples, packed.rows, rows.seq_len)
            shards[name] = {**shard, "documents": packed.documents, "report": report}
    counts = {"shards": shards, "rejects": dict(rejects), "first": first, "empty": empty}
    return Result(sum(shard["rows"] for shard in shards.values()), counts)


@functools.cache
def _tokenizer(path: str, expected: str) -> Any:
    """The tokenizer, once a process; tasks are what runs side by side, so the encoder has no threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tok = load_tokenizer(path)
    if tokenizer_hash(tok) != expected:
        raise WorkError(f"{path}: is another tokenizer than when the command began; run it again")
    return tok


def check_language(code: str) -> None:
    """Raises UserError for a language that there is not; "" is none."""
    from mmed_jax.data.records.schema import language_problem

    if code and code not in LANGUAGES:
        raise UserError(f"--language {language_problem(code)}")
