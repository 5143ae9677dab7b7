"""A model as judge of explanations, through the ledger: what is paid for once is never paid again.

The judge sees question, options, right answer, reference and one explanation, all as fenced data, and gives each of the
four criteria of rating sheets a grade from 1 to 5. It is not told which run wrote what. The prompt is
rationale_judge.toml beside this file; its version goes into every rating.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.ratings.explanations import Explanation, Key
from mmed_jax.evaluation.ratings.sheets import CRITERIA
from mmed_jax.llm_api.prompt_file import load_prompt
from mmed_jax.llm_api.redraws import redraw
from mmed_jax.llm_api.run_settings import RunSettings
from mmed_jax.llm_api.runner import run
from mmed_jax.llm_api.structured_output import object_schema, read_answer
from mmed_jax.llm_api.types import Job

PROMPT = Path(__file__).with_suffix(".toml")
GRADES = ("1", "2", "3", "4", "5")
SCHEMA = object_schema({name: {"type": "string", "enum": list(GRADES)} for name in CRITERIA})


class Judged(NamedTuple):
    """scores: {(run, benchmark, id): {criterion: 1.0 to 5.0}}; prompt: its version; ungraded: (key, state, reason)
    of what got no grade."""

    scores: dict[Key, dict[str, float]]
    prompt: str
    ungraded: list[tuple[Key, str, str]]


class RationaleJudge:
    """The method (mmed_jax.llm_api.types.Method) of one request an explanation; its record is
    {"scores": {criterion: grade}}."""

    name = PROMPT.stem
    max_tokens = 64

    def __init__(self, *, structured: bool = True, redraws: int = 1):
        """`structured` False: no JSON schema in the request, for endpoints that have none. `redraws`: how often an
        unusable answer is asked for again, with another seed."""
        self.structured, self.redraws = structured, redraws

    def jobs(self, inputs: Iterable[dict], settings: RunSettings) -> Iterator[Job]:
        """One job an explanation."""
        for parent in inputs:
            prompt = load_prompt(PROMPT, parent["language"])
            schema = SCHEMA if self.structured else None
            request = prompt.request(settings, parent["data"], schema=schema, max_tokens=self.max_tokens)
            target = {"language": parent["language"], "key": parent["key"]}
            yield Job(parent["id"], self.name, request, parent, target)

    def parse(self, job: Job, answer: dict | str) -> list[dict]:
        """The grades. Raises Reject."""
        grades = read_answer(answer, SCHEMA)
        return [{"scores": {name: float(grades[name]) for name in CRITERIA}}]

    def retry(self, job: Job, reason: str, attempt: int) -> Job | None:
        """The job to ask instead, or None."""
        return redraw(job, reason, attempt, self.redraws)


def judge(
    explanations: Sequence[Explanation], settings: RunSettings, *, structured: bool = True, redraws: int = 1
) -> Judged:
    """Asks for the grades of all explanations; those without any text get 1 throughout, unasked.

    Raises:
      UserError, WorkError: as mmed_jax.llm_api.runner.run (no key, no credit, endpoint down, ...).
    """
    method = RationaleJudge(structured=structured, redraws=redraws)
    written = [e for e in explanations if e.text.strip()]
    scores: dict[Key, dict[str, float]] = {
        e.key: dict.fromkeys(CRITERIA, 1.0) for e in explanations if not e.text.strip()
    }
    ungraded: list[tuple[Key, str, str]] = []
    prompt = ""
    with closing(run(method, _Inputs(written), settings)) as outcomes:
        for outcome in outcomes:
            key, prompt = outcome.job.target["key"], outcome.job.request.prompt_version
            if outcome.state == "accepted":
                scores[key] = outcome.records[0]["scores"]
            else:
                ungraded.append((key, outcome.state, outcome.reason))
    return Judged({e.key: scores[e.key] for e in explanations if e.key in scores}, prompt, ungraded)


class _Inputs:
    """Inputs of the method, with their number for the progress bar."""

    def __init__(self, explanations: Sequence[Explanation]):
        self.explanations = explanations

    def __len__(self) -> int:
        return len(self.explanations)

    def __iter__(self) -> Iterator[dict]:
        return (_input(e) for e in self.explanations)


def _input(e: Explanation) -> dict:
    data = {
        "question": e.question,
        "options": dict(e.options),
        "right_options": e.answer.split(","),
        "reference": e.reference,
        "explanation": e.text,
        "explanation_language": LANGUAGE_NAMES[e.language],
    }
    return {"id": "/".join(e.key), "key": e.key, "language": e.language, "data": data}
