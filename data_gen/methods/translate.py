"""Cross-lingual translation of instruction and multiple-choice records to any of the seven languages.

The key never travels: options are translated under their letters and answer_idx is the parent's, so letters, order and
key can't change. Numbers, units and drug names are asked for in the prompt and checked by the gates.
"""

from collections.abc import Iterable
from typing import Any

from data_gen.gates import TEXT as TEXT_GATES
from data_gen.gates import answer_key, faithfulness
from data_gen.methods.flags import Flag, codes
from data_gen.methods.method import BOOL, TEXT, GenerationMethod, Skip, checked_language, provenance, source_flags
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES, kind_of
from mmed_jax.llm_api.structured_output import object_schema
from mmed_jax.llm_api.types import Job, Reject


class Translate(GenerationMethod):
    """Records in `languages`; a record that is in a target language already is left out for that language."""

    name = "translation"
    command, summary = "translate", "records into other languages"
    usage = """\
Cross-lingual translation of instruction and multiple-choice records; letters, order and key stay.

python -m data_gen translate --input=casimedicos_es.jsonl --language=ko,ja --output=casimedicos_ko_ja.jsonl
"""
    flags = (
        Flag(
            "language",
            f"into these, with commas: {','.join(LANGUAGES)}",
            default=(),
            type=codes,
            metavar="CODES",
            option="languages",
            required="the languages to translate into, with commas",
        ),
    )
    gates = (*TEXT_GATES, faithfulness.options, faithfulness.numbers, answer_key.kept)
    shortest, longest = 1, 40000
    into_languages = True
    max_tokens = 2048
    languages: tuple[str, ...]

    def __init__(self, languages: Iterable[str] = (), **options: Any):
        super().__init__(languages=languages, **options)
        self.languages = tuple(dict.fromkeys(checked_language(code) for code in self.languages))
        if not self.languages:
            raise UserError("translation: no target language given")

    def languages_for(self, parent: dict) -> tuple[str, ...]:
        return self.languages

    def job_for(self, parent: dict, language: str, settings) -> Job:
        if parent["language"] == language:
            raise Skip(f"is in {language} already")
        if parent.get("needs_image"):
            raise Skip("needs an image")
        data = texts_of(parent)
        target = {"language": language, "from": parent["language"]}
        return self.new_job(f"{parent['id']}@{language}", parent, target, settings, data, _schema(data))

    def answer_schema(self, job: Job) -> dict:
        return _schema(texts_of(job.parent))

    def records_of(self, job: Job, answer: dict) -> list[dict]:
        if answer["untranslatable"]:
            raise Reject("refusal", "the model calls the text untranslatable")
        parent = job.parent
        common = {
            "id": job.row_id,
            "language": job.target["language"],
            "source": parent["source"],
            "license": parent["license"],
            "method": "translation",
            "provenance": provenance(job, source_flags(*_flat(texts_of(parent))), parent_language=parent["language"]),
        }
        if kind_of(parent) == "instruction":
            contents = [answer[name] for name in texts_of(parent)]
            messages = [{"role": m["role"], "content": c} for m, c in zip(parent["messages"], contents)]
            return [{**common, "messages": messages}]
        fields = {k: answer[k] for k in ("context", "question", "options", "rationale") if k in answer}
        return [{**common, **fields, "answer_idx": parent["answer_idx"]}]


def texts_of(record: dict) -> dict:
    """What of a record is translated, as the prompt shows it: {"question", "options": {"A": ...}, ...} or
    {"1_user", "2_assistant", ...}."""
    if kind_of(record) == "instruction":
        return {f"{i}_{m['role']}": m["content"] for i, m in enumerate(record["messages"], 1)}
    shown = {k: record[k] for k in ("context", "question", "options") if k in record}
    return shown | ({"rationale": record["rationale"]} if record["rationale"].strip() else {})


def _schema(data: dict) -> dict:
    fields = {k: object_schema(dict.fromkeys(v, TEXT)) if isinstance(v, dict) else TEXT for k, v in data.items()}
    return object_schema({**fields, "untranslatable": BOOL})


def _flat(data: dict) -> list[str]:
    return [t for v in data.values() for t in (v.values() if isinstance(v, dict) else (v,))]
