"""Plain words: the answer of an instruction record again, as one would tell it to a patient."""

from data_gen.methods.flags import Flag
from data_gen.methods.method import TEXT, GenerationMethod, needs, provenance, single_turn
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job

SCHEMA = object_schema({"answer": TEXT})


class Simplify(GenerationMethod):
    """Answers in plain words, for a reader of `age` years."""

    name = "plain_words"
    command, summary = "simplify", "answers in plain words"
    usage = """\
Plain words: instruction records in, the same questions with answers that patients understand out.

python -m data_gen simplify --input=faq.jsonl --output=faq_plain.jsonl --age=12
"""
    inputs = "instruction"
    flags = (Flag("age", "for a reader of so many years (default 12)", default=12, type=int, metavar="N", least=6),)
    shortest, longest = 4, 2000
    max_tokens = 512
    age: int

    def job_for(self, parent: dict, language: str, settings) -> Job:
        needs(parent, "instruction")
        question, answer = single_turn(parent)
        data = {"question": question, "answer": answer, "age": self.age}
        target = {"language": language, "question": question}
        return self.new_job(f"{parent['id']}+plain", parent, target, settings, data, SCHEMA)

    def answer_schema(self, job: Job) -> dict:
        return SCHEMA

    def records_of(self, job: Job, answer: dict) -> list[dict]:
        turns = [("user", job.target["question"]), ("assistant", answer["answer"])]
        record = {
            "id": job.row_id,
            "language": job.target["language"],
            "messages": [{"role": role, "content": content} for role, content in turns],
            "source": job.parent["source"],
            "license": job.parent["license"],
            "method": self.name,
            "provenance": provenance(job),
        }
        return [record]
