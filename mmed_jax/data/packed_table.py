"""The packed table: rows of samples in ArrayRecord files, one file set per split, read at random through grain.

Folder: `<split>-00000.array_record` ..., `table.json` (what went in, what came out) and `manifest.json` (sizes and
checksums of the other files, mmed_jax/common/checksums.py). It gets its name only when it is whole.

Record of a row, little endian: int32 n (segments), int32 m (ids); int32 [n] ids per segment; uint8 [n] language
(LANGUAGES.index + 1); int32 [m] ids; bit mask [m] of trained ids, most significant bit first; JSON list of n sample
names. Ids are stored whole, one more per segment than it takes slots: targets are the ids that follow.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmed_jax.common import jsonl
from mmed_jax.common.errors import WorkError
from mmed_jax.data.batch import Batch, empty_batch
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenize import Samples

TABLE = "table.json"
ROWS_PER_FILE = 1 << 15

# Upper ends of the length histogram, in slots.
LENGTH_BINS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def encode_row(samples: Samples, members: Sequence[int]) -> bytes:
    """The record of a row that holds the samples `members`, in this order."""
    spans = [slice(samples.offsets[i], samples.offsets[i + 1]) for i in members]
    ids = np.concatenate([samples.ids[s] for s in spans])
    trained = np.concatenate([samples.trained[s] for s in spans])
    lengths = [s.stop - s.start for s in spans]
    return b"".join(
        (
            np.array([len(spans), len(ids), *lengths], "<i4").tobytes(),
            samples.language[list(members)].astype(np.uint8).tobytes(),
            ids.astype("<i4").tobytes(),
            np.packbits(trained).tobytes(),
            json.dumps([samples.names[i] for i in members], ensure_ascii=False).encode(),
        )
    )


def _split_row(record: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bytes]:
    """(lengths int32 [n], language uint8 [n], ids int32 [m], trained bool [m], names as JSON) of a record."""
    n, m = np.frombuffer(record, "<i4", 2).tolist()
    lengths = np.frombuffer(record, "<i4", n, 8)
    at = 8 + 4 * n
    language = np.frombuffer(record, np.uint8, n, at)
    ids = np.frombuffer(record, "<i4", m, at + n)
    at += n + 4 * m
    bits = np.frombuffer(record, np.uint8, (m + 7) // 8, at)
    return lengths, language, ids, np.unpackbits(bits, count=m).astype(bool), record[at + len(bits) :]


def row_names(record: bytes) -> list[str]:
    """Names of the samples in a row, in the order of its segments."""
    return json.loads(_split_row(record)[-1])


def fill_row(batch: Batch, row: int, record: bytes, row_id: int) -> None:
    """Writes a record into row `row` of an empty batch.

    A segment of k ids takes k-1 slots: tokens = ids[:-1], targets = ids[1:], loss_mask = trained[1:]; positions count
    from 0 in every segment; segment_ids from 1; what is left of the row stays 0.
    """
    lengths, language, ids, trained, _ = _split_row(record)
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


def write_rows(folder: Path, split: str, samples: Samples, rows: Sequence[np.ndarray]) -> dict:
    """Writes the rows of one split into `folder`.

    Returns:
        {"rows", "files", "fingerprint"}: the fingerprint is a SHA-256 over all records, whatever code made them.

    Raises:
        WorkError: the files cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    digest, files = hashlib.sha256(), []
    for start in range(0, len(rows), ROWS_PER_FILE):
        name = f"{split}-{start // ROWS_PER_FILE:05d}.array_record"
        try:
            # One record a group: what makes random access cheap.
            writer = ArrayRecordWriter(str(folder / name), "group_size:1")
            for members in rows[start : start + ROWS_PER_FILE]:
                record = encode_row(samples, members)
                digest.update(record)
                writer.write(record)
            writer.close()
        except (RuntimeError, ValueError, OSError) as e:
            raise WorkError(f"{folder / name}: cannot be written: {e}") from e
        files.append(name)
    return {"rows": len(rows), "files": files, "fingerprint": digest.hexdigest()}


def table_report(samples: Samples, rows: list[np.ndarray], seq_len: int) -> dict:
    """Counts of one table: copies are counted as often as they stand in it."""
    members = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    slots, supervised = samples.slots[members], samples.supervised[members]

    def by(labels: list) -> dict[str, dict[str, int]]:
        labels = np.array(labels, dtype=object)[members]
        return {
            str(name): {
                "samples": int((labels == name).sum()),
                "tokens": int(slots[labels == name].sum()),
                "supervised": int(supervised[labels == name].sum()),
            }
            for name in dict.fromkeys(labels.tolist())
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
        "languages": by([LANGUAGES[i - 1] for i in samples.language]),
        "sources": by(samples.sources),
        "kinds": by(samples.kinds),
        "lengths": {str(b): int((places == i).sum()) for i, b in enumerate(bins)},
    }


class Table:
    """One split of a finished table folder; rows are numbered 0 .. len-1 and in random order already."""

    def __init__(self, folder: Path, split: str):
        try:
            info = jsonl.loads((folder / TABLE).read_bytes(), dict)
            part = info["tables"][split]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise WorkError(f"{folder / TABLE}: cannot be read ({e})") from e
        self.folder, self.split = folder, split
        self.seq_len: int = info["seq_len"]
        self.key: str = info["key"]
        self.fingerprint: str = part["fingerprint"]
        self.report: dict = part["report"]
        self._rows: int = part["rows"]
        # Imported late: grain takes a second, and commands that only check their arguments need none of it.
        from grain.sources import ArrayRecordDataSource

        self._source = ArrayRecordDataSource([str(folder / name) for name in part["files"]])
        if len(self._source) != self._rows:
            raise WorkError(f"{folder}: {split} holds {len(self._source)} rows, {self._rows} were written")

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

    def describe_row(self, row: int) -> list[str]:
        """Names of the samples in a row: record ids, with ":rationale" or ":direct" behind those of questions."""
        return row_names(self.record(row))

    def __iter__(self) -> Iterator[bytes]:
        return (self.record(i) for i in range(len(self)))
