"""A model behind an OpenAI-compatible endpoint under evaluation, through the ledger.

It is asked the words that a local model is asked, as chat messages: system message, examples as turns, question. What
was answered is in the ledger before it is in predictions.jsonl, so that a stopped evaluation pays for nothing twice;
limits, prices, batches and repeated attempts are llm_api's. An item that the endpoint refuses for good is wrong and is
counted; one that is only pending keeps the evaluation unfinished.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.evaluation import scoring
from mmed_jax.evaluation.models.usage import Usage
from mmed_jax.evaluation.prompts.items import Item, PromptSettings, chat_messages
from mmed_jax.llm_api.client import endpoint_name, make_client
from mmed_jax.llm_api.finish_reasons import kind_of_ending, was_cut
from mmed_jax.llm_api.ledger.ledger import FINAL, Ledger
from mmed_jax.llm_api.run_settings import RunSettings, add_run_flags, settings_from
from mmed_jax.llm_api.runner import run
from mmed_jax.llm_api.token_counts import LIMITS
from mmed_jax.llm_api.types import Job, Outcome, Request
from mmed_jax.llm_api.unfinished import limit_text, unfinished_text

VERSION = "evaluate/1"  # of how items become requests; part of every request's key
# Reasons of the ledger with which an answer came: whole, with broken text in it, cut. Others are the finish_reason of a
# line, except that there was no text.
_ANSWERED = {"": "stop", "control": "stop", "length": "length"}
_FINISHED = {"schema": "empty"}
_DEFAULTS = {"temperature": 0, "seed": 0}
_WITHOUT = "--params='{\"temperature\": null}' leaves a parameter out"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--api_model and the flags of a run, whose defaults are those of an evaluation."""
    add_run_flags(parser, "--api_model")
    other = {
        "temperature": "sampling temperature (default: 0)",
        "sampling_seed": "seed sent to the endpoint (default: 0)",
        "max_tokens": "the same as --max_new_tokens",
    }
    for action in parser._actions:
        action.help = other.get(action.dest, action.help)


class ApiModel:
    """The model of --api_model; models.local.LocalModel has the same methods.

    Attributes:
      prompt_defaults: {"prompt_family", "system_prompt"}. dry_run: `start` prints an estimate and ends the
        process. shows_progress: `ask` shows its progress itself.
    """

    shows_progress = True

    def __init__(self, args: argparse.Namespace):
        """Raises UserError for flags that contradict each other; nothing is sent and no key is needed."""
        if not args.api_model:
            raise UserError("--api_model is missing (the model's name at the endpoint, for example gpt-4o-mini)")
        self.prompt_defaults = {"prompt_family": "llama3", "system_prompt": ""}
        params, left_out = _without_nulls(args.params)
        given = settings_from(argparse.Namespace(**{**vars(args), "model": args.api_model, "params": params}))
        self.settings_of_run: RunSettings = given
        self.dry_run, self._retry_failed = given.dry_run, given.retry_failed
        self._priced = given.known_price is not None
        self._params = {k: v for k, v in _DEFAULTS.items() if k not in left_out} | given.params
        self._limits = [f"--params: {k}" for k in LIMITS if k in self._params]
        if args.max_tokens is not None:
            self._limits = ["--max_tokens"]
        if self._limits and args.max_new_tokens is not None:
            raise UserError(f"{self._limits[0]}: says the same as --max_new_tokens; leave one of them out")
        if args.max_new_tokens is not None and args.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens={args.max_new_tokens}: must be at least 1")
        self._max_new_tokens, self._before = args.max_new_tokens, 0

    def answer_limit(self, default: int) -> int | None:
        """The most tokens of an answer, reasoning included; None: no limit is sent. `default`: of the mode."""
        if self._limits:
            return next((self._params[k] for k in LIMITS if self._params.get(k) is not None), None)
        return self._max_new_tokens or default

    @property
    def decoding(self) -> str:
        """How it is told to decode, in words."""
        shown = (f"{k} {v}" for k, v in self._body(None).items() if k not in LIMITS)
        return ", ".join(shown) or "the endpoint's defaults"

    @property
    def identity(self) -> dict[str, Any]:
        """Which model this is, as far as one can know: its name and address, and a fingerprint of both."""
        name, url = self.settings_of_run.model, endpoint_name(self.settings_of_run.base_url).rstrip("/")
        digest = hashlib.sha256(f"{url} {name}".encode()).hexdigest()
        return {"kind": "api", "step": None, "fingerprint": digest[:16], "api_model": name, "base_url": url}

    @property
    def tuning(self) -> None:
        """Nothing is known of it."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What of the model's side decides the answers."""
        return {"dtype": "by the endpoint", "stop_ids": None, "params": self._body(None)}

    def prepare(self, items: Sequence[Item], prompt_settings: PromptSettings, max_new_tokens: int | None) -> list[Item]:
        """The items as they are: an endpoint is asked in words."""
        return list(items)

    def start(
        self, items: Sequence[Item], prompt_settings: PromptSettings, settings: dict[str, Any], before: int
    ) -> None:
        """Checks that what has to be sent can be; a dry run prints what that may cost and ends the process.

        `before`: lines of earlier calls. Raises UserError where a key is needed and missing, or for a wrong address.
        """
        self._before = before
        method = _Questions(self, prompt_settings, settings)
        if self.dry_run:
            next(run(method, items, self.settings_of_run), None)
        keys = {job.request.key for job in method.jobs(items, self.settings_of_run)}
        with Ledger(self.settings_of_run.ledger_file) as ledger:
            rows = ledger.rows(keys)
        if any(key not in rows or rows[key].state not in FINAL for key in keys):
            make_client(self.settings_of_run.base_url, self.settings_of_run.timeout_s, asynchronous=False).close()

    def is_final(self, line: dict) -> bool:
        """Whether a line of an earlier call stands; --retry_failed asks again for what was refused as malformed."""
        return not (self._retry_failed and line["finish_reason"] == "bad_request")

    def ask(
        self,
        items: Sequence[Item],
        numbers: Sequence[int],
        prompt_settings: PromptSettings,
        settings: dict[str, Any],
        on_line: Callable[[dict], None],
    ) -> None:
        """Asks for every item; `on_line` gets the line of predictions.jsonl of each that was settled.

        Raises:
          UserError: the endpoint cannot be used until the user acts, or refused everything as malformed.
          WorkError: the endpoint is down, or items are pending (a limit) or failed; the same command goes on.
        """
        counts: Counter[str] = Counter()
        refused, first = [], ""
        method = _Questions(self, prompt_settings, settings)
        by_key = {item.key: item for item in items}
        with Ledger(self.settings_of_run.ledger_file) as ledger:
            _enter_verdicts(ledger, self.settings_of_run.label, method.name)
            with closing(run(method, items, self.settings_of_run)) as outcomes:
                for outcome in outcomes:
                    item = by_key[outcome.job.target["benchmark"], outcome.job.target["id"]]
                    if outcome.state == "pending":
                        counts["pending"] += 1
                    elif outcome.reason == "api_error":
                        counts["failed"] += 1
                        first = first or f"{item.benchmark} {item.id}: {outcome.detail}"
                    elif outcome.reason == "bad_request":
                        refused.append(_line(item, outcome, prompt_settings, ledger))
                    else:
                        counts["answered"] += 1
                        on_line(_line(item, outcome, prompt_settings, ledger))
        if refused and not counts["answered"] + self._before:
            # More likely a parameter that the endpoint does not know than a fault of every question.
            error = refused[0]["error"]
            raise UserError(
                f"the endpoint refused every request as malformed ({error}); {_WITHOUT}, --retry_failed asks again"
            )
        for line in refused:
            on_line(line)
        if counts["pending"] or counts["failed"]:
            limit = limit_text(self.settings_of_run)
            parts = [unfinished_text(counts["pending"], 0, limit)] if counts["pending"] else []
            if counts["failed"]:
                parts.append(f"{counts['failed']:,} rows failed ({first}); the same command asks for them again")
            raise WorkError("; ".join(parts))

    def usage(self, predictions: Sequence[dict]) -> Usage:
        """Which models answered, tokens and dollars, what was refused. A request that several equal questions share is
        counted once."""
        served = Counter(p["served"] for p in predictions if p["served"])
        requests = list({p["request"]: p for p in predictions}.values())
        costs = [p["cost_usd"] for p in requests]
        usage = {
            "requests": len(requests),
            "prompt_tokens": sum(p["prompt_tokens"] or 0 for p in requests),
            "new_tokens": sum(p["new_tokens"] or 0 for p in requests),
            "cost_usd": None if None in costs else sum(costs),
            "uncounted": sum(p["prompt_tokens"] is None for p in requests if p["finish_reason"] != "bad_request"),
        }
        if usage["cost_usd"] is not None:
            cost = f"${usage['cost_usd']:.4f}"
        elif known := [c for c in costs if c is not None]:  # so there is a price
            cost = f"${sum(known):.4f} and what {len(costs) - len(known):,} of them cost, whose tokens were not counted"
        else:
            cost = "cost not known (" + ("no tokens were counted)" if self._priced else "--price=IN,OUT)")
        tokens = f"{usage['prompt_tokens']:,} prompt and {usage['new_tokens']:,} answer tokens"
        lines = [f"paid       {usage['requests']:,} requests, {tokens}, {cost}"]
        gone = Counter(p["finish_reason"] for p in predictions if "error" in p)
        if gone:
            shown = _count_text(gone)
            if gone.total() == len(predictions) and "refusal" not in gone:
                first = next((p["error"] for p in predictions if p["error"]), "")
                raise WorkError(
                    f"0 answers of {len(predictions):,} ({shown}{': ' + first if first else ''}); no results are "
                    "written: that says nothing of the model; --retry_failed asks again where the endpoint refused"
                )
            lines.append(f"note       {gone.total():,} items got no answer and count as wrong: {shown}")
        cut = [p for p in predictions if was_cut(p)]
        if odd := Counter(p["finish_reason"] for p in cut if kind_of_ending(p["finish_reason"]) != "cut"):
            what = "answers ended for a reason that is not known and count as cut"
            lines.append(f"note       {odd.total():,} {what}: {_count_text(odd)}")
        silent = sum(not p["output"].strip() for p in cut)
        if silent:
            lines.append(
                f"note       {silent:,} answers were cut before their first word: the reasoning of a reasoning model "
                "takes its room from --max_new_tokens"
            )
        return Usage({"served": dict(served.most_common())}, {"usage": usage}, tuple(lines))

    def _body(self, room: int | None) -> dict[str, Any]:
        """The parameters that are sent: null leaves one out; `room` is the limit where none was told."""
        limit = {} if self._limits or room is None else {"max_completion_tokens": room}
        return {k: v for k, v in {**self._params, **limit}.items() if v is not None}


def _without_nulls(text: str | None) -> tuple[str | None, set[str]]:
    """--params without what is null, and the names of that; limits stay, null means none. Raises UserError."""
    params = jsonl.parse_json(text, "--params") if text else None
    if not isinstance(params, dict):
        return text, set()
    gone = {k for k, v in params.items() if v is None and k not in LIMITS}
    return json.dumps({k: v for k, v in params.items() if k not in gone}), gone


class _Questions:
    """The llm_api.types.Method whose jobs are items, and whose answers are taken as they come: nothing is redrawn."""

    def __init__(self, model: ApiModel, prompt_settings: PromptSettings, settings: dict[str, Any]):
        self.name, self._family = f"evaluate_{prompt_settings.mode}", prompt_settings.family
        self._params = model._body(settings["max_new_tokens"])
        # The same name at another address may be another model: its answers are others.
        self._version = f"{VERSION} {prompt_settings.mode} {model.identity['base_url']}"

    def jobs(self, inputs: Iterable[Item], settings: RunSettings) -> Iterator[Job]:
        for item in inputs:
            messages = chat_messages(item, self._family)
            request = Request(settings.model, messages, self._params, None, self._version)
            row = f"{item.benchmark}/{item.id}@{request.key[:12]}"
            yield Job(row, self.name, request, item.record, {"benchmark": item.benchmark, "id": item.id})

    def parse(self, job: Job, answer: dict | str) -> list[dict]:
        return [{"text": answer}]

    def retry(self, job: Job, reason: str, attempt: int) -> Job | None:
        return None


def _enter_verdicts(ledger: Ledger, run: str, method: str) -> None:
    """Enters what a killed process knew of answers in predictions.jsonl and had not written: nobody asks for them
    again, and their rows would be pending for ever."""
    settled = ledger.query(
        "SELECT row_id, key, CASE requests.state WHEN 'done' THEN 'accepted' ELSE requests.state END, requests.reason, "
        "requests.detail FROM jobs JOIN requests USING (key) WHERE run = ? AND method = ? AND jobs.state = 'pending' "
        "AND requests.state IN ('done', 'rejected', 'failed')",
        run,
        method,
    )
    ledger.judge([(run, method, *row) for row in settled]).result()


class _Completion(NamedTuple):
    """What scoring.prediction reads of an answer; tokens are counted by the endpoint."""

    finish_reason: str
    ids: tuple = ()


def _line(item: Item, outcome: Outcome, prompt_settings: PromptSettings, ledger: Ledger) -> dict[str, Any]:
    """The line of predictions.jsonl: that of a local model, and request key, cost and served model."""
    request = outcome.job.request
    [(response, prompt_tokens, new_tokens, cost, served, ended)] = ledger.query(
        "SELECT response, prompt_tokens, completion_tokens, cost, served, finish FROM requests WHERE key = ?",
        request.key,
    )
    answered = outcome.reason in _ANSWERED
    finish_reason = ended or _ANSWERED[outcome.reason] if answered else _FINISHED.get(outcome.reason, outcome.reason)
    line = scoring.prediction(
        item,
        _Completion(finish_reason),
        mode=prompt_settings.mode,
        prompt=_conversation_text(request.messages),
        output=response or "",
    )
    line |= {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    if not answered:
        line |= {"extracted": None, "rule": finish_reason, "correct": False, "cut": False, "error": outcome.detail}
    return line | {"request": request.key, "cost_usd": cost, "served": served}


def _count_text(reasons: Counter) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())


def _conversation_text(messages: Sequence[dict]) -> str:
    """A conversation as one text; a message alone stands for itself."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}:\n{m['content']}" for m in messages)
