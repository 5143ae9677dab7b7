"""The Batch API: shards, every ending of a batch, resuming at every step, joining by custom_id."""

import pytest

from data_gen.commands import ledger as ledger_command
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.llm_api.batch import batches
from tests.support.llm_api import balanced, billed_once, echo_model, inputs, lines, outcomes, settings, states
from tests.support.openai_batches import Batches as ServerBatches
from tests.support.openai_server import TRANSIENT, Faults, OpenAIServer


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-batch")


def test_batches_give_what_single_requests_give_at_half_the_price(tmp_path):
    rows = inputs(300)
    with OpenAIServer(echo_model) as server:
        (tmp_path / "a").mkdir()
        single = settings(tmp_path / "a", server.base_url)
        by_one = outcomes(single, rows)
        batched = settings(tmp_path, server.base_url, batch=True)
        by_batch = outcomes(batched, rows)
        assert lines(by_batch) == lines(by_one)
        assert balanced(batched).totals.spent == pytest.approx(balanced(single).totals.spent / 2)
        uploads = len(server.uploads)
        assert lines(outcomes(batched, rows)) == lines(by_one)
        assert len(server.uploads) == uploads, "a rerun sends no batch"
        assert set(server.billed.values()) == {2}


def test_shards_stay_below_the_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_REQUESTS", 40)
    monkeypatch.setattr(batches, "MAX_BYTES", 9000)
    with OpenAIServer(echo_model, max_batch_requests=40) as server:
        given = settings(tmp_path, server.base_url, batch=True)
        found = outcomes(given, inputs(200))
        assert states(found) == {("accepted", ""): 200}
        assert max(server.uploads) <= 9000 and len(server.uploads) > 5
        assert max(server.billed.values()) == 1


@pytest.mark.parametrize("fault", ["late", "cut", "torn", "html", "gone", "status_text"])
def test_results_that_cannot_be_read_yet_are_waited_for(tmp_path, fault):
    with OpenAIServer(echo_model, batch_faults={0: fault}) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        assert states(outcomes(given, inputs(6))) == {("accepted", ""): 6}
        assert len(server.batches) == 1
        billed_once(given, server)


@pytest.mark.parametrize("then", ["come", "release"])
def test_results_that_do_not_come_are_never_sent_again_without_a_word(tmp_path, capsys, then):
    with OpenAIServer(echo_model, batch_faults={0: "never"}) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001, max_usd=1.0)
        for _ in range(2):
            with pytest.raises(WorkError, match="batch_0.*6 of its 6 results.*may have been billed.*--release"):
                outcomes(given, inputs(6))
            totals = balanced(given).totals
            assert len(server.batches) == 1 and set(server.billed.values()) == {1}
            assert (totals.spent, totals.reserved) == (0, 0) and totals.uncertain > 0
        bound = totals.uncertain
        if then == "come":
            server.batch_faults.clear()
            assert states(outcomes(given, inputs(6))) == {("accepted", ""): 6}
            billed_once(given, server)
        else:
            ledger_command.main([f"--ledger={given.ledger_file}", "--release"])
            assert "6 rows are free again; perhaps billed" in capsys.readouterr().out
            assert states(outcomes(given, inputs(6))) == {("accepted", ""): 6}
            assert set(server.billed.values()) == {2}
            assert balanced(given).totals.uncertain == pytest.approx(bound)


_COUNTED, _EMPTY = {"total": 6, "completed": 6, "failed": 0}, {"total": 0, "completed": 0, "failed": 0}


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        ("SUCCESS", _COUNTED),
        ("Succeeded", _EMPTY),
        ("done", None),
        ("failed", _COUNTED),
        ("error", _COUNTED),
        ("expired", _EMPTY),
        ("TIMEOUT_EXCEEDED", None),
        ("canceled", _COUNTED),
    ],
)
def test_an_ending_of_any_name_without_results_is_no_reason_to_send_again(tmp_path, monkeypatch, status, counts):
    """Not while requests may have been worked on; and when the results come, they are read."""
    found, there = ServerBatches._found, []

    def shown(self, batch):
        ended = found(self, batch)
        if ended["status"] == "completed":
            ended |= {"status": status, "request_counts": counts}
            if not there:
                del ended["output_file_id"]
        return ended

    monkeypatch.setattr(ServerBatches, "_found", shown)
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        with pytest.raises(WorkError, match="6 of its 6 results cannot be read.*may have been billed"):
            outcomes(given, inputs(6))
        assert len(server.batches) == 1 and balanced(given).totals.uncertain > 0
        there.append(True)
        assert states(outcomes(given, inputs(6))) == {("accepted", ""): 6}
        billed_once(given, server)


def test_a_batch_without_results_keeps_no_other_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_REQUESTS", 3)
    with OpenAIServer(echo_model, batch_faults={0: "never"}) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001, enqueued_tokens=600)
        with pytest.raises(WorkError, match="3 of its 3 results"):
            outcomes(given, inputs(9))
        assert len(server.batches) == 3 and balanced(given).requests["gpt-4o-mini", "done", ""] == 6


@pytest.mark.parametrize("ending", ["expire", "cancel"])
def test_finished_answers_of_unfinished_batches_are_used(tmp_path, ending):
    with OpenAIServer(echo_model, batch_faults={0: ending, 1: ending}, duplicate_results=True) as server:
        given = settings(tmp_path, server.base_url, batch=True)
        found = outcomes(given, inputs(100))
        assert states(found) == {("accepted", ""): 100}
        assert max(server.billed.values()) == 1, "no answer is paid twice"
        assert len(server.batches) >= 3
        balanced(given)


def test_too_many_enqueued_tokens_are_cut_into_smaller_batches(tmp_path):
    with OpenAIServer(echo_model, batch_faults={0: "enqueued", 1: "enqueued"}) as server:
        given = settings(tmp_path, server.base_url, batch=True)
        assert states(outcomes(given, inputs(60))) == {("accepted", ""): 60}
        assert len(server.batches) > 3 and max(server.billed.values()) == 1


def test_a_limit_of_enqueued_tokens_is_kept(tmp_path, monkeypatch):
    most = []
    original = ServerBatches._batches

    def watched(self, method, parts, body):
        answer = original(self, method, parts, body)
        open_ones = [b for b in self.batches.values() if b["status"] == "in_progress"]
        most.append(sum(len(self.files[b["input_file_id"]].splitlines()) for b in open_ones))
        return answer

    monkeypatch.setattr(ServerBatches, "_batches", watched)
    with OpenAIServer(echo_model, batch_s=0.05) as server:
        given = settings(tmp_path, server.base_url, batch=True, enqueued_tokens=5000)
        assert states(outcomes(given, inputs(150))) == {("accepted", ""): 150}
    # About 120 bytes, the upper bound of tokens, a request.
    assert max(most) <= 50


def test_lines_that_failed_are_asked_again_and_invalid_batches_stop(tmp_path):
    faults = Faults({name: 0.05 for name in TRANSIENT} | {"filter_400": 0.05, "length": 0.05}, seed=3)
    with OpenAIServer(echo_model, faults=faults) as server:
        given = settings(tmp_path, server.base_url, batch=True)
        found = states(outcomes(given, inputs(150)))
        assert sum(found.values()) == 150 and found["accepted", ""] > 120
        assert {r for s, r in found if s == "rejected"} <= {"content_filter", "length", "language"}
        balanced(given)
    (tmp_path / "b").mkdir()
    with OpenAIServer(echo_model, batch_faults={0: "invalid"}) as server:
        given = settings(tmp_path / "b", server.base_url, batch=True)
        with pytest.raises(UserError, match="refused batch"):
            outcomes(given, inputs(10))
        assert balanced(given).requests["gpt-4o-mini", "pending", ""] == 10
        assert states(outcomes(given, inputs(10))) == {("accepted", ""): 10}


class _Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.mark.parametrize("step", ["build", "upload", "uploaded", "create", "created", "poll", "fetch", "store"])
def test_stopped_at_any_step_it_goes_on_and_paysbilled_once(tmp_path, monkeypatch, step):
    def stop_at(name: str) -> None:
        if name == step and not fired:
            fired.append(name)
            raise _Killed

    fired: list[str] = []
    original_set, original_fetch = batches.Batches._set, batches.Batches._fetch
    original_answer, original_look = batches.Batches._answer, batches.Batches._look

    def set_state(self, which, **values):
        state = values.get("state")
        if state == "ready":
            stop_at("build")
        if state == "uploaded":
            stop_at("upload")  # the file is at the endpoint, the ledger does not know
        if state == "created":
            stop_at("create")  # the batch is at the endpoint, the ledger does not know
        done = original_set(self, which, **values)
        if state in ("uploaded", "created"):
            stop_at(state)
        return done

    def fetch(self, *args):
        stop_at("fetch")
        return original_fetch(self, *args)

    def answer(self, line):
        if len(seen) >= 30:
            stop_at("store")
        seen.append(line)
        return original_answer(self, line)

    def look(self, which):
        stop_at("poll")
        return original_look(self, which)

    seen: list[bytes] = []
    for name, stand_in in (("_set", set_state), ("_fetch", fetch), ("_answer", answer), ("_look", look)):
        monkeypatch.setattr(batches.Batches, name, stand_in)
    monkeypatch.setattr(batches, "_LINES", 20)
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, batch=True)
        with pytest.raises(_Killed):
            outcomes(given, inputs(60))
        assert fired
        assert states(outcomes(given, inputs(60))) == {("accepted", ""): 60}
        assert max(server.billed.values()) == 1
        assert balanced(given).totals.reserved == 0


def test_a_run_of_single_requests_leaves_what_is_in_a_batch(tmp_path, monkeypatch, capsys):
    with OpenAIServer(echo_model, batch_s=100) as server, monkeypatch.context() as patch:
        patch.setattr(batches.Batches, "_look", _raise_killed)
        with pytest.raises(_Killed):
            outcomes(settings(tmp_path, server.base_url, batch=True), inputs(20))
        patch.undo()
        found = outcomes(settings(tmp_path, server.base_url), inputs(30))
        assert states(found)["pending", ""] == 20 and "--batch fetches" in capsys.readouterr().err
        server.batches["batch_0"]["ready"] = server.batch_s = 0.0
        assert states(outcomes(settings(tmp_path, server.base_url, batch=True), inputs(30)))["accepted", ""] == 30
        assert max(server.billed.values()) == 1


def _raise_killed(*_):
    raise _Killed


def test_two_processes_do_not_drive_the_batches_of_one_ledger(tmp_path):
    from mmed_jax.llm_api.ledger.ledger import Ledger

    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, batch=True)
        with Ledger(given.ledger_file) as ledger, batches.Batches(ledger, given, None):
            with pytest.raises(UserError, match="another process"):
                outcomes(given, inputs(3))


def test_money_stops_a_batch_before_it_is_sent(tmp_path):
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, batch=True, max_requests=25)
        found = states(outcomes(given, inputs(60)))
        # Two of the 25 came back in the wrong language and wait for their second draw.
        assert found == {("accepted", ""): 23, ("pending", ""): 37}
        assert sum(server.billed.values()) == 25
        more = settings(tmp_path, server.base_url, batch=True)
        assert states(outcomes(more, inputs(60))) == {("accepted", ""): 60}
        assert max(server.billed.values()) == 1


def test_no_connection_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)
    given = settings(tmp_path, "http://127.0.0.1:9/v1", batch=True)
    with pytest.raises(WorkError, match="no connection"):
        outcomes(given, inputs(3))
