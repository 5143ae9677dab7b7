"""Version 2 of the packed table: groups and their rows, bytes of text, rows that are trained whole, the fingerprint."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from mmed_jax.common.errors import WorkError
from mmed_jax.data.pack import pack
from mmed_jax.data.packed_table import TABLE, Table, make_part, table_info, table_report, write_rows, write_shard
from tests.data.test_pack import samples_of

SEQ_LEN = 32


def grouped_table(folder):
    """Two groups of two shards and one of one, each of samples of its own; (table, samples and rows of each shard)."""
    made, groups = [], []
    for name, counts in (("fr/web", (9, 5)), ("ja/books", (7,)), ("unknown/web", (3, 4))):
        shards = []
        for number, count in enumerate(counts):
            lengths = np.random.default_rng(len(made)).integers(1, SEQ_LEN + 1, count)
            samples = samples_of(lengths, seed=len(made))
            rows, path = pack(lengths, SEQ_LEN), f"train/{name}/{number:05d}.array_record"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shards.append({"path": path, **write_shard(folder / path, samples, rows)})
            made.append((samples, rows))
        groups.append((name, *name.split("/"), shards))
    info = table_info(SEQ_LEN, "document", {}, {"train": {**make_part(groups), "report": {}}}) | {"key": "k"}
    (folder / TABLE).write_text(json.dumps(info))
    return Table(folder, "train"), made


def test_groups_have_their_rows_and_counts(tmp_path):
    table, made = grouped_table(tmp_path)
    parts = [made[:2], made[2:3], made[3:]]
    assert [g.name for g in table.groups] == ["fr/web", "ja/books", "unknown/web"]
    for group, part in zip(table.groups, parts, strict=True):
        own = range(group.start, group.start + group.rows)
        assert sorted(name for row in own for name in table.describe_row(row)) == sorted(
            name for samples, _ in part for name in samples.names
        )
        batch = table.batch(own)
        assert group.tokens == (batch["segment_ids"] > 0).sum() and group.supervised == batch["loss_mask"].sum()
        assert group.bytes == table.text_bytes(own).sum() == sum(samples.text_bytes.sum() for samples, _ in part)
        assert group.documents == sum(map(len, (samples for samples, _ in part)))
    assert sum(g.rows for g in table.groups) == len(table)


def test_bytes_of_text_are_by_language_and_padding_has_none(tmp_path):
    table, made = grouped_table(tmp_path)
    expected = np.zeros(8, int)
    for samples, _ in made:
        expected += np.bincount(samples.language, samples.text_bytes, minlength=8).astype(int)
    assert table.text_bytes([*range(len(table)), -1]).tolist() == expected.tolist()
    assert not table.text_bytes([-1, -1]).any()


def test_rows_that_are_trained_whole_need_no_mask(tmp_path):
    masked = samples_of([3, 20, 32, 7])
    masked.trained[:] = True
    masked = dataclasses.replace(masked, supervised=None)
    whole = dataclasses.replace(masked, trained=None, supervised=None)
    parts, batches = [], []
    for name, samples in (("masked", masked), ("whole", whole)):
        (tmp_path / name).mkdir()
        rows = pack(samples.slots, SEQ_LEN)
        parts.append({**write_rows(tmp_path / name, "train", samples, rows), "report": {}})
        info = table_info(SEQ_LEN, "instruction", {}, {"train": parts[-1]}) | {"key": "k"}
        (tmp_path / name / TABLE).write_text(json.dumps(info))
        table = Table(tmp_path / name, "train")
        batches.append(table.batch(range(len(table))))
        assert table_report(samples, rows, SEQ_LEN)["supervised"] == samples.slots.sum()
    assert all(np.array_equal(batches[0][k], batches[1][k]) for k in batches[0])
    assert parts[0]["groups"] == parts[1]["groups"]


def test_a_run_that_began_with_version_1_finds_its_fingerprint(tmp_path):
    """A SHA-256 over the records as version 1 wrote them."""
    samples = samples_of([5, 9, 30, 1, 12])
    rows, digest = pack(samples.slots, SEQ_LEN, seed=3), hashlib.sha256()
    for members in rows:
        spans = [slice(samples.offsets[i], samples.offsets[i + 1]) for i in members]
        ids = np.concatenate([samples.ids[s] for s in spans])
        trained = np.concatenate([samples.trained[s] for s in spans])
        digest.update(np.array([len(spans), len(ids), *(s.stop - s.start for s in spans)], "<i4").tobytes())
        digest.update(samples.language[list(members)].tobytes() + ids.astype("<i4").tobytes())
        names = [samples.names[i] for i in members]
        digest.update(np.packbits(trained).tobytes() + json.dumps(names, ensure_ascii=False).encode())
    assert write_rows(tmp_path, "train", samples, rows)["fingerprint"] == digest.hexdigest()


def test_a_table_of_version_1_is_refused_by_name(tmp_path):
    (tmp_path / TABLE).write_text(json.dumps({"seq_len": 8, "key": "k", "tables": {"train": {}}}))
    with pytest.raises(WorkError, match="table.json: is of version 1, this program reads 2; make the table anew"):
        Table(tmp_path, "train")
    with pytest.raises(WorkError, match=r"gone.*table.json: cannot be read"):
        Table(tmp_path / "gone", "train")
