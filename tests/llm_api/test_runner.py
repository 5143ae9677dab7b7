"""The runner and its ledger: order, reruns for nothing, retries, shared ledgers, stops, and the API key."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from data_gen.commands import ledger as ledger_command
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.llm_api import sender
from mmed_jax.llm_api.client import redact, shown_url
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.ledger.transactions import Answer, Claims
from mmed_jax.llm_api.runner import run
from mmed_jax.llm_api.types import Request
from tests.support.llm_api import (
    EchoMethod,
    balanced,
    echo_model,
    inputs,
    language_gate,
    lines,
    outcomes,
    settings,
    states,
)
from tests.support.openai_server import Faults, OpenAIServer

CANARY = "sk-proj-CANARY0123456789abcdefCANARY"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def test_outcomes_come_in_order_and_a_rerun_pays_nothing(tmp_path):
    rows = inputs(150)
    with OpenAIServer(echo_model, key=CANARY, delay_s=0.002) as server:
        given = settings(tmp_path, server.base_url, window=20)
        found = outcomes(given, rows)
        assert [o.job.row_id for o in found] == [r["id"] for r in rows]
        assert found[0].records[0]["text"] == rows[0]["text"]
        billed = sum(server.billed.values())
        # Texts that end in "7 of 50" came in Cyrillic first and were asked for again with another seed.
        assert billed == 150 + 15 and set(server.billed.values()) == {1}
        assert server.most_under_way <= 16
        assert lines(outcomes(given, rows)) == lines(found)
        assert sum(server.billed.values()) == billed
        outcomes(given, rows, EchoMethod(version=2))
        assert sum(server.billed.values()) == 2 * billed, "a changed prompt version is another request"
        outcomes(settings(tmp_path, server.base_url, params={"temperature": 0.5}), rows[:10])
        assert sum(server.billed.values()) > 2 * billed, "so are other parameters"


def test_gates_are_applied_to_stored_answers_at_every_run(tmp_path):
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url)
        no_redraws = EchoMethod(redraws=False)
        first = states(list(run(no_redraws, inputs(60), given, [language_gate])))
        assert first == {("accepted", ""): 54, ("rejected", "language"): 6}
        billed = sum(server.billed.values())
        assert states(list(run(no_redraws, inputs(60), given, []))) == {("accepted", ""): 60}
        assert sum(server.billed.values()) == billed
        assert balanced(given).rows == {("gpt-4o-mini rationale", "accepted", ""): 60}


def test_the_same_request_of_two_rows_is_paid_once(tmp_path):
    rows = [{"id": f"r{i}", "text": f"text {i % 5}"} for i in range(40)]
    with OpenAIServer(echo_model) as server:
        found = outcomes(settings(tmp_path, server.base_url), rows)
        assert states(found) == {("accepted", ""): 40} and sum(server.billed.values()) == 5
        assert found[37].records[0]["text"] == "text 2"


def test_a_cut_answer_is_asked_for_again_with_more_room_only(tmp_path):
    asked = []

    def model(body):
        asked.append(body["max_completion_tokens"])
        return echo_model(body)

    with OpenAIServer(model, faults=Faults({"length": 1.0})) as server:
        given = settings(tmp_path, server.base_url)
        found = outcomes(given, inputs(1))
        assert sorted(asked) == [64, 128, 256]
        assert states(found) == {("rejected", "length"): 1}
        with Ledger(given.ledger_file) as ledger:
            links = ledger.query("SELECT key, retry_of FROM requests ORDER BY created")
        assert [before for _, before in links] == ["", links[0][0], links[1][0]]


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("refusal", "refusal"),
        ("content_filter", "content_filter"),
        ("filter_400", "content_filter"),
        ("empty", "schema"),
        ("bad_json", "schema"),
    ],
)
def test_each_way_of_not_answering_has_its_reason(tmp_path, fault, reason):
    with OpenAIServer(echo_model, faults=Faults({fault: 1.0})) as server:
        found = outcomes(settings(tmp_path, server.base_url), inputs(8), EchoMethod(redraws=False))
        assert states(found) == {("rejected", reason): 8}


def test_an_endpoint_without_structured_output_is_given_up_at_once(tmp_path):
    with OpenAIServer(echo_model) as server:

        async def refuse(body, name):
            server.asked["all"] += 1
            return 400, {}, {"error": {"message": "response_format is not supported", "code": "x", "type": "invalid"}}

        server._completion = refuse
        with pytest.raises(UserError, match="--no_schema"):
            outcomes(settings(tmp_path, server.base_url, concurrency=4), inputs(2000))
        assert server.asked["all"] < 60


@pytest.mark.parametrize(
    "stop, said",
    [
        ("401", "does not accept the API key"),
        ("403", "may not use"),
        ("404", "no such model or address"),
        ("quota", "no credit or quota"),
    ],
)
def test_what_only_the_user_can_mend_stops_within_seconds(tmp_path, stop, said):
    with OpenAIServer(echo_model, faults=Faults(stop=stop)) as server:
        given = settings(tmp_path, server.base_url, backoff_s=0.5)
        began = time.monotonic()
        with pytest.raises(UserError, match=said) as raised:
            outcomes(given, inputs(500))
        assert time.monotonic() - began < 5
        assert CANARY not in str(raised.value) and "CANARY" not in str(raised.value)
    found = balanced(given)
    # Asked at most once by each worker, nothing billed, all still to be done.
    assert found.totals.requests <= 2 * given.concurrency and found.totals.spent == 0
    assert set(found.requests) == {("gpt-4o-mini", "pending", "")}


def test_no_key_is_said_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        outcomes(settings(tmp_path, None), inputs(3))
    with OpenAIServer(echo_model) as server:  # a server of one's own needs none
        assert states(outcomes(settings(tmp_path, server.base_url), inputs(3))) == {("accepted", ""): 3}


def test_the_key_is_in_no_file_log_or_message(tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    with OpenAIServer(echo_model, key="another", faults=Faults.mixed(0.3)) as server:
        with pytest.raises(UserError) as refused:
            outcomes(settings(tmp_path, server.base_url), inputs(20))
    with OpenAIServer(echo_model, key=CANARY, faults=Faults.mixed(0.5), timeout_s=0.2) as server:

        async def error_with_key(body, name):
            return 400, {}, {"error": {"message": f"bad request from {CANARY}, key sk-other-99 Bearer {CANARY}"}}

        found = outcomes(settings(tmp_path, server.base_url, timeout_s=0.1), inputs(40))
        batched = settings(tmp_path, server.base_url, batch=True, run="b")
        found += outcomes(batched, inputs(40, 100))
        server._completion = error_with_key
        found += outcomes(settings(tmp_path, server.base_url), inputs(10, 200))
    ledger_command.main([f"--ledger={tmp_path}"])
    texts = [str(refused.value), repr(found), caplog.text, *capfd.readouterr()]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any("bad request from ***" in o.detail for o in found) and files
    assert not any("CANARY" in t or "sk-other" in t for t in texts)
    assert not any(b"CANARY" in p.read_bytes() for p in files)


def test_redaction():
    said = redact(f"key {CANARY}\nand sk-abc***wxyz, Authorization: Bearer abc.def")
    assert said == "key *** and ***, Authorization: ***"
    assert shown_url("https://user:pass@host:8/v1?key=x") == "https://host:8/v1"


def test_two_runs_on_one_ledger_do_not_pay_twice(tmp_path):
    rows, found = inputs(300), {}
    with OpenAIServer(echo_model, delay_s=0.005) as server:

        def one(name: str, order: list[dict]) -> None:
            found[name] = outcomes(settings(tmp_path, server.base_url, run=name), order)

        threads = [
            threading.Thread(target=one, args=("a", rows)),
            threading.Thread(target=one, args=("b", rows[::-1])),
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert lines(found["a"]) == lines(found["b"][::-1])
        assert set(server.billed.values()) == {1}
    assert sum(balanced(settings(tmp_path, server.base_url)).rows.values()) == 600


def test_claims_of_a_dead_process_are_free_and_of_a_living_one_are_not(tmp_path):
    request = Request("m", ({"role": "user", "content": "x"},), {}, None, "t/1")
    code = f"""
        import sys, time
        from mmed_jax.llm_api.ledger.ledger import Ledger
        from mmed_jax.llm_api.types import Request
        ledger = Ledger({str(tmp_path / "l.sqlite")!r})
        request = Request("m", ({{"role": "user", "content": "x"}},), {{}}, None, "t/1")
        ledger.add([(request, "")]).result()
        print(ledger.claim(request.key, 0.25).result(), flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "go"
        with Ledger(tmp_path / "l.sqlite") as ledger:
            assert ledger.claim(request.key, 0.25).result() == "busy"
            process.kill()
            process.wait()
            with Ledger(tmp_path / "l.sqlite") as other:  # what the dead one held is free for everybody at once
                assert other.rows([request.key])[request.key].state == "pending"
                assert (other.totals().reserved, other.totals().uncertain) == (0, 0.25)
            assert ledger.claim(request.key, 0.25).result() == "go"
            totals = ledger.totals()
            assert (totals.requests, totals.reserved, totals.uncertain) == (2, 0.25, 0.25)
            ledger.finish(request.key, Answer("done", response="y", cost=0.1)).result()
            totals = ledger.totals()
            assert totals.reserved == 0 and totals.spent == pytest.approx(0.1)
            assert ledger.claim(request.key, 0.25).result() == "final"
    finally:
        process.kill()
        process.wait()


def test_a_lost_lease_is_free(tmp_path):
    request = Request("m", ({"role": "user", "content": "x"},), {}, None, "t/1")
    with Ledger(tmp_path / "l.sqlite") as first, Ledger(tmp_path / "l.sqlite") as second:
        first.add([(request, "")]).result()
        assert first.claim(request.key, 0).result() == "go"
        assert second.claim(request.key, 0).result() == "busy"
        first.write(lambda c: c.execute("UPDATE owners SET lease = 1, host = 'elsewhere'") and None).result()
        assert second.claim(request.key, 0).result() == "go"


def test_what_failed_is_asked_for_again_in_the_next_run_only(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "ATTEMPTS", 2)
    with OpenAIServer(echo_model, faults=Faults({"500": 1.0})) as server:
        given = settings(tmp_path, server.base_url)
        found = outcomes(given, inputs(5))
        assert states(found) == {("failed", "api_error"): 5} and "500" in found[0].detail
        assert sum(server.asked.values()) == 10
        balanced(given)
        assert states(outcomes(given, inputs(5))) == {("accepted", ""): 5}
        balanced(given)


def test_an_endpoint_that_is_down_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "_QUIET", 0.2)
    given = settings(tmp_path, "http://127.0.0.1:9/v1", timeout_s=0.1, backoff_s=0.1)
    with pytest.raises(WorkError, match="answered nothing"):
        outcomes(given, inputs(50))
    # Nothing was connected, so nothing can have been billed.
    assert balanced(given).totals.uncertain == 0


def test_rate_limits_of_the_server_are_kept(tmp_path):
    with OpenAIServer(echo_model, requests_per_minute=1200) as server:
        given = settings(tmp_path, server.base_url, concurrency=8)
        began = time.monotonic()
        server._left["requests"] = 20.0
        assert states(outcomes(given, inputs(60, 1000)))["accepted", ""] == 60
        assert time.monotonic() - began > 1.5
        # 66 requests, of which the first few were sent before any header told the limit.
        assert server.refused_429 <= 16


def test_ctrl_c_keeps_what_is_paid_for(tmp_path):
    with OpenAIServer(echo_model, delay_s=0.3) as server:
        code = f"""
            import tests.support.llm_api as h
            from pathlib import Path
            h.outcomes(h.settings(Path({str(tmp_path)!r}), {server.base_url!r}, concurrency=8), h.inputs(200))
        """
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True)
        while sum(server.billed.values()) < 10:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert "answers under way" in said and "KeyboardInterrupt" in said
        given = settings(tmp_path, server.base_url)
        found = balanced(given)
        assert found.requests["gpt-4o-mini", "done", ""] == sum(server.billed.values())
        assert found.totals.uncertain == 0 and found.totals.reserved == 0
        server.delay_s = 0.0
        assert states(outcomes(given, inputs(200)))["accepted", ""] == 200
        assert set(server.billed.values()) == {1}


def test_a_consumer_that_stops_early_leaves_a_whole_ledger(tmp_path):
    with OpenAIServer(echo_model, delay_s=0.01) as server:
        given = settings(tmp_path, server.base_url)
        for number, _ in enumerate(run(EchoMethod(), inputs(200), given, [])):
            if number == 20:
                break
        found = balanced(given)
        assert found.requests["gpt-4o-mini", "done", ""] == sum(server.billed.values()) < 200


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "ledger.sqlite").write_text("not a database, and long enough to be looked at" * 100)
    with pytest.raises(UserError, match="cannot be used as a ledger"):
        outcomes(settings(tmp_path, "http://127.0.0.1:9/v1"), inputs(1))
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE patients (name)")
    other.close()
    before = (tmp_path / "other.sqlite").read_bytes()[100:]
    with pytest.raises(UserError, match="another database, with tables patients"):
        Ledger(tmp_path / "other.sqlite")
    assert (tmp_path / "other.sqlite").read_bytes()[100:] == before
    with Ledger(tmp_path / "new.sqlite") as ledger:
        ledger.write(lambda c: c.execute("PRAGMA user_version = 99") and None).result()
    with pytest.raises(UserError, match="newer version"):
        Ledger(tmp_path / "new.sqlite")


def test_a_full_disk_stops_the_run_and_leaves_the_ledger_whole(tmp_path, monkeypatch):
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url)
        outcomes(given, inputs(50))
        pages = given.ledger_file.stat().st_size // 4096
        enter = Claims.enter

        def with_a_full_disk(self, c):
            enter(self, c)
            c.execute(f"PRAGMA max_page_count = {pages + 4}")

        with monkeypatch.context() as patch:
            patch.setattr(Claims, "enter", with_a_full_disk)
            with pytest.raises(WorkError, match="cannot be written .*full"):
                outcomes(given, inputs(2000))
        balanced(given)
        assert states(outcomes(given, inputs(300)))["accepted", ""] == 300


def test_azure_by_its_own_variables(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with OpenAIServer(echo_model, key=CANARY) as server:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.base_url.removesuffix("/v1"))
        with pytest.raises(UserError, match="AZURE_OPENAI_API_KEY"):
            outcomes(settings(tmp_path, None), inputs(1))
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", CANARY)
        assert states(outcomes(settings(tmp_path, None), inputs(5))) == {("accepted", ""): 5}


def test_the_ledger_command_shows_rows_money_and_imbalance(tmp_path, capsys):
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url)
        outcomes(given, inputs(60))
    ledger_command.main([f"--ledger={tmp_path}"])
    shown = capsys.readouterr().out
    assert "rows: gpt-4o-mini rationale" in shown and "balance" in shown
    ledger_command.main([f"--ledger={tmp_path}", "--row=row-7"])
    shown = capsys.readouterr().out
    assert shown.count("attempts 1") == 2, "both draws of the row"
    assert json.dumps("другой язык") in shown
    with Ledger(given.ledger_file) as ledger:
        ledger.write(lambda c: c.execute("DELETE FROM requests WHERE rowid = 3") and None).result()
    with pytest.raises(WorkError, match="do not balance"):
        ledger_command.main([f"--ledger={tmp_path}"])
    with pytest.raises(WorkError, match="rest on no answer"):
        with Ledger(given.ledger_file) as ledger:
            from mmed_jax.llm_api.ledger.balance import check_run

            check_run(ledger, "gpt-4o-mini", "rationale")


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"model": ""}, "--model is missing"),
        ({"concurrency": 0}, "--concurrency=0"),
        ({"timeout_s": 0}, "--timeout_s"),
        ({"params": {"n": 2}}, "one answer"),
        ({"max_usd": -1.0}, "--max_usd"),
    ],
)
def test_wrong_settings_are_said(tmp_path, flags, said):
    with pytest.raises(UserError, match=said):
        settings(tmp_path, "http://127.0.0.1:9/v1", **flags)


def test_asyncio_is_left_alone(tmp_path):
    """A run inside a program with an event loop of its own works: the requests have their own thread."""

    async def inside() -> int:
        return len(outcomes(settings(tmp_path, server.base_url), inputs(5)))

    with OpenAIServer(echo_model) as server:
        assert asyncio.run(inside()) == 5
