"""Packing: every sample in exactly one row, whole, with nothing of its mask lost; rows nearly full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.data.batch import empty_batch
from mmed_jax.data.pack import best_fit, pack, permutation
from mmed_jax.data.packed_table import encode_row, fill_row, row_names, split_row
from mmed_jax.data.samples import Samples

LENGTHS = st.lists(st.integers(1, 64), max_size=80)


def samples_of(lengths, seed=0):
    """Samples with random ids and masks that take `lengths` slots."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths, np.int64) + 1
    total = int(sizes.sum())
    return Samples(
        ids=rng.integers(1, 400, total).astype(np.int32),
        trained=rng.random(total) < 0.4,
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        record=np.arange(len(sizes)),
        language=rng.integers(1, 8, len(sizes)).astype(np.uint8),
        names=[f"记录-{i}" for i in range(len(sizes))],
        sources=["s"] * len(sizes),
        kinds=["instruction"] * len(sizes),
        text_bytes=rng.integers(0, 900, len(sizes)),
    )


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, spare=st.integers(0, 40), seed=st.integers(0, 2**70), packing=st.booleans())
def test_every_item_in_exactly_one_row_within_the_capacity(lengths, spare, seed, packing):
    capacity = max(lengths, default=1) + spare
    rows = pack(lengths, capacity, seed=seed, packing=packing)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)
    again = pack(lengths, capacity, seed=seed, packing=packing)
    assert [r.tolist() for r in rows] == [r.tolist() for r in again]
    if not packing:
        assert all(len(row) == 1 for row in rows)
    elif lengths:  # never two rows that would fit into one (any-fit property)
        loads = sorted(sum(lengths[i] for i in row) for row in rows)
        assert len(rows) < 2 or loads[0] + loads[1] > capacity


def naive_best_fit(lengths, capacity):
    """Quadratic best-fit decreasing: of the rows with least room left over, the one that got there last."""
    rows, touched, out = [], [], [0] * len(lengths)
    for clock, i in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fits = [r for r, load in enumerate(rows) if load + lengths[i] <= capacity]
        r = max(fits, key=lambda r: (rows[r], touched[r]), default=len(rows))
        if r == len(rows):
            rows.append(0)
            touched.append(0)
        rows[r] += lengths[i]
        touched[r] = clock
        out[i] = r
    return out


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS)
def test_best_fit_equals_the_quadratic_algorithm(lengths):
    assert best_fit(np.array(lengths, np.int64), 64).tolist() == naive_best_fit(lengths, 64)


def test_rows_are_nearly_full_on_lengths_like_real_ones():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.8, 20000), 12, 2048).astype(int)
    rows = pack(lengths, 2048)
    assert lengths.sum() / (len(rows) * 2048) >= 0.99


def test_seed_changes_company_and_order_but_not_the_number_of_rows():
    lengths = np.random.default_rng(1).integers(1, 100, 500)
    one, two = pack(lengths, 128, seed=1), pack(lengths, 128, seed=2)
    assert len(one) == len(two)
    assert {tuple(sorted(r)) for r in one} != {tuple(sorted(r)) for r in two}


def test_impossible_lengths_are_refused():
    with pytest.raises(ValueError, match="1 .. 8"):
        best_fit(np.array([9]), 8)
    with pytest.raises(ValueError, match="1 .. 8"):
        best_fit(np.array([0, 3]), 8)


def test_permutation_is_a_fixed_function_of_its_key():
    # Golden values: a run that is resumed after an upgrade must see the same order.
    assert permutation(8, (0, 0)).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(8, (3, 1)).tolist() == [7, 3, 5, 6, 4, 0, 2, 1]
    assert sorted(permutation(1000, (-1, 5)).tolist()) == list(range(1000))


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), seed=st.integers(0, 1000))
def test_rows_keep_tokens_masks_and_names(lengths, seed):
    samples = samples_of(lengths, seed)
    rows = pack(lengths, 64, seed=seed)
    batch = empty_batch(len(rows), 64)
    for r, members in enumerate(rows):
        record = encode_row(samples, members)
        assert row_names(record) == [samples.names[i] for i in members]
        fill_row(batch, r, record, 100 + r)
        parts = split_row(record)
        assert parts.text_bytes.tolist() == samples.text_bytes[members].tolist()
        assert parts.language.tolist() == samples.language[members].tolist()
    assert batch["row_ids"].tolist() == list(range(100, 100 + len(rows)))
    for r, members in enumerate(rows):
        segments = batch["segment_ids"][r]
        assert sorted(set(segments) - {0}) == list(range(1, len(members) + 1))
        at = 0
        for number, i in enumerate(members, 1):
            ids = samples.ids[samples.offsets[i] : samples.offsets[i + 1]]
            trained = samples.trained[samples.offsets[i] : samples.offsets[i + 1]]
            n = len(ids) - 1
            here = slice(at, at + n)
            assert (segments[here] == number).all()
            assert batch["tokens"][r, here].tolist() == ids[:-1].tolist()
            assert batch["targets"][r, here].tolist() == ids[1:].tolist()
            assert batch["loss_mask"][r, here].tolist() == trained[1:].tolist()
            assert batch["positions"][r, here].tolist() == list(range(n))
            assert (batch["language"][r, here] == samples.language[i]).all()
            at += n
        for name in ("tokens", "targets", "segment_ids", "positions", "language", "loss_mask"):
            assert not batch[name][r, at:].any()
    # Nothing trained is lost or gained by packing.
    assert batch["loss_mask"].sum() == samples.supervised.sum()
    assert (batch["segment_ids"] > 0).sum() == samples.slots.sum() == sum(lengths)
    assert {k: v.dtype.name for k, v in batch.items() if k != "loss_mask"} == dict.fromkeys(
        ("tokens", "targets", "segment_ids", "positions", "language", "row_ids"), "int32"
    )
    assert batch["loss_mask"].dtype == np.float32
