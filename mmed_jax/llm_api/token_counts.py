"""How many tokens a request has, before it is sent: by tiktoken where it knows the model, else bounds by bytes."""

import functools
import json
import logging
from collections.abc import Callable
from typing import NamedTuple

from mmed_jax.llm_api.prices import Price, no_room
from mmed_jax.llm_api.types import Request

LIMITS = ("max_completion_tokens", "max_tokens")  # parameters that limit an answer
# Per message: start, role, separators, end; the reply is primed with three (OpenAI's counting recipe for chat models).
_PER_MESSAGE, _PER_REPLY = 4, 3


class Counter(NamedTuple):
    """count: tokens of a text. name: by what. exact: False where `count` is an upper bound only."""

    count: Callable[[str], int]
    name: str
    exact: bool


@functools.cache
def counter_for(model: str) -> Counter:
    """tiktoken's encoding of the model, or a bound: byte-level vocabularies never make more tokens than bytes.

    tiktoken fetches its vocabulary on first use; without a network the bound is taken.
    """
    try:
        import tiktoken

        encoding = tiktoken.encoding_for_model(model)
        return Counter(lambda text: len(encoding.encode_ordinary(text)), f"tiktoken {encoding.name}", True)
    except KeyError:
        return Counter(_bytes, f"bytes: tiktoken does not know '{model}'", False)
    except Exception as e:  # a download that failed; tiktoken raises whatever its transport does
        logging.getLogger(__name__).info("tiktoken: %s", e)
        return Counter(_bytes, "bytes: the vocabulary could not be fetched", False)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def prompt_tokens(request: Request, count: Callable[[str], int] = _bytes) -> int:
    """Tokens of the prompt, schema included (endpoints put it before the messages); by default an upper bound."""
    total = _PER_REPLY
    for message in request.messages:
        total += _PER_MESSAGE + count(message["role"]) + count(message["content"])
    return total + (count(json.dumps(request.schema, ensure_ascii=False)) if request.schema else 0)


def answer_limit(request: Request) -> int | None:
    """The most tokens that the answer may have, reasoning included; None when the request sets no limit."""
    limits = [request.params.get(name) for name in LIMITS]
    return max((int(n) for n in limits if n is not None), default=None)


def most_cost(request: Request, price: Price | None, *, batch: bool = False, hard: bool = False) -> float:
    """Upper bound of a request's price in dollars; 0 without a price, without its answer where that has no limit.

    hard: a limit in money depends on it; an answer without a limit that costs raises UserError then.
    """
    if price is None:
        return 0.0
    limit = answer_limit(request)
    if hard and limit is None and price.output:
        raise no_room("--max_usd")
    return price.cost(prompt_tokens(request), limit or 0, batch=batch)
