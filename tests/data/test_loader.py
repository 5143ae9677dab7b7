"""Batches: a pure function of (seed, step), the same rows for any number of hosts, every row once an epoch."""

import itertools
import json
import threading
import time

import numpy as np
import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data import packed_table as table_module
from mmed_jax.data.batch import FIELDS
from mmed_jax.data.loader import BatchStream, eval_batches
from mmed_jax.data.pack import pack
from mmed_jax.data.packed_table import TABLE, Table, table_info, write_rows
from tests.data.test_pack import samples_of

SEQ_LEN = 32


def make_table(folder, n_samples, *, packing=False):
    """A table of random samples; without packing it has n_samples rows."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.random.default_rng(n_samples).integers(1, SEQ_LEN + 1, n_samples)
    rows = pack(lengths, SEQ_LEN, packing=packing)
    part = write_rows(folder, "train", samples_of(lengths), rows)
    info = table_info(SEQ_LEN, "instruction", {}, {"train": {**part, "report": {}}}) | {"key": "k"}
    (folder / TABLE).write_text(json.dumps(info))
    return Table(folder, "train")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("table"), 23)


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_slices_of_the_hosts_are_the_global_batch(table, processes):
    whole = BatchStream(table, 8, seed=7)
    parts = [BatchStream(table, 8, 7, process_index=p, process_count=processes) for p in range(processes)]
    for step in (0, 2, 3, 11):
        slices = [part.batch(step) for part in parts]
        assert all(s["tokens"].shape == (8 // processes, SEQ_LEN) for s in slices)
        assert same({k: np.concatenate([s[k] for s in slices]) for k in slices[0]}, whole.batch(step))


def test_any_choice_of_rows_comes_from_the_global_batch(table):
    whole, rows = BatchStream(table, 8, seed=7), [1, 2, 6]
    part = BatchStream(table, 8, seed=7, local_rows=rows)
    assert same(part.batch(3), {k: v[rows] for k, v in whole.batch(3).items()})
    held = zip(eval_batches(table, 8, local_rows=rows), eval_batches(table, 8), strict=True)
    assert all(same(p, {k: v[rows] for k, v in w.items()}) for p, w in held)


def test_six_steps_equal_three_and_three_more(table):
    run = list(itertools.islice(BatchStream(table, 8, seed=1), 6))
    first = list(itertools.islice(BatchStream(table, 8, seed=1), 3))
    rest = list(itertools.islice(BatchStream(table, 8, seed=1, start_step=3), 3))
    assert all(same(a, b) for a, b in zip(run, first + rest, strict=True))
    direct = BatchStream(table, 8, seed=1)
    assert all(same(direct.batch(s), batch) for s, batch in enumerate(run))  # read ahead or not


@pytest.mark.parametrize("batch_size", [1, 5, 8, 23, 64])
def test_every_epoch_is_a_permutation(table, batch_size):
    stream = BatchStream(table, batch_size, seed=5)
    steps = -(-3 * len(table) // batch_size)
    assert (steps - 1) * batch_size < 3 * len(table) <= steps * batch_size
    seen = np.concatenate([stream.row_ids(s) for s in range(steps)])
    epochs = [seen[i * len(table) : (i + 1) * len(table)].tolist() for i in range(3)]
    assert all(sorted(e) == list(range(len(table))) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # The order of the rows does not depend on the batch size.
    assert seen[:23].tolist() == BatchStream(table, 23, seed=5).row_ids(0).tolist()


def test_seeds_give_other_orders(table):
    orders = {tuple(BatchStream(table, 23, seed=s).row_ids(0).tolist()) for s in range(5)}
    assert len(orders) == 5


def test_table_smaller_than_a_batch_wraps(tmp_path):
    small = make_table(tmp_path, 3)
    stream = BatchStream(small, 8, seed=0)
    batch = stream.batch(4)
    assert np.bincount(batch["row_ids"]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert batch["loss_mask"].shape == (8, SEQ_LEN)
    assert sorted(np.concatenate([stream.row_ids(s) for s in range(3)]).tolist()) == sorted([0, 1, 2] * 8)


def test_rows_come_back_as_written_and_are_named(table, tmp_path):
    packed = make_table(tmp_path, 40, packing=True)
    stream = BatchStream(packed, 4, seed=0)
    names = [name for row in stream.row_ids(2).tolist() for name in packed.describe_row(row)]
    assert stream.names(2) == names and len(names) == sum(stream.batch(2)["segment_ids"].max(axis=1))
    every = [n for row in range(len(packed)) for n in packed.describe_row(row)]
    assert sorted(every) == sorted(f"记录-{i}" for i in range(40))


@pytest.mark.parametrize("batch_size", [1, 4, 16, 32])
@pytest.mark.parametrize("processes", [1, 4])
def test_eval_covers_every_row_once(table, batch_size, processes):
    if batch_size % processes:
        with pytest.raises(UserError, match="does not divide by 4 processes"):
            eval_batches(table, batch_size, 0, processes)
        return
    parts = [list(eval_batches(table, batch_size, p, processes)) for p in range(processes)]
    assert len({len(p) for p in parts}) == 1  # no host has a batch more than another
    ids = np.concatenate([b["row_ids"] for group in zip(*parts) for b in group])
    assert ids[ids >= 0].tolist() == list(range(len(table)))
    for batch in (b for p in parts for b in p):
        assert batch["tokens"].shape == (batch_size // processes, SEQ_LEN)
        padding = batch["row_ids"] < 0
        assert all(not batch[name][padding].any() for name in FIELDS)
    total = sum(b["loss_mask"].sum() for p in parts for b in p)
    assert total == table.batch(range(len(table)))["loss_mask"].sum()
    limited = np.concatenate([b["row_ids"] for b in eval_batches(table, 4, limit=6)])
    assert limited.tolist() == [0, 1, 2, 3, 4, 5, -1, -1]


def test_an_error_of_a_reading_thread_reaches_the_consumer(table, monkeypatch):
    stream = BatchStream(table, 4, seed=0)
    bad = stream.row_ids(2)[1]

    def fail(batch, row, record, row_id):
        if row_id == bad:
            raise WorkError("torn row")

    monkeypatch.setattr(table_module, "fill_row", fail)
    batches = iter(stream)
    next(batches), next(batches)
    with pytest.raises(WorkError, match="torn row"):
        next(batches)


def test_reads_ahead_in_the_background(table):
    stream, steps, done = BatchStream(table, 4, seed=0, prefetch=2), [], threading.Event()
    real = stream.batch

    def watch(step):
        steps.append(step)
        if len(steps) >= 3:
            done.set()
        return real(step)

    stream.batch = watch  # of this stream alone: threads of other tests' streams may still be reading
    batches = iter(stream)
    next(batches)
    assert done.wait(10)  # two more batches, though only one was asked for
    time.sleep(0.05)
    assert sorted(steps) == [0, 1, 2]  # and not without end


def test_wrong_sizes_are_refused(table, tmp_path):
    with pytest.raises(UserError, match="batch of 6 rows does not divide by 4 processes"):
        BatchStream(table, 6, 0, process_index=0, process_count=4)
    with pytest.raises(WorkError, match="row 99 of train cannot be read"):
        table.record(99)
    make_table(tmp_path, 5)
    info = json.loads((tmp_path / TABLE).read_text())
    info["splits"]["train"]["rows"] = 6
    (tmp_path / TABLE).write_text(json.dumps(info))
    with pytest.raises(WorkError, match="holds 5 rows, 6 were written"):
        Table(tmp_path, "train")


def test_large_tables_lie_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "ROWS_PER_FILE", 4)
    split = make_table(tmp_path / "several", 23)
    assert len(list((tmp_path / "several").glob("train/*.array_record"))) == 6
    monkeypatch.setattr(table_module, "ROWS_PER_FILE", 100)
    one = make_table(tmp_path / "one", 23)
    assert same(split.batch(range(23)), one.batch(range(23)))
    assert split.fingerprint == one.fingerprint
