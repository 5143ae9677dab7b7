"""Rationales: why the keyed options of a multiple-choice record are right, in its language or another.

The model names the letters that its reasoning leads to; where they are not the key, the row is rejected, since a
rationale for another option is worse than none (research on such sets finds one in eight).
"""

from data_gen.methods import method
from data_gen.methods.method import BOOL, TEXT, MethodBase, Skip, needs
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job, Reject

SCHEMA = object_schema({"rationale": TEXT, "answer": {"type": "array", "items": TEXT}, "doubt": BOOL})


class Rationale(MethodBase):
    """The same record with a rationale. `language`: write it in this language instead of the record's own.

    Records that have a rationale are left out unless `replace`.
    """

    name = "rationale"
    enriches = True
    max_tokens = 1024

    def __init__(
        self, *, language: str | None = None, replace: bool = False, structured: bool = True, redraws: int = 1
    ):
        super().__init__(structured=structured, redraws=redraws)
        self.language = None if language is None else method.checked_language(language)
        self.replace = replace

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

    def made(self, job: Job, found: dict) -> list[dict]:
        parent, letters = job.parent, job.target["letters"]
        named = method.letters_named(found["answer"], job.target["language"])
        if named != letters:
            raise Reject("key", f"it argues for {','.join(named) or 'nothing'}, the key is {','.join(letters)}")
        texts = (parent["question"], parent.get("context", ""), *parent["options"].values())
        flags = [*method.source_flags(*texts), *(["key_doubted"] if found["doubt"] else [])]
        more = {"rationale_language": job.target["language"]} if job.target["language"] != parent["language"] else {}
        fields = {**parent, "rationale": found["rationale"], "human_checked": False, "human_check_passed": False}
        return [{**fields, "provenance": {**parent["provenance"], **method.provenance(job, flags, **more)}}]
