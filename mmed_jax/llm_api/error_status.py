"""What an error of an endpoint means, whatever form it was given: the HTTP status that says the same.

Endpoints and the gateways before them write errors as numbers (429, 502.0, "502"), as words ("overloaded_error",
"ThrottlingException"), as a sentence, as lists of them, nested; with an HTTP status or inside a reply of status 200.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import TypeGuard

from mmed_jax.common.jsonl import BadJSON, loads

# An account without money is told apart from too many requests: waiting does not help it.
NO_CREDIT, NO_KEY, NOT_ALLOWED, NO_MODEL, LIMITED, LATE, DOWN, MALFORMED = 402, 401, 403, 404, 429, 504, 503, 400
FILTERS = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
_WORDS = {
    NO_CREDIT: (
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
        "billing",
        "account_deactivated",
        "insufficient_balance",
        "insufficient_account_balance",
        "insufficient_credits",
        "insufficient_credit",
        "insufficient_funds",
        "insufficient_user_quota",
        "payment_required",
        "no_credits",
        "exceeded_current_quota",
        "credit_balance_too_low",
        "out_of_credits",
        "arrearage",
        "quota_not_enough",
    ),
    NO_KEY: (
        "invalid_api_key",
        "incorrect_api_key",
        "missing_api_key",
        "api_key_invalid",
        "invalid_key",
        "invalid_token",
        "authentication",
        "authentication_failed",
        "invalid_authentication",
        "unauthorized",
        "unauthenticated",
    ),
    NOT_ALLOWED: (
        "permission",
        "permission_denied",
        "forbidden",
        "access_denied",
        "unsupported_country_region_territory",
    ),
    NO_MODEL: (
        "model_not_found",
        "model_not_exist",
        "model_not_exists",
        "model_does_not_exist",
        "no_such_model",
        "unknown_model",
        "invalid_model",
        "deployment_not_found",
        "not_found",
        "resource_not_found",
        "unknown_url",
    ),
    LIMITED: (
        "rate_limit",
        "rate_limit_exceeded",
        "rate_limit_reached",
        "rate_limited",
        "too_many_requests",
        "throttled",
        "throttling",
        "throttling_rate_quota",
        "resource_exhausted",
        "request_limit_exceeded",
        "limit_requests",
        "concurrency_limit_exceeded",
        "quota_exceeded",
        "slow_down",
        "requests",
        "tokens",
    ),
    LATE: ("timeout", "timed_out", "gateway_timeout", "request_timeout", "upstream_timeout", "deadline_exceeded"),
    DOWN: (
        "server",
        "server_error",
        "internal",
        "internal_error",
        "internal_server_error",
        "api",
        "api_error",
        "overloaded",
        "server_overloaded",
        "engine_overloaded",
        "model_overloaded",
        "server_busy",
        "system_busy",
        "service_unavailable",
        "unavailable",
        "temporarily_unavailable",
        "model_not_ready",
        "model_loading",
        "bad_gateway",
        "gateway",
        "upstream",
        "provider",
        "connection",
        "network",
        "system",
        "aborted",
        "no_capacity",
        "capacity_exceeded",
        "capacity",
        "insufficient_system_resource",
        "service_unavailable_error",
    ),
    MALFORMED: (
        *FILTERS,
        "invalid_request",
        "bad_request",
        "invalid_argument",
        "invalid_parameter",
        "invalid_value",
        "invalid_prompt",
        "invalid_input",
        "unsupported_parameter",
        "unsupported_value",
        "missing_required_parameter",
        "context_length_exceeded",
        "string_above_max_length",
        "validation",
        "unprocessable_entity",
        "failed_precondition",
    ),
}
# Sentences, the first that fits; what may pass comes before what will not where one sentence says both.
_SENTENCES = (
    (
        NO_CREDIT,
        r"insufficient[ _](?:quota|balance|credit|fund)|exceeded your current quota|out of (?:quota|credits?)"
        r"|no credits? left|credit balance is too low|payment required|余额不足|欠费",
    ),
    (
        NO_KEY,
        r"(?:invalid|incorrect|missing|wrong|expired|no) (?:api|auth\w*)[ -]?(?:key|token)|unauthori[sz]ed"
        r"|api key (?:is |was )?(?:not valid|invalid|missing|expired)|authentication failed",
    ),
    (
        LIMITED,
        r"rate[ _-]?limit|too many (?:concurrent )?requests|throttl|(?:requests|tokens) per (?:second|minute|day)"
        r"|resource[ _]exhausted|quota (?:exceeded|violation)|slow down|\bqps\b|限流|并发|频繁",
    ),
    (LATE, r"timed?[ -]?out|deadline exceeded"),
    (
        DOWN,
        r"overload|unavailable|bad gateway|gateway error|internal (?:server )?error|server error|had an error"
        r"|temporar|try again|retry|\bbusy\b|capacity|upstream|connection (?:was )?(?:reset|refused|closed|aborted|"
        r"error|failed)|not ready|\bloading\b|queue is full|out of memory|broken pipe|\beof\b|繁忙|稍后|重试",
    ),
    (NO_MODEL, r"model\b.{0,99}\b(?:not found|does not exist|doesn't exist)|(?:no such|unknown) model"),
    (NOT_ALLOWED, r"\bforbidden\b|permission denied|access denied"),
    (
        MALFORMED,
        r"bad request|context (?:length|window)|too long|too large|\binvalid\b|malformed|unsupported"
        r"|unknown (?:field|parameter|argument)|unrecogni[sz]ed|unexpected (?:field|keyword)|not permitted"
        r"|does(?: not|n't) support|not supported|content[ _](?:filter|policy|management)|must be|is required",
    ),
)
_NUMBER = re.compile(
    r"(?:^|error(?: code)?:? ?|status(?:[ _]code)?:? ?|https?(?:/[\d.]+)? ?|\()([45]\d\d)(?![\d.])", re.IGNORECASE
)
_NAMES = (
    "code",
    "status",
    "type",
    "reason",
    "name",
    "error",
    "errors",
    "innererror",
    "metadata",
    "details",
    "detail",
    "statuscode",
    "httpstatus",
    "httpcode",
    "httpstatuscode",
    "errorcode",
    "errortype",
    "cause",
    "raw",
    "body",
    "response",
    "baseresp",
    "fault",
    "exception",
    "errcode",
)
_TEXTS = (
    "message",
    "msg",
    "error",
    "errors",
    "detail",
    "raw",
    "reason",
    "errormessage",
    "errormsg",
    "statusmsg",
    "title",
    "description",
    "errmsg",
    "faultstring",
    "exception",
)


def _letters(word: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(word).lower())


_STATUS = {_letters(word): status for status, words in _WORDS.items() for word in words}


def _facts(value: object, name: str = "code", depth: int = 0) -> Iterator[tuple[str, object]]:
    """(name, value) of everything in an error that may say what it is, the outer things first."""
    if depth > 5:
        return
    if isinstance(value, dict):
        inner = []
        for key, item in list(value.items())[:50]:
            word = _letters(key)
            if word in _NAMES or word in _TEXTS:
                if isinstance(item, dict | list) or _is_packed(item):
                    inner.append((word, item))
                else:
                    yield word, item
        for word, item in inner:
            yield from _facts(item, word, depth + 1)
    elif isinstance(value, list):
        for item in value[:5]:
            yield from _facts(item, name, depth + 1)
    elif _is_packed(value):
        with contextlib.suppress(BadJSON):
            yield from _facts(loads(value), name, depth + 1)
        yield name, value
    else:
        yield name, value


def _is_packed(value: object) -> TypeGuard[str]:
    """Whether a text may be JSON: what a gateway was told by the server behind it."""
    return isinstance(value, str) and len(value) < 10_000 and value.lstrip()[:1] in ("{", "[")


def codes_of(error: object) -> set[str]:
    """The words of an error: codes and types, as they stand."""
    return {value for name, value in _facts(error) if isinstance(value, str) and name in _NAMES and len(value) < 99}


def message_of(error: object) -> str:
    """What an error says in words; "" when nothing."""
    texts = [v for name, v in _facts(error, "message") if name in _TEXTS and isinstance(v, str) and v.strip()]
    return next((t for t in texts if " " in t.strip()), texts[0] if texts else "")


def parameter_of(error: object, depth: int = 0) -> str:
    """The parameter that an error names apart from its words: "param", or the end of a "loc"; "" for none."""
    if depth > 5:
        return ""
    if isinstance(error, list):
        return next((name for item in error[:5] if (name := parameter_of(item, depth + 1))), "")
    if not isinstance(error, dict):
        return ""
    loc = error.get("loc")
    for word in (error.get("param"), loc[-1] if isinstance(loc, list) and loc else None):
        if isinstance(word, str) and re.fullmatch(r"\w{1,40}", word):
            return word
    return next((name for item in error.values() if (name := parameter_of(item, depth + 1))), "")


def status_of_word(word: object) -> int | None:
    """The status that a code or type stands for: "insufficient_quota" is 402, "ServiceUnavailableException" 503."""
    letters = _letters(word)
    if number := re.fullmatch(r"(?:https?|status|code|err|error|e)+([45]\d\d)", letters):
        return int(number[1])
    for ending in ("", "error", "exception", "errorexception"):
        if letters.endswith(ending) and (found := _STATUS.get(letters.removesuffix(ending))):
            return found
    return None


def number_of(value: object) -> int | None:
    """A status as servers write it (502, 502.0, "502"); None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if 100 <= number < 600 and number == int(number) else None


def status_of(error: object) -> int | None:
    """The HTTP status that says the same as `error` (text, object or list); None where it says nothing known."""
    facts = list(_facts(error))
    words = [found for name, v in facts if name in _NAMES and isinstance(v, str) and (found := status_of_word(v))]
    if NO_CREDIT in words:
        return NO_CREDIT
    numbers = (number_of(v) for name, v in facts if name in _NAMES)
    if number := next((n for n in numbers if n and n >= 400), None):
        return number
    if words:  # "invalid_request_error" and "api_error" are said of everything
        return min(words, key=lambda status: (status == MALFORMED, status == DOWN))
    texts = [v[:2000] for _, v in facts if isinstance(v, str)]
    for text in texts:
        if digits := _NUMBER.search(text.strip()):
            return int(digits[1])
    for status, pattern in _SENTENCES:
        if any(re.search(pattern, text, re.IGNORECASE) for text in texts):
            return status
    return None
