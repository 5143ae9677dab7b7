"""What a run would cost, before anything is sent: rows, tokens, and dollars at most and by experience.

    python -m data_gen estimate rationale --input=medqa.jsonl --model=gpt-4o-mini
    python -m data_gen estimate build --recipe=mmed_ift --model=gpt-4o-mini

The same flags as the command itself (which does the same with --dry_run). "At most" assumes that every answer fills its
room; "by experience" takes the prompts' and answers' mean length from the answers of the same prompt version and model
in the ledger, so that a sample (--limit=20) tells the price of the whole.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from data_gen.ledger import FINAL, Ledger
from data_gen.settings import RunSettings
from data_gen.tokens import answer_limit, counter_for, prompt_tokens
from data_gen.types import Job, Method
from mmed_jax.errors import UserError, nearest, run_command

SUMMARY = "what a command would cost, without sending anything"
COMMANDS = ("expand", "qa", "translate", "rationale", "topics", "build")
_CHUNK = 500


@dataclass
class Estimate:
    """Rows and tokens of a run; `str()` is the table.

    Attributes:
      rows: jobs. answered: of them, in the ledger already. requests: different ones still to be sent.
      prompt: tokens of their prompts, an upper bound unless `exact`. answers: their room for answers; None: unbounded.
      usual_prompt, usual_answer: tokens by experience, None where the ledger has no answers of a prompt version.
      redraws: further requests by experience, in requests a request.
    """

    settings: RunSettings
    counted_by: str = ""
    exact: bool = False
    rows: int = 0
    answered: int = 0
    requests: int = 0
    prompt: int = 0
    answers: int | None = 0
    usual_prompt: float | None = None
    usual_answer: float | None = None
    redraws: float = 0.0
    seen: int = 0
    versions: Counter = field(default_factory=Counter)

    @property
    def at_most(self) -> float | None:
        """Dollars if every answer fills its room; None without a price or a limit."""
        price = self.settings.known_price
        if price is None or self.answers is None:
            return None
        return price.cost(self.prompt, self.answers, batch=self.settings.batch)

    @property
    def expected(self) -> float | None:
        """Dollars by experience; None without it."""
        price = self.settings.known_price
        if price is None or self.usual_prompt is None:
            return None
        once = price.cost(self.usual_prompt, self.usual_answer, batch=self.settings.batch)
        return once * (1 + self.redraws)

    def __str__(self) -> str:
        bound = "" if self.exact else "at most "
        room = "no limit set" if self.answers is None else f"at most {self.answers:,}"
        lines = [
            ("rows", f"{self.rows:,}"),
            ("  answered in the ledger", f"{self.answered:,}"),
            ("requests to send", f"{self.requests:,} (without redraws)"),
            ("prompt tokens", f"{bound}{self.prompt:,} (by {self.counted_by})"),
            ("answer tokens", room),
        ]
        price = self.settings.known_price
        if price is None:
            lines.append(("cost", f"unknown: no price for '{self.settings.model}' (--price=IN,OUT)"))
        else:
            batch = " by batches" if self.settings.batch else ""
            most = "unknown: the answers have no limit" if self.at_most is None else f"${self.at_most:,.2f}{batch}"
            lines.append(("upper bound of the cost", f"{most} (prices of {price.date}; each redraw costs again)"))
            if self.expected is not None:
                why = f"by {self.seen:,} answers in the ledger, {self.redraws:.0%} asked again"
                lines.append(("expected cost", f"about ${self.expected:,.2f} ({why})"))
            elif self.requests:
                lines.append(("expected cost", "not known yet: run a sample (--limit=20), then estimate again"))
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def estimate(method: Method, inputs: Iterable[dict], settings: RunSettings) -> Estimate:
    """Counts the jobs of `inputs` and what their requests may cost. Sends nothing; the ledger is not made."""
    counter = counter_for(settings.model)
    found = Estimate(settings, counter.name, counter.exact)
    sent: set[str] = set()
    ledger = Ledger(settings.ledger_file) if settings.ledger_file.exists() else None
    try:
        for jobs in _chunks(method.jobs(inputs, settings)):
            rows = ledger.rows({j.request.key for j in jobs}) if ledger else {}
            for job in jobs:
                key = job.request.key
                found.rows += 1
                if key in rows and rows[key].state in FINAL:
                    found.answered += 1
                elif key not in sent:
                    sent.add(key)
                    _add(found, job, counter.count)
        if ledger and found.requests:
            _experience(found, ledger)
    finally:
        if ledger:
            ledger.close()
    return found


def _chunks(jobs: Iterable[Job]) -> Iterable[list[Job]]:
    jobs = iter(jobs)
    while chunk := list(islice(jobs, _CHUNK)):
        yield chunk


def _add(found: Estimate, job: Job, count) -> None:
    limit = answer_limit(job.request)
    found.requests += 1
    found.prompt += prompt_tokens(job.request, count)
    found.answers = None if limit is None or found.answers is None else found.answers + limit
    found.versions[job.request.prompt_version] += 1


def _experience(found: Estimate, ledger: Ledger) -> None:
    prompt = answer = 0.0
    again = seen = 0
    for version, number in found.versions.items():
        where = "FROM requests WHERE model = ? AND prompt = ?"
        n, p, a, retries = ledger.query(
            f"SELECT count(prompt_tokens), avg(prompt_tokens), avg(completion_tokens), total(retry_of != '') {where}",
            found.settings.model, version,
        )[0]  # fmt: skip
        if not n:
            return
        seen, again = seen + n, again + retries
        prompt, answer = prompt + number * p, answer + number * a
    found.usual_prompt, found.usual_answer, found.seen = prompt, answer, seen
    found.redraws = again / max(1, seen - again)


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: python -m data_gen estimate {{{','.join(COMMANDS)}}} [flags of that command]\n\n{__doc__}")
        return
    if args[0] not in COMMANDS:
        raise UserError(f"estimate: no command '{args[0]}'{nearest(args[0], COMMANDS)}")
    importlib.import_module(f"data_gen.{args[0]}").main([*args[1:], "--dry_run"])


if __name__ == "__main__":
    run_command(main)
