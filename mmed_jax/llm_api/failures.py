"""What becomes of a request that an endpoint did not answer: asked again, given up, or a stop of the whole run.

Single requests, lines of batches and evaluations all come through `settle` (a reply of status 200) and `settle_status`
(another status), so that the same fault has the same end everywhere. Errors inside a reply of status 200 are treated
as the HTTP status that says the same; as the work may have been done, they count as perhaps billed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.llm_api import error_status
from mmed_jax.llm_api.completions import choice_of, read_completion, redact
from mmed_jax.llm_api.finish_reasons import kind_of_ending
from mmed_jax.llm_api.ledger.transactions import Answer
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.types import Request


class Stop(UserError):
    """Nothing can be had from this endpoint until the user changes something; the message says what.

    Attributes:
      cost, responded: as of Again.
    """

    cost: float | None = None
    responded: bool = False


@dataclass
class Again(Exception):
    """This attempt failed and another may succeed.

    Attributes:
      uncertain: it may have been billed. cost: what it cost, where that is known.
      limited: the server said 429. foreign: what came is no JSON, as from a server that does not speak the API.
      inside: it was said in a reply of status 200. broken: an answer was begun and broken off.
      responded: it was said in a response, in a line of a batch's results.
    """

    detail: str
    uncertain: bool = False
    limited: bool = False
    foreign: bool = False
    headers: Mapping[str, str] | None = None
    cost: float | None = None
    inside: bool = False
    broken: bool = False
    responded: bool = False


class RefusedParameters:
    """What an endpoint was found not to take: a seed is left out, a limit is sent by its other name. Requests keep
    their identity (Request.key): their answers are found by any run, whatever it has found out.

    Only what leaves the meaning of a request as it is: a temperature that is refused is the user's to change.
    """

    def __init__(self, say: Callable[[str], None]):
        """`say` is told each finding once."""
        self._say = say
        self._known: dict[str, str] = {}

    def request(self, request: Request) -> Request:
        """The request as this endpoint takes it, with the key that it had."""
        if not any(name in request.params for name in self._known):
            return request
        named = ((self._known.get(k, k), v) for k, v in request.params.items())
        sent = replace(request, params={k: v for k, v in named if k})
        sent.__dict__["key"] = request.key
        return sent

    def learn(self, error: str, sent: Iterable[str]) -> str:
        """Looks for a parameter of those `sent` that `error` refuses; what is done about it, "" for nothing."""
        name = _refused_parameter(error, set(sent))
        other = _OTHER_NAME.get(name)
        if other is None or other in self._known:
            return ""
        remedy = f"{'sent as ' + other if other else 'left out'} from now on"
        if name not in self._known:
            self._known[name] = other
            self._say(f"the endpoint does not take '{name}': {remedy}; no request becomes another by that")
        return remedy


_OTHER_NAME = {"seed": "", "max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
_REFUSED = re.compile(
    r"unsupported|unknown|unrecogni[sz]ed|unexpected|\bextra\b|additional propert|no such (?:parameter|field)"
    r"|not (?:supported|permitted|allowed|implemented|accepted|recogni[sz]ed|available)|(?:does not|doesn't) support"
    r"|cannot be (?:used|set)|(?:invalid|bad) (?:parameter|argument|field)|is not a valid",
    re.IGNORECASE,
)


def _refused_parameter(error: str, sent: set[str]) -> str:
    """The parameter of those `sent` that an error (of a malformed request) does not take; "" for none."""
    if not _REFUSED.search(error):
        return ""
    # In brackets at its end: what the error names apart from its words, or the end of a sentence of the server's.
    if (named := re.search(r"\((\w+)\)$", error)) and named[1] in sent:
        return named[1]
    # The first that is named: "'max_tokens' is not supported, use 'max_completion_tokens'".
    found = [(at.start(), n) for n in sent if (at := re.search(rf"\b{re.escape(n)}\b", error))]
    return min(found)[1] if found else ""


def settle_status(
    status: int,
    error: Any,
    headers: Mapping[str, str],
    request_id: str = "",
    *,
    inside: bool = False,
    paid: bool = True,
) -> Answer:
    """What an HTTP status that is not success settles; raises Again or Stop.

    Args:
      error: what the server said: an object, a list, a text.
      inside: it came in a reply of status 200. paid: that may have been billed, and nobody says what.
    """
    said = redact(error_status.message_of(error) or (error if isinstance(error, str) else ""))
    codes = error_status.codes_of(error)
    if status == error_status.NO_KEY:
        # The server's own words would repeat parts of the key.
        raise Stop("the endpoint does not accept the API key (401); check OPENAI_API_KEY and --base_url")
    if status == error_status.NO_CREDIT or any(error_status.status_of_word(c) == error_status.NO_CREDIT for c in codes):
        raise Stop(f"the account has no credit or quota left ({status}): {said}; add credit, then run the same command")
    if status == error_status.NOT_ALLOWED:
        raise Stop(f"the API key may not use this model or endpoint (403): {said}")
    if status == error_status.NO_MODEL:
        raise Stop(f"no such model or address (404): {said}; check both (--base_url mostly ends in /v1)")
    if status == error_status.LIMITED:
        raise Again(f"429: {said}", limited=True, headers=headers, uncertain=inside and paid, inside=inside)
    if status in (408, 409) or status >= 500:
        uncertain = paid if inside else status in (408, 504)
        raise Again(f"{status}: {said}", headers=headers, uncertain=uncertain, inside=inside)
    if codes & set(error_status.FILTERS):
        return Answer("rejected", "content_filter", said, request_id=request_id, cost=0.0)
    about = error_status.parameter_of(error)
    said += f" ({about})" if about else ""
    return Answer("failed", "bad_request", f"{status}: {said}", request_id=request_id, cost=0.0)


def error_in(reply: Any) -> Any:
    """The error in a reply of status 200 that holds no answer; None where there is none, or an answer."""
    if isinstance(reply, list) and reply:
        return error_in(reply[0]) if isinstance(reply[0], dict) and "error" in reply[0] else None
    if isinstance(reply, str):
        return reply if error_status.status_of(reply) else None
    if not isinstance(reply, dict):
        return None
    choice = choice_of(reply) or {}
    message = choice.get("message")
    ended = kind_of_ending(choice.get("finish_reason"))
    whole = isinstance(message, dict) and (message.get("content") or message.get("refusal")) and ended != "broken"
    error = reply.get("error") or reply.get("errors") or choice.get("error")
    # Half a text without an ending, and beside it why: the error. Beside a text that the model ended it is none.
    torn = whole and choice.get("finish_reason") in (None, "") and error_status.status_of(error)
    if choice and not torn and (whole or ended in ("cut", "filtered", "refused")):
        return None
    if error:
        return error
    if choice or isinstance(reply.get("usage"), dict):
        return None
    # Errors without that name: {"object": "error", "message", "code"}, {"detail": ..}, {"base_resp": {..}}.
    return reply if error_status.message_of(reply) or error_status.status_of(reply) else None


def settle(
    reply: Any, price: Price | None, headers: Mapping[str, str], request_id: str = "", *, batch: bool = False
) -> Answer:
    """What a reply of status 200 (parsed JSON, whatever it is) settles; raises Again or Stop."""
    answer = read_completion(reply, price, request_id=request_id, batch=batch)
    error = error_in(reply)
    broken = answer.reason == "api_error" and answer.finish is not None
    status = error_status.status_of(error) if error is not None else None
    if status is None and broken:
        status = error_status.DOWN
    if status is None:
        if error is None:
            return answer
        said = redact(error_status.message_of(error) or str(error))
        return answer._replace(state="failed", reason="api_error", detail=f"an error in place of an answer: {said}")
    try:
        found = settle_status(status, error, headers, request_id, inside=True, paid=answer.cost is None)
    except Again as again:
        again.cost, again.broken = answer.cost, broken or bool(answer.response)
        again.detail = answer.detail if broken else again.detail
        raise
    except Stop as stop:
        stop.cost = answer.cost
        raise
    # The endpoint refused it: what it counts all the same is paid.
    return found._replace(cost=answer.cost or 0.0)
