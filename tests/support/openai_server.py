"""A server that speaks the OpenAI protocol over HTTP on this machine, and fails when told to.

    python -m tests.support.openai_server --port=8090 --faults=0.2

Chat completions, files, batches; rate-limit headers; a book of what it billed. Faults depend on the seed, the request
and how often it came, so that a disturbed run and an undisturbed one can be compared: "transient" ones (429, 500, 503,
drop, timeout, errors in replies of status 200, answers broken off) strike a request at most twice, "content" ones
(length, refusal, filter, json, odd counts, ...) always.
"""

import argparse
import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.openai_batches import Batches, Cut, body_key, error

# Errors as gateways pass them on in replies of status 200.
INSIDE = {
    "200_word": {"error": {"message": "Rate limit exceeded, try later", "code": "rate_limit_exceeded"}},
    "200_number": {"error": {"message": "upstream", "code": "502"}, "choices": []},
    "200_text": {"error": "The model is overloaded"},
    "200_nested": {"choices": None, "error": [{"error": {"type": "server_error", "code": None}}]},
}
TRANSIENT = ("429", "429_after", "500", "503", "drop", "drop_late", "timeout", "html", "broken_off", *INSIDE)
CONTENT = ("length", "refusal", "content_filter", "filter_400", "bad_json", "empty", "max_tokens", "reasoning", "zeros")
_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass
class Faults:
    """Rates by name of TRANSIENT and CONTENT, and what is wrong with everything.

    stop: "", "401", "403", "404" or "quota": the answer to every request.
    """

    rates: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    stop: str = ""

    @staticmethod
    def mixed(rate: float, seed: int = 0, names: tuple[str, ...] = TRANSIENT + CONTENT) -> "Faults":
        """`rate` of all requests, shared out over `names`."""
        return Faults({name: rate / len(names) for name in names}, seed)

    def of(self, key: str, times: int) -> str:
        """The fault of the request `key` that came `times` times before."""
        for names, most, salt in ((CONTENT, 10**9, ""), (TRANSIENT, 2, f"/{times}")):
            if times < most:
                draw = int(hashlib.sha256(f"{self.seed}{names}{key}{salt}".encode()).hexdigest()[:8], 16) / 2**32
                for name in names:
                    draw -= self.rates.get(name, 0.0)
                    if draw < 0:
                        return name
        return ""


class OpenAIServer(Batches):
    """The server, in a thread; a context manager.

    Args:
      model: answers the body of a chat completion with text. faults: see Faults. key: the only API key it takes.
      requests_per_minute, tokens_per_minute: limits, kept and told in headers. delay_s: time an answer takes.
      timeout_s: how long a request with the fault "timeout" is left without an answer.
      batch_faults: dict of what happens to the n-th batch (from 0): "expire", "cancel", "enqueued", "invalid", or to
        its results: "late", "never", "cut", "torn", "html", "gone" (for three looks), "status_text".
      change: makes another reply of (the request's body, the reply); bytes are sent as they are.
      max_batch_requests: the limit of requests in a batch file. batch_s: how long a batch takes.

    Attributes:
      billed: body hash -> how often it was answered and billed. asked: body hash -> how often it came.
      billed_names: the same as billed, by the client's name of the request (X-Client-Request-Id, custom_id).
    """

    transient, inside = TRANSIENT, INSIDE

    def __init__(
        self,
        model: Callable[[dict], str] | None = None,
        *,
        faults: Faults | None = None,
        key: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        delay_s: float = 0.0,
        timeout_s: float = 30.0,
        port: int = 0,
        batch_faults: dict[int, str] | None = None,
        max_batch_requests: int = 50_000,
        batch_s: float = 0.0,
        duplicate_results: bool = False,
        change: Callable[[dict, dict], object] | None = None,
    ):
        self.model = model or (lambda body: "echo: " + body["messages"][-1]["content"][:200])
        self.faults, self.key, self.delay_s, self.timeout_s = faults or Faults(), key, delay_s, timeout_s
        self.limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._left = {k: float(v) for k, v in self.limits.items() if v}
        self._filled_at = time.monotonic()
        self.batch_faults, self.max_batch_requests, self.batch_s = batch_faults or {}, max_batch_requests, batch_s
        self.duplicate_results, self.change = duplicate_results, change
        self.billed: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.billed_names: Counter[str] = Counter()
        self.served, self.refused_429, self.under_way, self.most_under_way = 0, 0, 0, 0
        self.billed_usage = Counter()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.uploads: list[int] = []
        self._port, self._ready = port, threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="openai_server", daemon=True)

    def __enter__(self) -> "OpenAIServer":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def base_url(self) -> str:
        """What --base_url has to be."""
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", self._port, limit=2**20)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head[1:] if h)}
                if headers.get("transfer-encoding", "").lower() == "chunked":
                    body = await _chunked(reader)
                else:
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = await self._answer(method, path.partition("?")[0], headers, body)
                if answer is None:
                    writer.transport.abort()
                    return
                status, more, data = answer
                if not isinstance(data, bytes):
                    data = json.dumps(data).encode()
                more = {"content-type": "application/json", "content-length": str(len(data)), **more}
                lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{k}: {v}" for k, v in more.items())]
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
                await writer.drain()
                if isinstance(data, Cut):
                    writer.close()
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    async def _answer(
        self, method: str, path: str, headers: dict, body: bytes
    ) -> tuple[int, dict, dict | bytes] | None:
        sent = headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and sent != self.key or self.faults.stop == "401":
            return 401, {}, error(f"Incorrect API key provided: {sent}. You can find yours at ...", "invalid_api_key")
        if self.faults.stop == "403":
            return 403, {}, error("Project does not have access to model", "model_not_found")
        if self.faults.stop == "404":
            return 404, {}, error("The model `m` does not exist", "model_not_found")
        if self.faults.stop == "quota":
            return 429, {"retry-after": "0.1"}, error("You exceeded your current quota", "insufficient_quota")
        azure = path.startswith("/openai/deployments/") and path.endswith("/chat/completions")
        path = "/chat/completions" if azure else path.removeprefix("/v1")
        if path == "/chat/completions" and method == "POST":
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                return await self._completion(json.loads(body), headers.get("x-client-request-id", ""))
            finally:
                self.under_way -= 1
        parts = path.strip("/").split("/")
        if parts[0] == "files":
            return self._files(method, parts[1:], headers, body)
        if parts[0] == "batches":
            return self._batches(method, parts[1:], body)
        return 404, {}, error(f"Invalid URL ({method} {path})", "unknown_url")

    async def _completion(self, body: dict, name: str) -> tuple[int, dict, dict | bytes] | None:
        key = body_key(body)
        times = self.asked[key]
        self.asked[key] += 1
        allowed, headers = self._rate(body)
        if not allowed:
            self.refused_429 += 1
            return 429, {**headers, "retry-after-ms": "200"}, error("Rate limit reached", "rate_limit_exceeded")
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        fault = self.faults.of(key, times)
        if fault in ("429", "429_after"):
            after = {"retry-after": "0.05"} if fault == "429_after" else {}
            return 429, after, error("Rate limit reached", "rate_limit_exceeded")
        if fault in ("500", "503"):
            return int(fault), {}, error("The server had an error", "server_error")
        if fault == "drop":
            return None
        if fault == "html":
            return 200, {"content-type": "text/html"}, b"<html>gateway</html>"
        if fault in INSIDE:
            return 200, {}, INSIDE[fault]
        if fault == "filter_400":
            return 400, {}, error("The response was filtered", "content_filter")
        if fault == "timeout":
            await asyncio.sleep(self.timeout_s)
            return None
        reply = self.complete(body, fault, name)
        if fault == "drop_late":
            return None
        return 200, headers | {"x-request-id": f"req_{self.served}"}, reply

    def complete(self, body: dict, fault: str = "", name: str = "") -> dict:
        """A chat completion, billed under `name` (the client's own name for the request)."""
        key = body_key(body)
        self.billed[key] += 1
        self.billed_names[name] += 1
        self.served += 1
        text: str | None = self.model(body)
        finish, refusal = "stop", None
        if fault in ("length", "max_tokens", "broken_off"):
            text, finish = text[: len(text) // 2], {"broken_off": "error", "max_tokens": "MAX_TOKENS"}.get(fault, fault)
        elif fault == "refusal":
            text, refusal = None, "I'm sorry, I can't help with that."
        elif fault == "content_filter":
            text, finish = "", "content_filter"
        elif fault == "bad_json":
            text = text[: len(text) * 2 // 3] + "\u0000,,"
        elif fault == "empty":
            text = ""
        prompt = sum(len(m["content"]) for m in body["messages"]) // 4 + 4
        usage = {"prompt_tokens": prompt, "completion_tokens": len(text or "") // 4 + 1}
        self.billed_usage.update(usage)
        reasoning = 40 if fault == "reasoning" else 0  # beside the completion tokens, billed like them
        self.billed_usage["completion_tokens"] += reasoning
        message = {"role": "assistant", "content": text, "refusal": refusal}
        reply = {
            "id": f"chatcmpl-{self.served}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": usage
            | {
                "total_tokens": sum(usage.values()) + reasoning,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }
        if fault == "zeros":
            reply["usage"] = dict.fromkeys(usage, 0) | {"total_tokens": 0}
        return self.change(body, reply) if self.change else reply

    def _rate(self, body: dict) -> tuple[bool, dict]:
        if not self._left:
            return True, {}
        now = time.monotonic()
        cost = {"requests": 1, "tokens": body.get("max_completion_tokens", 1000)}
        for name in self._left:
            limit = self.limits[name]
            self._left[name] = min(limit, self._left[name] + (now - self._filled_at) * limit / 60)
        self._filled_at = now
        allowed = all(self._left[name] >= cost[name] for name in self._left)
        headers = {}
        for name in self._left:
            self._left[name] -= cost[name] if allowed else 0
            limit, left = self.limits[name], self._left[name]
            headers |= {
                f"x-ratelimit-limit-{name}": str(limit),
                f"x-ratelimit-remaining-{name}": str(int(left)),
                f"x-ratelimit-reset-{name}": f"{(limit - left) / limit * 60:.3f}s",
            }
        return allowed, headers


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


def main() -> None:
    from tests.support.fake_model import FakeModel

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that go wrong")
    parser.add_argument("--delay_s", type=float, default=0.0)
    parser.add_argument("--requests_per_minute", type=int)
    args = parser.parse_args()
    with OpenAIServer(
        FakeModel(),
        faults=Faults.mixed(args.faults),
        port=args.port,
        delay_s=args.delay_s,
        requests_per_minute=args.requests_per_minute,
    ) as server:
        print(f"export OPENAI_BASE_URL={server.base_url} OPENAI_API_KEY=local", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
