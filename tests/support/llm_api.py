"""A small method, gates and runs for the tests of data_gen's engine."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mmed_jax.llm_api.ledger.balance import books
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.runner import RunSettings, run
from mmed_jax.llm_api.types import Job, Outcome, Reject, Request

SCHEMA = {"name": "echo", "schema": {"type": "object", "properties": {"echo": {"type": "string"}}}}


class EchoMethod:
    """Asks for {"echo": the text}; a cut answer gets more room twice, one of wrong form another seed once."""

    name = "rationale"

    def __init__(self, version: int = 1, redraws: bool = True):
        self.version, self.redraws = f"echo/{version}", redraws

    def jobs(self, inputs, settings):
        for item in inputs:
            params = {"max_completion_tokens": 64, "seed": 1, **settings.params}
            messages = ({"role": "system", "content": "Echo."}, {"role": "user", "content": item["text"]})
            yield Job(item["id"], self.name, Request(settings.model, messages, params, SCHEMA, self.version), item, {})

    def parse(self, job, answer):
        try:
            echo = json.loads(answer)["echo"]
        except (ValueError, KeyError, TypeError):
            raise Reject("schema", "no echo") from None
        return [{"id": job.row_id, "text": echo, "provenance": {"key": job.request.key}}]

    def retry(self, job, reason, attempt):
        params = dict(job.request.params)
        if reason == "length" and attempt <= 2 and self.redraws:
            params["max_completion_tokens"] *= 2
        elif reason in ("schema", "language") and attempt == 1 and self.redraws:
            params["seed"] += 1
        else:
            return None
        return replace(job, request=replace(job.request, params=params))


def echo_model(body: dict) -> str:
    """What the server's model answers; one text in 50 gets an answer in another script."""
    text = body["messages"][-1]["content"]
    if text.endswith("7 of 50") and body.get("seed") == 1:
        text = "другой язык"
    return json.dumps({"echo": text})


def language_gate(job: Job, record: dict) -> str | None:
    """Rejects Cyrillic, flags long texts."""
    if "язык" in record["text"]:
        raise Reject("language", "Cyrillic")
    return "long" if len(record["text"]) > 60 else None


def inputs(count: int, start: int = 0) -> list[dict]:
    """Rows of different texts."""
    return [{"id": f"row-{i}", "text": f"text number {i}, {i % 50} of 50"} for i in range(start, start + count)]


def settings(folder: Path, url: str, **more) -> RunSettings:
    """Settings for a run against the test server."""
    given = {"model": "gpt-4o-mini", "concurrency": 16, "timeout_s": 5.0, "backoff_s": 0.01, "poll_s": 0.02}
    return RunSettings(ledger=folder / "ledger.sqlite", base_url=url, progress=False, **{**given, **more})


def outcomes(given: RunSettings, rows: list[dict], method=None) -> list[Outcome]:
    """All outcomes of a run."""
    return list(run(method or EchoMethod(), rows, given, [language_gate]))


def lines(found: list[Outcome]) -> list[str]:
    """Outcomes as text, for comparing."""
    return [json.dumps([o.job.row_id, o.state, o.reason, o.records, o.flags], sort_keys=True) for o in found]


def states(found: list[Outcome]) -> Counter:
    """Counts by (state, reason)."""
    return Counter((o.state, o.reason) for o in found)


def balanced(given: RunSettings):
    """The books of the ledger; fails when they do not balance."""
    with Ledger(given.ledger_file) as ledger:
        found = books(ledger)
    assert found.problems == []
    return found


def billed_once(given: RunSettings, server) -> None:
    """Everything was billed once, and stands in the books as what it cost."""
    assert set(server.billed.values()) == {1}
    usage, totals = server.billed_usage, balanced(given).totals
    billed = given.known_price.cost(usage["prompt_tokens"], usage["completion_tokens"], batch=True)
    assert totals.spent == pytest.approx(billed) and totals.uncertain == pytest.approx(0, abs=1e-12)
    assert totals.reserved == 0
