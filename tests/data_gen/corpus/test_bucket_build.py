"""Corpora and tables built into a bucket: killed, with faults, on other machines, and byte for byte as on a disk."""

import contextlib
import hashlib
import re
import signal
import sys
import time

import pytest

from data_gen.commands.corpus import main
from mmed_jax import inspect
from mmed_jax.common.buckets.bucket import open_bucket
from mmed_jax.common.buckets.download import open_input
from mmed_jax.common.buckets.lease import Lease
from mmed_jax.common.errors import UserError
from tests.support.corpora import finish, launch, result, start, write_inputs
from tests.support.fake_gcs import fake_cloud
from tests.support.tokenizer import tiny_tokenizer

B = "gs://bucket"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_inputs(folder, 40)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tok"))


@pytest.fixture(scope="module")
def cloud():
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture(scope="module")
def corpus(raw, tmp_path_factory):
    """On a disk."""
    folder = tmp_path_factory.mktemp("corpus")
    main(["build", f"--recipe={raw / 'recipe.py'}", f"--data_dir={raw}", f"--output={folder}", "--workers=2"])
    return folder


@contextlib.contextmanager
def troubled(cloud):
    """A bucket that now and then refuses for a moment, or whose answers are lost."""
    for fault in ({"status": 503}, {"drop": "before"}, {"drop": "after"}):
        cloud.fault("POST|GET .*alt=media", probability=0.03, **fault)
    try:
        yield
    finally:
        cloud.heal()


def machine(tmp_path, name):
    """The environment of a machine with a disk of its own."""
    return {"MMED_JAX_BUCKETS": str(tmp_path / name)}


def finished(cloud, folder):
    """{name: checksum} of all that a build gives, and that the last file was the last."""
    names = [n for n in cloud.names("bucket", f"{folder}/") if not n.startswith(f"{folder}/work/")]
    return {n.removeprefix(f"{folder}/"): hashlib.sha256(cloud.read("bucket", n)).hexdigest() for n in names}


def parts(cloud, folder):
    """Finished parts in the bucket, but of the inputs, whose checksums each machine reads for itself."""
    names = cloud.names("bucket", f"{folder}/work/")
    return {n for n in names if n.endswith("/marker.json") and not re.search("/(inputs|files)-", n)}


def kill_when(process, cloud, reached):
    """kill -9 of the command once `reached()`; its lock then looks as old as it is a minute later."""
    end = time.monotonic() + 240
    while not reached():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    cloud.advance(100)


def to_make(printed):
    """(parts, of these to make) of all stages but that of the inputs."""
    counts = re.findall(r"^(?!inputs|files)\w+-\w{16}: (\d+) parts, (\d+) to make$", printed, re.MULTILINE)
    return sum(int(n) for n, _ in counts), sum(int(n) for _, n in counts)


def test_a_killed_build_goes_on_elsewhere_and_gives_the_bytes_of_a_disk(raw, corpus, cloud, tmp_path, monkeypatch):
    """Killed while parts are made, then on another machine, then while it goes up; nothing finished is made again."""
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "reader"))
    one, two = machine(tmp_path, "one"), machine(tmp_path, "two")
    with troubled(cloud):
        kill_when(start(raw, f"{B}/corpus", env=one), cloud, lambda: len(parts(cloud, "corpus")) >= 2)
        kill_when(start(raw, f"{B}/corpus", env=one), cloud, lambda: len(parts(cloud, "corpus")) >= 6)
    with pytest.raises(UserError, match=f"^{B}/corpus: is not finished"):
        open_input(f"{B}/corpus")
    kept = len(parts(cloud, "corpus"))
    cloud.fault("POST .*rewriteTo", delay=1.0)
    process = start(raw, f"{B}/corpus", env=two)
    kill_when(process, cloud, lambda: "corpus/documents" in " ".join(cloud.names("bucket", "corpus/documents/")))
    cloud.heal()
    assert "corpus/corpus.json" not in cloud.names("bucket", "corpus/")
    printed = finish(raw, f"{B}/corpus", env=two)
    assert to_make(printed)[1] == 0 and f"uploaded   {B}/corpus" in printed
    assert finished(cloud, "corpus") == result(corpus)
    before = {n: s.generation for (_, n), s in cloud._objects.items()}
    assert max(before, key=before.get) == "corpus/corpus.json"
    assert len(parts(cloud, "corpus")) > kept and cloud.requests["POST rewrite"] >= len(finished(cloud, "corpus")) - 3
    # A third machine has nothing to make and changes nothing; a part that is damaged there is made anew.
    damaged = next(n for n in cloud.names("bucket", "corpus/work/clean-") if n.endswith("documents.jsonl.zst"))
    cloud.remove("bucket", damaged)
    printed = finish(raw, f"{B}/corpus", env=machine(tmp_path, "three"))
    assert to_make(printed)[1] == 1 and "the part is made anew" in printed
    after = {n: s.generation for (_, n), s in cloud._objects.items()}
    renewed = {damaged, damaged.rpartition("/")[0] + "/marker.json"}
    assert {n for n in before if before[n] != after[n]} == renewed and before.keys() == after.keys()
    # What was finished is fetched without the work.
    folder = open_input(f"{B}/corpus")
    assert result(folder) == result(corpus) and not (folder / "work").exists()


def tokenize(source, tokenizer, output, fraction):
    """A command line, behind `data_gen corpus`."""
    line = ["tokenize", f"--input={source}", f"--tokenizer={tokenizer}", f"--output={output}", "--seq_len=64"]
    return [*line, "--workers=2", "--unit_mb=0.001", f"--validation_fraction={fraction}"]


def begun(line, env):
    return launch([sys.executable, "-m", "data_gen", "corpus", *line], env=env)


def done(process):
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def test_a_table_is_that_of_a_disk_and_gives_way_to_another(corpus, tokenizer, cloud, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "reader"))
    one, two = machine(tmp_path, "one"), machine(tmp_path, "two")
    here, there = (
        (lambda f: tokenize(corpus, tokenizer, tmp_path / "table", f)),
        (lambda f: tokenize(corpus, tokenizer, f"{B}/table", f)),
    )
    main(here(0.3))
    with troubled(cloud):
        kill_when(begun(there(0.3), one), cloud, lambda: len(parts(cloud, "table")) >= 5)
        kept = len(parts(cloud, "table"))
        total, made = to_make(done(begun(there(0.3), two)))
    assert made <= total - kept and finished(cloud, "table") == result(tmp_path / "table")
    assert any(name.startswith("validation/") for name in finished(cloud, "table"))
    inspect.main([f"--table={B}/table", "--check"])
    assert f"table {B}/table: kind document" in capsys.readouterr().out
    # Refused in its midst the table is none; the same command goes on.
    refused = cloud.fault("POST .*rewriteTo.*table%2Ftrain", status=403, times=1)
    process = begun(there(0), two)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and refused.seen and "could not be uploaded to its end" in printed
    assert "the same command goes on" in printed and "table/table.json" not in cloud.names("bucket", "table/")
    cloud.heal()
    assert to_make(done(begun(there(0), two)))[1] == 0
    main(here(0))
    assert finished(cloud, "table") == result(tmp_path / "table")
    assert not any(name.startswith("validation/") for name in finished(cloud, "table"))


def test_what_is_refused_is_one_line_and_changes_nothing(raw, tokenizer, cloud, tmp_path, monkeypatch):
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    build = ["build", f"--recipe={raw / 'recipe.py'}"]
    cloud.write("bucket", "raw/web/a.jsonl", b'{"text": "x"}\n')
    cloud.write("bucket", "raw/documents/a.jsonl", b'{"text": "x"}\n')
    cloud.write("bucket", "notes/todo.txt", b"x")
    cloud.write("bucket", "old/corpus.json", b"{}")
    cloud.write("bucket", "records/table.json", b'{"kind": "instruction"}')
    before = dict(cloud._objects)

    def refused(line, problem):
        with pytest.raises(UserError, match=problem):
            main(line)
        assert cloud._objects == before and not (tmp_path / "gs:").exists()

    refused([*build, f"--data_dir={B}/raw", f"--output={B}/raw/web/out"], "lies in what another flag names")
    refused([*build, f"--data_dir={B}/raw/documents", f"--output={B}/raw/"], f"{B}/raw/documents lies in it")
    refused([*build, f"--data_dir={raw}", f"--output={B}"], f"--output={B}: name something in the bucket")
    refused([*build, f"--data_dir={raw}", "--output=gs://no-where/x"], "gs://no-where does not exist")
    table = ["tokenize", f"--input={raw / 'web/a.jsonl'}", f"--tokenizer={tokenizer}"]
    refused([*table, f"--output={B}/notes"], f"^--output={B}/notes: holds other files .todo.txt")
    refused([*table, f"--output={B}/old"], f"^--output={B}/old: (is the folder of a corpus|holds other files)")
    refused([*table, f"--output={B}/records"], f"^--output={B}/records: is a packed table of records")
    # One at a time: whoever holds the lock is seen by its heartbeats.
    bucket, _ = open_bucket(f"{B}/x")
    lease = Lease(bucket, "corpus/work/lock", "corpus", heartbeat_s=0.5)
    lease.take()
    with pytest.raises(UserError, match=f"^--output={B}/corpus is in use by another process"):
        main([*build, f"--data_dir={raw}", f"--output={B}/corpus"])
    lease.release()
