"""A batch: its arrays and their dtypes, listed here and nowhere else."""

import numpy as np

Batch = dict[str, np.ndarray]

# Arrays [rows, seq_len], in the order they are shown; all of them are placed on the devices. Segments count from 1,
# 0 is padding; positions count from 0 in every segment; language is LANGUAGES.index + 1; loss_mask is 1 where the
# target is trained.
FIELDS: dict[str, np.dtype] = {
    "tokens": np.dtype(np.int32),
    "targets": np.dtype(np.int32),
    "segment_ids": np.dtype(np.int32),
    "positions": np.dtype(np.int32),
    "language": np.dtype(np.int32),
    "loss_mask": np.dtype(np.float32),
}


def empty_batch(rows: int, seq_len: int) -> Batch:
    """A batch of padding: arrays [rows, seq_len] of 0 (FIELDS), and row_ids int32 [rows], which stay here, of -1."""
    batch: Batch = {name: np.zeros((rows, seq_len), dtype) for name, dtype in FIELDS.items()}
    batch["row_ids"] = np.full(rows, -1, np.int32)
    return batch
