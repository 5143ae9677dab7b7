"""What the methods share: the request for a piece of data, provenance of what comes back, and when to ask again."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from data_gen.gates import TEXT as TEXT_GATES
from data_gen.methods.flags import Flag
from data_gen.passages import read_passages
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES, RecordError, kind_of, validate_record
from mmed_jax.llm_api.prompt_file import load_prompt
from mmed_jax.llm_api.prompt_guard import steers
from mmed_jax.llm_api.redraws import redraw
from mmed_jax.llm_api.structured_output import read_answer
from mmed_jax.llm_api.types import Job, Reject

PROMPTS = Path(__file__).parents[1] / "prompts"
TEXT = {"type": "string"}
BOOL = {"type": "boolean"}
# What a step of the history keeps when a generated record is the parent of another.
_STEP = ("parent", "model", "prompt", "key", "temperature", "seed")

_LOOKALIKES = str.maketrans("АВСЕНКМОРТХавсенкмортх", "ABCEHKMOPTX" * 2)


class Skip(Exception):
    """An input that a method has nothing to do with; `str()` is the class of reason, counted in Method.skipped."""


class GenerationMethod(ABC):
    """A way to make records from inputs through one request each. Subclasses set `name` and what of the following is
    not as here, and define `job_for`, `records_of` and `answer_schema`; their words are data_gen/prompts/<name>.toml.

    Attributes:
      name: the `method` of jobs and of the records that it makes.
      command, summary, usage: of `python -m data_gen <command>`: its name ("": the method has none), its line in the
        list, and what --help says (a sentence, then examples).
      flags: the options of the class, and what else the command line takes. Options are attributes of the object.
      inputs: what `read` gives: "passage", "mcq" or "instruction"; "" for records of both kinds.
      gates: what looks at its records, of data_gen.gates. shortest, longest: their length in letters, None for any.
      max_tokens: room for an answer (max_completion_tokens) unless the settings say otherwise; doubled, at most to four
        times, when an answer was cut.
      prompt_places: (name, text) of what stands for {{name}} in its prompt whatever the input.
      enriches: the method gives its inputs back with something added; what it leaves out stays as it is.
      labels: what an enriching method adds is a label, without which the input is as good as it was.
      shows_answers: its prompt holds the right answers of its inputs, or may.
      into_languages: it has an option `languages`, and makes a record in each of them; a build does one at a time.
      rows_per_input: how many rows it may make of an input.
      skipped, skipped_ids: reasons and counts of inputs that became no job, of the last iteration of `jobs`; their ids
        where the method enriches.
    """

    name: ClassVar[str]
    command: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    usage: ClassVar[str] = ""
    flags: ClassVar[tuple[Flag, ...]] = ()
    inputs: ClassVar[str] = ""
    gates: ClassVar[tuple[Callable, ...]] = TEXT_GATES
    shortest: ClassVar[int | None] = None
    longest: ClassVar[int | None] = None
    prompt_places: ClassVar[tuple[tuple[str, str], ...]] = ()
    enriches: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    shows_answers: ClassVar[bool] = True
    into_languages: ClassVar[bool] = False
    max_tokens: int = 1024
    rows_per_input: int = 1

    def __init__(self, *, structured: bool = True, redraws: int = 1, **options: Any):
        """`structured` False: no JSON schema in the request, for endpoints that have none; answers are then read
        tolerantly. `redraws`: how often an unusable answer is asked for again, with another seed. `options`: of
        `flags`. Raises UserError for one that there is not."""
        self.structured, self.redraws = structured, redraws
        for flag in self.flags:
            if flag.is_option:
                setattr(self, flag.keyword, options.pop(flag.keyword, flag.default))
        for option in options:
            known = [flag.keyword for flag in self.flags if flag.is_option]
            hint = nearest(option, [*known, "structured", "redraws"])
            raise UserError(f"method {self.name}: got an unexpected keyword argument '{option}'{hint}")
        self.skipped: Counter[str] = Counter()
        self.skipped_ids: set[str] = set()

    @classmethod
    def read(cls, path: str, **values: Any) -> Iterator[dict]:
        """The inputs of one file or folder. values: of the flags that `reads`. Raises UserError."""
        if cls.inputs == "passage":
            return read_passages(path, **values)
        return read_records(path, cls.inputs or None)

    def jobs(self, inputs: Iterable[dict], settings) -> Iterator[Job]:
        """One job per usable input, lazily and in order; `settings` has `model` and `params`."""
        self.skipped.clear()
        self.skipped_ids.clear()
        for parent in inputs:
            for language in self.languages_for(parent):
                try:
                    yield self.job_for(parent, language, settings)
                except Skip as e:
                    self.skipped[str(e)] += 1
                    if self.enriches:
                        self.skipped_ids.add(parent["id"])

    def languages_for(self, parent: dict) -> tuple[str, ...]:
        """The languages that are made from `parent`; by default its own."""
        return (parent["language"],)

    @abstractmethod
    def job_for(self, parent: dict, language: str, settings) -> Job:
        """The job for one input. Raises Skip."""

    @abstractmethod
    def records_of(self, job: Job, answer: dict) -> list[dict]:
        """Records out of an answer that has the form of `answer_schema`. Raises Reject."""

    @abstractmethod
    def answer_schema(self, job: Job) -> dict:
        """The JSON schema of the answer to `job`, also where the request carries none."""

    def parse(self, job: Job, answer: dict | str) -> list[dict]:
        """Records, each valid by data.records.schema. Raises Reject("schema", ...) and other codes of REASONS."""
        records = self.records_of(job, read_answer(answer, self.answer_schema(job)))
        try:
            return [validate_record(r, job.row_id) for r in records]
        except RecordError as e:
            raise Reject("schema", str(e)[:200]) from None

    def retry(self, job: Job, reason: str, attempt: int) -> Job | None:
        """The job to run instead after failed attempt number `attempt` (from 1), with a new key; None: give up."""
        return redraw(job, reason, attempt, self.redraws)

    def new_job(
        self, row_id: str, parent: dict, target: dict, settings, data: str | dict | list, schema: dict, **values
    ) -> Job:
        """A job whose prompt is this method's in target["language"]; `values` fill the prompt's places."""
        prompt = load_prompt(PROMPTS / f"{self.name}.toml", target["language"], self.prompt_places)
        request = prompt.request(
            settings, data, schema=schema if self.structured else None, max_tokens=self.max_tokens, **values
        )
        return Job(row_id=row_id, method=self.name, request=request, parent=parent, target=target)


def provenance(job: Job, flags: Iterable[str] = (), **facts: object) -> dict:
    """Where a generated record comes from: parent and family, model, prompt, request key, parameters, soft findings.

    A parent that was generated itself leaves its own steps in `history`, so that no request behind a row is lost.
    """
    before = job.parent.get("provenance", {})
    request = job.request
    step = {
        "parent": job.parent["id"],
        "group": before.get("group") or job.parent["id"],
        "model": request.model,
        "prompt": request.prompt_version,
        "key": request.key,
        "temperature": request.params.get("temperature"),
        "seed": request.params.get("seed"),
        "flags": sorted({*before.get("flags", ()), *flags}),
    }
    history = list(before.get("history", ()))
    if "prompt" in before or before.get("parent"):
        history.append({k: before[k] for k in _STEP if k in before})
    kept = {k: before[k] for k in ("split", "original_id", "topic", "license_note", "notice") if k in before}
    return {**step, **kept, **facts, **({"history": history} if history else {})}


def source_flags(*texts: str) -> list[str]:
    """Findings about the source text itself."""
    return ["source_instructs"] if any(steers(t) for t in texts) else []


def numbered_options(options: dict[str, str]) -> str:
    """Options as lines "A. text"."""
    return "\n".join(f"{letter}. {text.strip()}" for letter, text in options.items())


def letters_named(entries: list[str], language: str) -> list[str]:
    """Option letters out of ["a,C", "B"], sorted; in Russian, Cyrillic letters that look like Latin ones count."""
    entries = [e.translate(_LOOKALIKES) if language == "ru" else e for e in entries]
    return sorted({part.strip().upper() for entry in entries for part in entry.split(",")} - {""})


def checked_language(code: str) -> str:
    """`code` if it is one of the seven languages; raises UserError."""
    if code not in LANGUAGES:
        names = {v.lower(): k for k, v in LANGUAGE_NAMES.items()}
        hint = f", did you mean '{names[code.lower()]}'?" if code.lower() in names else nearest(code, LANGUAGES)
        raise UserError(f"language '{code}' is not supported{hint}")
    return code


def single_turn(record: dict) -> tuple[str, str]:
    """Question and answer of an instruction record of one turn. Raises Skip for longer dialogues."""
    turns = [m for m in record["messages"] if m["role"] != "system"]
    if len(turns) != 2:
        raise Skip("a dialogue of several turns")
    return turns[0]["content"], turns[1]["content"]


def needs(record: dict, kind: str) -> None:
    """Raises Skip unless the record is of `kind` and can be understood without an image."""
    if kind_of(record) != kind:
        raise Skip(f"not a record of kind {kind}")
    if record.get("needs_image"):
        raise Skip("needs an image")
