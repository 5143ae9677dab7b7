"""Prompts: files under prompts/, one per method, a section per language, each with a version that goes into every row.

A prompt is a system message that depends on method and language alone (so that an endpoint can cache it) and a user
message that holds the fenced data. `common.toml` holds what all prompts say about source text. The version is raised
whenever the words change; prompts/versions.json pins the hash of the words of each version, and a test compares them.
    python -m data_gen.methods.templates     adds the hashes of new versions, refuses changed words under an old version
"""

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmed_jax.common.errors import UserError, run_command
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.llm_api.prompt_guard import fence

FOLDER = Path(__file__).parents[1] / "prompts"
NAMES = ("answer_expanding", "qa_generation", "translation", "rationale", "topics", "reanswer", "rationale_judge")
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
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_USER = "{{data}}\n\n{{reminder}}"


@dataclass(frozen=True)
class Prompt:
    """The words of one method in one language; `user` still has its places {{data}} and the like."""

    version: str  # "rationale/3"
    language: str
    system: str
    user: str

    def messages(self, data: str | dict | list, **values: object) -> tuple[dict, ...]:
        """System and user message. `data` is fenced; `values` are the operator's own (counts), never source text."""
        filled = {"data": fence(data), **{k: str(v) for k, v in values.items()}}
        return ({"role": "system", "content": self.system}, {"role": "user", "content": _fill(self.user, filled)})


def _fill(template: str, values: dict[str, str]) -> str:
    """One pass: what is filled in is never searched for places again."""
    return _PLACE.sub(lambda m: values[m[1]], template)


@cache
def _file(name: str) -> dict:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def load_prompt(method: str, language: str) -> Prompt:
    """The current prompt of a method; one wording serves all languages in topics, reanswer and rationale_judge.

    Raises KeyError for a method or language that there is not.
    """
    if method not in NAMES or language not in LANGUAGES:
        raise KeyError(f"{method}, {language}")
    file = _file(method)
    section = file[language if language in file else "en"]
    common = _file("common")[language if language in file else "en"]
    fixed = {"reminder": common["reminder"].strip(), "topics": "\n".join(TOPICS)}
    system = _fill(section["system"], fixed).strip() + "\n\n" + common["notice"].strip()
    user = _PLACE.sub(lambda m: fixed.get(m[1], m[0]), section.get("user", _USER))
    return Prompt(f"{method}/{file['version']}", language if language in file else "en", system, user)


def words_hash(method: str) -> str:
    """SHA-256 over all that a method's prompts say, in every language."""
    prompts = [load_prompt(method, language) for language in LANGUAGES]
    words = json.dumps([[p.language, p.system, p.user] for p in prompts], ensure_ascii=False)
    return hashlib.sha256(words.encode("utf-8")).hexdigest()


def versions() -> dict[str, str]:
    """{"rationale/3": hash of its words, ...} as pinned, old versions included."""
    return json.loads((FOLDER / "versions.json").read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    """Pins the hashes of new versions. Raises UserError where the words of a pinned version were changed."""
    file = FOLDER / "versions.json"
    pinned = versions() if file.exists() else {}
    for method in NAMES:
        version = load_prompt(method, "en").version
        if pinned.setdefault(version, words_hash(method)) != words_hash(method):
            raise UserError(f"prompts/{method}.toml: the words of {version} were changed; raise `version` in the file")
    text = json.dumps(pinned, indent=1, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8")
    print(f"{len(pinned)} versions pinned in {file.name}")


if __name__ == "__main__":
    run_command(main)
