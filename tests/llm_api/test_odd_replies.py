"""Replies that no specification knows: what can be read is used, each is paid once, none stands in another's way."""

import copy
import json
import threading
from dataclasses import replace

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.llm_api.client import redact
from mmed_jax.llm_api.completions import read_completion, token_count, without_key
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.ledger.transactions import Answer, storable
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.types import Reject, Request
from tests.support.llm_api import EchoMethod, balanced, echo_model, inputs, outcomes, settings, states
from tests.support.openai_server import OpenAIServer

PRICE = Price(1.0, 0.5, 2.0, "today")
KEY = "sk-test-odd-0123456789"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def _usage(**more):
    return lambda reply: {**reply, "usage": {**reply["usage"], **more}}


def _message(**more):
    def change(reply):
        reply = copy.deepcopy(reply)
        reply["choices"][0]["message"] |= more
        return reply

    return change


# name -> (change of a reply, states of a row whose every reply is like this, replies paid for it)
ODD = {
    "usage as text": (_usage(prompt_tokens="50", completion_tokens="9"), ("accepted", ""), 1),
    "details as text": (_usage(prompt_tokens_details="none"), ("accepted", ""), 1),
    "details as list": (_usage(prompt_tokens_details=[{"cached_tokens": 1}]), ("accepted", ""), 1),
    "huge usage": (_usage(prompt_tokens=10**20), ("accepted", ""), 1),
    "usage not a number": (_usage(completion_tokens=float("nan")), ("accepted", ""), 1),
    "endless usage": (_usage(completion_tokens=float("inf")), ("accepted", ""), 1),
    "negative usage": (_usage(prompt_tokens=-5), ("accepted", ""), 1),
    "no usage": (lambda r: {k: v for k, v in r.items() if k != "usage"}, ("accepted", ""), 1),
    "usage a list": (lambda r: {**r, "usage": [1]}, ("accepted", ""), 1),
    "content in parts": (
        lambda r: _message(content=[{"type": "text", "text": r["choices"][0]["message"]["content"]}])(r),
        ("accepted", ""),
        1,
    ),
    "refusal an object": (_message(refusal={"why": "medical"}, content=None), ("rejected", "refusal"), 1),
    "half a pair": (_message(content='{"echo": "a\ud83d"}'), ("rejected", "control"), 1),
    "half a pair in the JSON": (_message(content='{"echo": "a\\ud83d"}'), ("rejected", "control"), 1),
    "no choices": (lambda r: {**r, "choices": []}, ("rejected", "schema"), 2),
    "choices an object": (lambda r: {**r, "choices": {"0": 1}}, ("rejected", "schema"), 2),
    "no message": (lambda r: {**r, "choices": [{"finish_reason": "stop"}]}, ("rejected", "schema"), 2),
    "a list": (lambda r: [r], ("rejected", "schema"), 2),
    "a text": (lambda r: "sorry", ("rejected", "schema"), 2),
}


class _Checked(EchoMethod):
    """Refuses broken text, as read_answer does."""

    def parse(self, job, answer):
        found = super().parse(job, answer)
        if found[0]["text"] != storable(found[0]["text"]):
            raise Reject("control", "broken text")
        return found


@pytest.mark.parametrize("batch", [False, True])
def test_odd_replies_are_paid_once_and_spoil_no_neighbour(tmp_path, batch):
    odd = dict(zip([f"text {i} odd" for i in range(len(ODD))], ODD.values()))

    def change(body, reply):
        text = body["messages"][-1]["content"]
        return odd[text][0](reply) if text in odd else reply

    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(odd)] + inputs(6)
    with OpenAIServer(echo_model, change=change) as server:
        given = settings(tmp_path, server.base_url, batch=batch)
        found = {o.job.row_id: o for o in outcomes(given, rows, _Checked())}
        names = dict(zip(found, ODD))
        got = {names[i]: (o.state, o.reason) for i, o in found.items() if i in names}
        assert got == {name: expected for name, (_, expected, _) in ODD.items()}
        assert all(found[f"row-{i}"].state == "accepted" for i in range(6))
        assert sum(server.billed.values()) == 6 + sum(times for _, _, times in ODD.values())
        assert set(server.billed.values()) == {1}
        book = balanced(given)
        assert book.totals.reserved == 0 and book.totals.uncertain > 0, "unknown costs stand in the books as bounds"
        assert len(outcomes(given, rows, _Checked())) == len(rows)
        assert set(server.billed.values()) == {1}


@pytest.mark.parametrize(
    "value, count",
    [
        (5, 5),
        (5.0, 5),
        ("5", 5),
        ("5.0", 5),
        (0, 0),
        (5.5, None),
        (-1, None),
        (10**20, None),
        ("1e400", None),
        ("nan", None),
        (float("nan"), None),
        (float("-inf"), None),
        (True, None),
        (None, None),
        ([], None),
        ("", None),
    ],
)
def test_counts_of_tokens(value, count):
    assert token_count(value) == count


def test_more_cached_tokens_than_there_are_earn_nothing():
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1000}}
    reply = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    answer = read_completion(reply, PRICE)
    assert answer.cached_tokens == 0 and answer.cost == pytest.approx((10 * 1.0 + 2) / 1e6)
    assert PRICE.cost(10, 1, 1000) == answer.cost


def test_an_empty_reply_is_paid_for_all_the_same():
    reply = {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 50}}
    answer = read_completion(reply, PRICE)
    assert (answer.state, answer.reason) == ("rejected", "schema")
    assert answer.cost == pytest.approx((100 + 100) / 1e6)


def _requests(count: int) -> list[Request]:
    return [Request("m", ({"role": "user", "content": f"x{i}"},), {}, None, "t/1") for i in range(count)]


class _Unwritable(str):
    """A text that cannot be written."""

    def __str__(self):
        raise ValueError("not to be written")


def test_a_row_that_cannot_be_written_takes_no_other_with_it(tmp_path):
    requests = _requests(9)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.add([(r, "") for r in requests]).result()
        for r in requests:
            assert ledger.claim(r.key, 0.5).result() == "go"
        gate = threading.Event()  # one transaction for all: the thread that writes is kept busy meanwhile
        ledger.write(lambda c: gate.wait(5))
        futures = [
            ledger.finish(r.key, Answer("done", response=_Unwritable("y") if i == 4 else f"y{i}", cost=0.1))
            for i, r in enumerate(requests)
        ]
        wrong = ledger.write(lambda c: c.execute("INSERT INTO totals VALUES (1, ?, 0, 0, 0)", (10**30,)))
        gate.set()
        assert [f.result(5) for f in futures] == [None] * 9
        assert "cannot be written" in str(wrong.exception(5))
        rows = ledger.rows(r.key for r in requests)
        assert [rows[r.key].state for r in requests] == ["done"] * 4 + ["rejected"] + ["done"] * 4
        assert rows[requests[4].key].reason == "schema" and "cannot be stored" in rows[requests[4].key].detail
        assert ledger.totals().spent == pytest.approx(0.8) and ledger.totals().uncertain == pytest.approx(0.5)
        ledger.add([(_requests(10)[9], "")]).result()  # the ledger goes on


def test_values_that_no_ledger_can_hold_are_changed(tmp_path):
    request = _requests(1)[0]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.add([(request, "")]).result()
        ledger.claim(request.key, 0.25).result()
        odd = Answer("done", "", "d\udc00", "t\ud83dx", "r\ud800", 10**20, -1, 3, float("nan"))
        ledger.finish(request.key, odd).result()
        row = ledger.rows([request.key])[request.key]
        assert (row.detail, row.response, row.request_id, row.cost) == ("d\ufffd", "t\ufffdx", "r\ufffd", None)
        assert ledger.totals().uncertain == 0.25
        ledger.judge([("run", "m", "id", request.key, "rejected", "schema", "no \udfff")]).result()
        assert ledger.query("SELECT detail FROM jobs") == [("no \ufffd",)]


def test_max_usd_holds_where_the_endpoint_counts_nothing(tmp_path):
    change = _usage(prompt_tokens=None)
    with OpenAIServer(echo_model, change=lambda body, reply: change(reply)) as server:
        free = settings(tmp_path, server.base_url)
        outcomes(free, inputs(1))
        one = balanced(free).totals.uncertain
        assert one > 0 and balanced(free).totals.spent == 0
        given = settings(tmp_path, server.base_url, max_usd=5.5 * one)
        found = states(outcomes(given, inputs(40)))
        assert 3 <= sum(server.billed.values()) <= 6 and found["pending", ""] >= 34
        assert balanced(given).totals.uncertain <= 5.5 * one


@pytest.mark.parametrize("params", [{"max_completion_tokens": None}, {"max_tokens": None}])
def test_max_usd_needs_a_limit_of_the_answer(tmp_path, params):
    with pytest.raises(UserError, match="--max_tokens"):
        settings(tmp_path, "http://127.0.0.1:9/v1", max_usd=1.0, params=params)
    settings(tmp_path, "http://127.0.0.1:9/v1", max_usd=1.0, params=params, price="1,0")
    settings(tmp_path, "http://127.0.0.1:9/v1", max_usd=1.0, params={**params, "max_tokens": 5})

    class Unlimited(EchoMethod):
        def jobs(self, rows, given):
            for job in super().jobs(rows, given):
                yield replace(job, request=replace(job.request, params={}))

    with OpenAIServer(echo_model) as server:
        for batch in (False, True):
            with pytest.raises(UserError, match="--max_tokens"):
                outcomes(settings(tmp_path, server.base_url, max_usd=1.0, batch=batch), inputs(3), Unlimited())
        assert not server.billed


def test_a_key_with_a_line_end_is_cut_out_too(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", "pl-secret-0123456789\n")
    monkeypatch.setenv("MY_GATEWAY_TOKEN", "gateway-0123456789 ")
    monkeypatch.setenv("TEST_KEY", "/home/somebody/key")
    assert without_key("a pl-secret-0123456789 b gateway-0123456789 c /home/somebody/key") == (
        "a *** b *** c /home/somebody/key"
    )
    with OpenAIServer(echo_model, key="pl-secret-0123456789") as server:

        async def refuse(body, name):
            return 400, {}, {"error": {"message": f"wrong: {server.key}", "innererror": "gateway-0123456789"}}

        server._completion = refuse
        found = outcomes(settings(tmp_path, server.base_url), inputs(2))
        assert states(found) == {("failed", "bad_request"): 2} and "***" in found[0].detail
    texts = [repr(found), *capfd.readouterr()]
    assert not any("0123456789" in t for t in texts)
    assert not any(b"0123456789" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("rows", [1, 60])
def test_pages_of_a_wrong_address_stop_the_run(tmp_path, rows):
    with OpenAIServer(echo_model, change=lambda body, reply: b"<html>welcome</html>") as server:
        given = settings(tmp_path, server.base_url, concurrency=4)
        with pytest.raises(UserError, match="does not speak the API.*--base_url"):
            outcomes(given, inputs(rows))
        assert sum(server.asked.values()) <= 30
    balanced(given)


def test_an_error_with_status_200_is_an_error(tmp_path):
    with OpenAIServer(echo_model, change=lambda b, r: {"error": {"code": 401, "message": "no"}}) as server:
        with pytest.raises(UserError, match="does not accept the API key"):
            outcomes(settings(tmp_path, server.base_url), inputs(3))


def test_redacted_texts_can_be_printed():
    assert redact("a\ud800 sk-abcdef") == "a\ufffd ***"
    assert json.loads(json.dumps(storable("x\ud83d\ude00"))) == "x\U0001f600"
