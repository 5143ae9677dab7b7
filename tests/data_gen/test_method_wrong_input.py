"""Mistakes of a run that are one line: parameters, empty inputs, full disks; and what killed runs leave."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace

import pytest

from data_gen.commands.build import Build
from data_gen.commands.method_command import COMMANDS
from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.row_buffer import remove_temporaries
from mmed_jax.llm_api.run_settings import RunSettings
from mmed_jax.llm_api.runner import run
from tests.support.fake_model import FakeModel
from tests.support.llm_api import EchoMethod, inputs, outcomes, settings
from tests.support.openai_server import OpenAIServer


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-wrong")


def _record(number: int) -> dict:
    turns = [{"role": "user", "content": f"What is drug {number}?"}, {"role": "assistant", "content": "A drug."}]
    about = {"source": "test", "license": "CC0-1.0", "method": "handcrafted"}
    return {"id": f"r{number}", "language": "en", "messages": turns, "provenance": about}


def _command(tmp_path, *flags: str, rows: int = 2) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(_record(i)) + "\n" for i in range(rows)))
    COMMANDS["expand"].main(
        [
            f"--input={tmp_path}/in.jsonl",
            f"--output={tmp_path}/out.jsonl",
            f"--ledger={tmp_path}/l.sqlite",
            "--model=gpt-4o-mini",
            *flags,
        ]
    )


@pytest.mark.parametrize(
    "flag",
    [
        '--params={"seed": null}',
        '--params={"seed": "x"}',
        '--params={"max_completion_tokens": "abc"}',
        '--params={"max_tokens": 0}',
        "--temperature=nan",
        "--temperature=inf",
        '--params={"temperature": "warm"}',
        '--params={"top_p": -1}',
        '--params={"x": 1e999}',
    ],
)
def test_wrong_parameters_are_one_line_before_anything_is_sent(tmp_path, flag):
    with OpenAIServer(FakeModel()) as server:
        with pytest.raises(UserError, match="--params"):
            _command(tmp_path, f"--base_url={server.base_url}", flag)
        assert not server.asked and not (tmp_path / "l.sqlite").exists()


def test_no_limit_of_an_answer_is_allowed_and_a_cut_one_is_not_redrawn(tmp_path):
    with OpenAIServer(FakeModel()) as server:
        _command(tmp_path, f"--base_url={server.base_url}", '--params={"max_completion_tokens": null}')
        assert server.billed


@pytest.mark.parametrize("inner", ["str", 5, [1], None])
def test_an_inner_error_of_any_form_is_read(tmp_path, inner):
    with OpenAIServer() as server:

        async def refuse(body, name):
            return 400, {}, {"error": {"message": "no", "innererror": inner}}

        server._completion = refuse
        assert outcomes(settings(tmp_path, server.base_url), inputs(1))[0].reason == "bad_request"


def test_an_empty_input_is_said(tmp_path):
    with pytest.raises(UserError, match="in.jsonl: holds no records"):
        _command(tmp_path, "--base_url=http://127.0.0.1:9/v1", rows=0)


def test_failed_rows_are_said_with_the_way_on(tmp_path):
    with OpenAIServer(FakeModel()) as server:

        async def refuse(body, name):
            return 400, {}, {"error": {"message": "no"}}

        original, server._completion = server._completion, refuse
        with pytest.raises(WorkError, match="2 rows failed.*--retry_failed"):
            _command(tmp_path, f"--base_url={server.base_url}")
        server._completion = original
        _command(tmp_path, f"--base_url={server.base_url}", "--retry_failed")


@pytest.fixture
def small_files():
    """No file grows above 256 KiB: what a full disk does, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_full_disk_is_named_with_the_file(tmp_path, small_files, name):
    lines = (os.urandom(30).hex() for _ in range(20_000))
    with pytest.raises(WorkError, match=rf"{name}: cannot be written"):
        jsonl.write_lines(tmp_path / name, lines)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_a_batch_file_is_named(tmp_path, small_files):
    rows = [{"id": "r", "text": "x" * 1_000_000}]
    with OpenAIServer() as server:
        with pytest.raises(WorkError, match=r"(jobs|000001).jsonl: cannot be written"):
            outcomes(settings(tmp_path, server.base_url, batch=True), rows)


def _dead() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_what_killed_processes_left_is_removed(tmp_path):
    dead, here = _dead(), os.getpid()
    for pid in (dead, here):
        (tmp_path / f".out.jsonl.{pid}.tmp").write_text("x")
        (tmp_path / f".jobs-{pid}-abc").mkdir()
        (tmp_path / f".jobs-{pid}-abc" / "jobs.jsonl").write_text("x")
    (tmp_path / ".other.jsonl.tmp").write_text("x")
    remove_temporaries(tmp_path / "out.jsonl")
    with OpenAIServer() as server:
        list(run(EchoMethod(), [], settings(tmp_path, server.base_url, batch=True)))
    left = {p.name for p in tmp_path.iterdir()}
    assert {f".out.jsonl.{here}.tmp", f".jobs-{here}-abc", ".other.jsonl.tmp"} <= left
    assert not any(str(dead) in name for name in left)


def test_a_ledger_of_any_name_has_its_cost_read(tmp_path):
    given = RunSettings(ledger=tmp_path / "led#1?x%20.sqlite", model="gpt-4o-mini", progress=False)
    with OpenAIServer() as server:
        found = outcomes(replace(given, base_url=server.base_url), inputs(3), EchoMethod(redraws=False))

    class _Rows:
        keys = {o.job.request.key for o in found}

    build = Build.__new__(Build)
    build.settings, build.rows = given, _Rows()
    assert build.cost()["requests"] == 3
