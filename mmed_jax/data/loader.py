"""Batches from a packed table; their order is arithmetic: a pure function of (seed, step), on any number of hosts."""

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from mmed_jax.common.errors import UserError
from mmed_jax.data.batch import Batch
from mmed_jax.data.mixture import Mixture, evenly
from mmed_jax.data.pack import permutation
from mmed_jax.data.packed_table import Table

# Endless for any run; grain wants a length.
_FOREVER = 1 << 40


class BatchStream:
    """The endless stream of training batches.

    Position p of the stream is row permutation(len(table), (seed, e))[p % len(table)] of epoch e = p // len(table). The
    global batch of step s is positions s*B .. (s+1)*B - 1; what an epoch leaves over continues into the next, so every
    epoch sees each row exactly once. With a mixture, row p is what that says. The host count enters only where a global
    batch is sliced.
    """

    def __init__(
        self,
        table: Table,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        *,
        local_rows: Sequence[int] | np.ndarray | None = None,
        mixture: Mixture | None = None,
        prefetch: int = 4,
        threads: int = 2,
    ):
        """
        Args:
            table: the packed rows.
            batch_size: rows B of the global batch.
            start_step: the step whose batch iteration begins with.
            process_index, process_count: which contiguous slice of every global batch this process reads. (Processes
                that hold the same rows, as under tensor parallelism, pass the same index.)
            local_rows: which rows of every global batch this process reads, instead of its slice: ascending indices
                in 0 .. batch_size-1 (where a mesh gives a process other rows than a contiguous slice).
            mixture: which row stands at which position, in place of one permutation after another (which `seed` is of).
            prefetch: batches read ahead in the background, by `threads` threads.

        Raises:
            UserError: batch_size does not divide by process_count, or the table is empty.
        """
        if batch_size < 1 or batch_size % process_count:
            raise UserError(f"batch of {batch_size} rows does not divide by {process_count} processes")
        if len(table) == 0:
            raise UserError(f"{table.folder}: {table.split} holds no rows")
        self.table, self.batch_size, self.seed, self.start_step = table, batch_size, seed, start_step
        self.mixture = mixture
        local = batch_size // process_count
        self._local = _local_rows(local_rows, local, process_index)
        self._prefetch, self._threads = prefetch, threads
        self._lock = threading.Lock()
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(len(table), (seed, epoch)))

    def row_ids(self, step: int) -> np.ndarray:
        """Rows of the global batch of `step`, int64 [batch_size]."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        if self.mixture is not None:
            return self.mixture.rows(positions)
        epochs, places = np.divmod(positions, len(self.table))
        out = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs).tolist():
            with self._lock:  # so that threads do not sort the same epoch twice
                order = self._order(epoch)
            out[epochs == epoch] = order[places[epochs == epoch]]
        return out

    def batch(self, step: int) -> Batch:
        """This process's slice of the global batch of `step`; arrays [batch_size / process_count, seq_len]."""
        return self.table.batch(self.row_ids(step)[self._local])

    def names(self, step: int) -> list[str]:
        """Names of all samples in the global batch of `step`, for messages."""
        return [name for row in self.row_ids(step).tolist() for name in self.table.describe_row(row)]

    def __iter__(self) -> Iterator[Batch]:
        """Batches from start_step on, read ahead in the background; an error there is raised here, in its turn."""
        import grain

        steps = grain.MapDataset.range(self.start_step, self.start_step + _FOREVER)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch)
        return iter(steps.map(self.batch).to_iter_dataset(options))


def _local_rows(rows: Sequence[int] | np.ndarray | None, local: int, process_index: int) -> np.ndarray:
    return np.arange(process_index * local, (process_index + 1) * local) if rows is None else np.asarray(rows)


def eval_rows(table: Table, limit: int = 0) -> np.ndarray:
    """The rows that a validation reads, in their order, int64 [rows]; `limit` > 0: at most so many.

    Those of records come in table order, which is random; those of documents as mixture.evenly has them.
    """
    total = min(len(table), limit) if limit else len(table)
    is_documents = any(group.language for group in table.groups)
    return evenly(table.groups)[:total] if is_documents else np.arange(total)


def eval_batches(
    table: Table,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    limit: int = 0,
    local_rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """This process's slices of the batches that cover every row exactly once.

    All batches have batch_size / process_count rows; the last ones are filled up with padding rows (all 0, row_ids -1).
    Rows and `limit` are those of eval_rows. Raises UserError as BatchStream does.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch of {batch_size} rows does not divide by {process_count} processes")
    order = eval_rows(table, limit)
    total = len(order)
    local = _local_rows(local_rows, batch_size // process_count, process_index)

    def batches() -> Iterator[Batch]:
        for start in range(0, total, batch_size):
            yield table.batch([int(order[i]) if i < total else -1 for i in (start + local).tolist()])

    return batches()
