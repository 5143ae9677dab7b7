"""Files of documents, packed into a table of the cache as records are: for a few, that need no corpus.

A file has a JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst): "text"; "language" (of LANGUAGES; without it the text
is looked at), "source" (else the file's name) and "id" (else file, below the folder that was named, and line) may stand
beside it. Of the folder of a finished corpus its documents are read.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from ml_collections import ConfigDict

from mmed_jax.common import jsonl
from mmed_jax.common.code_hash import code_hash
from mmed_jax.common.errors import UserError, warn
from mmed_jax.common.input_files import open_unpacked, stem, suffix
from mmed_jax.common.places import parse_place
from mmed_jax.data import packed_cache
from mmed_jax.data.documents import Packed, RowSettings, pack_documents
from mmed_jax.data.languages.identify import language_of
from mmed_jax.data.packed_table import make_part, merge_reports, table_info, table_report, write_shard
from mmed_jax.data.records.schema import LANGUAGES, language_problem
from mmed_jax.data.records.store import uniform
from mmed_jax.data.tokenizers.tokenizer import tokenizer_hash

# All documents and their ids are in memory at once.
MOST_BYTES = 1 << 30
UNKNOWN = "unknown"  # of documents in none of LANGUAGES
# In the folder of a corpus: what it holds, written last; its documents; the lock of its stages, which lie beside it.
CORPUS, DOCUMENTS, LOCK = "corpus.json", "documents", "work/lock"


@functools.cache
def _code() -> str:
    return code_hash(("mmed_jax.data.document_cache",), leave_out=packed_cache.LEAVE_OUT)


def document_files(path: Path) -> list[Path]:
    """The files of documents at `path`: itself, or those below a folder, sorted; of a corpus those of its documents.

    Raises:
        UserError: there is none, or a corpus is not finished.
    """
    check_finished(path)
    is_corpus = (path / CORPUS).is_file()
    base = path / DOCUMENTS if is_corpus else path
    files = sorted(p for p in base.rglob("*") if p.is_file()) if path.is_dir() else [path]
    fitting = [p for p in files if _is_jsonl(p)]
    if not fitting:
        hint = "; make a table of it: python -m data_gen corpus tokenize" if is_corpus else ""
        raise UserError(f"{path}: no file of documents; they end in .jsonl, .jsonl.gz or .jsonl.zst{hint}")
    return fitting


def check_finished(path: Path) -> None:
    """Raises UserError for a corpus in the making: what lies in its stages was dropped in part."""
    if (path / LOCK).is_file() and not (path / CORPUS).is_file():
        raise UserError(f"{path}: is not finished ({LOCK} and no {CORPUS}); run the command that makes it to the end")


def _is_jsonl(path: Path) -> bool:
    return suffix(path) == ".jsonl" or path.name.lower().endswith(".jsonl.zst")


def read_documents(path: Path, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yields (id, text, language, source) of each line of a file of documents; language "" where none can be told.

    Args:
        prefix: of the ids of lines that have none, in front of the file's name.

    Raises:
        UserError: at the first line that is none, with its place; for a line of a record file, with what reads it.
    """
    name = stem(path, ".zst", ".jsonl")
    with open_unpacked(path) as stream:
        for number, (place, value) in enumerate(jsonl.read_objects(stream, str(path)), 1):
            text = value.get("text")
            if not isinstance(text, str):
                record = next((k for k, key in (("instruction", "messages"), ("mcq", "question")) if key in value), "")
                hint = f"; this is a record, which data.kind={record} reads" if record else ""
                raise UserError(f"{place}: text: missing or no text; a document needs it{hint}")
            language = value.get("language")
            if language is None:
                language = language_of(text) or ""
            elif language not in LANGUAGES:
                raise UserError(f"{place}: language: {language_problem(language)}")
            ident = f"{prefix}{name}-{number}" if value.get("id") in (None, "") else str(value["id"])
            source = str(value.get("source") or name)
            for key, field in (("text", text), ("id", ident), ("source", source)):
                jsonl.whole_text(field, f"{place}: {key}")
            yield ident, text, language, source


def pack_files(
    paths: Sequence[Path],
    key: str,
    config: ConfigDict,
    tok: Any,
    *,
    is_writer: bool,
    timeout_s: float,
    say: Callable[[str], None],
) -> tuple[Path, bool]:
    """Packs files of documents into a table of the cache, unless it is there: a group for each language and source.

    Of config.data.train, config.data.validation_fraction of the documents is held out, by their ids.

    Args:
        paths: files, or folders of them.
        key: of config.data, that names them.
        config, tok: of the run. is_writer, timeout_s, say: as of packed_cache.obtain.

    Returns:
        (folder, whether it was there before).

    Raises:
        UserError: bad files, more than MOST_BYTES of them, nothing to train on, an unwritable cache.
        WorkError: writing failed or the writer was waited for in vain.
    """
    data = config.data
    files = [(file, _prefix(path, file)) for path in paths for file in document_files(path)]
    total = sum(file.stat().st_size for file, _ in files)
    if total > MOST_BYTES:
        raise UserError(
            f"config.data.{key}: files of {total / 2**30:.1f} GiB; from {MOST_BYTES / 2**30:.0f} GiB on make a table "
            "of them: python -m data_gen corpus tokenize"
        )
    held_out = data.validation_fraction if key == "train" and not data.validation else 0.0
    inputs = {
        "files": [[prefix, *packed_cache.content_hash(file)] for file, prefix in files],
        "seq_len": data.seq_len,
        "settings": {"attend_across": not data.packing},
        "validation_fraction": held_out,
        "tokenizer": tokenizer_hash(tok),
        "tokenizers": tokenizers.__version__,
        "code": _code(),
    }

    def build(folder: Path) -> dict[str, Any]:
        settings = RowSettings(seq_len=data.seq_len, attend_across=not data.packing)
        splits = {
            split: _write_split(folder, split, groups, settings, tok)
            for split, groups in _grouped(files, held_out).items()
            if groups
        }
        if "train" not in splits or not splits["train"]["rows"]:
            raise UserError(f"config.data.{key}: {', '.join(map(str, paths))}: no document with text")
        if held_out and "validation" not in splits:
            warn(f"config.data.validation_fraction={held_out:g}: no document is held out, nothing is validated")
        return table_info(data.seq_len, "document", inputs, splits)

    return packed_cache.obtain(
        parse_place(data.cache_dir, "config.data.cache_dir"),
        packed_cache.key_of(inputs),
        build,
        is_writer=is_writer,
        timeout_s=timeout_s,
        say=say,
    )


def _prefix(path: Path, file: Path) -> str:
    """The folders between what was named and a file below it: "part1/"."""
    between = file.relative_to(path).parts[:-1]
    return "".join(f"{name}/" for name in between)


Groups = dict[tuple[str, str], list[tuple[str, str]]]  # {(language, source): [(id, text)]}


def _grouped(files: Sequence[tuple[Path, str]], held_out: float) -> dict[str, Groups]:
    """{split: its documents}, groups in order of first appearance. Raises UserError for an id that stands twice.

    Args:
        files: with the prefix of the ids of lines that have none.
    """
    splits: dict[str, Groups] = {"train": {}, "validation": {}}
    places: dict[str, Path] = {}
    for file, prefix in files:
        for ident, text, language, source in read_documents(file, prefix):
            if ident in places:
                raise UserError(f"{file}: id '{ident}' was already used in {places[ident]}")
            places[ident] = file
            split = "validation" if held_out and uniform("held out", ident) < held_out else "train"
            splits[split].setdefault((language, source), []).append((ident, text))
    return splits


def _write_split(folder: Path, split: str, groups: Groups, settings: RowSettings, tok: Any) -> dict[str, Any]:
    """Packs and writes one split; its part of table.json."""
    listed, reports = [], []
    (folder / split).mkdir()
    for number, ((language, source), documents) in enumerate(groups.items()):
        packed: Packed = pack_documents(tok, documents, settings, language=language, source=source)
        path = f"{split}/{number:05d}.array_record"
        shard = {"path": path, **write_shard(folder / path, packed.samples, packed.rows)}
        code = language or UNKNOWN
        listed.append((f"{code}/{source}", code, source, [shard]))
        packed.samples.left_out = Counter(nothing_trained=packed.empty)
        reports.append(table_report(packed.samples, packed.rows, settings.seq_len))
    return {**make_part(listed), "report": merge_reports(reports, settings.seq_len)}
