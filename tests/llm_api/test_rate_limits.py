"""Rates: the server's headers, Retry-After, backoff, and how many requests are under way."""

import asyncio
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmed_jax.llm_api import rate_limits
from mmed_jax.llm_api.rate_limits import Limiter, backoff, retry_after, seconds


@pytest.mark.parametrize(
    "text, value",
    [("6m0s", 360.0), ("120ms", 0.12), ("1.5s", 1.5), ("30", 30.0), ("1h2m3s", 3723.0), ("1d", 86400.0), ("0", 0.0)],
)
def test_durations_as_servers_write_them(text, value):
    assert seconds(text) == pytest.approx(value)


@given(st.text(max_size=12))
def test_any_other_text_is_no_duration(text):
    value = seconds(text)
    assert value is None or value >= 0


def test_retry_after_in_its_three_forms():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert retry_after({"retry-after": formatdate(time.time() + 20, usegmt=True)}) == pytest.approx(20, abs=2)
    assert retry_after({"retry-after": formatdate(time.time() - 20, usegmt=True)}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


@given(st.integers(1, 500), st.floats(0.001, 10))
def test_backoff_doubles_with_jitter_below_its_cap(attempt, base):
    wait = backoff(attempt, base)
    whole = min(60.0, base * 2 ** min(attempt - 1, 16))
    assert whole / 2 <= wait <= whole


def _headers(remaining: int, reset: str, limit: int = 600) -> dict:
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": reset,
    }


def test_requests_wait_for_what_the_server_says_remains():
    async def pace() -> float:
        limiter = Limiter(8)
        await limiter.enter(10)
        # 5 remain of 600; all are back after 59.5 s, so 10 a second come back.
        limiter.leave(10, _headers(5, "59.5s"))
        began = time.monotonic()
        for _ in range(10):
            await limiter.enter(10)
            limiter.leave(10, None)
        return time.monotonic() - began

    assert 0.4 <= asyncio.run(pace()) < 1.5


def test_tokens_wait_too_and_a_request_above_the_whole_limit_is_not_stuck():
    async def pace() -> float:
        limiter = Limiter(8)
        await limiter.enter(10)
        told = {"limit": "1000", "remaining": "400", "reset": "0.6s"}
        limiter.leave(10, {f"x-ratelimit-{k}-tokens": v for k, v in told.items()})
        began = time.monotonic()
        await limiter.enter(5000)
        return time.monotonic() - began

    assert 0.4 <= asyncio.run(pace()) < 2


def test_retry_after_holds_everybody_and_429_halves_the_width():
    async def held() -> tuple[float, float, float]:
        limiter = Limiter(16)
        await limiter.enter(1)
        limiter.leave(1, {"retry-after": "0.3"}, limited=True)
        after = limiter.width
        limiter.leave(1, {}, limited=True)  # the same burst
        began = time.monotonic()
        await limiter.enter(1)
        waited = time.monotonic() - began
        assert limiter.width == after
        for _ in range(400):
            limiter.leave(1, None)
        return waited, after, limiter.width

    waited, after, grown = asyncio.run(held())
    assert waited >= 0.25 and after == 8 and grown == 16


def test_no_more_than_the_width_are_under_way():
    async def most() -> int:
        limiter, now, top = Limiter(4), 0, 0

        async def one() -> None:
            nonlocal now, top
            await limiter.enter(1)
            now += 1
            top = max(top, now)
            await asyncio.sleep(0.001)
            now -= 1
            limiter.leave(1, None)

        await asyncio.gather(*(one() for _ in range(50)))
        return top

    assert asyncio.run(most()) == 4


@pytest.mark.parametrize(
    "limit, remaining, reset",
    [("0", "0", "1s"), ("inf", "0", "1s"), ("600", "-inf", "1s"), ("nan", "nan", "x"), ("-5", "-5", "-5")],
)
def test_limits_that_make_no_sense_are_ignored(limit, remaining, reset):
    async def pace() -> float:
        limiter = Limiter(8)
        began = time.monotonic()
        for kind in ("requests", "tokens"):
            told = {"limit": limit, "remaining": remaining, "reset": reset}
            await limiter.enter(10)
            limiter.leave(10, {f"x-ratelimit-{k}-{kind}": v for k, v in told.items()})
        await asyncio.wait_for(limiter.enter(10), 5)
        return time.monotonic() - began

    assert asyncio.run(pace()) < 0.5


@pytest.mark.parametrize("text", ["1e9", "inf", "-3", "nan", "Fri, 31 Dec 9999 23:59:59 GMT", "999999999999999999"])
def test_no_wait_is_without_end(text):
    for name in ("retry-after", "retry-after-ms"):
        asked = retry_after({name: text})
        assert asked is None or 0 <= asked <= rate_limits.MOST_PAUSE


def test_a_rate_that_never_comes_back_is_waited_for_a_while_and_said(monkeypatch):
    monkeypatch.setattr(rate_limits, "_MOST_WAIT", 0.1)

    async def pace() -> tuple[str, float]:
        limiter = Limiter(8)
        await limiter.enter(10)
        limiter.leave(10, _headers(0, "1000000s"))
        began = time.monotonic()
        waiting = asyncio.ensure_future(limiter.enter(10))
        await asyncio.sleep(0.05)
        said = limiter.waits_for()
        await asyncio.wait_for(waiting, 5)
        assert limiter.waits_for() == ""
        return said, time.monotonic() - began

    said, waited = asyncio.run(pace())
    assert "limit of requests a minute" in said and waited < 3
