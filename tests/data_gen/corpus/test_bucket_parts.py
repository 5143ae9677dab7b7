"""Parts of a stage in a bucket: what is damaged there is made anew, and one that is made twice at once is whole."""

import pytest

from data_gen.corpus.bucket_parts import sync_parts
from data_gen.corpus.stage_folder import Stage, StageFolder
from tests.support.fake_gcs import fake_cloud

STORE = "gs://bucket/corpus/work"


@pytest.fixture
def cloud():
    with fake_cloud() as cloud:
        yield cloud


def machine(folder) -> StageFolder:
    """The stage, with two parts, on a machine's disk."""
    folder.mkdir()
    stage = Stage("clean", "data_gen.corpus.output_stage:write_group", [{"unit": 0}, {"unit": 1}])
    return StageFolder.make(folder, stage, STORE)


def fill(stage: StageFolder, number: int) -> None:
    with stage.put(number) as (path, result):
        (path / "documents").write_bytes(b"text %d" % number)
        result.rows = 1


def test_a_part_with_other_bytes_of_the_same_size_is_made_anew(cloud, tmp_path, capsys):
    one, two, three = (machine(tmp_path / name) for name in ("one", "two", "three"))
    fill(one, 0)
    fill(one, 1)
    (damaged,) = (n for n in cloud.names("bucket") if n.endswith("000001/documents"))
    cloud.write("bucket", damaged, b"tExt 1")
    two.sync()
    assert two.pending() == [1]
    assert "documents has another checksum than it says; the part is made anew" in capsys.readouterr().err
    fill(two, 1)
    assert cloud.read("bucket", damaged) == b"text 1"
    three.sync()
    assert three.pending() == []


def test_a_part_that_a_task_makes_while_it_is_fetched_is_kept(cloud, tmp_path):
    """Jobs of a build that was killed go on, and the next one fetches what they have put up."""
    stage = machine(tmp_path / "one")
    fill(stage, 0)
    sync_parts(stage.store, stage.part(0).parent, {}, ["000000", "000001"])
    assert stage.pending() == [1] and (stage.part(0) / "documents").read_bytes() == b"text 0"
    assert not list(stage.part(0).parent.glob(".*"))
