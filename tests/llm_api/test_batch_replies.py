"""What endpoints say of batches, in shapes that the client hands on unread; rounds that bring nothing; doubts."""

import json

import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.types import Request
from tests.support.llm_api import balanced, billed_once, echo_model, inputs, outcomes, settings, states
from tests.support.openai_batches import Batches as ServerBatches
from tests.support.openai_server import OpenAIServer

_EMPTY = {"total": 0, "completed": 0, "failed": 0}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-batch")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)


class _Killed(BaseException):
    """Stands for the end of the process."""


def _kill(*_, **__):
    raise _Killed


def _show(monkeypatch, change) -> None:
    """Has `change` say what differs of a batch that has ended: it is given the batch and how often it was looked at."""
    found = ServerBatches._found

    def shown(self, batch):
        ended = found(self, batch)
        return ended | change(self, ended, batch["looks"]) if ended["status"] != "in_progress" else ended

    monkeypatch.setattr(ServerBatches, "_found", shown)


_WHY = {"code": "bad_row", "message": "line 3 is not JSON"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"errors": {"data": [_WHY, _WHY]}}, "bad_row: line 3 is not JSON; bad_row"),
        ({"errors": [_WHY]}, "bad_row: line 3 is not JSON"),
        ({"errors": _WHY}, "bad_row: line 3 is not JSON"),
        ({"errors": {"data": _WHY}}, "bad_row: line 3"),
        ({"errors": "bad file"}, "bad file"),
        ({"errors": ["bad file", None, 7]}, "bad file; 7"),
        ({"errors": {"data": ["bad file"]}}, "bad file"),
        ({"errors": {"data": [{"code": None, "message": {"text": 1, "message": "bad file"}}]}}, "bad file"),
        ({"errors": None, "error": _WHY}, "bad_row: line 3"),
        ({"errors": {"data": [{"code": 7}]}}, "7"),
        *[({"errors": x}, "no reason given") for x in (None, {}, [], {"data": None}, {"data": {}}, [[]], 0)],
        *[({"errors": "no", "request_counts": x}, "no") for x in ([], "none", 0, {"completed": "0"}, {"total": "x"})],
        *[({"errors": "no", "output_file_id": x}, "no") for x in ([], {}, 7, "", "\ud800", [None], {"id": None})],
        ({"errors": "no", "id": None}, "no"),
    ],
)
def test_a_refused_batch_of_any_shape_is_one_line(tmp_path, monkeypatch, more, said):
    """And its requests are free, in this run and in the next."""
    _show(monkeypatch, lambda *_: {"errors": None, **more, "status": "failed"})
    with OpenAIServer(echo_model, batch_faults={0: "invalid", 1: "invalid"}) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        for number in range(2):
            with pytest.raises(UserError) as ended:
                outcomes(given, inputs(2))
            assert f"refused batch batch_{number}: {said}" in str(ended.value) and "\n" not in str(ended.value)
            book = balanced(given)
            assert book.requests["gpt-4o-mini", "pending", ""] == 2
            assert book.totals.uncertain == book.totals.reserved == 0


@pytest.mark.parametrize("counts", [None, _EMPTY, {"total": 6, "completed": 0, "failed": 6}])
@pytest.mark.parametrize(
    "line",
    [
        {"custom_id": None, "error": _WHY},
        {"custom_id": "x", "response": {"status_code": 400, "body": {"error": _WHY}}},
        {"error": _WHY},
        {"line": 3, "message": "line 3 is not JSON"},
    ],
)
def test_a_failed_batch_whose_errors_are_on_no_request_is_not_sent_again(tmp_path, monkeypatch, line, counts):
    def change(server, ended, looks):
        server.files["why"] = (json.dumps(line) + "\n").encode() * 6
        return {"error_file_id": "why", "request_counts": counts, "errors": None}

    _show(monkeypatch, change)
    with OpenAIServer(echo_model, batch_faults={0: "invalid"}) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        with pytest.raises(UserError, match="refused batch batch_0: line 3 is not JSON"):
            outcomes(given, inputs(6))
        assert len(server.batches) == 1 and balanced(given).requests["gpt-4o-mini", "pending", ""] == 6


@pytest.mark.parametrize("lines_there", [False, True])
@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_a_round_without_an_answer_is_not_sent_again_without_a_word(tmp_path, monkeypatch, status, lines_there):
    def change(server, ended, looks):
        if ended["id"] != "batch_0":
            return {}
        server.files["why"] = b"".join(
            json.dumps({"custom_id": json.loads(line)["custom_id"], "error": {"code": "batch_expired"}}).encode()
            + b"\n"
            for line in server.files[ended["input_file_id"]].splitlines()
        )
        counts = {"total": 4, "completed": 0, "failed": 0}
        files = {"output_file_id": None, "error_file_id": "why" if lines_there else None}
        return {"status": status, "request_counts": counts, **files}

    _show(monkeypatch, change)
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        with pytest.raises(WorkError, match=f"not one of the 4 requests .*batch 1, {status}.*the same command"):
            outcomes(given, inputs(4))
        assert len(server.batches) == 1 and balanced(given).totals.uncertain == 0
        assert states(outcomes(given, inputs(4))) == {("accepted", ""): 4}


@pytest.mark.parametrize("late", [0, 2], ids=["at once", "late"])
@pytest.mark.parametrize("ending", ["expire", "cancel"])
def test_what_an_ended_batch_never_began_is_not_in_doubt(tmp_path, monkeypatch, ending, late):
    """An error in a reply of status 200 is counted as work done; and what was in doubt is so no longer."""
    came: list[str] = []

    def reply(body, whole):
        came.append(body["messages"][-1]["content"])
        failed = "number 2," in came[-1] and came.count(came[-1]) == 1
        return {"error": {"code": "502", "message": "upstream"}, "usage": whole["usage"]} if failed else whole

    def hidden(server, ended, looks):
        batch = server.batches[ended["id"]]
        batch["seen"] = batch.get("seen", 0) + 1
        if ended["status"] == "completed":
            return {}
        # No line is on what was never begun.
        return {"error_file_id": None} | ({"output_file_id": None} if batch["seen"] <= late else {})

    _show(monkeypatch, hidden)
    with OpenAIServer(echo_model, batch_faults={0: ending}, change=reply) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        assert states(outcomes(given, inputs(10))) == {("accepted", ""): 10}
        usage, totals = server.billed_usage, balanced(given).totals
        billed = given.known_price.cost(usage["prompt_tokens"], usage["completion_tokens"], batch=True)
        assert totals.spent == pytest.approx(billed) and totals.uncertain == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("billed", [False, True])
def test_what_was_in_doubt_is_taken_back_where_nothing_was_billed(tmp_path, billed):
    requests = [Request("m", ({"role": "user", "content": str(n)},), {}, None, "t/1") for n in range(3)]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.add([(r, "") for r in requests]).result()
        for request, owner in zip(requests, ("batch:1", "batch:1", "batch:2")):
            assert ledger.claim(request.key, 0.25, owner).result() == "go"
        for owner in ("batch:1", "batch:1", "batch:2"):  # each look doubts
            ledger.doubt(owner).result()
        assert ledger.totals()[2:] == (0, 0.75)
        ledger.fail_held("batch:1", requests[0].key, "x", 8, uncertain=billed, cost=None if billed else 0.125).result()
        assert ledger.release_owner("batch:1", uncertain=billed).result() == 1
        assert ledger.totals()[1:] == ((0, 0, 0.75) if billed else (0.125, 0, 0.25))


@pytest.mark.parametrize("name", ["\ud800", "x\udfff", "a\0b", "", 7, 10**4000, None, [], {"a": "\ud800"}])
def test_lines_of_others_take_no_answer_with_them(tmp_path, monkeypatch, capsys, name):
    work = ServerBatches._work_batch

    def worked(self, batch):
        work(self, batch)
        line = json.dumps({"custom_id": "NAME", "response": {"status_code": 200, "body": {"id": "x\ud800"}}})
        odd = line.replace('"NAME"', "1" + "0" * 5000 if name == 10**4000 else json.dumps(name)).encode()
        self.files[batch["output_file_id"]] = odd + b"\n" + self.files[batch["output_file_id"]] + b"\n" + odd

    monkeypatch.setattr(ServerBatches, "_work_batch", worked)
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        assert states(outcomes(given, inputs(4))) == {("accepted", ""): 4}
        assert "lines of its results were not used: 2 for requests that nobody made" in capsys.readouterr().err
        billed_once(given, server)


@pytest.mark.parametrize("name", ["\ud800", "", 7, None, {"id": "x"}])
@pytest.mark.parametrize("step", ["_files", "_batches"])
def test_an_id_that_is_none_is_one_line(tmp_path, monkeypatch, step, name):
    original = getattr(ServerBatches, step)

    def odd(self, method, *args):
        status, headers, reply = original(self, method, *args)
        return status, headers, {**reply, "id": name} if method == "POST" else reply

    monkeypatch.setattr(ServerBatches, step, odd)
    with OpenAIServer(echo_model) as server:
        with pytest.raises(WorkError, match="has no id"):
            outcomes(settings(tmp_path, server.base_url, batch=True), inputs(2))


@pytest.mark.parametrize("data", [{"a": 1}, "none", [7], [None], 7, [{}], None])
def test_a_list_of_batches_of_another_shape_is_read_or_one_line(tmp_path, monkeypatch, data):
    """It is looked at for a batch that a killed process made."""
    original = ServerBatches._batches

    def odd(self, method, parts, body):
        listed = method == "GET" and not parts
        return (200, {}, {"object": "list", "data": data}) if listed else original(self, method, parts, body)

    monkeypatch.setattr(ServerBatches, "_batches", odd)
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, batch=True, poll_s=0.001)
        with monkeypatch.context() as patch:
            patch.setattr("openai.resources.batches.Batches.create", _kill)
            with pytest.raises(_Killed):
                outcomes(given, inputs(2))
        try:
            assert states(outcomes(given, inputs(2))) == {("accepted", ""): 2}
        except WorkError as e:
            assert "cannot be read" in str(e) and "\n" not in str(e)
        assert set(server.billed.values()) <= {1}
