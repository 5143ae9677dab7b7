"""The same fault has the same end: an HTTP status, an error in a reply of status 200, a line of a batch's results."""

import json
import sqlite3
from types import SimpleNamespace

import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.llm_api import client as api
from mmed_jax.llm_api.batch.replies import read_line
from mmed_jax.llm_api.completions import read_completion
from mmed_jax.llm_api.error_status import status_of
from mmed_jax.llm_api.failures import RefusedParameters, settle, settle_status
from mmed_jax.llm_api.finish_reasons import is_cut, kind_of_ending
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.types import Request
from tests.support.llm_api import EchoMethod, balanced, echo_model, inputs, lines, outcomes, settings, states
from tests.support.openai_server import OpenAIServer

PRICE = Price(1.0, 0.5, 2.0, "today")


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-endpoints")


# ---- Errors in replies ----------------------------------------------------------------------------------------------

TOO_MANY, DOWN, STOP, REFUSED, FAILED = "too many", "down", "stop", "refused", "failed"
ERRORS = [
    # Numbers, as int, float and text; words; sentences.
    ({"error": {"code": 429}}, TOO_MANY),
    ({"error": {"code": "429"}}, TOO_MANY),
    ({"error": {"code": 502.0}}, DOWN),
    ({"error": {"code": "502", "message": "x"}}, DOWN),
    ({"error": {"status": "529"}}, DOWN),
    ({"error": {"code": 400, "message": "x"}}, REFUSED),
    ({"error": {"code": "401"}}, STOP),
    ({"error": {"code": "rate_limit_exceeded"}}, TOO_MANY),
    ({"error": {"type": "overloaded_error"}}, DOWN),
    ({"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}, TOO_MANY),
    ({"error": {"code": "insufficient_quota", "type": "insufficient_quota"}}, STOP),
    ({"error": {"code": 429, "type": "insufficient_quota"}}, STOP),
    ({"error": {"type": "invalid_request_error", "code": "model_not_found"}}, STOP),
    ({"error": {"type": "invalid_request_error", "code": "invalid_api_key"}}, STOP),
    ({"error": {"type": "invalid_request_error", "message": "no"}}, REFUSED),
    ({"error": {"code": "context_length_exceeded"}}, REFUSED),
    ({"error": {"status": "RESOURCE_EXHAUSTED"}}, TOO_MANY),
    ({"error": {"status": "UNAVAILABLE"}}, DOWN),
    ({"__type": "ThrottlingException", "message": "Rate exceeded", "code": "ThrottlingException"}, TOO_MANY),
    ({"error": "overloaded"}, DOWN),
    ({"error": "502 Bad Gateway"}, DOWN),
    ({"error": "Error code: 429"}, TOO_MANY),
    ({"error": "Rate limit reached, add credits"}, TOO_MANY),
    ({"error": "Request timed out"}, DOWN),
    ({"error": "You exceeded your current quota"}, STOP),
    ({"error": "Model m does not exist"}, STOP),
    ({"error": {"message": "Please try again later"}}, DOWN),
    ({"error": {"message": "HTTP 503 from upstream"}}, DOWN),
    # Lists, nesting, other names, beside empty choices.
    ({"error": [{"code": 503}]}, DOWN),
    ([{"error": {"code": 503, "status": "UNAVAILABLE"}}], DOWN),
    ({"error": {"error": {"error": {"code": "server_error"}}}}, DOWN),
    ({"error": {"message": "Provider returned error", "metadata": {"raw": '{"message": "busy"}'}}}, DOWN),
    ({"errors": [{"code": 1, "message": "internal server error"}], "success": False}, DOWN),
    ({"object": "error", "message": "too many requests", "code": None}, TOO_MANY),
    ({"detail": "Service Unavailable"}, DOWN),
    ({"choices": [], "error": {"code": "server_error"}}, DOWN),
    ({"choices": None, "error": "busy"}, DOWN),
    ({"choices": [{"error": {"code": 502}, "message": {}}]}, DOWN),
    ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None}, TOO_MANY),
    ({"choices": [{"finish_reason": "error", "message": {"content": "The ans"}}]}, DOWN),
    ({"choices": [{"finish_reason": "stop", "message": {"content": ""}}], "error": {"code": "429"}}, TOO_MANY),
    # Half a text without an ending, and the error that ended it.
    ({"choices": [{"finish_reason": None, "message": {"content": "The ans"}}], "error": {"code": 502}}, DOWN),
    ({"choices": [{"message": {"content": "The ans"}, "error": {"code": "rate_limit_exceeded"}}]}, TOO_MANY),
    # Errors of the server behind a gateway, as text.
    ({"error": '{"code": 429, "message": "slow"}'}, TOO_MANY),
    ({"error": {"message": '[{"code": 503}]'}}, DOWN),
    ({"error": {"code": "HTTP_503"}}, DOWN),
    ({"error": {"code": "E429"}}, TOO_MANY),
    ({"error": "Model m is currently loading", "estimated_time": 20.0}, DOWN),
    ({"error": "queue is full"}, DOWN),
    ({"object": "error", "message": "CUDA out of memory", "code": 50001}, DOWN),
    ({"error_code": 18, "error_msg": "Open api qps request limit reached"}, TOO_MANY),
    ({"code": "1302", "msg": "您当前使用该API的并发数过高"}, TOO_MANY),
    ({"fault": {"faultstring": "Rate limit quota violation", "detail": {"errorcode": "x"}}}, TOO_MANY),
    # What nobody knows is no answer either.
    ({"error": {"code": "E-17", "message": "oops"}}, FAILED),
    ({"error": {"code": None, "message": "\udc00"}}, FAILED),
    ({"error": True}, FAILED),
    ({"error": ["x"]}, FAILED),
    ({"choices": None}, FAILED),
    ({"choices": []}, FAILED),
    ({"id": "x", "choices": None, "usage": None}, FAILED),
    (None, FAILED),
    ({}, FAILED),
    ([], FAILED),
    (0, FAILED),
    ({"error": '{"code": ' + "9" * 5000 + "}"}, FAILED),
    ({"error": "[" * 5000}, FAILED),
    ({"error": "{"}, FAILED),
]


def _end(what, inside: bool = True) -> str:
    """What became of a request, as one of the words above."""
    if isinstance(what, api.Stop):
        return STOP
    if isinstance(what, api.Again):
        assert what.uncertain or what.cost is not None or not inside, "what may have been billed is in the books"
        return TOO_MANY if what.limited else DOWN
    if what.state == "failed":
        assert what.cost is None or what.reason == "bad_request"
        return {"bad_request": REFUSED, "api_error": FAILED}[what.reason]
    return what.state


def _caught(function, *args, **more):
    try:
        return function(*args, **more)
    except (api.Again, api.Stop) as e:
        return e


@pytest.mark.parametrize(("reply", "expected"), ERRORS, ids=[json.dumps(e)[:60] for e, _ in ERRORS])
def test_an_error_is_what_its_http_status_is(reply, expected):
    assert _end(_caught(settle, reply, PRICE, {})) == expected
    line = json.dumps({"custom_id": "k", "response": {"status_code": 200, "body": reply}, "error": None})
    key, found = read_line(line.encode(), PRICE, RefusedParameters(print))
    assert key == "k" and _end(found) == expected
    if expected not in (FAILED, REFUSED) and isinstance(reply, dict) and isinstance(reply.get("error"), dict | str):
        line = json.dumps({"custom_id": "k", "response": None, "error": reply["error"]})
        assert _end(read_line(line.encode(), PRICE, RefusedParameters(print))[1], inside=False) == expected


def test_answers_are_no_errors():
    """Whatever words are in them, and whatever stands beside them."""
    for text in ("Error 429: rate limit", '{"error": "overloaded"}', "502"):
        choice = {"finish_reason": "stop", "message": {"content": text, "error": "overloaded"}}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        for more in ({}, {"error": None}, {"error": {}}, {"error": {"code": "overloaded_error"}}, {"detail": "busy"}):
            assert settle({"choices": [choice], "usage": usage, **more}, PRICE, {}).state == "done"


@pytest.mark.parametrize("code", [408, 504, 502, 503, 429, "timeout", "gateway_timeout", "server_error", "rate_limit"])
@pytest.mark.parametrize("counted", [False, True])
def test_what_is_counted_is_no_longer_in_doubt(code, counted):
    """Beside an error in a reply of status 200; one without counts may have been billed, whatever its status."""
    reply = {"error": {"code": code}, **({"usage": {"prompt_tokens": 3, "completion_tokens": 2}} if counted else {})}
    line = json.dumps({"custom_id": "k", "response": {"status_code": 200, "body": reply}})
    for found, cost in [
        (_caught(settle, reply, PRICE, {}), 7e-6),
        (read_line(line.encode(), PRICE, RefusedParameters(print))[1], 3.5e-6),
    ]:
        assert found.uncertain != counted
        assert found.cost == (pytest.approx(cost) if counted else None)
    with pytest.raises(api.Again) as plain:
        settle_status(status_of({"code": code}), reply["error"], {})
    assert plain.value.uncertain == (code in (408, 504, "timeout", "gateway_timeout")) and plain.value.cost is None


@pytest.mark.parametrize("batch", [False, True])
def test_an_error_that_stops_is_paid_where_it_is_counted(tmp_path, batch):
    def change(body, reply):
        return {"error": {"code": "insufficient_quota"}, "usage": reply["usage"]}

    with OpenAIServer(echo_model, change=change) as server:
        given = settings(tmp_path, server.base_url, batch=batch, concurrency=1)
        with pytest.raises(UserError, match="no credit"):
            outcomes(given, inputs(2))
        usage, totals = server.billed_usage, balanced(given).totals
        billed = given.known_price.cost(usage["prompt_tokens"], usage["completion_tokens"], batch=batch)
        assert totals.spent == pytest.approx(billed) and totals.uncertain == totals.reserved == 0


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("code", ["502", "504", "timeout", ""], ids=["502", "504", "timeout", "not counted"])
def test_errors_that_pass_are_asked_again_and_others_in_the_next_run(tmp_path, capsys, batch, code):
    """Neither is lost for good; money stays within its bounds though every attempt may have been billed, and is exact
    where every one is counted."""
    came: dict[str, int] = {}

    def change(body, reply):
        text = body["messages"][-1]["content"]
        came[text] = came.get(text, 0) + 1
        n = int(text.split()[2].strip(","))
        if n % 3 == 0 and came[text] <= 2:
            return {"error": {"message": "upstream died", "code": code or "502"}, **counts(reply)}
        return {"error": "oops", **counts(reply)} if n % 3 == 1 and came[text] == 1 else reply

    def counts(reply):
        return {"usage": reply["usage"]} if code else {}

    with OpenAIServer(echo_model, change=change) as server:
        given = settings(tmp_path, server.base_url, batch=batch, poll_s=0.001)
        assert states(outcomes(given, inputs(6))) == {("accepted", ""): 4, ("failed", "api_error"): 2}
        assert states(outcomes(given, inputs(6))) == {("accepted", ""): 6}
        usage, totals = server.billed_usage, balanced(given).totals
        billed = given.known_price.cost(usage["prompt_tokens"], usage["completion_tokens"], batch=batch)
        assert totals.spent <= billed + 1e-9 <= totals.spent + totals.uncertain + 2e-9
        assert (totals.uncertain < 1e-12) == bool(code)
        assert sum(server.billed.values()) == 2 + 2 * 3 + 2 * 2
    # Its second round: only the two that fail twice.
    said = capsys.readouterr().err
    assert said.count("not one of the 2 requests of a round of batches was answered (batch 2, completed: ") == batch


def test_an_endpoint_of_nothing_but_errors_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("mmed_jax.llm_api.sender._QUIET", 0.3)
    for n, (error, kind, said) in enumerate(
        [
            ({"error": {"code": "rate_limit_exceeded", "message": "later"}}, WorkError, "answered nothing for .*later"),
            ({"error": "oops"}, WorkError, "answered none of the first 20 requests .*oops"),
            ({"error": {"code": "insufficient_quota"}}, UserError, "no credit or quota"),
        ]
    ):
        with OpenAIServer(echo_model, change=lambda body, reply, error=error: error) as server:
            (tmp_path / str(n)).mkdir()
            given = settings(tmp_path / str(n), server.base_url)
            with pytest.raises(kind, match=said):
                outcomes(given, inputs(60))
            assert sum(server.asked.values()) < 200
            balanced(given)


def test_an_answer_that_is_broken_off_is_paid_and_asked_for_three_times(tmp_path):
    def change(body, reply):
        reply["choices"][0] |= {"finish_reason": "insufficient_system_resource"}
        return (
            reply
            if "2," in body["messages"][-1]["content"]
            else {**reply, "choices": [{**reply["choices"][0], "finish_reason": "eos_token"}]}
        )

    with OpenAIServer(echo_model, change=change) as server:
        given = settings(tmp_path, server.base_url)
        found = outcomes(given, inputs(3))
        assert states(found) == {("accepted", ""): 2, ("failed", "api_error"): 1}
        assert "broke the answer off (finish_reason insufficient_system_resource)" in found[2].detail
        assert sorted(server.billed.values()) == [1, 1, 3]
        usage, totals = server.billed_usage, balanced(given).totals
        billed = given.known_price.cost(usage["prompt_tokens"], usage["completion_tokens"])
        assert totals.spent == pytest.approx(billed) and totals.uncertain == 0


# ---- What is not taken ----------------------------------------------------------------------------------------------

UNKNOWN = [
    {"error": {"message": "Unsupported parameter: 'seed' is not supported", "param": "seed"}},
    {"error": {"message": "Unrecognized request argument supplied: seed", "type": "invalid_request_error"}},
    {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
    {"message": "This model does not support seed"},
    "unknown field `seed`",
    {"error": {"message": "'seed' is not supported with this model (gpt)"}},
    {"error": {"message": "Unknown parameter: seed (request)", "param": "body"}},
]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("error", UNKNOWN, ids=range(len(UNKNOWN)))
def test_a_seed_that_is_refused_is_left_out(tmp_path, capsys, error, batch):
    """Redraws bring one along; requests stay the same, so that another run finds their answers."""
    sent = []

    def change(body, reply):
        sent.append(body)
        return {"error": error} if "seed" in body else reply

    class Strict(OpenAIServer):
        async def _completion(self, body, name):
            if "seed" in body:
                self.asked["refused"] += 1
                return 400, {}, error
            return await super()._completion(body, name)

    with Strict(echo_model, change=change) as server:
        given = settings(tmp_path, server.base_url, batch=batch, poll_s=0.001, concurrency=2)
        found = outcomes(given, inputs(4))
        assert states(found) == {("accepted", ""): 4} and not any("seed" in b for b in sent[-4:])
        assert capsys.readouterr().err.count("does not take 'seed'") == 1
        asked = sum(server.asked.values())
        assert lines(outcomes(given, inputs(4))) == lines(found) and sum(server.asked.values()) == asked <= 8


def test_a_limit_has_two_names():
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    notes: list[str] = []
    told = RefusedParameters(notes.append)
    old = Request("m", (), {"max_tokens": 9, "seed": 1}, None, "t/1")
    assert told.request(old) is old
    assert told.learn(said, old.params) and told.learn(said, old.params) and len(notes) == 1
    new = told.request(old)
    assert new.params == {"max_completion_tokens": 9, "seed": 1} and new.key == old.key
    assert not told.learn("max_completion_tokens is not supported", new.params), "not to and fro"
    said = "'seed' is not supported with this model (gpt)"
    assert RefusedParameters(print).learn(said, {"seed": 1}) and not RefusedParameters(print).learn(
        said, {"temperature": 0}
    )
    for other in ("max_tokens is too large: 9", "temperature is not supported", "unsupported value (temperature)"):
        assert not RefusedParameters(print).learn(other, {**old.params, "temperature": 0})


# ---- Counts of tokens -----------------------------------------------------------------------------------------------


def _counts(**usage):
    """(prompt, completion, cost in units of a millionth dollar) that stand in the ledger for a usage."""
    reply = {"choices": [{"message": {"content": "text"}, "finish_reason": "stop"}], "usage": usage}
    found = read_completion(reply, PRICE)
    return found.prompt_tokens, found.completion_tokens, found.cost and round(found.cost * 1e6)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"completion_tokens": 10}, (100, 10, 120)),
        ({"completion_tokens": 10, "total_tokens": 110}, (100, 10, 120)),
        # Reasoning inside, beside, and counted alone.
        (
            {"completion_tokens": 40, "completion_tokens_details": {"reasoning_tokens": 30}, "total_tokens": 140},
            (100, 40, 180),
        ),
        (
            {"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 30}, "total_tokens": 140},
            (100, 40, 180),
        ),
        ({"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": "30"}}, (100, 40, 180)),
        ({"completion_tokens": 10, "reasoning_tokens": 30.0}, (100, 40, 180)),
        ({"completion_tokens": 0, "completion_tokens_details": {"reasoning_tokens": 30}}, (100, 30, 160)),
        ({"completion_tokens": 0, "total_tokens": 130}, (100, 30, 160)),
        ({"completion_tokens": 10, "total_tokens": "140"}, (100, 40, 180)),
        ({"completion_tokens": 10, "total_tokens": 0}, (100, 10, 120)),
        (
            {"completion_tokens": 10, "total_tokens": -1, "completion_tokens_details": {"reasoning_tokens": None}},
            (100, 10, 120),
        ),
        ({"completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 100}}, (100, 10, 70)),
        ({"completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 101}}, (100, 10, 120)),
        ({"completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": True}}, (100, 10, 120)),
        ({"prompt_tokens": None, "input_tokens": 100, "output_tokens": 10}, (100, 10, 120)),
        # Impossible: no counts, so that the bound is booked.
        ({"completion_tokens": 0}, None),
        ({"completion_tokens": 0, "total_tokens": 100}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": 0, "completion_tokens": 10}, None),
        ({"completion_tokens": -1}, None),
        ({}, None),
        ({"completion_tokens": True}, None),
        ({"completion_tokens": 10.5}, None),
        ({"completion_tokens": 10**12}, None),
        ({"prompt_tokens": None, "completion_tokens": 10, "total_tokens": 110}, None),
    ],
)
def test_the_most_that_the_counts_support_is_the_cost(usage, expected):
    assert _counts(**{"prompt_tokens": 100, **usage}) == (expected or (None, None, None))


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 100])
def test_a_text_has_as_many_tokens_as_it_needs_at_least(tokens):
    reply = {
        "choices": [{"message": {"content": "fever " * 80}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": tokens},
    }
    assert (read_completion(reply, PRICE).cost is None) == (tokens < 4)


def test_max_usd_stops_where_reasoning_stands_beside_the_limit_of_an_answer(tmp_path):
    """The bound of a request does not know of it; the first answers tell."""

    def change(body, reply):
        usage = reply["usage"]
        usage["completion_tokens_details"] = {"reasoning_tokens": 3000}
        usage["total_tokens"] += 3000
        return reply

    with OpenAIServer(echo_model, change=change) as server:
        given = settings(tmp_path, server.base_url, concurrency=2, max_usd=0.0125)  # 0.0018 dollars a request
        found = states(outcomes(given, inputs(40)))
        totals = balanced(given).totals
        assert 3 <= sum(server.billed.values()) <= 7 and found["pending", ""] >= 33
        assert 0.0054 < totals.spent <= 0.0125


def test_a_count_of_too_many_digits_takes_no_answer_with_it(tmp_path):
    def change(body, reply):
        text = json.dumps(reply)
        return text.replace('"completion_tokens": ', '"completion_tokens": ' + "1" * 5000).encode()

    with OpenAIServer(echo_model, change=change) as server:
        given = settings(tmp_path, server.base_url)
        assert states(outcomes(given, inputs(3))) == {("accepted", ""): 3}
        assert set(server.billed.values()) == {1} and balanced(given).totals.uncertain > 0


# ---- Endings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "state", "reason"),
    [
        ("stop STOP eos eos_token end_turn stop_sequence FINISH_REASON_STOP tool_calls function_call", "done", ""),
        ("length max_tokens MAX_TOKENS max_output_tokens maxTokens model_length", "rejected", "length"),
        ("content_filter SAFETY RECITATION PROHIBITED_CONTENT sensitive", "rejected", "content_filter"),
        ("refusal", "rejected", "refusal"),
        ("error Error ERROR abort cancelled insufficient_system_resource network_error", "failed", "api_error"),
        ("null something 7", "done", ""),
    ],
)
def test_why_an_answer_ended(reasons, state, reason):
    for said in reasons.split():
        ended = {"null": None, "7": 7}.get(said, said)
        reply = {"choices": [{"message": {"content": '{"a": 1}'}, "finish_reason": ended}]}
        found = read_completion(reply, None)
        assert (found.state, found.reason, found.finish) == (state, reason, said), said
        assert is_cut(said) == (reason in ("length", "api_error") or said in ("null", "something", "7"))
    assert kind_of_ending(None) == kind_of_ending("") == "unknown"


def test_endings_that_nobody_knows_are_said_once(tmp_path, capsys):
    def change(body, reply):
        n = int(body["messages"][-1]["content"].split()[2].strip(","))
        reply["choices"][0]["finish_reason"] = (None, "finito", "stop")[n % 3]
        return reply

    with OpenAIServer(echo_model, change=change) as server:
        assert states(outcomes(settings(tmp_path, server.base_url), inputs(6))) == {("accepted", ""): 6}
    [said] = [x for x in capsys.readouterr().err.splitlines() if "warning" in x]
    assert "4 answers ended for a reason that is not known" in said and "'null' 2" in said and "'finito' 2" in said


# ---- The ledger's file ----------------------------------------------------------------------------------------------


def test_a_ledger_that_was_half_made_is_completed(tmp_path):
    """Whatever of it there was when the disk was full; a version before made its tables one by one."""
    with Ledger(tmp_path / "whole.sqlite"):
        pass
    with sqlite3.connect(tmp_path / "whole.sqlite") as c:
        made = [sql for (sql,) in c.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")]
    for count in range(len(made) + 1):
        path = tmp_path / f"{count}.sqlite"
        with sqlite3.connect(path) as c:
            c.execute("PRAGMA user_version = 1")
            for sql in made[:count]:
                c.execute(sql)
        given = settings(tmp_path, "http://127.0.0.1:9/v1")
        with Ledger(path) as ledger:
            ledger.add([(Request("m", (), {}, None, "t/1"), "")]).result()
            assert ledger.totals() == (0, 0, 0, 0) and ledger.query("SELECT count(*) FROM requests") == [(1,)]
        assert given
        with sqlite3.connect(path) as c:  # the sums are lost: what stands in the requests is counted again
            c.execute("UPDATE requests SET attempts = 3, cost = 0.25")
            c.execute("DROP TABLE totals")
        with Ledger(path) as ledger:
            assert ledger.totals() == (3, 0.25, 0, 0)
    with sqlite3.connect(tmp_path / "other.sqlite") as c:  # a table of ours by its name only
        c.execute("PRAGMA user_version = 1")
        c.execute("CREATE TABLE jobs (title, salary)")
    with pytest.raises(UserError, match="another database, with tables jobs"):
        Ledger(tmp_path / "other.sqlite")


@pytest.mark.parametrize("end", ["done", "error", "ctrl-c", "reader"])
def test_the_file_alone_is_whole_after_a_run(tmp_path, end):
    """Also when another connection holds its -wal, and whatever ended the run."""
    stop = {"error": WorkError, "ctrl-c": KeyboardInterrupt}.get(end)

    class Ended(EchoMethod):
        def parse(self, job, answer):
            if stop and job.row_id == "row-5":
                raise stop("ended")
            return super().parse(job, answer)

    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url)
        other = sqlite3.connect(given.ledger_file) if end == "reader" else SimpleNamespace(close=lambda: None)
        if end == "reader":
            other.execute("PRAGMA journal_mode=WAL").fetchall()
        if stop:
            with pytest.raises(stop):
                outcomes(given, inputs(6), Ended())
        else:
            outcomes(given, inputs(6), Ended())
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes(given.ledger_file.read_bytes())
        with sqlite3.connect(copy) as c:
            assert c.execute("SELECT count(*) FROM requests WHERE state = 'done'").fetchone() == (6,)
        other.close()


def test_http_errors_and_words_agree():
    """A status stands above the words, but for an account without money."""
    for status, error, kind in [
        (429, "Rate limit", api.Again),
        (429, {"code": "insufficient_balance"}, api.Stop),
        (402, "", api.Stop),
        (404, {"message": "no"}, api.Stop),
        (503, {"code": "invalid_request_error"}, api.Again),
    ]:
        with pytest.raises(kind):
            settle_status(status, error, {})
    assert settle_status(400, {"code": "content_filter"}, {}).reason == "content_filter"
