"""One request to an OpenAI-compatible endpoint, and what its reply means.

The `openai` package does the talking (no retries of its own: those are ours, so that each is counted and priced). The
API key comes from the environment alone and is cut out of every text that is stored or shown.
"""

import contextlib
import functools
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.jsonl import BadJSON
from mmed_jax.llm_api.address import check_address, shown_url
from mmed_jax.llm_api.completions import read_completion, read_json, redact
from mmed_jax.llm_api.error_status import message_of
from mmed_jax.llm_api.failures import Again, RefusedParameters, Stop, settle, settle_status
from mmed_jax.llm_api.ledger.ledger import Answer
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.types import Request

__all__ = [
    "Again",
    "Answer",
    "Reply",
    "Stop",
    "RefusedParameters",
    "ask",
    "body_of",
    "connection_errors",
    "endpoint_name",
    "make_client",
    "may_pass",
    "plain_errors",
    "read_completion",
    "redact",
    "settled_status",
    "shown_url",
]
OPENAI_URL = "https://api.openai.com/v1"


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
    url = base_url or os.environ.get("OPENAI_BASE_URL")
    azure = os.environ.get("AZURE_OPENAI_ENDPOINT")
    if azure and not url:
        if not (os.environ.get("AZURE_OPENAI_API_KEY") or os.environ.get("AZURE_OPENAI_AD_TOKEN")):
            raise Stop("AZURE_OPENAI_ENDPOINT is set, but neither AZURE_OPENAI_API_KEY nor AZURE_OPENAI_AD_TOKEN is")
        kind = openai.AsyncAzureOpenAI if asynchronous else openai.AzureOpenAI
        version = os.environ.get("OPENAI_API_VERSION") or "2024-10-21"
        return kind(api_version=version, **_common(timeout_s, asynchronous))
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and (not url or urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname):
        raise Stop("OPENAI_API_KEY is not set; export it (or name a server of your own with --base_url)")
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    # Servers of one's own often ask for no key; the client wants one all the same.
    try:
        return kind(api_key=key or "none", base_url=url or OPENAI_URL, **_common(timeout_s, asynchronous))
    except (openai.OpenAIError, OSError, TypeError):  # TypeError: another version of the client, no address
        raise
    except Exception:  # of the client's own reading of the address; its text may hold a part of the password
        raise UserError(
            f"--base_url={endpoint_name(base_url)}: the client cannot use this address, or that of a proxy in "
            "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
        ) from None


def _common(timeout_s: float, asynchronous: bool) -> dict[str, Any]:
    """What clients of every endpoint are made with."""
    import openai

    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, 15.0), pool=None)
    kind = openai.DefaultAsyncHttpxClient if asynchronous else openai.DefaultHttpxClient
    certificates = _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    http_client = kind(verify=certificates, timeout=timeout)
    # Requests that cost are repeated by us, counted; the free steps of batches by the client.
    return {"max_retries": 0 if asynchronous else 5, "timeout": timeout, "http_client": http_client}


@functools.lru_cache(maxsize=1)
def _certificates(*_places: str | None) -> ssl.SSLContext:
    """The authorities that are trusted, read once: it takes longer than all else that a client is made of.

    Args: what the environment says of where they lie; read by the library.
    """
    return _transport().create_ssl_context()


def _transport() -> ModuleType:
    """The library that the client sends requests with; its name depends on the client's version."""
    try:
        import httpx2 as transport
    except ImportError:
        import httpx as transport  # type: ignore[no-redef]
    return transport


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
    try:
        reply = read_json(raw.content)
    except BadJSON:
        kind = redact(raw.headers.get("content-type", "of no type"))[:60]
        detail = f"the reply is not JSON but {kind}: {redact(raw.content[:200].decode('utf-8', 'replace'))[:80]}"
        raise Again(detail, uncertain=True, foreign=True, headers=raw.headers) from None
    return Reply(settle(reply, price, raw.headers, _request_id(raw.headers)), raw.headers)


def _unconnected(error: BaseException) -> bool:
    """Whether no connection was made, so that nothing can have been billed; after one nobody knows."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _request_id(headers: Mapping[str, str]) -> str:
    return redact(headers.get("x-request-id") or headers.get("apim-request-id") or "")


def _error_body(error: Any) -> Any:
    """What the server said in an API error, whatever form it has."""
    body = error.body.get("error") or error.body if isinstance(error.body, dict) else error.body
    if isinstance(body, dict | list) and message_of(body):
        return body
    text = error.response.text or error.message
    return {**body, "message": text} if isinstance(body, dict) else text


def settled_status(error: Any) -> Answer:
    """What an openai.APIStatusError settles; raises Again or Stop."""
    headers = error.response.headers
    return settle_status(error.status_code, _error_body(error), headers, _request_id(headers))


def may_pass(error: Any) -> bool:
    """Whether the same may succeed later, after an openai.APIStatusError; else it was refused for good."""
    try:
        settled_status(error)
    except Again:
        return True
    except Stop:
        pass
    return False


def connection_errors() -> tuple[type[Exception], ...]:
    """What the client raises when a connection fails, also in the middle of a download."""
    import openai

    return openai.APIConnectionError, _transport().HTTPError


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
    except connection_errors() as e:
        raise WorkError(f"no connection to the endpoint ({redact(one_line(e.__cause__ or e))})") from None
    except (openai.APIError, RecursionError, ValueError) as e:  # a body that is not what it says it is
        said = redact(one_line(e))[:120]
        raise WorkError(f"the endpoint's answer to a step of the Batch API cannot be read ({said})") from None
