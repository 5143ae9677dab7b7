"""How fast to send: the server's own rate-limit headers, Retry-After, and a number of requests that adapts."""

import asyncio
import math
import random
import re
import time
from collections.abc import Mapping

_PART = re.compile(r"([0-9.]+)(ms|h|m|s|d)")
MOST_PAUSE = 300.0  # seconds of one wait that a server can ask for
_MOST_WAIT = 60.0  # seconds that one request waits for a rate; the server refuses it if that was too early
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str | None) -> float | None:
    """ "6m0s", "120ms", "1.5s" or "30" (seconds) as seconds; None when it is none of these."""
    text = (text or "").strip()
    try:
        value = float(text)
        return value if math.isfinite(value) and value >= 0 else None
    except ValueError:
        pass
    parts = _PART.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        return None
    try:
        return sum(float(n) * _UNIT[u] for n, u in parts)
    except ValueError:
        return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What the server asks for, in seconds (MOST_PAUSE at most): retry-after-ms, or Retry-After as seconds or date."""
    milliseconds = seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(MOST_PAUSE, milliseconds / 1000)
    text = headers.get("retry-after")
    if text is None:
        return None
    value = seconds(text)
    if value is None:
        from email.utils import parsedate_to_datetime

        try:
            value = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(MOST_PAUSE, max(0.0, value))


def backoff(attempt: int, base: float, most: float = 60.0) -> float:
    """Seconds before attempt `attempt` + 1 (attempt from 1): doubling, with jitter over its upper half."""
    return min(most, base * 2 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)


class _Window:
    """One limit (requests or tokens a minute) as the server tells it: what remains, and how fast it comes back."""

    def __init__(self, name: str):
        self.name, self.left, self.full, self.rate, self.at = name, math.inf, math.inf, 0.0, time.monotonic()

    def learn(self, headers: Mapping[str, str], in_flight: float) -> None:
        texts = [headers.get(f"x-ratelimit-{what}-{self.name}") for what in ("limit", "remaining")]
        reset = seconds(headers.get(f"x-ratelimit-reset-{self.name}"))
        try:
            limit, remaining = (float(text or "") for text in texts)
        except (TypeError, ValueError):
            return
        # A limit of nothing, or of no number, cannot be meant: requests are answered.
        if not (math.isfinite(limit) and limit >= 1 and math.isfinite(remaining) and 0 <= remaining):
            return
        self._refill()
        self.full = limit
        # The reset is when the limit is whole again, so it tells the rate, whatever the period is.
        self.rate = (limit - remaining) / reset if reset and remaining < limit else limit / 60.0
        # What is under way may not have been counted yet by the server that answered.
        self.left = min(self.left, remaining - in_flight)

    def _refill(self) -> None:
        now = time.monotonic()
        self.left = min(self.full, self.left + (now - self.at) * self.rate)
        self.at = now

    def wait(self, amount: float) -> float:
        """Seconds until `amount` fits; an amount above the limit itself has to wait for a whole limit."""
        self._refill()
        missing = min(amount, self.full) - self.left
        return 0.0 if missing <= 0 else min(60.0, missing / self.rate if self.rate else 1.0)


class Limiter:
    """Gate before every request: `await enter(tokens)`, then `leave(...)`; belongs to one event loop.

    Attributes:
      width: requests that may be under way now; halved when the server says 429, grown by one each `width` successes,
        never above `concurrency`.
    """

    def __init__(self, concurrency: int):
        self.concurrency, self.width = concurrency, float(concurrency)
        self._requests, self._tokens = _Window("requests"), _Window("tokens")
        self._turn, self._room = asyncio.Lock(), asyncio.Event()
        self._under_way, self._tokens_under_way = 0, 0.0
        self._pause_until = self._halved = 0.0
        self._waits = ("", 0.0)

    async def enter(self, tokens: float) -> None:
        """Returns when a request of about `tokens` tokens may be sent; first come, first served."""
        async with self._turn:
            began = time.monotonic()
            while True:
                if self._under_way >= max(1, int(self.width)):
                    self._room.clear()
                    await self._room.wait()
                    continue
                now = time.monotonic()
                rates = {"requests": self._requests.wait(1), "tokens": self._tokens.wait(tokens)}
                if now - began > _MOST_WAIT:
                    rates = {}
                name, wait = max(rates.items(), key=lambda r: r[1], default=("", 0.0))
                why = f"the server's limit of {name} a minute"
                if self._pause_until - now > wait:
                    why, wait = "the server's Retry-After", self._pause_until - now
                if wait <= 0:
                    break
                self._waits = (why, now + wait)
                await asyncio.sleep(min(wait, 1.0))
            self._waits = ("", 0.0)
            self._under_way += 1
            self._tokens_under_way += tokens
            self._requests.left -= 1
            self._tokens.left -= tokens

    def waits_for(self) -> str:
        """What the next request waits for, "" when for nothing; may be called from any thread."""
        why, until = self._waits
        left = until - time.monotonic()
        return f"{why}, {left:.0f} s" if left > 0 else ""

    def leave(self, tokens: float, headers: Mapping[str, str] | None, *, limited: bool = False) -> None:
        """A request is over. headers: of its response, None without one; limited: the server said 429."""
        self._under_way -= 1
        self._tokens_under_way = max(0.0, self._tokens_under_way - tokens)
        self._room.set()
        if headers is not None:
            self._requests.learn(headers, self._under_way)
            self._tokens.learn(headers, self._tokens_under_way)
        now = time.monotonic()
        if not limited:
            self.width = min(self.concurrency, self.width + 1 / self.width)
            return
        asked = retry_after(headers or {})
        if asked is not None:
            self._pause_until = max(self._pause_until, now + asked)
        # One burst of refusals is one piece of news.
        if now - self._halved > 1.0:
            self._halved, self.width = now, max(1.0, self.width / 2)
