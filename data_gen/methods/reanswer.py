"""The blind second answer: a model answers a keyed question without seeing the key or the rationale.

Where it is sure of other options than the key's, key or question deserve a look: the record is flagged, or rejected
(`strict`). Nothing of the record changes but its provenance.
"""

from data_gen.methods.flags import Flag
from data_gen.methods.method import BOOL, TEXT, GenerationMethod, letters_named, needs
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job, Reject

SCHEMA = object_schema({"answer": {"type": "array", "items": TEXT}, "sure": BOOL})


class Reanswer(GenerationMethod):
    """The same record with provenance.reanswer: {"letters", "sure", "agrees", "model", "prompt", "key"}.

    A sure answer that is not the key gives the flag "reanswer_differs", with `strict` the rejection "key".
    """

    name = "reanswer"
    enriches = labels = True
    shows_answers = False
    flags = (Flag("strict", "reject what a sure answer disputes", default=False),)
    gates = ()
    max_tokens = 64
    strict: bool

    def job_for(self, parent: dict, language: str, settings) -> Job:
        needs(parent, "mcq")
        letters = parent["answer_idx"].split(",")
        data = {"question": parent["question"]}
        if "context" in parent:
            data["context"] = parent["context"]
        data |= {"options": parent["options"], "right": "one or more" if len(letters) > 1 else "one"}
        return self.new_job(parent["id"], parent, {"language": language, "letters": letters}, settings, data, SCHEMA)

    def answer_schema(self, job: Job) -> dict:
        return SCHEMA

    def records_of(self, job: Job, answer: dict) -> list[dict]:
        request, old = job.request, job.parent["provenance"]
        named = letters_named(answer["answer"], job.target["language"])
        if not named or not set(named) <= set(job.parent["options"]):
            raise Reject("schema", f"{','.join(named) or 'no letter'}, options {','.join(job.parent['options'])}")
        agrees = named == job.target["letters"]
        if not agrees and answer["sure"] and self.strict:
            raise Reject("key", f"answered blind: {','.join(named)}, the key is {job.parent['answer_idx']}")
        flags = {*old.get("flags", ()), *(["reanswer_differs"] if answer["sure"] and not agrees else [])}
        second = {
            "letters": ",".join(named),
            "sure": answer["sure"],
            "agrees": agrees,
            "model": request.model,
            "prompt": request.prompt_version,
            "key": request.key,
        }
        group = {"group": old.get("group") or job.parent["id"]}
        return [{**job.parent, "provenance": {**old, **group, "flags": sorted(flags), "reanswer": second}}]
