"""Answer expanding (arXiv 2409.05732): a short or letter-only answer becomes a full answer in the question's language.

Multiple-choice records become instruction records: the options stay part of the question, because many questions
("which of the following") mean nothing without them; yes/no options do not.
"""

from data_gen.gates import TEXT as TEXT_GATES
from data_gen.gates import faithfulness
from data_gen.methods import method
from data_gen.methods.flags import Flag
from data_gen.methods.method import BOOL, TEXT, GenerationMethod, Skip, needs, single_turn
from mmed_jax.data.records.schema import kind_of
from mmed_jax.llm_api.prompt_guard import leaks, neutralise
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job

SCHEMA = object_schema({"answer": TEXT, "doubt": BOOL})
# An answer of more characters than this is long already. A Han or kana character says about as much as three letters.
SHORT = {"zh": 80, "ja": 100, "ko": 120}
SHORT_LATIN = 240
_YES_NO = {
    "yes",
    "no",
    "maybe",
    "true",
    "false",
    "да",
    "нет",
    "是",
    "否",
    "对",
    "错",
    "はい",
    "いいえ",
    "예",
    "아니오",
    "아니요",
    "oui",
    "non",
    "vrai",
    "faux",
    "sí",
    "si",
    "verdadero",
    "falso",
}


class Expand(GenerationMethod):
    """Full answers to questions with short ones. `max_chars` sets what counts as short; None: SHORT by language."""

    name = "answer_expanding"
    command, summary = "expand", "short answers into full ones"
    usage = """\
Answer expanding: records with short or letter-only answers in, instruction records with full answers out.

python -m data_gen expand --input=medqa.jsonl --output=medqa_full.jsonl --model=gpt-4o-mini
python -m data_gen expand --input=faq.jsonl --output=faq_full.jsonl --max_chars=120 --limit=20
"""
    flags = (Flag("max_chars", "answers longer than this are long already", type=int, metavar="N"),)
    gates = (*TEXT_GATES, faithfulness.facts)
    shortest, longest = 60, 4000
    max_tokens = 768
    max_chars: int | None

    def job_for(self, parent: dict, language: str, settings) -> Job:
        data, question = self._mcq(parent) if kind_of(parent) == "mcq" else self._instruction(parent)
        if leaks(question):  # the question goes into the record; its control strings do not
            question = neutralise(question)
        given = data["given_answer"]
        target = {
            "language": language,
            "question": question,
            "given": [given] if isinstance(given, str) else given,
            "letters": parent.get("answer_idx", ""),
        }
        return self.new_job(f"{parent['id']}+full", parent, target, settings, data, SCHEMA)

    def _mcq(self, parent: dict) -> tuple[dict, str]:
        needs(parent, "mcq")
        options = parent["options"]
        right = [options[letter] for letter in parent["answer_idx"].split(",")]
        verdict = all(o.strip().rstrip(".。").casefold() in _YES_NO for o in options.values())
        data = {"question": parent["question"]}
        if "context" in parent:
            data["context"] = parent["context"]
        if not verdict:
            data["options"] = options
        if parent["rationale"].strip():
            data["explanation"] = parent["rationale"]
        data["given_answer"] = right[0] if len(right) == 1 else right
        shown = parent["question"] if verdict else f"{parent['question']}\n{method.numbered_options(options)}"
        return data, "\n\n".join(filter(None, (parent.get("context", ""), shown)))

    def _instruction(self, parent: dict) -> tuple[dict, str]:
        needs(parent, "instruction")
        question, answer = single_turn(parent)
        if len(answer) > (self.max_chars or SHORT.get(parent["language"], SHORT_LATIN)):
            raise Skip("the answer is long already")
        return {"question": question, "given_answer": answer}, question

    def answer_schema(self, job: Job) -> dict:
        return SCHEMA

    def records_of(self, job: Job, answer: dict) -> list[dict]:
        parent, question = job.parent, job.target["question"]
        system = [m for m in parent.get("messages", ()) if m["role"] == "system"]
        flags = [*method.source_flags(question), *(["key_doubted"] if answer["doubt"] else [])]
        record = {
            "id": job.row_id,
            "language": job.target["language"],
            "messages": [
                *system,
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer["answer"]},
            ],
            "source": parent["source"],
            "license": parent["license"],
            "method": "answer_expanding",
            "provenance": method.provenance(job, flags),
        }
        return [record]
