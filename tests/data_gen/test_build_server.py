"""The build command against a server that speaks the protocol: disturbed, stopped by a limit, continued, run again."""

import filecmp
import json
from pathlib import Path

import pytest

from data_gen.commands.build import main
from mmed_jax.common.errors import WorkError
from tests.support.fake_model import FakeModel
from tests.support.openai_server import TRANSIENT, Faults, OpenAIServer

CANARY = "sk-proj-CANARY0123456789abcdefCANARY"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


def build(output: Path, server: OpenAIServer, ledger: Path, *flags: str) -> None:
    main(
        [
            "--recipe=mmed_ift:demo",
            "--recipe.languages=en,fr",
            "--recipe.redraws=0",
            f"--output={output}",
            "--model=local",
            f"--base_url={server.base_url}",
            f"--ledger={ledger}",
            "--price=0.1,0.4",
            "--timeout_s=2",
            *flags,
        ]
    )


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_disturbed_build_ends_as_an_undisturbed_one_and_pays_once(tmp_path, capsys):
    names = tuple(n for n in TRANSIENT if n not in ("timeout", "429_after"))  # these wait for seconds
    with OpenAIServer(FakeModel({"language": 0.2}, seed=1)) as calm:
        build(tmp_path / "calm", calm, tmp_path / "calm.sqlite")
    faults = Faults.mixed(0.2, names=names)
    with OpenAIServer(FakeModel({"language": 0.2}, seed=1), faults=faults) as wild:
        ledger = tmp_path / "wild.sqlite"
        with pytest.raises(WorkError, match="pending; the same command"):
            build(tmp_path / "wild", wild, ledger, "--max_requests=15")
        assert not files(tmp_path / "wild")
        build(tmp_path / "wild", wild, ledger)
        first = files(tmp_path / "wild")
        billed = sum(wild.billed.values())
        build(tmp_path / "wild", wild, ledger)
        assert sum(wild.billed.values()) == billed and files(tmp_path / "wild") == first
    assert set(first) == set(files(tmp_path / "calm"))
    same, different, _ = filecmp.cmpfiles(tmp_path / "calm", tmp_path / "wild", list(first), shallow=False)
    assert different == []
    summary = json.loads(first["build.json"])
    assert any("rejected/language" in counts for counts in summary["steps"].values())
    assert summary["cost"]["usd"] > 0 and summary["cost"]["unpriced"] == 0
    said = capsys.readouterr()
    assert not any(CANARY.encode() in content for content in (*first.values(), f"{said}".encode()))


def test_a_build_with_failed_rows_says_so_and_how_to_go_on(tmp_path, capsys):
    with OpenAIServer(FakeModel()) as server:
        original, count = server._completion, []

        async def refuse_some(body, name):
            count.append(name)
            if len(count) % 5 == 2:
                return 400, {}, {"error": {"message": "no"}}
            return await original(body, name)

        server._completion = refuse_some
        with pytest.raises(WorkError, match="the set is written, but .* rows failed .*--retry_failed"):
            build(tmp_path / "set", server, tmp_path / "l.sqlite")
        assert (tmp_path / "set" / "README.md").is_file()
        server._completion = original
        build(tmp_path / "set", server, tmp_path / "l.sqlite", "--retry_failed")
        build(tmp_path / "set", server, tmp_path / "new.sqlite", "--dry_run")
        assert "all steps: " in capsys.readouterr().out


def test_a_step_of_rejects_only_is_said(tmp_path):
    with OpenAIServer(lambda body: "I can not say that as JSON.") as server:
        with pytest.raises(WorkError, match=r"the set is written, but step \w+: all \d+ rows were rejected \(schema"):
            build(tmp_path / "set", server, tmp_path / "l.sqlite")
    assert (tmp_path / "set" / "README.md").exists()
