"""What a chat completion says: text, why it ended, what it cost. Odd replies are read as far as they can be.

A reply that is JSON with status 200 may have been billed, whatever is in it. Errors in one: llm_api/failures.py.
"""

import json
import math
import os
import re
from typing import Any

from mmed_jax.common.jsonl import loads
from mmed_jax.llm_api.finish_reasons import kind_of_ending
from mmed_jax.llm_api.ledger.transactions import Answer, storable
from mmed_jax.llm_api.prices import Price

_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk)-[\w*-]{4,}|(?i:bearer)\s+\S+")
_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?(?:_?\d+)?$", re.IGNORECASE)  # names of variables
_LEAST_SECRET = 12  # letters: a shorter one is no secret, and its letters may be in any answer
_MOST_TOKENS = 10**9  # of one request; more is no count
_LONGEST_TOKEN = 128  # letters, in any vocabulary
_COUNTS = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))


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


def read_json(text: str | bytes) -> Any:
    """A reply, or a line of a batch's results. One number of too many digits does not take the answer with it.

    Raises BadJSON.
    """
    return loads(text, parse_int=lambda digits: int(digits) if len(digits) < 1000 else float(digits))


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


def usage_of(
    reply: dict, price: Price | None, batch: bool, text: str | None = None
) -> tuple[int | None, int | None, int | None, float | None]:
    """(prompt, cached and completion tokens, dollars) of a reply; all None where it does not count both kinds.

    What is billed as an answer is the most that the counts support: reasoning tokens stand inside completion_tokens at
    some endpoints and beside them at others, where only total_tokens, or their being more, tells. Counts that cannot be
    (a prompt of no tokens, a text of too few) are no counts.
    """
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = (
        token_count(next((usage[name] for name in names if usage.get(name) is not None), None)) for names in _COUNTS
    )
    if not prompt or completion is None:
        return None, None, None, None
    details = [usage.get(name) for name in ("completion_tokens_details", "output_tokens_details")]
    reasoning = max(
        [token_count(d.get("reasoning_tokens")) or 0 for d in (usage, *details) if isinstance(d, dict)], default=0
    )
    if reasoning > completion:  # so it is no part of them
        completion += reasoning
    completion = max(completion, (token_count(usage.get("total_tokens")) or 0) - prompt)
    if len((text or "").strip()) > completion * _LONGEST_TOKEN:
        return None, None, None, None
    of_prompt = usage.get("prompt_tokens_details")
    cached = token_count(of_prompt.get("cached_tokens")) if isinstance(of_prompt, dict) else 0
    cached = cached if cached and cached <= prompt else 0
    cost = None if price is None else price.cost(prompt, completion, cached, batch=batch)
    return prompt, cached, completion, cost


def _text(content: object) -> str | None:
    """The text of a message's content: a string, or a list of parts."""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type", "text") == "text"]
        content = "".join(p for p in parts if isinstance(p, str)) or None
    return content if isinstance(content, str) else None


def choice_of(reply: Any) -> dict | None:
    """The first choice of a reply, if there is one."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def read_completion(reply: Any, price: Price | None, *, request_id: str = "", batch: bool = False) -> Answer:
    """What a reply with status 200 (parsed JSON, whatever it is) says. Never raises.

    A reply without an answer that counts no tokens, and one that the endpoint broke off, is "failed": nobody answered.
    """
    whole = reply if isinstance(reply, dict) else {}
    choice = choice_of(reply)
    message = choice.get("message") if choice else None
    message = message if isinstance(message, dict) else {}
    text, refusal = _text(message.get("content")), message.get("refusal")
    counts = usage_of(whole, price, batch, text or (refusal if isinstance(refusal, str) else None))
    said = choice.get("finish_reason") if choice else None
    finish = redact("null" if said is None else str(said))[:40] if choice else None
    other = isinstance(reply, str | list) and bool(reply)  # something is there, and no object
    state, reason, detail = _verdict(whole, choice, finish, text, refusal, counts[2], other)
    if reason == "refusal" and refusal:
        text = refusal if isinstance(refusal, str) else json.dumps(refusal, ensure_ascii=False)
    text = None if text is None else storable(without_key(text))
    names = (whole.get(k) for k in ("model", "system_fingerprint"))
    served = " ".join(redact(n)[:100] for n in names if isinstance(n, str) and n) or None
    return Answer(state, reason, detail, text, redact(request_id), *counts, served, finish)


def _verdict(
    whole: dict,
    choice: dict | None,
    finish: str | None,
    text: str | None,
    refusal: object,
    completion: int | None,
    other: bool,
) -> tuple[str, str, str]:
    """(state, reason, detail) of a reply."""
    if choice is None:
        said = whole.get("error") or "no choices"
        said = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        detail = f"a reply without an answer: {redact(said)}"
        # Something was made, and paid, where tokens are counted; else this is an error, whatever it calls itself.
        made = isinstance(whole.get("choices"), list | dict) and completion is not None and not whole.get("error")
        return ("rejected", "schema", detail) if made or other else ("failed", "api_error", detail)
    kind = kind_of_ending(finish)
    if kind == "cut":
        return "rejected", "length", "cut off" if completion is None else f"cut off after {completion} tokens"
    if kind == "filtered":
        return "rejected", "content_filter", "" if finish == "content_filter" else f"finish_reason {finish}"
    if kind == "broken":
        said = choice.get("error") or whole.get("error") or ""
        said = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        return "failed", "api_error", redact(f"the endpoint broke the answer off (finish_reason {finish}) {said}")
    if refusal or kind == "refused":
        said = refusal if isinstance(refusal, str) else json.dumps(refusal, ensure_ascii=False)
        return "rejected", "refusal", redact(said) if refusal else ""
    if text is None or not text.strip():
        return "rejected", "schema", f"an empty answer (finish_reason {finish})"
    if text != storable(text):
        return "rejected", "control", "the answer holds half of a surrogate pair (broken text)"
    return "done", "", ""
