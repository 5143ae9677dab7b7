"""A model's folder in a bucket: weights are read by ranges, equal to those of a disk, and no more than is asked for."""

import re
from collections import Counter

import jax
import numpy as np
import pytest

from mmed_jax.common.buckets import ranged_file
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.hf.load import load_config, load_params
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.safetensors import read_header
from mmed_jax.hf.weights_sample import describe_weights
from mmed_jax.model.llama import logical_axes
from mmed_jax.parallel.sharding import make_mesh, param_shardings
from tests.support.fake_gcs import fake_gcs, impatient
from tests.support.hf_folders import hf_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("hf") / "model", dtype="bfloat16", max_shard_size="60KB")


@pytest.fixture
def cloud(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "cache"))
    monkeypatch.setattr(ranged_file, "LEAST", 1000)
    monkeypatch.setattr(ranged_file, "PART", 2048)
    with fake_gcs() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for file in folder.iterdir():
            server.write("bucket", f"models/tiny/{file.name}", file.read_bytes())
        yield server


def media(cloud) -> Counter:
    """How often each object was read."""
    reads = (re.search(r"/o/([^?]+)\?.*alt=media", line) for line in cloud.log)
    return Counter(m[1].rpartition("%2F")[2] for m in reads if m)


def test_a_folder_in_a_bucket_equals_one_on_a_disk(cloud, folder, tmp_path, monkeypatch):
    ours, theirs = open_model("gs://bucket/models/tiny"), open_model(folder)
    assert media(cloud)["config.json"] == 1
    assert ours.fingerprint() == theirs.fingerprint()
    impatient(monkeypatch)
    cloud.fault("safetensors", status=503, probability=0.1)
    cloud.fault("safetensors", drop="before", probability=0.1)
    mesh = make_mesh(fsdp=4, tensor=2)
    shardings = param_shardings(mesh, logical_axes(theirs.cfg))
    for where in (None, shardings):
        a, b = (load_params(source.path, source.cfg, shardings=where) for source in (ours, theirs))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.sharding == y.sharding and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    # Nothing but small files is on this machine's disk.
    stored = sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*.safetensors"))
    assert (
        stored
        < 300 * len(list(folder.glob("*.safetensors")))
        < sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    )


def test_two_hosts_know_by_the_objects_that_they_fetched_other_weights(cloud, tmp_path, monkeypatch):
    """A third host fetches after an object was written anew; to tell that, none reads more than headers."""
    name = "models/tiny/model-00002-of-00002.safetensors"
    assert name in cloud.names("bucket", "models/tiny/")
    first = describe_weights(open_model("gs://bucket/models/tiny"))
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "another host"))
    source = open_model("gs://bucket/models/tiny")
    cloud.log.clear()
    assert describe_weights(source) == first
    # Of each the size of its header and the header.
    assert media(cloud) == dict.fromkeys((f.name for f in source.path.glob("*.safetensors")), 2)

    weights = bytearray(cloud.read("bucket", name))
    weights[-1] ^= 1
    cloud.write("bucket", name, bytes(weights))
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "a third host"))
    assert describe_weights(open_model("gs://bucket/models/tiny")) != first


def test_a_host_reads_the_bytes_of_its_own_rows(cloud, folder):
    source = open_model("gs://bucket/models/tiny")
    tensor = next(t for f in source.path.glob("*.safetensors") for n, t in read_header(f).items() if "embed" in n)
    rows, columns = tensor.shape
    cloud.log.clear()
    out = np.zeros((rows // 4, columns // 2), np.float32)
    tensor.read((slice(rows // 4, rows // 2), slice(0, columns // 2)), out)
    local = next(t for f in folder.glob("*.safetensors") for n, t in read_header(f).items() if "embed" in n)
    want = np.zeros_like(out)
    local.read((slice(rows // 4, rows // 2), slice(0, columns // 2)), want)
    assert (out == want).all() and out.any()
    assert len(cloud.log) == -(-(rows // 4 * columns * 2) // ranged_file.PART)


def test_weights_that_change_while_they_are_read_stop_it(cloud):
    source = open_model("gs://bucket/models/tiny")
    for name in cloud.names("bucket", "models/tiny/model"):
        cloud.write("bucket", name, b"other weights")
    with pytest.raises(WorkError, match="safetensors: was changed or removed while it was read; run the command again"):
        load_params(source.path, source.cfg)
    with pytest.raises(UserError, match="gs://bucket/models/tin: nothing is there, did you mean 'tiny'"):
        open_model("gs://bucket/models/tin")
    assert load_config(source.path) == source.cfg
