"""Sends requests from a thread of its own: claims, limits, attempts, and what stops a run."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.progress import say_above_bars
from mmed_jax.llm_api import client as api
from mmed_jax.llm_api.ledger.ledger import Answer, Ledger
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.rate_limits import Limiter, backoff, retry_after
from mmed_jax.llm_api.token_counts import answer_limit, most_cost, prompt_tokens
from mmed_jax.llm_api.types import Request

ATTEMPTS = 8  # of a request that fails; a server that says 429 is asked more often
ATTEMPTS_LIMITED = 40
_BROKEN = 3  # attempts at an answer that the endpoint begins and breaks off: each of them costs
_CONNECTIONS = 12  # of one pool
_POLL = 0.5  # seconds between looks at a request that another process has claimed
_QUIET = 60.0  # seconds without one success after which a failing endpoint is given up
_REFUSED = 20  # requests refused as malformed, or answered with something else than JSON, before any is accepted
_FOREIGN = 3  # answers to one request that are no JSON, before any is


def say(text: str) -> None:
    """A line on stderr beside the progress bar."""
    say_above_bars(f"note: {text}")


class Sender:
    """Sends what `submit` gives; `events` holds the key of each settled request, or an exception that ends the run.

    Settled is: answered, failed, or left pending by a limit (`capped`). Answers are in the ledger before their event.

    Attributes:
      capped: a limit kept requests back. in_batch: some are in a batch under way.
    """

    def __init__(self, ledger: Ledger, settings, price: Price | None):
        self.ledger, self.settings, self.price = ledger, settings, price
        self.events: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self.capped = self.in_batch = False
        self._work: asyncio.Queue[Request] = asyncio.Queue()
        self._stopping, self._busy, self._held = False, 0, 0
        self._succeeded = self._began = time.monotonic()
        self._retries: dict[str, tuple[float, str]] = {}  # until when a request waits for its next attempt, and why
        self._limiter = Limiter(settings.concurrency)
        self._parameters = api.RefusedParameters(say)
        self._any, self._refused, self._foreign = False, 0, 0
        # The client looks at each of its connections for every request; many small pools are cheaper than one.
        count = -(-settings.concurrency // _CONNECTIONS)
        self._clients = [api.make_client(settings.base_url, settings.timeout_s) for _ in range(count)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Has a request sent; it must be in the ledger."""
        self._loop.call_soon_threadsafe(self._work.put_nowait, request)

    def waits_for(self) -> str:
        """What everything waits for, in words for the user; "" while requests are under way."""
        if said := self._limiter.waits_for():
            return said
        if self._busy or not (retries := list(self._retries.values())):
            return ""
        until, why = min(retries)
        return f"the next attempt, {max(0.0, until - time.monotonic()):.0f} s ({why[:60]})"

    def close(self, say: Callable[[str], None], wait_s: float) -> None:
        """Sends no more; answers under way are paid for and waited for, at most `wait_s` seconds."""
        self._stopping = True
        try:
            if self._busy and self._thread.is_alive():
                say(f"waiting for up to {self._busy} answers under way (Ctrl-C again: leave them)")
                end = time.monotonic() + wait_s
                while self._busy and time.monotonic() < end:
                    time.sleep(0.02)
        finally:
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop_tasks)
                self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except asyncio.CancelledError:
            pass
        except Exception as e:
            self.events.put(e)
        finally:
            for client in self._clients:
                self._loop.run_until_complete(client.close())
            self._loop.close()

    async def _serve(self) -> None:
        self._tasks = [asyncio.ensure_future(self._worker(n)) for n in range(self.settings.concurrency)]
        await asyncio.gather(*self._tasks)

    def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _worker(self, number: int) -> None:
        client = self._clients[number % len(self._clients)]
        while True:
            request = await self._work.get()
            if self._stopping:
                continue
            try:
                await self._settle(request, client)
            except (UserError, WorkError) as e:
                self._stopping = True
                self.events.put(e)

    async def _settle(self, request: Request, client) -> None:
        """One request to its end: claimed, sent as often as it takes, stored."""
        reserve = most_cost(request, self.price, hard=self.ledger.claims.max_usd is not None)
        # The server's own count of a request before it knows: about four bytes a token, and all of the answer's room.
        size = prompt_tokens(request) / 4 + (answer_limit(request) or 1000)
        attempt, flying, failure = 0, False, None
        try:
            while True:
                await self._limiter.enter(size)
                headers, failure = None, None
                try:
                    if attempt == 0 and not await self._claimed(request, reserve):
                        return
                    attempt, flying = attempt + 1, True
                    headers, failure = await self._attempt(request, client)
                    flying = False
                finally:
                    self._limiter.leave(size, headers, limited=failure is not None and failure.limited)
                if failure is None or not await self._another(request, failure, attempt):
                    return
                failure = None  # counted by now
        except asyncio.CancelledError:
            if attempt and not flying:  # what flies may be billed; the ledger counts that when it closes
                self.ledger.release(request.key, uncertain=failure is not None and failure.uncertain)
            raise
        finally:
            self._held -= attempt > 0

    async def _claimed(self, request: Request, reserve: float) -> bool:
        """Whether the request is ours to send now; otherwise it is settled, or comes again later."""
        claim = "" if self._stopping else await asyncio.wrap_future(self.ledger.claim(request.key, reserve))
        if claim == "busy" or (claim == "full" and self._held):
            self._loop.call_later(_POLL, self._work.put_nowait, request)
        elif claim in ("cap", "full", "final", "batch"):
            self.capped = self.capped or claim in ("cap", "full")
            self.in_batch = self.in_batch or claim == "batch"
            self.events.put(request.key)
        self._held += claim == "go"
        return claim == "go"

    async def _attempt(self, request: Request, client) -> tuple[Mapping[str, str] | None, api.Again | None]:
        """Sends once and stores the answer: (headers, None), or what went wrong when another attempt may succeed."""
        self._busy += 1
        try:
            sent = self._parameters.request(request)
            reply = await api.ask(client, sent, self.price)
            if reply.answer.reason == "bad_request" and (
                remedy := self._parameters.learn(reply.answer.detail, sent.params)
            ):
                raise api.Again(f"{reply.answer.detail}; {remedy}", cost=reply.answer.cost, headers=reply.headers)
            self._learn(reply.answer, request)
            await asyncio.wrap_future(self.ledger.finish(request.key, reply.answer))
        except api.Stop as stop:
            await asyncio.wrap_future(self.ledger.spend(stop.cost))
            await asyncio.wrap_future(self.ledger.release(request.key, uncertain=False))
            raise
        except api.Again as failure:
            if failure.cost:
                await asyncio.wrap_future(self.ledger.spend(failure.cost))
            return failure.headers, failure
        finally:
            self._busy -= 1
        self.events.put(request.key)
        return reply.headers, None

    async def _another(self, request: Request, failure: api.Again, attempt: int) -> bool:
        """Waits before the next attempt; False when there is none, and the request is settled then."""
        self._foreign += failure.foreign
        if failure.foreign and not self._any and (attempt >= _FOREIGN or self._foreign >= _REFUSED):
            await asyncio.wrap_future(self.ledger.release(request.key, uncertain=True))
            raise api.Stop(
                f"{api.endpoint_name(self.settings.base_url)} does not speak the API ({failure.detail}); check "
                "--base_url (it mostly ends in /v1)"
            )
        quiet = time.monotonic() - max(self._succeeded, self._began)
        most = ATTEMPTS_LIMITED if failure.limited else _BROKEN if failure.broken else ATTEMPTS
        patience = _QUIET if self._any else _QUIET / 3
        late = 2 * self.settings.timeout_s * (failure.uncertain and not failure.inside)
        # A server that says 429 is alive; one that says so in place of every answer is not to be told from a dead one.
        if quiet > max(patience, late) and (failure.inside or not failure.limited):
            await asyncio.wrap_future(self.ledger.release(request.key, uncertain=failure.uncertain))
            raise WorkError(f"the endpoint has answered nothing for {quiet:.0f} seconds; the last: {failure.detail}")
        if attempt >= most:
            # A last attempt that may have been billed stays in the books.
            await asyncio.wrap_future(self.ledger.fail(request.key, failure.detail, uncertain=failure.uncertain))
            self.events.put(request.key)
            return False
        if not self._stopping:
            asked = retry_after(failure.headers or {})
            wait = max(asked or 0.0, backoff(attempt, self.settings.backoff_s))
            self._retries[request.key] = (time.monotonic() + wait, failure.detail)
            try:
                await asyncio.sleep(wait)
            finally:
                del self._retries[request.key]
        if self._stopping:
            await asyncio.wrap_future(self.ledger.release(request.key, uncertain=failure.uncertain))
            return False
        if await asyncio.wrap_future(self.ledger.again(request.key, uncertain=failure.uncertain)):
            return True
        self.capped = True
        self.events.put(request.key)
        return False

    def _learn(self, answer: Answer, request: Request) -> None:
        if answer.reason != "api_error":
            self._succeeded = time.monotonic()
        if answer.state != "failed":
            self._any = True
        elif not self._any:
            self._refused += 1
            if self._refused >= _REFUSED and answer.reason == "api_error":
                raise WorkError(
                    f"the endpoint answered none of the first {_REFUSED} requests ({answer.detail}); the same command "
                    "goes on"
                )
            if self._refused >= _REFUSED:
                more = ", and --no_schema if it has no structured output" if request.schema else ""
                raise api.Stop(
                    f"the endpoint refused the first {_REFUSED} requests ({answer.detail}); check --params{more}"
                )
