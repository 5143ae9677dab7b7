"""Rationales: why the keyed options of a multiple-choice record are right, in its language or another.

The model names the letters that its reasoning leads to; where they are not the key, the row is rejected, since a
rationale for another option is worse than none (research on such sets finds one in eight).
"""

from typing import Any

from data_gen.gates import TEXT as TEXT_GATES
from data_gen.gates import answer_key
from data_gen.methods import method
from data_gen.methods.flags import Flag
from data_gen.methods.method import BOOL, TEXT, GenerationMethod, Skip, needs
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job, Reject

SCHEMA = object_schema({"rationale": TEXT, "answer": {"type": "array", "items": TEXT}, "doubt": BOOL})


class Rationale(GenerationMethod):
    """The same record with a rationale. `language`: write it in this language instead of the record's own.

    Records that have a rationale are left out unless `replace`.
    """

    name = "rationale"
    enriches = True
    command, summary = "rationale", "explanations for multiple-choice records"
    usage = """\
Rationales for multiple-choice records: why the keyed options are right.

python -m data_gen rationale --input=kormedmcqa.jsonl --output=kormedmcqa_explained.jsonl
python -m data_gen rationale --input=headqa.jsonl --language=en --output=headqa_explained_en.jsonl
"""
    inputs = "mcq"
    flags = (
        Flag("language", "of the rationale; default: the record's own", metavar="CODE"),
        Flag("reanswer", "then ask blind for the answer; flag keys it disputes", default=False, then="reanswer"),
        Flag("replace", "also where a record has a rationale", default=False),
    )
    gates = (*TEXT_GATES, answer_key.key)
    shortest, longest = 80, 6000
    max_tokens = 1024
    language: str | None
    replace: bool

    def __init__(self, **options: Any):
        super().__init__(**options)
        if self.language is not None:
            method.checked_language(self.language)

    def languages_for(self, parent: dict) -> tuple[str, ...]:
        return (self.language or parent["language"],)

    def job_for(self, parent: dict, language: str, settings) -> Job:
        needs(parent, "mcq")
        if parent["rationale"].strip() and not self.replace:
            raise Skip("has a rationale")
        letters = parent["answer_idx"].split(",")
        data = {"question": parent["question"]}
        if "context" in parent:
            data["context"] = parent["context"]
        data |= {"options": parent["options"], "right_options": letters}
        return self.new_job(parent["id"], parent, {"language": language, "letters": letters}, settings, data, SCHEMA)

    def answer_schema(self, job: Job) -> dict:
        return SCHEMA

    def records_of(self, job: Job, answer: dict) -> list[dict]:
        parent, letters = job.parent, job.target["letters"]
        named = method.letters_named(answer["answer"], job.target["language"])
        if named != letters:
            raise Reject("key", f"it argues for {','.join(named) or 'nothing'}, the key is {','.join(letters)}")
        texts = (parent["question"], parent.get("context", ""), *parent["options"].values())
        flags = [*method.source_flags(*texts), *(["key_doubted"] if answer["doubt"] else [])]
        language = job.target["language"]
        facts = {"rationale_language": language} if language != parent["language"] else {}
        fields = {**parent, "rationale": answer["rationale"], "human_checked": False, "human_check_passed": False}
        return [{**fields, "provenance": {**parent["provenance"], **method.provenance(job, flags, **facts)}}]
