"""What a chat completion says: text, why it ended, what it cost. Odd replies are read as far as they can be.

A reply that is JSON with status 200 was worked for and is billed, whatever is in it; it settles its request.
"""

import json
import math
import os
import re
from typing import Any

from data_gen.claims import Answer, storable
from data_gen.prices import Price

_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk)-[\w*-]{4,}|(?i:bearer)\s+\S+")
_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?(?:_?\d+)?$", re.IGNORECASE)  # names of variables
_LEAST_SECRET = 12  # letters: a shorter one is no secret, and its letters may be in any answer
_MOST_TOKENS = 10**9  # of one request; more is no count


def without_key(text: str) -> str:
    """`text` without the API keys, tokens and passwords of the environment."""
    for name in os.environ:
        if _SECRET.search(name):
            value = os.environ[name].strip()
            # Paths and settings ("SSH_KEY=/home/...") are no secrets.
            if len(value) >= _LEAST_SECRET and value in text and not value.startswith(("/", ".", "~")):
                text = text.replace(value, "***")
    return text


def redact(text: str) -> str:
    """`text` on one line, short, without anything that is or looks like an API key; it can be stored and printed."""
    text = without_key(text)
    return storable(" ".join(_KEY_LIKE.sub("***", text).split()))[:300]


def token_count(value: object) -> int | None:
    """A number of tokens as endpoints write it (5, 5.0, "5"); None for what is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 0 <= value <= _MOST_TOKENS and value == int(value) else None


def usage_of(reply: dict, price: Price | None, batch: bool) -> tuple[int | None, int | None, int | None, float | None]:
    """(prompt, cached and completion tokens, dollars) of a reply; all None where it does not count both kinds."""
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        return None, None, None, None
    details = usage.get("prompt_tokens_details")
    cached = token_count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    cached = min(cached or 0, prompt)
    cost = None if price is None else price.cost(prompt, completion, cached, batch=batch)
    return prompt, cached, completion, cost


def _text(content: object) -> str | None:
    """The text of a message's content: a string, or a list of parts."""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type", "text") == "text"]
        content = "".join(p for p in parts if isinstance(p, str)) or None
    return content if isinstance(content, str) else None


def read_completion(reply: Any, price: Price | None, *, request_id: str = "", batch: bool = False) -> Answer:
    """What a reply with status 200 (parsed JSON, whatever it is) says. Never raises."""
    whole = reply if isinstance(reply, dict) else {}
    choices = whole.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    message = choice.get("message") if choice else None
    message = message if isinstance(message, dict) else {}
    prompt, cached, completion, cost = usage_of(whole, price, batch)
    finish, refusal = choice.get("finish_reason") if choice else None, message.get("refusal")
    text = _text(message.get("content"))
    state, reason, detail = "done", "", ""
    if choice is None:
        said = whole.get("error") or "no choices"
        said = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        state, reason, detail = "rejected", "schema", f"a reply without an answer: {redact(said)}"
    elif finish == "length":
        state, reason = "rejected", "length"
        detail = "cut off" if completion is None else f"cut off after {completion} tokens"
    elif finish == "content_filter":
        state, reason = "rejected", "content_filter"
    elif refusal:
        said = refusal if isinstance(refusal, str) else json.dumps(refusal, ensure_ascii=False)
        state, reason, detail, text = "rejected", "refusal", redact(said), said
    elif text is None or not text.strip():
        state, reason, detail = "rejected", "schema", f"an empty answer (finish_reason {redact(str(finish))[:40]})"
    elif text != storable(text):
        state, reason, detail = "rejected", "control", "the answer holds half of a surrogate pair (broken text)"
    text = None if text is None else storable(without_key(text))
    names = (whole.get(k) for k in ("model", "system_fingerprint"))
    served = " ".join(redact(n)[:100] for n in names if isinstance(n, str) and n) or None
    return Answer(state, reason, detail, text, redact(request_id), prompt, cached, completion, cost, served)
