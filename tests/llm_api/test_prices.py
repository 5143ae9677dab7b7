"""Prices, token counts, estimates and limits in money."""

import json

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.llm_api import token_counts
from mmed_jax.llm_api.cost_estimate import estimate, sum_estimates
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.ledger.transactions import Answer
from mmed_jax.llm_api.prices import TABLE, price_of
from mmed_jax.llm_api.token_counts import answer_limit, counter_for, prompt_tokens
from mmed_jax.llm_api.types import Request
from tests.support.llm_api import (
    SCHEMA,
    EchoMethod,
    balanced,
    echo_model,
    inputs,
    language_gate,
    outcomes,
    settings,
    states,
)
from tests.support.openai_server import Faults, OpenAIServer


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-money")


def test_prices_come_from_one_dated_table():
    price = price_of("gpt-4o-mini")
    assert (price.input, price.cached, price.output) == tuple(json.loads(TABLE.read_text())["models"]["gpt-4o-mini"])
    assert price.date == json.loads(TABLE.read_text())["date"]
    assert price_of("gpt-4o-mini-2024-07-18") == price
    assert price_of("gpt-4o-mini-fine-tuned-by-us") is None and price_of("llama-3-8b") is None
    # 1000 tokens in, 400 of them cached, 500 out.
    assert price.cost(1000, 500, 400) == pytest.approx((600 * 0.15 + 400 * 0.075 + 500 * 0.6) / 1e6)
    assert price.cost(1000, 500, batch=True) == pytest.approx(price.cost(1000, 500) / 2)


def test_a_price_of_ones_own(tmp_path):
    assert price_of("llama", given="0,0").cost(10**6, 10**6) == 0
    assert price_of("llama", given="2,4").cost(10**6, 10**6) == 6
    for wrong in ("2", "a,b", "-1,2", "nan,1"):
        with pytest.raises(UserError, match="--price"):
            price_of("llama", given=wrong)
    table = tmp_path / "p.json"
    one = '{"date": "x", "models": {"m": [1, %s, 3]}}'
    huge = "1" * 5000
    wrong = (
        "{",
        "{}",
        '{"date": "x", "models": {"m": [1, 2]}}',
        "[]",
        "[" * 20000,
        one % huge,
        one % ("1" * 400),
        one % "NaN",
        one % "-1",
        one % "1e999",
        '{"date": "x", "models": {}, "batch_factor": -1}',
    )
    for text in wrong:
        table.write_text(text)
        with pytest.raises(UserError, match="not a price table"):
            price_of("m", table)


def test_unknown_prices_forbid_a_limit_in_money(tmp_path):
    with pytest.raises(UserError, match="no price is known.*--price"):
        settings(tmp_path, "http://127.0.0.1:9/v1", model="llama-3-8b", max_usd=1.0)


def test_bytes_bound_tokens(monkeypatch):
    request = Request("m", ({"role": "user", "content": "Тест é 漢字"},), {"max_completion_tokens": 7}, SCHEMA, "x/1")
    size = len("user") + len("Тест é 漢字".encode()) + len(json.dumps(SCHEMA))
    assert prompt_tokens(request) == size + 7
    assert answer_limit(request) == 7
    assert not counter_for("a-model-nobody-knows").exact

    class Words:
        name = "words"

        def encode_ordinary(self, text):
            return text.split()

    import tiktoken

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda model: Words())
    token_counts.counter_for.cache_clear()
    counter = counter_for("gpt-4o-mini")
    token_counts.counter_for.cache_clear()
    assert counter.exact and counter.name == "tiktoken words" and counter.count("a b c") == 3


def test_the_estimate_bounds_the_cost_and_learns_from_a_sample(tmp_path):
    rows = inputs(200)
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url)
        before = estimate(EchoMethod(), rows, given)
        assert not given.ledger_file.exists() and not server.billed, "an estimate leaves nothing"
        assert (before.rows, before.requests, before.answered) == (200, 200, 0)
        assert before.expected is None and "upper bound" in str(before)
        sample = outcomes(given, rows[:100])
        rest = estimate(EchoMethod(), rows, given)
        assert len(sample) == 100 and rest.answered == 100 and rest.requests == 100
        paid = balanced(given).totals.spent
        # The other half is like the first, redraws included.
        assert rest.expected == pytest.approx(paid, rel=0.15)
        outcomes(given, rows)
        total = balanced(given).totals.spent
        assert rest.expected < rest.at_most and total < before.at_most
        assert estimate(EchoMethod(), rows, given).requests == 0
        assert estimate(EchoMethod(2), rows, given).requests == 200, "a changed prompt is another request"


def test_dry_run_prints_and_ends(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        outcomes(settings(tmp_path, "http://127.0.0.1:9/v1", dry_run=True), inputs(5))
    assert ended.value.code == 0 and "requests to send" in capsys.readouterr().out


def test_max_usd_is_never_passed_and_the_run_goes_on_later(tmp_path):
    rows = inputs(300)
    with OpenAIServer(echo_model) as server:
        whole = settings(tmp_path, server.base_url)
        least = estimate(EchoMethod(redraws=False), rows[:60], whole).at_most
        given = settings(tmp_path, server.base_url, max_usd=least / 4)
        found = states(outcomes(given, rows))
        spent = balanced(given).totals.spent
        assert 0 < spent <= least / 4 and found["pending", ""] > 0
        # Room that requests under way had reserved and not used was used by others: it is nearly full.
        assert spent > 0.6 * least / 4
        billed = sum(server.billed.values())
        assert states(outcomes(given, rows))["pending", ""] > 0
        assert sum(server.billed.values()) - billed <= 3, "the limit holds over runs"
        assert states(outcomes(whole, rows))["pending", ""] == 0
        assert max(server.billed.values()) == 1


def test_max_requests_counts_every_attempt_sent(tmp_path):
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url, max_requests=40)
        found = states(outcomes(given, inputs(100)))
        assert sum(server.asked.values()) == 40 == balanced(given).totals.requests
        assert found["pending", ""] >= 60


def test_cost_is_what_the_endpoint_counted(tmp_path):
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url)
        outcomes(given, inputs(50))
        usage, price = server.billed_usage, price_of("gpt-4o-mini")
        expected = price.cost(usage["prompt_tokens"], usage["completion_tokens"])
        assert balanced(given).totals.spent == pytest.approx(expected, rel=1e-9)


def test_the_upper_bound_holds_where_every_answer_is_asked_for_again(tmp_path):
    """Every answer is cut: asked for with 64, 128 and 256 tokens."""
    change = OpenAIServer(echo_model, faults=Faults({"length": 1.0}))

    def full(body, reply):
        room = body["max_completion_tokens"]
        return {**reply, "usage": {"prompt_tokens": reply["usage"]["prompt_tokens"], "completion_tokens": room}}

    change.change = full
    with change as server:
        given = settings(tmp_path, server.base_url)
        found = estimate(EchoMethod(), inputs(5), given)
        assert (found.requests, found.all_requests, found.all_answers) == (5, 15, 5 * (64 + 128 + 256))
        assert "with every redraw 15" in str(found)
        outcomes(given, inputs(5))
        assert sum(server.billed.values()) == 15
        assert found.at_most > balanced(given).totals.spent > found.settings.known_price.cost(0, 5 * 448)
        left = estimate(EchoMethod(), inputs(7), given)
        assert (left.answered, left.requests, left.all_requests) == (5, 2, 6)
    both = sum_estimates([found, left])
    assert both == f"all steps: 7 requests to send, cost at most ${found.at_most + left.at_most:,.2f} with every redraw"


def test_an_answer_that_will_be_asked_for_again_is_in_the_estimate(tmp_path):
    with OpenAIServer(echo_model) as server:
        given = settings(tmp_path, server.base_url)
        outcomes(given, inputs(8), EchoMethod(redraws=False))
        left = estimate(EchoMethod(), inputs(8), given, [language_gate])
        assert (left.answered, left.requests) == (7, 1)


def test_what_is_held_comes_back_to_nothing(tmp_path):
    """Bounds held and given back in any order leave exactly zero, though sums of dollars are rounded."""
    prices = [0.1, 0.2, 0.3]
    requests = [Request("m", [{"role": "user", "content": str(p)}], {}, None, "v") for p in prices]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.add([(r, "m") for r in requests]).result()
        assert {ledger.claim(r.key, p).result() for r, p in zip(requests, prices)} == {"go"}
        assert sum(prices) <= ledger.totals().reserved <= sum(prices) + 1e-9
        for request in reversed(requests):
            ledger.finish(request.key, Answer("done", cost=0.0)).result()
        assert ledger.totals().reserved == 0
