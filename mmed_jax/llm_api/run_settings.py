"""What a run is told: flags shared by every command that asks a model, checked before anything is sent."""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.place_flags import FreeText
from mmed_jax.llm_api.address import check_address
from mmed_jax.llm_api.prices import Price, no_price, no_room, price_of
from mmed_jax.llm_api.token_counts import LIMITS


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run is told.

    Attributes:
      ledger: SQLite file; a folder gets ledger.sqlite in it. run: label of the rows in it (default: the model's name).
      base_url: of an OpenAI-compatible endpoint; None: OPENAI_BASE_URL, Azure's variables, or OpenAI.
      params: of the request body (temperature, max_completion_tokens, seed, ...), sent as given.
      max_usd, max_requests: limits on the totals of the ledger, earlier runs included.
      price: "IN,OUT", US dollars per million tokens, in place of the table (prices: another table).
      batch: by the Batch API; enqueued_tokens: the account's limit there; poll_s: seconds between looks.
      retry_failed: ask again for requests that the endpoint refused as malformed; others that failed always are.
      backoff_s: seconds before the second attempt. window: rows under way at most, those that wait for an earlier one
      included. total: rows expected, for the progress bar. progress: show it.
    """

    ledger: str | Path
    model: str
    base_url: str | None = None
    params: dict = field(default_factory=dict)
    run: str = ""
    concurrency: int = 32
    max_usd: float | None = None
    max_requests: int | None = None
    price: str | None = None
    prices: str | None = None
    batch: bool = False
    enqueued_tokens: int | None = None
    poll_s: float = 30.0
    timeout_s: float = 120.0
    backoff_s: float = 0.5
    window: int = 4096
    retry_failed: bool = False
    dry_run: bool = False
    total: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("--model is missing (the model's name at the endpoint, for example gpt-4o-mini)")
        check_address(self.base_url)
        for name, least in (("concurrency", 1), ("window", 1), ("max_requests", 0), ("enqueued_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name}={value}: must be {least} or more")
        for name in ("timeout_s", "poll_s", "backoff_s", "max_usd"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < 1e9) or value == 0 and name == "timeout_s":
                raise UserError(f"--{name}={value}: must be a positive number")
        if self.params.get("stream") or self.params.get("n", 1) != 1:
            raise UserError("--params: stream and n are not for data_gen; a job is one request with one answer")
        _check_params(self.params)
        price = price_of(self.model, self.prices, self.price)
        if self.max_usd is not None and price is None:
            raise no_price(self.model, f"--max_usd={self.max_usd}")
        room = [self.params[name] for name in LIMITS if name in self.params]
        if self.max_usd is not None and price is not None and price.output and room and not any(room):
            raise no_room(f"--max_usd={self.max_usd}")

    @property
    def label(self) -> str:
        """The run's name in the ledger."""
        return self.run or self.model

    @property
    def known_price(self) -> Price | None:
        """The model's price, if one is known."""
        return price_of(self.model, self.prices, self.price)

    @property
    def ledger_file(self) -> Path:
        """The SQLite file."""
        path = Path(self.ledger)
        return path / "ledger.sqlite" if path.is_dir() else path


def _check_params(params: dict) -> None:
    """What can be told wrong of a request's parameters before anything is sent. Raises UserError."""

    def wrong(name: str, must: str) -> UserError:
        return UserError(f"--params: {name}={json.dumps(params[name])[:60]}: must be {must}")

    for name in params:
        try:
            json.dumps(params[name], allow_nan=False).encode("utf-8")
        except (ValueError, TypeError):
            raise UserError(f"--params: {name}={params[name]!r:.60}: cannot be sent as JSON") from None
    for name in LIMITS:  # null takes the method's own limit away
        value = params.get(name)
        if value is not None and not (_whole(value) and 0 < value < 10**9):
            raise wrong(name, "a whole number above 0, or null for no limit")
    if "seed" in params and not (_whole(params["seed"]) and abs(params["seed"]) < 2**63 - 100):
        raise wrong("seed", "a whole number (an unusable answer is asked for again with the next one); leave it out")
    for name in ("temperature", "top_p"):
        value = params.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise wrong(name, "a number, 0 or more")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def add_run_flags(parser: argparse.ArgumentParser, model: str = "--model") -> None:
    """The flags of RunSettings; `model` is what the flag of the model's name is called."""
    group = parser.add_argument_group("the run")
    add = group.add_argument
    add(model, metavar="NAME", default="", help="the model's name at the endpoint (Azure: the deployment's)")
    add(
        "--base_url",
        type=FreeText,
        metavar="URL",
        help="OpenAI-compatible endpoint (default: OPENAI_BASE_URL, Azure's or OpenAI)",
    )
    add("--ledger", metavar="FILE", default="data/ledger.sqlite", help="what was asked and paid (%(default)s)")
    add("--run", metavar="NAME", default="", help="label of the rows in the ledger (default: the model)")
    add("--temperature", metavar="T", type=float, help="sampling temperature (default: the endpoint's)")
    add("--sampling_seed", metavar="N", type=int, help="seed sent to the endpoint")
    add("--max_tokens", metavar="N", type=int, help="room for an answer (default: the method's)")
    add("--params", type=FreeText, metavar="JSON", help='more fields of the request body, as {"top_p": 0.9}')
    add("--concurrency", metavar="N", type=int, default=32, help="requests under way at most (%(default)s)")
    add("--max_usd", metavar="USD", type=float, help="stop before the ledger's cost, earlier runs included, passes it")
    add("--max_requests", metavar="N", type=int, help="stop at so many requests in the ledger, earlier runs included")
    add("--price", metavar="IN,OUT", help="US dollars per million tokens, where the table has no price")
    add("--prices", metavar="FILE", help="another price table (see mmed_jax/llm_api/prices.json)")
    add("--batch", action="store_true", help="use the Batch API: half the price, answers within a day")
    add("--enqueued_tokens", metavar="N", type=int, help="the account's limit of tokens enqueued in batches")
    add("--poll_s", metavar="S", type=float, default=30.0, help="seconds between looks at a batch (%(default)s)")
    add("--timeout_s", metavar="S", type=float, default=120.0, help="seconds to wait for an answer (%(default)s)")
    add("--retry_failed", action="store_true", help="ask again for requests that the endpoint refused as malformed")
    add("--dry_run", action="store_true", help="send nothing: count rows, tokens and the most they can cost")


def settings_from(args: argparse.Namespace) -> RunSettings:
    """RunSettings out of parsed flags. Raises UserError."""
    params: Any = {}
    if args.params:
        params = jsonl.parse_json(args.params, "--params")
        if not isinstance(params, dict):
            raise UserError(f"--params={args.params}: must be a JSON object")
    given = {"temperature": args.temperature, "seed": args.sampling_seed, "max_completion_tokens": args.max_tokens}
    params |= {k: v for k, v in given.items() if v is not None}
    taken = {"model", "messages", "response_format"} & set(params)
    if taken:
        raise UserError(f"--params={json.dumps(params)}: {', '.join(sorted(taken))} is set by the command")
    same = (
        "ledger",
        "model",
        "base_url",
        "run",
        "concurrency",
        "max_usd",
        "max_requests",
        "price",
        "prices",
        "batch",
        "enqueued_tokens",
        "poll_s",
        "timeout_s",
        "retry_failed",
        "dry_run",
    )
    return RunSettings(params=params, **{name: getattr(args, name) for name in same})
