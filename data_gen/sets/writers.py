"""The files of a set: JSON lines per language, TFDS in ArrayRecord files, Parquet for the hub. No dates, no host names:
the same rows give the same bytes.

    jsonl/SPLIT/LANGUAGE.jsonl      what mmed_jax trains on, by language
    tfds/NAME/VERSION/              the same, random access, see mmed_jax/data/records/tfds.py
    parquet/SPLIT-00000-of-00001.parquet   what `datasets.load_dataset` reads; provenance is JSON text
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import WorkError
from mmed_jax.data.records.schema import LETTERS, write_records
from mmed_jax.data.records.tfds import write_tfds

_BATCH = 1000
Read = Callable[[str], Iterator[dict]]


def write_jsonl(folder: Path, read: Read, splits: list[str], languages: tuple[str, ...]) -> dict[str, int]:
    """jsonl/SPLIT/LANGUAGE.jsonl; languages without rows get no file. Returns {"SPLIT/LANGUAGE": rows}."""
    counts = {}
    for split in splits:
        for code in languages:
            rows = (r for r in read(split) if r["language"] == code)
            path = folder / "jsonl" / split / f"{code}.jsonl"
            counts[f"{split}/{code}"] = write_records(path, rows)
            if not counts[f"{split}/{code}"]:
                path.unlink()
    return {k: n for k, n in counts.items() if n}


def write_tfds_set(folder: Path, recipe, read: Read, splits: list[str]) -> Path:
    """tfds/NAME/VERSION. Returns that folder."""
    rows = {split: read(split) for split in splits}
    return write_tfds(
        folder / "tfds", recipe.name, recipe.version, rows, description=recipe.description, citation=recipe.citation
    )


def write_parquet(folder: Path, kind: str, read: Read, splits: list[str]) -> None:
    """parquet/SPLIT-00000-of-00001.parquet. Raises WorkError when the disk does not take it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in splits:
        path = folder / "parquet" / f"{split}-00000-of-00001.parquet"
        letters = LETTERS[: max((len(r["options"]) for r in read(split)), default=2)] if kind == "mcq" else ""
        schema = _schema(pa, kind, letters)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for batch in _batches(read(split)):
                    writer.write_table(pa.Table.from_pylist([_flat(r, letters) for r in batch], schema=schema))
        except OSError as e:
            raise WorkError(f"{path}: cannot be written ({e.strerror or e})") from e


def _batches(rows: Iterator[dict]) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _schema(pa, kind: str, letters: str):
    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    own = (
        [("messages", pa.list_(message))]
        if kind == "instruction"
        else [
            ("context", text),
            ("question", text),
            ("options", pa.struct([(letter, text) for letter in letters])),
            ("answer_idx", text),
            ("rationale", text),
            ("human_checked", pa.bool_()),
            ("human_check_passed", pa.bool_()),
        ]
    )
    about = [(name, text) for name in ("source", "license", "method", "group", "flags", "provenance")]
    return pa.schema([("id", text), ("language", text), *own, *about])


def _flat(record: dict, letters: str) -> dict:
    about = record["provenance"]
    row = {
        **record,
        "group": about.get("group", ""),
        "flags": ",".join(about.get("flags", ())),
        "provenance": json.dumps(about, ensure_ascii=False, sort_keys=True),
    }
    if "options" in record:
        row["options"] = {letter: record["options"].get(letter) for letter in letters}
        row.setdefault("context", "")
    return row


def write_rejects(path: Path, rows: list[dict]) -> int:
    """What is not in the set, one JSON object a line: id, stage, reason, detail."""
    return jsonl.write_lines(path, map(jsonl.dump_line, rows))
