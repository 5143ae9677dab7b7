"""The 21 topics of MMedBench (arXiv 2402.13963): one label a record, kept in provenance.topic."""

from data_gen.methods.flags import Flag
from data_gen.methods.method import GenerationMethod, Skip
from mmed_jax.data.records.schema import kind_of
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job

# The 21 topics of MMedBench, arXiv 2402.13963, by their share of its test set.
TOPICS = (
    "Internal Medicine",
    "Biochemistry",
    "Pharmacology",
    "Psychiatry",
    "Pediatrics",
    "Microbiology",
    "Physiology",
    "Pathology",
    "Immunology",
    "Obstetrics and Gynecology",
    "Public Health",
    "Hematology",
    "Surgery",
    "Emergency Medicine",
    "Orthopedics",
    "Neurology",
    "Anatomy",
    "Medical Genetics",
    "Radiology",
    "Dermatology",
    "Endocrinology",
)
OTHER = "Other"
SCHEMA = object_schema({"topic": {"type": "string", "enum": [*TOPICS, OTHER]}})


class Topics(GenerationMethod):
    """The same record with provenance.topic, one of TOPICS or "Other".

    Records with a topic are left out unless `replace`.
    """

    name = "topics"
    command, summary = "topics", "records sorted into the 21 topics of MMedBench"
    usage = """\
The 21 topics of MMedBench as provenance.topic of each record.

python -m data_gen topics --input=mcq.jsonl --output=mcq_topics.jsonl
"""
    flags = (Flag("replace", "also where a record has a topic", default=False),)
    gates = ()
    enriches = labels = True
    shows_answers = False
    max_tokens = 32
    prompt_places = (("topics", "\n".join(TOPICS)),)
    replace: bool

    def job_for(self, parent: dict, language: str, settings) -> Job:
        if parent["provenance"].get("topic") in TOPICS and not self.replace:
            raise Skip("has a topic")
        if kind_of(parent) == "mcq":
            data = {"question": parent["question"], "options": parent["options"]}
        else:
            data = {"question": next(m["content"] for m in parent["messages"] if m["role"] == "user")}
        return self.new_job(parent["id"], parent, {"language": language}, settings, data, SCHEMA)

    def answer_schema(self, job: Job) -> dict:
        return SCHEMA

    def records_of(self, job: Job, answer: dict) -> list[dict]:
        """The record as it was; who gave the label stands beside it, so that what made the record stays known."""
        request = job.request
        label = {"model": request.model, "prompt": request.prompt_version, "key": request.key}
        old = job.parent["provenance"]
        group = {"group": old.get("group") or job.parent["id"]}
        return [{**job.parent, "provenance": {**old, **group, "topic": answer["topic"], "topic_by": label}}]
