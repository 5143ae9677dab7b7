"""The packed table: rows of samples in ArrayRecord files, read at random through grain; of records and of documents.

    TABLE/table.json                               what went in, what came out; the last file to be written
    TABLE/train/00000.array_record                 rows of records (`prepare`)
    TABLE/train/fr/fineweb2_fr/00003.array_record  rows of documents (`python -m data_gen corpus tokenize`)
    TABLE/manifest.json                            of a table of records: sizes, checksums (common/checksums.py)

table.json, version 2:

    {"version": 2, "key", "seq_len", "kind": that of data.kind, "inputs", "splits": {split: part}}
    part   {"rows", "fingerprint", "groups": [group], "shards": [shard], "report": see table_report}
    group  {"name": "fr/fineweb2_fr", "language", "source", "rows", "documents", "tokens", "supervised", "bytes"}
    shard  {"path", "group": 0, "rows", "documents", "tokens", "supervised", "bytes", "size", "sha256", "fingerprint"}

Shards of a group follow each other, and so do rows: a group has rows start .. start + rows - 1. A table of records has
one group, "records". `documents` counts samples there, `tokens` slots, `supervised` trained targets, `bytes` the UTF-8
bytes of the text that those spell, `size` the bytes of the file.

Record of a row, little endian: int32 n (segments), int32 m (ids), int32 flags; int32 [n] ids per segment; int32 [n]
bytes of text that a segment's trained targets spell; uint8 [n] language (LANGUAGES.index + 1, 0: none of them);
int32 [m] ids; bit mask [m] of trained ids, most significant bit first, unless the flag 1 says that all are; JSON list
of n sample names. Ids are stored whole, one more per segment than it takes slots: targets are the ids that follow.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmed_jax.common import jsonl
from mmed_jax.common.errors import WorkError
from mmed_jax.common.hashes import json_hash
from mmed_jax.data.batch import Batch, empty_batch
from mmed_jax.data.pack import Rows
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.samples import Samples

TABLE, VERSION = "table.json", 2
ROWS_PER_FILE = 1 << 15
ALL_TRAINED = 1
# What shards have and groups add up.
COUNTS = ("rows", "documents", "tokens", "supervised", "bytes")

# Upper ends of the length histogram, in slots.
LENGTH_BINS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class Row(NamedTuple):
    """The record of a row, taken apart. `names` is JSON still."""

    lengths: np.ndarray  # int32 [n]
    text_bytes: np.ndarray  # int32 [n]
    language: np.ndarray  # uint8 [n]
    ids: np.ndarray  # int32 [m]
    trained: np.ndarray  # bool [m]
    names: bytes


def encode_row(samples: Samples, members: Sequence[int]) -> bytes:
    """The record of a row that holds the samples `members`, in this order."""
    return b"".join(_row_parts(samples, members))


def _row_parts(samples: Samples, members: Sequence[int]) -> tuple[bytes, ...]:
    """The record in pieces: sizes, flags, lengths, bytes of text, languages, ids, mask, names."""
    spans = [slice(samples.offsets[i], samples.offsets[i + 1]) for i in members]
    ids = np.concatenate([samples.ids[s] for s in spans])
    trained = None if samples.trained is None else np.concatenate([samples.trained[s] for s in spans])
    return (
        np.array([len(spans), len(ids)], "<i4").tobytes(),
        np.array([ALL_TRAINED if trained is None else 0], "<i4").tobytes(),
        np.array([s.stop - s.start for s in spans], "<i4").tobytes(),
        samples.text_bytes[list(members)].astype("<i4").tobytes(),
        samples.language[list(members)].astype(np.uint8).tobytes(),
        ids.astype("<i4").tobytes(),
        b"" if trained is None else np.packbits(trained).tobytes(),
        json.dumps([samples.names[i] for i in members], ensure_ascii=False).encode(),
    )


def split_row(record: bytes) -> Row:
    """The parts of a record."""
    n, m, flags = np.frombuffer(record, "<i4", 3).tolist()
    lengths, text_bytes = np.frombuffer(record, "<i4", n, 12), np.frombuffer(record, "<i4", n, 12 + 4 * n)
    at = 12 + 8 * n
    language, ids = np.frombuffer(record, np.uint8, n, at), np.frombuffer(record, "<i4", m, at + n)
    at += n + 4 * m
    if flags & ALL_TRAINED:
        return Row(lengths, text_bytes, language, ids, np.ones(m, bool), record[at:])
    bits = np.frombuffer(record, np.uint8, (m + 7) // 8, at)
    return Row(lengths, text_bytes, language, ids, np.unpackbits(bits, count=m).astype(bool), record[at + len(bits) :])


def row_names(record: bytes) -> list[str]:
    """Names of the samples in a row, in the order of its segments."""
    return json.loads(split_row(record).names)


def fill_row(batch: Batch, row: int, record: bytes, row_id: int) -> None:
    """Writes a record into row `row` of an empty batch.

    A segment of k ids takes k-1 slots: tokens = ids[:-1], targets = ids[1:], loss_mask = trained[1:]; positions count
    from 0 in every segment; segment_ids from 1; what is left of the row stays 0.
    """
    lengths, _, language, ids, trained, _ = split_row(record)
    slots = lengths - 1
    used = int(slots.sum())
    ends = np.cumsum(lengths)
    is_input, is_target = np.ones(len(ids), bool), np.ones(len(ids), bool)
    is_input[ends - 1] = False
    is_target[ends - lengths] = False
    batch["tokens"][row, :used] = ids[is_input]
    batch["targets"][row, :used] = ids[is_target]
    batch["loss_mask"][row, :used] = trained[is_target]
    batch["segment_ids"][row, :used] = np.repeat(np.arange(1, len(slots) + 1), slots)
    batch["positions"][row, :used] = np.arange(used) - np.repeat(np.cumsum(slots) - slots, slots)
    batch["language"][row, :used] = np.repeat(language, slots)
    batch["row_ids"][row] = row_id


class ShardWriter:
    """Writes rows into one ArrayRecord file and counts them. The same rows give the same bytes.

    digest: SHA-256 over what the rows hold, without the bytes of text: the record of version 1, so that a run which
    began with such a table goes on with its new form.
    """

    def __init__(self, path: Path) -> None:
        """Raises WorkError when no file can be made."""
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path, self.digest = path, hashlib.sha256()
        self.counts = dict.fromkeys(COUNTS, 0)
        try:
            # One record a group: what makes random access cheap.
            self._writer = ArrayRecordWriter(str(path), "group_size:1")
        except (RuntimeError, ValueError, OSError) as e:
            raise self._failure(e) from e

    def write(self, samples: Samples, members: Sequence[int], *digests: Any) -> None:
        """Writes the row of the samples `members`; `digests` take what `digest` takes. Raises WorkError."""
        parts = _row_parts(samples, members)
        for digest in (self.digest, *digests):
            for part in (parts[0], parts[2], *parts[4:]):
                digest.update(part)
        members = list(members)
        sizes = {"rows": 1, "documents": len(members), "tokens": samples.slots[members].sum()}
        sizes |= {"supervised": samples.supervised[members].sum(), "bytes": samples.text_bytes[members].sum()}
        for name, size in sizes.items():
            self.counts[name] += int(size)
        try:
            self._writer.write(b"".join(parts))
        except (RuntimeError, ValueError, OSError) as e:
            raise self._failure(e) from e

    def close(self) -> dict[str, Any]:
        """Ends the file. Returns its counts, size, sha256 and the fingerprint of its rows. Raises WorkError."""
        try:
            self._writer.close()
            with open(self.path, "rb") as f:
                sha256 = hashlib.file_digest(f, "sha256").hexdigest()
                size = f.tell()
        except (RuntimeError, ValueError, OSError) as e:
            raise self._failure(e) from e
        return {**self.counts, "size": size, "sha256": sha256, "fingerprint": self.digest.hexdigest()}

    def _failure(self, e: Exception) -> WorkError:
        return WorkError(f"{self.path}: cannot be written: {e}")


def write_shard(path: Path, samples: Samples, rows: Iterable[Sequence[int]], *digests: Any) -> dict[str, Any]:
    """Writes rows into a file; what ShardWriter.close returns. Raises WorkError."""
    writer = ShardWriter(path)
    for members in rows:
        writer.write(samples, members, *digests)
    return writer.close()


def write_rows(folder: Path, split: str, samples: Samples, rows: Rows) -> dict[str, Any]:
    """Writes the rows of one split of records below `folder`, as the group "records".

    Returns:
        The split's part of table.json, without its report. The fingerprint is a SHA-256 over all rows, whatever code
        made them.

    Raises:
        WorkError: the files cannot be written.
    """
    digest, shards = hashlib.sha256(), []
    (folder / split).mkdir(exist_ok=True)
    for start in range(0, len(rows), ROWS_PER_FILE):
        path = f"{split}/{start // ROWS_PER_FILE:05d}.array_record"
        part = (rows[i] for i in range(start, min(len(rows), start + ROWS_PER_FILE)))
        shards.append({"path": path, **write_shard(folder / path, samples, part, digest)})
    return {**make_part([("records", "", "", shards)]), "fingerprint": digest.hexdigest()}


def make_part(groups: Sequence[tuple[str, str, str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """A split's part of table.json.

    Args:
        groups: (name, language, source, shards) of each; shards as of ShardWriter.close, with their path in the table.
    """
    listed: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    for number, (name, language, source, of_group) in enumerate(groups):
        counts = {count: sum(shard[count] for shard in of_group) for count in COUNTS}
        listed.append({"name": name, "language": language, "source": source, **counts})
        shards += [{"path": shard["path"], "group": number, **shard} for shard in of_group]
    fingerprint = json_hash([shard["fingerprint"] for shard in shards], 64)
    return {"rows": sum(g["rows"] for g in listed), "fingerprint": fingerprint, "groups": listed, "shards": shards}


def table_info(seq_len: int, kind: str, inputs: dict[str, Any], splits: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What table.json holds, but for the key: `splits` of make_part with a report each, `more` of one's own."""
    return {"version": VERSION, "seq_len": seq_len, "kind": kind, "inputs": inputs, **more, "splits": splits}


def read_info(folder: Path) -> dict[str, Any]:
    """table.json of a finished table. Raises WorkError: there is none, it cannot be read, or is of another version."""
    try:
        info = jsonl.loads((folder / TABLE).read_bytes(), dict)
        version = info.get("version", 1)
        if version == VERSION:
            info["splits"], info["seq_len"], info["key"]  # noqa: B018
    except (OSError, ValueError, KeyError) as e:
        raise WorkError(f"{folder / TABLE}: cannot be read ({e})") from e
    if version != VERSION:
        raise WorkError(f"{folder / TABLE}: is of version {version}, this program reads {VERSION}; make the table anew")
    return info


def table_report(samples: Samples, rows: Rows, seq_len: int) -> dict[str, Any]:
    """Counts of one table: copies are counted as often as they stand in it."""
    members = rows.items
    slots, supervised = samples.slots[members], samples.supervised[members]

    def by(labels: Iterable[str]) -> dict[str, dict[str, int]]:
        codes: dict[str, int] = {}
        numbers = np.fromiter((codes.setdefault(label, len(codes)) for label in labels), np.int64)[members]
        present, first = np.unique(numbers, return_index=True)
        names = list(codes)
        return {
            names[code]: {
                "samples": int((numbers == code).sum()),
                "tokens": int(slots[numbers == code].sum()),
                "supervised": int(supervised[numbers == code].sum()),
            }
            for code in present[np.argsort(first)].tolist()
        }

    bins = [b for b in LENGTH_BINS if b < seq_len] + [seq_len]
    places = np.searchsorted(bins, slots)
    return {
        "rows": len(rows),
        "samples": len(members),
        "tokens": int(slots.sum()),
        "supervised": int(supervised.sum()),
        "efficiency": float(slots.sum() / max(1, len(rows) * seq_len)),
        "shortened": samples.shortened,
        "left_out": dict(samples.left_out),
        "languages": by((*LANGUAGES, "unknown")[i - 1] for i in samples.language.tolist()),
        "sources": by(samples.sources),
        "kinds": by(samples.kinds),
        "lengths": {str(b): int((places == i).sum()) for i, b in enumerate(bins)},
    }


def merge_reports(reports: Iterable[dict[str, Any]], seq_len: int) -> dict[str, Any]:
    """The counts of several table_reports of the same seq_len together."""
    total: dict[str, Any] = {"rows": 0, "samples": 0, "tokens": 0, "supervised": 0, "efficiency": 0.0, "shortened": 0}
    total |= {name: {} for name in ("left_out", "languages", "sources", "kinds", "lengths")}
    for report in reports:
        _add(total, report)
    return {**total, "efficiency": total["tokens"] / max(1, total["rows"] * seq_len)}


def _add(total: dict[str, Any], counts: dict[str, Any]) -> None:
    for name, count in counts.items():
        if isinstance(count, dict):
            _add(total.setdefault(name, {}), count)
        else:
            total[name] = total.get(name, 0) + count


@dataclass(frozen=True)
class Group:
    """Rows of one language and source: start .. start + rows - 1. Counts as in table.json."""

    name: str
    language: str
    source: str
    rows: int
    documents: int
    tokens: int
    supervised: int
    bytes: int
    start: int


def groups_of(part: dict[str, Any]) -> tuple[Group, ...]:
    """The groups of a split's part of table.json, with the rows that they start at."""
    groups, start = [], 0
    for entry in part["groups"]:
        fields = {name: entry[name] for name in ("name", "language", "source", *COUNTS)}
        groups.append(Group(**fields, start=start))
        start += entry["rows"]
    return tuple(groups)


class Table:
    """One split of a finished table folder; rows are numbered 0 .. len-1, group by group.

    Within a shard they are in random order already; those of a table of records altogether.
    """

    def __init__(self, folder: Path, split: str):
        info = read_info(folder)
        try:
            part = info["splits"][split]
            self.groups = groups_of(part)
            paths = [str(folder / shard["path"]) for shard in part["shards"]]
            self.fingerprint: str = part["fingerprint"]
            self.report: dict = part["report"]
            self._rows: int = part["rows"]
        except (KeyError, TypeError) as e:
            raise WorkError(f"{folder / TABLE}: cannot be read ({e})") from e
        self.folder, self.split = folder, split
        self.seq_len: int = info["seq_len"]
        self.key: str = info["key"]
        # Imported late: grain takes a second, and commands that only check their arguments need none of it.
        from grain.sources import ArrayRecordDataSource

        try:
            self._source = ArrayRecordDataSource(paths)
            rows = len(self._source)
        except Exception as e:  # the reader raises what its C++ part gives
            raise WorkError(f"{folder}: {split} cannot be opened: {e}") from e
        if rows != self._rows:
            raise WorkError(f"{folder}: {split} holds {rows} rows, {self._rows} were written")

    def __len__(self) -> int:
        return self._rows

    def record(self, row: int) -> bytes:
        """The record of one row; thread-safe. Raises WorkError when it cannot be read."""
        try:
            return self._source[int(row)]
        except Exception as e:  # the reader raises what its C++ part gives
            raise WorkError(f"{self.folder}: row {row} of {self.split} cannot be read: {e}") from e

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows as a batch: int32 [len(rows), seq_len] arrays, see fill_row; a row of -1 is padding."""
        out = empty_batch(len(rows), self.seq_len)
        for i, row in enumerate(rows):
            if row >= 0:
                fill_row(out, i, self.record(row), int(row))
        return out

    def text_bytes(self, rows: Sequence[int]) -> np.ndarray:
        """UTF-8 bytes of the text that the trained targets of the given rows spell, int64 [len(LANGUAGES) + 1].

        By language as in a batch (LANGUAGES.index + 1; 0: none of them); a row of -1 is padding. Control tokens spell
        nothing.
        """
        out = np.zeros(len(LANGUAGES) + 1, np.int64)
        for row in rows:
            if row >= 0:
                parts = split_row(self.record(row))
                np.add.at(out, parts.language, parts.text_bytes)
        return out

    def describe_row(self, row: int) -> list[str]:
        """Names of the samples in a row: record ids, with ":rationale" or ":direct" behind those of questions; ids of
        documents, with "#2" behind the third piece of a long one."""
        return row_names(self.record(row))

    def __iter__(self) -> Iterator[bytes]:
        return (self.record(i) for i in range(len(self)))
