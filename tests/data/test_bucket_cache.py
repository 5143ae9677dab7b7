"""Records and packed tables in a bucket: the same table as on a disk, made once, fetched once a host, never half."""

import threading

import numpy as np
import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.config.overrides import parse_args
from mmed_jax.data import packed_cache
from mmed_jax.data.prepare import prepare
from mmed_jax.data.records.schema import write_records
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from tests.support.fake_gcs import fake_gcs
from tests.support.tokenizer import tiny_tokenizer

CACHE = "gs://bucket/packed"


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tok")))


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with fake_gcs() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        on_host("first", monkeypatch, tmp_path)
        (tmp_path / "train").mkdir()
        records = (
            {
                "id": f"r{i}",
                "language": "en",
                "messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"answer {i}"}],
                "source": "s",
            }
            for i in range(20)
        )
        write_records(tmp_path / "train/en.jsonl", records)
        server.write("bucket", "data/train/en.jsonl", (tmp_path / "train/en.jsonl").read_bytes())
        yield server


def on_host(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "hosts" / name))


def prepared(tok, train="gs://bucket/data/train/en.jsonl", cache=CACHE, **more):
    given = {"data.train": train, "data.cache_dir": cache, "data.seq_len": 64, "data.validation_fraction": 0}
    config, _ = parse_args(["--config=stage1", *(f"--config.{k}={v}" for k, v in given.items())])
    return prepare(config, tok, **{"timeout_s": 0.3, "say": lambda line: None, **more})


def arrays(table):
    return {name: array.tolist() for name, array in table.train.batch(np.arange(len(table.train))).items()}


def objects(cloud):
    return {n: cloud.read("bucket", n) for n in cloud.names("bucket", "packed/")}


def test_a_table_is_that_of_a_disk_made_once_and_fetched_once_a_host(cloud, tok, tmp_path, monkeypatch):
    local = prepared(tok, tmp_path / "train/en.jsonl", tmp_path / "cache")
    with pytest.raises(WorkError, match=f"packed table {CACHE}/[0-9a-f]*: is not there, after 0 s of waiting"):
        prepared(tok, is_writer=False)
    for fault in ({"status": 503}, {"drop": "after"}):
        cloud.fault("upload.*", probability=0.2, **fault)
    made = prepared(tok)
    cloud.heal()
    key = local.report["folder"].rpartition("/")[2]
    assert made.report["folder"].endswith(f"/{key}") and not made.report["cached"]
    assert arrays(made) == arrays(local)
    stored = objects(cloud)
    assert f"packed/{key}/manifest.json" in stored
    manifest = cloud._objects["bucket", f"packed/{key}/manifest.json"].generation
    assert manifest == max(stored.generation for stored in cloud._objects.values())
    assert prepared(tok).report["cached"] and objects(cloud) == stored

    on_host("second", monkeypatch, tmp_path)
    before = cloud.requests["GET media"]
    assert arrays(prepared(tok, is_writer=False)) == arrays(local)
    assert cloud.requests["GET media"] - before == len(stored) + 1  # and the records
    assert prepared(tok, is_writer=False).report["cached"]
    assert cloud.requests["GET media"] - before == len(stored) + 1


def test_other_processes_wait_for_the_manifest(cloud, tok, tmp_path, monkeypatch):
    key = prepared(tok, tmp_path / "train/en.jsonl", tmp_path / "cache").report["folder"].rpartition("/")[2]
    monkeypatch.setattr(packed_cache, "_POLL_S", 0.05)
    lines, got = [], []
    reader = threading.Thread(
        target=lambda: got.append(prepared(tok, is_writer=False, timeout_s=60, say=lines.append)), daemon=True
    )
    cloud.fault("POST", delay=0.2, times=1)
    reader.start()
    while not lines:
        reader.join(0.02)
    assert lines == [f"waiting for the first process to make the packed table {CACHE}/{key}"]
    made = prepared(tok)
    reader.join(30)
    assert arrays(got[0]) == arrays(made)


def test_a_second_maker_leaves_what_the_first_put_there(cloud, tok, tmp_path, monkeypatch):
    """Whoever fetches the table by then has its objects by their generation."""
    prepared(tok)
    before = dict(cloud._objects)
    on_host("second", monkeypatch, tmp_path)
    began = cloud.fault("GET .*manifest.json", status=404, times=1)  # it looked before there was a manifest
    assert not prepared(tok).report["cached"] and began.seen
    assert cloud._objects == before


def test_a_damaged_table_is_made_anew(cloud, tok, tmp_path, monkeypatch, capsys):
    prepared(tok)
    whole = objects(cloud)
    shard = next(n for n in whole if n.endswith((".array_record", ".bin")) or "train" in n)
    cloud.remove("bucket", shard)
    on_host("second", monkeypatch, tmp_path)
    with pytest.raises(WorkError, match="after 0 s of waiting"):
        prepared(tok, is_writer=False)
    made = prepared(tok)
    assert not made.report["cached"] and "made anew" in capsys.readouterr().err
    assert objects(cloud).keys() == whole.keys()
    # A cut upload has no manifest, and is none.
    cloud.remove("bucket", next(n for n in whole if n.endswith("manifest.json")))
    on_host("third", monkeypatch, tmp_path)
    assert not prepared(tok).report["cached"] and objects(cloud).keys() == whole.keys()


def test_what_is_not_there_or_refused_is_one_line(cloud, tok):
    with pytest.raises(UserError, match="^config.data.train=gs://bucket/data/train/fr.jsonl: nothing is there, did"):
        prepared(tok, "gs://bucket/data/train/fr.jsonl")
    with pytest.raises(UserError, match="^gs://nowhere/.*gs://nowhere does not exist"):
        prepared(tok, cache="gs://nowhere/x")
    cloud.fault("POST ", status=403)
    with pytest.raises(UserError, match="refused by Google Cloud Storage"):
        prepared(tok)
