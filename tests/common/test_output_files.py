"""Places for results: refused before the work, written whole or not at all."""

import json
import os
from unittest import mock

import pytest

from mmed_jax.common import output_files
from mmed_jax.common.errors import UserError, WorkError


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing/plan.json", "there is no folder"),
        (".", "is a folder"),
        ("loop", "can't be written"),
        ("/dev/full", "not a regular file"),
        ("/proc/plan.json", "can't be written"),
    ],
)
def test_files_that_cannot_be_written(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=message) as e:
        output_files.check_file(name, "--json")
    assert str(e.value).startswith(f"--json={name}: ") and os.listdir(tmp_path) == ["loop"]


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for name, message in (("file", "is a file"), ("file/deeper", "can't be written")):
        with pytest.raises(UserError, match=message):
            output_files.check_folder(tmp_path / name, "--output")
    with pytest.raises(UserError, match="--output=/proc/bench: can't be written"):
        output_files.check_folder("/proc/bench", "--output")
    assert output_files.check_folder(tmp_path / "new/folder", "--output").is_dir()


def test_what_is_there_stays_until_the_whole_is_written(tmp_path):
    file, link = tmp_path / "plan.json", tmp_path / "link.json"
    file.write_text("old")
    link.symlink_to(file)
    assert output_files.check_file(link, "--json") == file and file.read_text() == "old"
    with mock.patch("pathlib.Path.write_text", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(OSError):
            output_files.write_text(link, "new")
    with mock.patch("pathlib.Path.replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        output_files.write_text(link, "new")
    assert file.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["link.json", "plan.json"]
    output_files.write_text(link, "new")
    assert file.read_text() == "new" and link.is_symlink()


def test_a_file_is_put_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results.json"
    output_files.write_json(file, {"a": "é"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é"}
    with pytest.raises(TypeError):
        output_files.write_json(file, {"a": [1, 2, object()]})  # some of it is written by then
    with pytest.raises(KeyboardInterrupt), output_files.put_file(file) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é"} and list(tmp_path.iterdir()) == [file]
    with pytest.raises(WorkError, match="results.json/x: cannot be written"):
        output_files.write_json(file / "x", {})
