"""Flags with gs:// addresses: what is read is fetched once and compared, what is written goes up whole."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmed_jax.common.buckets import bucket, upload
from mmed_jax.common.buckets.download import address_of, open_input
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.place_flags import InputPlace, OutputPlace, ResumedOutput, SheetPlace


@pytest.fixture(autouse=True)
def cache(cloud, tmp_path, monkeypatch):
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "cache"))
    return tmp_path / "cache"


def media(cloud) -> int:
    return cloud.requests["GET media"]


def test_a_file_and_a_folder_are_fetched_once(cloud, cache):
    cloud.write("bucket", "in/train/a.jsonl", b"first\n")
    cloud.write("bucket", "in/train/sub/b.jsonl", b"second\n")
    before = media(cloud)
    file, folder = open_input("gs://bucket/in/train/a.jsonl"), open_input("gs://bucket/in/train/")
    assert file.read_bytes() == b"first\n" and (folder / "sub/b.jsonl").read_bytes() == b"second\n"
    # The split and the name of a cached table come from a file's name and that of its folder.
    assert (file.parent.name, file.name, folder.name) == ("train", "a.jsonl", "train")
    assert address_of(folder) == "gs://bucket/in/train" and address_of(cache) == ""
    assert media(cloud) - before == 3
    assert open_input("gs://bucket/in/train/a.jsonl") == file and open_input("gs://bucket/in/train") == folder
    assert media(cloud) - before == 3
    # Another generation is another copy; the old one stays for whom has it open.
    cloud.write("bucket", "in/train/a.jsonl", b"third\n")
    assert open_input("gs://bucket/in/train/a.jsonl").read_bytes() == b"third\n" and file.read_bytes() == b"first\n"
    assert open_input("gs://bucket/in/train/a.jsonl:dev").name == "a.jsonl:dev"


def test_what_is_not_there_is_one_line(cloud, cache):
    cloud.write("bucket", "near/questions.jsonl", b"1")
    with pytest.raises(UserError, match="^--data=gs://bucket/near/question.jsonl: nothing is there, did you mean 'q"):
        open_input("gs://bucket/near/question.jsonl", "--data")
    with pytest.raises(UserError, match="gs://nowhere does not exist, or may not be seen"):
        open_input("gs://nowhere/x", "--data")
    assert not cache.exists()


def test_faults_while_fetching_are_not_seen(cloud):
    for n in range(6):
        cloud.write("bucket", f"faulty/{n}", bytes([n]) * 50_000)
    kinds = ({"status": 503}, {"status": 429}, {"drop": "before"}, {"drop": "after"})
    faults = [cloud.fault("faulty.*media", times=1, **kind) for kind in kinds]
    folder = open_input("gs://bucket/faulty")
    assert [(folder / str(n)).read_bytes() for n in range(6)] == [bytes([n]) * 50_000 for n in range(6)]
    assert all(fault.seen for fault in faults)


def test_processes_of_a_host_fetch_once(cloud, capsys):
    for n in range(3):
        cloud.write("bucket", f"once/{n}", bytes([n]) * 1000)
    cloud.fault("once.*alt=media", delay=0.3)
    before = media(cloud)
    with ThreadPoolExecutor(3) as pool:
        folders = {*pool.map(open_input, ["gs://bucket/once"] * 3)}
    assert len(folders) == 1 and media(cloud) - before == 3
    assert "waiting for another process of this host" in capsys.readouterr().err


def test_bytes_that_arrive_damaged_are_fetched_again(cloud):
    cloud.write("bucket", "damage/a", b"whole")
    once = cloud.fault("damage.*media", damage=True, times=1)
    assert open_input("gs://bucket/damage/a").read_bytes() == b"whole" and once.seen
    cloud.write("bucket", "damage/a", b"whole again")
    cloud.fault("damage.*media", damage=True)
    with pytest.raises(WorkError, match="^gs://bucket/damage/a: came 3 times with another checksum"):
        open_input("gs://bucket/damage/a")


def test_the_first_failure_ends_the_downloads_that_are_under_way(cloud):
    cloud.write("bucket", "ended/large", bytes(64 << 20))
    cloud.write("bucket", "ended/refused", b"1")
    cloud.fault("ended.*refused.*media", status=403)
    cloud.fault("ended.*large.*media", delay=0.3)
    stopped, whole = [], bucket.Bucket.download

    def watched(self, name, *args):
        try:
            whole(self, name, *args)
        except WorkError as e:
            stopped.append((name, str(e)))
            raise

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="ended/refused: refused"):
        patch.setattr(bucket.Bucket, "download", watched)
        open_input("gs://bucket/ended")
    assert stopped == [("ended/large", "the download was stopped")]


def run(work, **flags):
    with local_places(argparse.Namespace(**flags)) as args:
        return work(args)


def test_inputs_in_lists_and_paths_of_this_machine(cloud, tmp_path):
    cloud.write("bucket", "list/a.csv", b"a")
    cloud.write("bucket", "list/a.csv.key.json", b"key")
    cloud.write("bucket", "list/run/results.json", b"{}")
    flags = dict(ratings=SheetPlace("me=gs://bucket/list/a.csv,you=/x"), runs=[InputPlace("A=gs://bucket/list/run")])
    flags |= dict(plain="gs", number=3, local=InputPlace("data/x.jsonl"))
    cloud.write("bucket", "list/my data/a b.csv", b"spaces")
    flags |= dict(named=InputPlace("x=gs://bucket/list/my data/a b.csv,/y z"))
    args = run(lambda args: args, **flags)
    assert open(args.named.removeprefix("x=").removesuffix(",/y z")).read() == "spaces"
    sheet = args.ratings.removeprefix("me=").removesuffix(",you=/x")
    assert open(sheet).read() == "a" and open(f"{sheet}.key.json").read() == "key"
    assert open(args.runs[0].removeprefix("A=") + "/results.json").read() == "{}"
    assert (args.plain, args.number, args.local) == ("gs", 3, "data/x.jsonl")
    flags = argparse.Namespace(output=OutputPlace("x"))
    with local_places(flags) as args:
        assert args is flags


def test_an_output_goes_up_with_its_last_file_last_and_is_replaced_whole(cloud, cache):
    def content(name):
        return "{}" if name == "config.json" else f"{name} {version}"

    def write(args):
        folder = upload.Path(args.output)
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name in files:
            (folder / name).write_text(content(name))
        (folder / ".x.7.tmp").write_text("")

    for version, files in enumerate((["config.json", "w-1", "w-2", "mmed_jax_export.json"], ["w-1", "config.json"])):
        start = len(cloud.log)
        if version == 0:
            cloud.fault("upload", status=503, probability=0.3)
            cloud.fault("upload", drop="after", probability=0.3)
        run(write, output=OutputPlace("gs://bucket/out/model"))
        assert {n: cloud.read("bucket", n).decode() for n in cloud.names("bucket", "out/model")} == {
            f"out/model/{name}": content(name) for name in files
        }
        writes = [line for line in cloud.log[start:] if not line.startswith("GET") and "write_test" not in line]
        cloud.heal()
        if version:
            assert writes[0].startswith("DELETE") and "config.json" in writes[0]
    # The last object of all to be written is config.json.
    assert cloud._objects["bucket", "out/model/config.json"].generation == cloud._generation
    assert list((cache / "outputs").iterdir()) == []


def test_what_fails_is_not_uploaded_and_names_the_address(cloud, cache):
    def fail(args):
        upload.Path(args.output).write_text("half")
        raise UserError(f"--output={args.output}: is wrong")

    with pytest.raises(UserError, match="^--output=gs://bucket/failed.json: is wrong$"):
        run(fail, output=OutputPlace("gs://bucket/failed.json"))
    assert cloud.names("bucket", "failed") == [] and list((cache / "outputs").iterdir()) == []
    with pytest.raises(UserError, match="^gs://nowhere/.*does not exist"):
        run(fail, output=OutputPlace("gs://nowhere/x"))
    assert list((cache / "outputs").iterdir()) == []

    # The bucket refuses the result: it is not lost.
    def write(args):
        upload.Path(args.output).write_text("whole")
        cloud.fault("POST ", status=403)

    with pytest.raises(WorkError, match="gs://bucket/refused.json: could not be uploaded .*it lies in ") as e:
        run(write, output=OutputPlace("gs://bucket/refused.json"))
    kept = str(e.value).partition("it lies in ")[2].partition(":")[0]
    assert open(kept).read() == "whole"


def test_a_journal_goes_up_as_it_grows_and_is_continued(cloud, monkeypatch):
    monkeypatch.setattr(upload, "EVERY_S", 0.05)
    seen = []

    def append(args):
        file = upload.Path(args.output)
        seen.append(file.read_text() if file.exists() else None)
        with file.open("a") as f:
            for n in range(2):
                f.write(json.dumps({"n": n}) + "\n")
                f.flush()
            f.write('{"torn"')
            f.flush()
            deadline = upload.threading.Event()
            for _ in range(200):
                if cloud.names("bucket", "journal.jsonl"):
                    break
                deadline.wait(0.05)
        seen.append(cloud.read("bucket", "journal.jsonl").decode())
        raise KeyboardInterrupt

    flags = dict(output=ResumedOutput("gs://bucket/journal.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        run(append, **flags)
    whole = '{"n": 0}\n{"n": 1}\n'
    assert seen == [None, whole] and cloud.read("bucket", "journal.jsonl").decode() == whole
    run(lambda args: seen.append(upload.Path(args.output).read_text()), **flags)
    assert seen[-1] == whole

    def other(args):
        cloud.write("bucket", "journal.jsonl", b"of another process")
        upload.Path(args.output).write_text("mine")

    with pytest.raises(WorkError, match="journal.jsonl: another process writes there as well"):
        run(other, **flags)


def test_an_upload_whose_answer_was_lost_is_gone_on_with(cloud, monkeypatch):
    """The file grew meanwhile: what is there is ours, and not of another process."""
    monkeypatch.setattr(bucket.open_bucket, "__defaults__", (1.0,))
    monkeypatch.setattr(upload, "EVERY_S", 3600)
    output = upload.Upload("gs://bucket/lost/answers.jsonl", "--output", ResumedOutput)
    path = output.open()
    path.write_text("1\n")
    lost = cloud.fault("POST .*upload|DELETE", drop="after")
    with pytest.raises(WorkError, match="no usable answer"):
        output._sync()
    assert lost.seen and cloud.read("bucket", "lost/answers.jsonl") == b"1\n"
    cloud.heal()
    path.write_text("1\n2\n")
    output.close()
    assert cloud.read("bucket", "lost/answers.jsonl") == b"1\n2\n"
    # A removal as well.
    output = upload.Upload("gs://bucket/lost/answers.jsonl", "--output", ResumedOutput)
    output.open().unlink()
    cloud.fault("DELETE", status=503)
    with pytest.raises(WorkError, match="no usable answer"):
        output._sync()
    cloud.heal()
    output.close()
    assert cloud.names("bucket", "lost/") == []


def test_of_two_outputs_the_second_goes_up_though_the_first_is_refused(cloud, cache):
    def write(args):
        upload.Path(args.output).write_text("records")
        upload.Path(args.rejects).write_text("rejects")
        cloud.fault("POST .*records", status=403)

    places = dict(output=OutputPlace("gs://bucket/both/records"), rejects=OutputPlace("gs://bucket/both/rejects"))
    with pytest.raises(WorkError, match="gs://bucket/both/records: could not be uploaded"):
        run(write, **places)
    assert cloud.names("bucket", "both/") == ["both/rejects"] and len(list((cache / "outputs").iterdir())) == 1


def test_answers_never_lie_there_without_the_settings_that_go_on_with_them(cloud):
    def write(args):
        path = upload.Path(args.output)
        path.write_text("{}\n")
        path.with_name("answers.settings.json").write_text("{}")
        refused.append(cloud.fault("POST .*settings", status=403))

    refused = []
    with pytest.raises(WorkError, match="could not be uploaded"):
        run(write, output=ResumedOutput("gs://bucket/first/answers.jsonl"))
    assert refused[0].seen and cloud.names("bucket", "first/") == []


def test_ctrl_c_while_the_result_goes_up_says_where_it_lies(cloud, capsys):
    def write(args):
        upload.Path(args.output).write_text("whole")
        patch.setattr(bucket.Bucket, "put", interrupted)

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        run(write, output=OutputPlace("gs://bucket/interrupted.json"))
    line = capsys.readouterr().err
    assert line.startswith("warning: gs://bucket/interrupted.json: was not uploaded to its end; it lies in ")
    assert open(line.strip().rpartition("it lies in ")[2]).read() == "whole"
