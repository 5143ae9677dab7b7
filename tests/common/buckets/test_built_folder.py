"""The folder of a long build in a bucket: who lost the lock changes nothing, and what is not whole never looks so."""

import json

import pytest

from mmed_jax.common.buckets.built_folder import BuiltFolder, built_folder
from mmed_jax.common.buckets.download import open_input
from mmed_jax.common.errors import UserError, WorkError

ADDRESS = "gs://bucket/built"


@pytest.fixture(autouse=True)
def cache(cloud, tmp_path, monkeypatch):
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "cache"))
    for name in cloud.names("bucket"):
        cloud.remove("bucket", name)


def build(files: dict[str, bytes], address: str = ADDRESS) -> BuiltFolder:
    """A build that is open, and has written these files."""
    built = BuiltFolder(address, "--output", ("documents",), ("report.html", "corpus.json"))
    built.open()
    for name, data in files.items():
        (built.path / name).parent.mkdir(parents=True, exist_ok=True)
        (built.path / name).write_bytes(data)
    return built


def published(files: dict[str, bytes]) -> None:
    built = build(files)
    built.publish()
    built.close()


ONE = {"documents/a": b"1", "documents/b": b"2", "corpus.json": b"{}"}
TWO = {"documents/a": b"3", "documents/b": b"2", "corpus.json": b"[]"}


def held_by(cloud, who: str) -> None:
    cloud.write("bucket", "built/work/lock", json.dumps({"host": who, "process": 1, "id": "x", "time": 0}).encode())


def test_a_process_that_stood_still_changes_nothing(cloud):
    """Another one took the lock, and this one had no time to notice."""
    published(ONE)
    built = build(TWO)
    held_by(cloud, "another")
    before = dict(cloud._objects)
    with pytest.raises(WorkError, match="its lock was taken over by process 1 on another"):
        built.publish()
    built.close()
    assert cloud._objects == before


@pytest.mark.parametrize("change", ["removed", "other", "more"])
def test_the_last_file_is_written_where_all_others_are(cloud, change, monkeypatch):
    """Whatever another process does at the same time."""
    published(ONE)
    built = build(TWO)
    put = built._bucket.put

    def and_another(name, *arguments, **keywords):
        stored = put(name, *arguments, **keywords)
        if name == "built/documents/a":
            if change == "removed":
                cloud.remove("bucket", "built/documents/b")
            else:
                cloud.write("bucket", f"built/documents/{'b' if change == 'other' else 'c'}", b"x")
        return stored

    monkeypatch.setattr(built._bucket, "put", and_another)
    with pytest.raises(WorkError, match="another process writes there as well.*the same command goes on"):
        built.publish()
    built.close()
    assert "built/corpus.json" not in cloud.names("bucket")
    monkeypatch.undo()


def test_the_lock_of_a_build_is_no_part_of_what_is_read(cloud, tmp_path, monkeypatch):
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "cache"))
    published(ONE)
    folder = open_input(ADDRESS)
    built = build(TWO)
    assert "built/work/lock" in cloud.names("bucket") and open_input(ADDRESS) == folder
    built.close()
    built = build(TWO, f"{ADDRESS}/new")
    with pytest.raises(UserError, match=f"^{ADDRESS}/new: is not finished"):
        open_input(f"{ADDRESS}/new")
    built.close()


def test_a_name_that_is_taken_is_one_line(cloud):
    cloud.write("bucket", "file", b"x")
    cloud.write("bucket", "odd/corpus.json/deep", b"x")
    cloud.write("bucket", "odd/corpus.json", b"x")
    before = dict(cloud._objects)
    with pytest.raises(UserError, match="^--output=gs://bucket/file: is a file"):
        build({}, "gs://bucket/file")
    with (
        pytest.raises(UserError, match="^--output=gs://bucket/odd: cannot be shown in"),
        built_folder("gs://bucket/odd", "--output", ("documents",), ("corpus.json",)),
    ):
        pass
    assert cloud._objects == before
