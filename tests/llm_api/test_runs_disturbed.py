"""A failing endpoint and a process that is killed: nothing lost, nothing finished paid twice, the same output."""

import asyncio
import json
import multiprocessing
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from mmed_jax.llm_api import client, sender
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.ledger.transactions import FINAL
from mmed_jax.llm_api.prices import price_of
from tests.support.llm_api import balanced, echo_model, inputs, lines, outcomes, settings, states
from tests.support.openai_server import CONTENT, INSIDE, TRANSIENT, Faults, OpenAIServer, body_key

ROWS, KILLS, SHARE = 800, 10, 0.2


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-faults")


def _work(folder: str, url: str, rows: int, batch: bool) -> None:
    """A process that runs over all rows and writes the outcomes."""
    given = settings(Path(folder), url, concurrency=48, timeout_s=1.0, batch=batch, window=1000)
    found = lines(outcomes(given, inputs(rows)))
    (Path(folder) / "found.json").write_text(json.dumps(found), encoding="utf-8")


def _undisturbed(folder: Path, server: OpenAIServer, rows: int, monkeypatch) -> list[str]:
    """The outcomes without transient faults and kills; requests go to the server's model directly, without HTTP."""

    async def ask(_, request, price):
        await asyncio.sleep(0)
        body = client.body_of(request)
        fault = Faults({n: server.faults.rates.get(n, 0.0) for n in CONTENT}, server.faults.seed).of(body_key(body), 0)
        if fault == "filter_400":
            return client.Reply(client.Answer("rejected", "content_filter", "The response was filtered"))
        return client.Reply(client.read_completion(quiet.complete(body, fault), price))

    quiet = OpenAIServer(echo_model)
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sender.api, "ask", ask)
        return lines(outcomes(settings(folder, "http://127.0.0.1:9/v1"), inputs(rows)))


def _killed_run(tmp_path: Path, server: OpenAIServer, rows: int, batch: bool = False) -> int:
    """Runs _work until it ends by itself, killing it KILLS times; returns how often it was killed.

    After each kill: the books balance, and what is finished then is never billed again.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["openai", "tests.support.llm_api", "mmed_jax.llm_api.sender", "mmed_jax.llm_api.batch.run"]
    )
    draw, finished, killed = random.Random(0), {}, 0
    given = settings(tmp_path, server.base_url)
    moments = sorted(draw.randrange(0, rows) for _ in range(KILLS))
    while True:
        process = context.Process(target=_work, args=(str(tmp_path), server.base_url, rows, batch))
        process.start()
        if moments:
            moment = moments.pop(0)
            while sum(server.billed.values()) < moment and process.is_alive():
                time.sleep(0.002)
            time.sleep(draw.random() * 0.1)
            if process.is_alive():
                process.kill()
                killed += 1
        process.join(120)
        balanced(given)
        with Ledger(given.ledger_file) as ledger:
            done = {k for (k,) in ledger.query(f"SELECT key FROM requests WHERE state IN {FINAL}")}
        for key in done:
            finished.setdefault(key, server.billed_names[key])
        if process.exitcode == 0 and not moments:
            break
        assert process.exitcode in (0, -9)
    assert {k: server.billed_names[k] for k in finished} == finished, "no finished request is paid again"
    return killed


def test_requests_of_which_one_in_five_fails_killed_ten_times(tmp_path, monkeypatch):
    with OpenAIServer(echo_model, faults=Faults.mixed(SHARE, seed=5), timeout_s=3.0) as server:
        assert _killed_run(tmp_path, server, ROWS) >= KILLS - 1
        found = json.loads((tmp_path / "found.json").read_text())
        assert found == _undisturbed(tmp_path / "quiet", server, ROWS, monkeypatch)
        given = settings(tmp_path, server.base_url)
        book = balanced(given)
        # Every row is there once, and lost ones have one of the reasons asked for.
        assert sum(book.rows.values()) == ROWS
        reasons = {(s, r) for _, s, r in book.rows}
        assert {("accepted", ""), ("rejected", "refusal"), ("rejected", "content_filter")} <= reasons
        assert not {s for s, _ in reasons} & {"failed", "pending"}
        assert book.rows["gpt-4o-mini rationale", "accepted", ""] > 0.9 * ROWS
        # Money: what the server billed lies between what is known and the bound on what may have been billed as well.
        usage, price = server.billed_usage, price_of("gpt-4o-mini")
        billed = price.cost(usage["prompt_tokens"], usage["completion_tokens"])
        assert book.totals.spent <= billed + 1e-9 <= book.totals.spent + book.totals.uncertain + 2e-9
        # A rerun asks for nothing.
        asked = sum(server.asked.values())
        assert lines(outcomes(given, inputs(ROWS))) == found
        assert sum(server.asked.values()) == asked


def test_batches_of_a_failing_endpoint_killed_ten_times(tmp_path, monkeypatch):
    rows = 600
    faults = Faults.mixed(SHARE, seed=6)
    endings = {0: "expire", 1: "enqueued", 2: "cancel", 4: "expire"}
    with OpenAIServer(echo_model, faults=faults, batch_faults=endings, duplicate_results=True, batch_s=0.1) as server:
        assert _killed_run(tmp_path, server, rows, batch=True) >= 3
        found = json.loads((tmp_path / "found.json").read_text())
        assert found == _undisturbed(tmp_path / "quiet", server, rows, monkeypatch)
        assert max(server.billed_names.values()) == 1, "batches lose no answer, so none is paid twice"
        usage, price = server.billed_usage, price_of("gpt-4o-mini")
        billed = price.cost(usage["prompt_tokens"], usage["completion_tokens"], batch=True)
        totals = balanced(settings(tmp_path, server.base_url)).totals
        assert totals.spent <= billed + 1e-9 <= totals.spent + totals.uncertain + 2e-9


@pytest.mark.parametrize("fault", TRANSIENT)
def test_each_transient_fault_passes(tmp_path, fault):
    with OpenAIServer(echo_model, faults=Faults({fault: 0.5}, seed=1), timeout_s=2.0) as server:
        given = settings(tmp_path, server.base_url, timeout_s=0.4)
        assert states(outcomes(given, inputs(40))) == {("accepted", ""): 40}
        book = balanced(given)
        assert book.totals.requests > 44
        lost = fault in ("drop", "drop_late", "timeout", "html", *INSIDE)
        assert (book.totals.uncertain > 0) == lost, "what may have been billed is in the books"


def test_a_ledger_that_another_run_is_making_is_waited_for(tmp_path):
    """SQLite does not wait for a lock while it changes the journal's mode, whatever the timeout."""
    path = tmp_path / "ledger.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, other.execute, ["COMMIT"]).start()
    with Ledger(path) as ledger:
        assert ledger.path == path
    other.close()
