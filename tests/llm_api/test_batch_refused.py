"""Batches that never came to be, or are elsewhere: their rows are free again, or it is said where they are."""

import socket

import pytest

from data_gen.commands import ledger as ledger_command
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.llm_api.batch import batches
from mmed_jax.llm_api.ledger.ledger import Ledger
from tests.support.llm_api import balanced, echo_model, inputs, outcomes, settings, states
from tests.support.openai_batches import error
from tests.support.openai_server import Faults, OpenAIServer

ALL = {("accepted", ""): 12}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-refused")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)


def _free(given) -> None:
    """Nothing is held, and nothing was counted as sent."""
    book = balanced(given)
    assert set(book.requests) == {("gpt-4o-mini", "pending", "")}
    assert (book.totals.requests, book.totals.reserved, book.totals.uncertain) == (0, 0, 0)


def _dead() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/v1"


class _NoBatches(OpenAIServer):
    """Takes files, knows no batches."""

    def _batches(self, method, parts, body):
        return 404, {}, error("Invalid URL", "unknown_url")


@pytest.mark.parametrize("wrong", ["401", "403", "404", "quota", "dead", "no batches"])
@pytest.mark.parametrize("then_batch", [True, False])
def test_what_was_never_uploaded_is_free_again(tmp_path, wrong, then_batch):
    rows = inputs(12)
    kind = _NoBatches if wrong == "no batches" else OpenAIServer
    stop = wrong if wrong in ("401", "403", "404", "quota") else ""
    with kind(echo_model, faults=Faults(stop=stop)) as bad, OpenAIServer(echo_model) as good:
        first = settings(tmp_path, _dead() if wrong == "dead" else bad.base_url, batch=True)
        with pytest.raises((UserError, WorkError)):
            outcomes(first, rows)
        _free(first)
        assert not list(tmp_path.rglob("*.jsonl"))
        right = settings(tmp_path, good.base_url, batch=then_batch, max_requests=13)
        assert states(outcomes(right, rows)) == ALL
        assert set(good.billed.values()) == {1}
        balanced(right)


class _Killed(BaseException):
    pass


def _kill(*_, **__):
    raise _Killed


@pytest.mark.parametrize("step", ["_send", "_close_file"])
@pytest.mark.parametrize("how", ["batch elsewhere", "single", "release"])
def test_a_process_killed_before_the_upload_holds_nothing(tmp_path, monkeypatch, step, how):
    rows = inputs(12)
    with OpenAIServer(echo_model) as server:
        with monkeypatch.context() as patch:
            patch.setattr(batches.Batches, step, _kill)
            with pytest.raises(_Killed):
                outcomes(settings(tmp_path, _dead(), batch=True), rows)
        if how == "release":
            ledger_command.main([f"--ledger={tmp_path}", "--release"])
            _free(settings(tmp_path, server.base_url))
        right = settings(tmp_path, server.base_url, batch=how != "single", max_requests=13)
        assert states(outcomes(right, rows)) == ALL


@pytest.mark.parametrize("then_batch", [True, False])
def test_a_batch_that_is_elsewhere_is_named_and_can_be_released(tmp_path, monkeypatch, capsys, then_batch):
    rows = inputs(12)
    with OpenAIServer(echo_model, batch_s=100) as there, OpenAIServer(echo_model) as here:
        with monkeypatch.context() as patch:
            patch.setattr(batches.Batches, "_look", _kill)
            with pytest.raises(_Killed):
                outcomes(settings(tmp_path, there.base_url, batch=True), rows)
        given = settings(tmp_path, here.base_url, batch=then_batch)
        assert states(outcomes(given, rows)) == {("pending", ""): 12}
        said = [line for line in capsys.readouterr().err.splitlines() if "batch" in line]
        assert len(said) == 1 and "batch_0" in said[0] and there.base_url in said[0] and "--release" in said[0]
        held = balanced(given).totals.reserved
        ledger_command.main([f"--ledger={tmp_path}", "--release"])
        assert "12 rows are free again; perhaps billed" in capsys.readouterr().out
        assert balanced(given).totals.reserved == 0
        assert balanced(given).totals.uncertain == pytest.approx(held) and held > 0
        assert states(outcomes(given, rows)) == ALL
        ledger_command.main([f"--ledger={tmp_path}", "--release"])
        assert "no batch is under way" in capsys.readouterr().out


def test_a_batch_that_the_endpoint_has_lost_is_said(tmp_path, monkeypatch):
    with OpenAIServer(echo_model, batch_s=100) as server:
        given = settings(tmp_path, server.base_url, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batches.Batches, "_look", _kill)
            with pytest.raises(_Killed):
                outcomes(given, inputs(12))
        server.batches.clear()
        server.batch_s = 0.0
        with pytest.raises(UserError, match="batch_0.*API key that made it.*--release"):
            outcomes(given, inputs(12))
        ledger_command.main([f"--ledger={tmp_path}", "--release"])
        assert states(outcomes(given, inputs(12))) == ALL


def test_a_line_that_stops_does_not_keep_the_others_of_its_batch(tmp_path, monkeypatch):
    rows = inputs(12)
    with OpenAIServer(echo_model) as server:
        given, original = settings(tmp_path, server.base_url, batch=True), batches.Batches._answer
        count = []

        def quota(self, line):
            count.append(line)
            if len(count) == 3:
                line = line.replace(b'"status_code": 200', b'"status_code": 402')
            return original(self, line)

        monkeypatch.setattr(batches.Batches, "_answer", quota)
        with pytest.raises(UserError, match="no credit"):
            outcomes(given, rows)
        with Ledger(given.ledger_file) as ledger:
            assert ledger.query("SELECT count(*) FROM requests WHERE state='done'") == [(11,)]
        assert balanced(given).totals.reserved == 0
        assert states(outcomes(given, rows)) == ALL
