"""Documents of a corpus -> shards of a packed table: the rows of one unit.

A shard is a pure function of its unit, the tokenizer and the settings.
"""

import functools
import os
from collections import Counter
from pathlib import Path
from typing import Any

from data_gen.corpus.held_out_documents import id_hash
from data_gen.corpus.readers import Reject
from data_gen.corpus.stage_folder import Result
from data_gen.corpus.unit_documents import UNKNOWN, read_unit
from data_gen.corpus.units import Unit
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.documents import Document, RowSettings, pack_documents
from mmed_jax.data.packed_table import table_report, write_shard
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash

SPLITS = ("train", "validation")


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
