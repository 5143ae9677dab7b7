"""One request to an OpenAI-compatible endpoint, and what its reply means.

The `openai` package does the talking (no retries of its own: those are ours, so that each is counted and priced). The
API key comes from the environment alone and is cut out of every text that is stored or shown.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from data_gen.address import check_address, shown_url
from data_gen.ledger import Answer
from data_gen.prices import Price
from data_gen.replies import read_completion, redact
from data_gen.types import Request
from mmed_jax.errors import UserError, WorkError, one_line

__all__ = ["Again", "Answer", "Reply", "Stop", "ask", "body_of", "endpoint_name", "make_client", "may_pass",
           "plain_errors", "read_completion", "redact", "settled_status", "shown_url", "status_answer"]  # fmt: skip
OPENAI_URL = "https://api.openai.com/v1"
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated")
_FILTERS = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")


class Stop(UserError):
    """Nothing can be had from this endpoint until the user changes something; the message says what."""


@dataclass
class Again(Exception):
    """This attempt failed and another may succeed. uncertain: it may have been billed. limited: the server said 429.
    foreign: what came is no JSON, as from a server that does not speak the API."""

    detail: str
    uncertain: bool = False
    limited: bool = False
    foreign: bool = False
    headers: Mapping[str, str] | None = None


@dataclass
class Reply:
    """A reply that settles the request."""

    answer: Answer
    headers: Mapping[str, str] = field(default_factory=dict)


def make_client(base_url: str | None, timeout_s: float, *, asynchronous: bool = True) -> Any:
    """A client of the `openai` package: Azure when AZURE_OPENAI_ENDPOINT is set and no other address, else `base_url`,
    OPENAI_BASE_URL or OpenAI's own. Raises Stop where a key is needed and there is none."""
    import openai

    check_address(base_url)
    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, 15.0), pool=None)
    # Requests that cost are repeated by us, counted; the free steps of batches by the client.
    common = {"max_retries": 0 if asynchronous else 5, "timeout": timeout}
    url = base_url or os.environ.get("OPENAI_BASE_URL")
    azure = os.environ.get("AZURE_OPENAI_ENDPOINT")
    if azure and not url:
        if not (os.environ.get("AZURE_OPENAI_API_KEY") or os.environ.get("AZURE_OPENAI_AD_TOKEN")):
            raise Stop("AZURE_OPENAI_ENDPOINT is set, but neither AZURE_OPENAI_API_KEY nor AZURE_OPENAI_AD_TOKEN is")
        kind = openai.AsyncAzureOpenAI if asynchronous else openai.AzureOpenAI
        return kind(api_version=os.environ.get("OPENAI_API_VERSION") or "2024-10-21", **common)
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and (not url or urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname):
        raise Stop("OPENAI_API_KEY is not set; export it (or name a server of your own with --base_url)")
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    # Servers of one's own often ask for no key; the client wants one all the same.
    try:
        return kind(api_key=key or "none", base_url=url or OPENAI_URL, **common)
    except (openai.OpenAIError, OSError):
        raise
    except Exception:  # of the client's own reading of the address; its text may hold a part of the password
        raise UserError(
            f"--base_url={endpoint_name(base_url)}: the client cannot use this address, or that of a proxy in "
            "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
        ) from None


def endpoint_name(base_url: str | None) -> str:
    """The address that make_client would use, for messages and the ledger."""
    url = base_url or os.environ.get("OPENAI_BASE_URL")
    return shown_url(url or os.environ.get("AZURE_OPENAI_ENDPOINT") or OPENAI_URL)


def body_of(request: Request) -> dict:
    """The JSON body of a chat completion."""
    body = {"model": request.model, "messages": list(request.messages), **request.params}
    if request.schema is not None:
        asked = {"name": request.schema["name"], "schema": request.schema["schema"], "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": asked}
    return body


async def ask(client: Any, request: Request, price: Price | None) -> Reply:
    """Sends `request` once. Raises Again for what may pass, Stop for what will not until the user acts."""
    import openai

    body = body_of(request)
    headers = {"X-Client-Request-Id": request.key}  # finds our row in the endpoint's logs
    try:
        # The body goes as it stands; as arguments it would be walked through by the client, a sixth of its time.
        create = client.chat.completions.with_raw_response.create
        raw = await create(model=request.model, messages=[], extra_body=body, extra_headers=headers)
    except openai.APITimeoutError as e:
        raise Again("timed out", uncertain=not _unconnected(e)) from None
    except openai.APIStatusError as e:
        return Reply(settled_status(e), e.response.headers)
    except openai.APIConnectionError as e:
        detail = f"connection failed: {redact(one_line(e.__cause__ or e))}"
        raise Again(detail, uncertain=not _unconnected(e)) from None
    request_id = _request_id(raw.headers)
    try:
        reply = json.loads(raw.content)
    except (ValueError, RecursionError):
        kind = redact(raw.headers.get("content-type", "of no type"))[:60]
        detail = f"the reply is not JSON but {kind}: {redact(raw.content[:200].decode('utf-8', 'replace'))[:80]}"
        raise Again(detail, uncertain=True, foreign=True, headers=raw.headers) from None
    # Some gateways pass errors on with status 200.
    error = reply.get("error") if isinstance(reply, dict) and not reply.get("choices") else None
    status = error.get("code") if isinstance(error, dict) and "usage" not in reply else None
    if isinstance(status, int) and 400 <= status < 600:
        return Reply(_status_error(status, _message(error), raw.headers, request_id), raw.headers)
    return Reply(read_completion(reply, price, request_id=request_id), raw.headers)


def _unconnected(error: BaseException) -> bool:
    """Whether no connection was made, so that nothing can have been billed; after one nobody knows."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _request_id(headers: Mapping[str, str]) -> str:
    return redact(headers.get("x-request-id") or headers.get("apim-request-id") or "")


def _message(error: dict) -> dict:
    """An API error with a "message" that is text."""
    return {**error, "message": str(error.get("message") or "")}


def _error_body(error: Any) -> dict:
    """{"message", "code", "type"} of an API error, whatever form the server gave it."""
    body = error.body if isinstance(error.body, dict) else {}
    body = body["error"] if isinstance(body.get("error"), dict) else body
    return {**body, "message": str(body.get("message") or error.response.text or error.message)}


def _status_error(status: int, body: dict, headers: Mapping[str, str], request_id: str) -> Answer:
    """What an HTTP status that is not success settles; raises Again or Stop."""
    said = redact(body["message"])
    inner = body.get("innererror")
    codes = {str(x.get(name)) for x in (body, inner) if isinstance(x, dict) for name in ("code", "type")}
    if status == 401:
        # The server's own words would repeat parts of the key.
        raise Stop("the endpoint does not accept the API key (401); check OPENAI_API_KEY and --base_url")
    if status == 402 or codes & set(_QUOTA):
        raise Stop(f"the account has no credit or quota left ({status}): {said}; add credit, then run the same command")
    if status == 403:
        raise Stop(f"the API key may not use this model or endpoint (403): {said}")
    if status == 404:
        raise Stop(f"no such model or address (404): {said}; check both (--base_url mostly ends in /v1)")
    if status == 429:
        raise Again(f"429: {said}", limited=True, headers=headers)
    if status in (408, 409) or status >= 500:
        raise Again(f"{status}: {said}", headers=headers, uncertain=status in (408, 504))
    if codes & set(_FILTERS):
        return Answer("rejected", "content_filter", said, request_id=request_id, cost=0.0)
    return Answer("failed", "bad_request", f"{status}: {said}", request_id=request_id, cost=0.0)


def settled_status(error: Any) -> Answer:
    """What an openai.APIStatusError settles; raises Again or Stop."""
    headers = error.response.headers
    return _status_error(error.status_code, _error_body(error), headers, _request_id(headers))


def may_pass(error: Any) -> bool:
    """Whether the same may succeed later, after an openai.APIStatusError; else it was refused for good."""
    try:
        settled_status(error)
    except Again:
        return True
    except Stop:
        pass
    return False


def status_answer(status: int, body: Any, request_id: str) -> Answer | None:
    """The same for one line of a batch's results: None where it may be asked again. Raises Stop."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    error = error if isinstance(error, dict) else {}
    try:
        return _status_error(status, _message(error), {}, request_id)
    except Again:
        return None


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of the endpoint in a step of the Batch API as ours: Stop, or WorkError where it may succeed later."""
    import openai

    try:
        yield
    except openai.APIStatusError as e:
        try:
            answer = settled_status(e)
        except Again as again:
            raise WorkError(f"the endpoint failed ({again.detail}); the same command goes on") from None
        raise Stop(f"the endpoint refused a step of the Batch API ({answer.detail})") from None
    except openai.APIConnectionError as e:
        raise WorkError(f"no connection to the endpoint ({redact(one_line(e.__cause__ or e))})") from None
