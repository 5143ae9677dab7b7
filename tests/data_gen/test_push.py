"""The push command: a built set goes up as a data set, whole and nothing beside it; each refusal is one line."""

import json
import shutil

import pytest
import yaml

from data_gen.commands.push import main
from mmed_jax.common.errors import UserError
from tests.commands.test_export_card import hub  # noqa: F401
from tests.data_gen.test_build import build, demo
from tests.support.fake_hub import GOOD_TOKEN


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push") / "set"
    build(demo(languages="fr", steps=""), folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


def test_a_set_goes_up_with_its_card_and_nothing_else(folder, hub, capsys):  # noqa: F811
    (folder / "ledger.sqlite").write_bytes(b"secret")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "More.\n")
    hub.repos["datasets/org/set"] = {"private": False, "files": {"jsonl/train/ru.jsonl": b"old", "mine.txt": b"m"}}
    main([f"--set={folder}", "--repo=org/set"])
    files = hub.files("datasets/org/set")
    build = json.loads((folder / "build.json").read_text())
    assert files.keys() == {*build["sha256"], "build.json", "mine.txt"}
    for name in files.keys() - {"mine.txt"}:
        assert files[name] == (folder / name).read_bytes(), name
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    card = files["README.md"].decode()
    assert head["language"] == ["fr"] and "synthetic" in head["tags"] and "## Licences" in card and "More." in card
    assert "**For research. Not for clinical use.**" in card
    printed = capsys.readouterr()
    assert f"pushed   {hub.address}/datasets/org/set\n" in printed.out and GOOD_TOKEN not in printed.out + printed.err


def test_an_upload_that_broke_off_goes_on(folder, hub):  # noqa: F811
    flags = [f"--set={folder}", "--repo=org/again", "--private"]
    hub.refusals[r"/commit/main"] = 403
    with pytest.raises(
        UserError, match=r"may not write there.*\(HTTP 403\); .*python -m data_gen push --set=.*private"
    ):
        main(flags)
    sent = list(hub.uploaded)
    assert sent and not hub.files("datasets/org/again")
    hub.refusals.clear()
    main(flags)
    assert hub.uploaded == sent and hub.repos["datasets/org/again"]["private"]
    assert hub.files("datasets/org/again")


def test_what_may_not_go_up_is_refused_before_anything_is_made(folder, hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    build = json.loads((folder / "build.json").read_text())

    def refused(words, *flags):
        with pytest.raises(UserError, match=words) as e:
            main([f"--set={folder}", "--repo=org/set", *flags])
        assert "\n" not in str(e.value)

    refused("--repo=set: is no name on the hub; give ORG/NAME", "--repo=set")
    refused("is no set of `data_gen build`", f"--set={tmp_path}")
    (folder / "build.json").write_text(json.dumps({**build, "rows_by_license": {"": 3, "CC BY-ND 4.0": 1}}))
    refused(r"a public copy: none stated \(3 rows\), CC BY-ND 4.0 \(1 rows\); build with --licenses=open, or add")
    (folder / "build.json").write_text(json.dumps({k: v for k, v in build.items() if k != "sha256"}))
    refused("built by an earlier version, which wrote no hashes; build it again")
    (folder / "build.json").write_text(json.dumps(build))
    rows = next((folder / "jsonl").rglob("*.jsonl"))
    rows.write_text(rows.read_text() + "{}\n")
    refused(rf"is not as it was built: {rows.relative_to(folder)}; build it again")
    monkeypatch.delenv("HF_TOKEN")
    refused("--repo: no token; set the environment variable HF_TOKEN")
    assert not hub.log
    with pytest.raises(UserError, match="push: --repo is missing"):
        main([f"--set={folder}"])
