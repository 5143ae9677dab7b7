"""The versions of the prompts: versions.json pins the hash of the words of each, and a test compares them.

`version` in a prompt file is raised whenever its words change; it goes into every row.
    python -m data_gen.prompts     adds the hashes of new versions, refuses changed words under an old version
"""

import argparse
import hashlib
import json

from data_gen.methods import METHODS
from data_gen.methods.method import PROMPTS
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.ratings import rationale_judge
from mmed_jax.llm_api import prompt_file
from mmed_jax.llm_api.prompt_file import Prompt

FOLDER = PROMPTS
NAMES = (*METHODS, rationale_judge.PROMPT.stem)


def load_prompt(name: str, language: str) -> Prompt:
    """The current prompt of a method, or of the judge of rationales. Raises KeyError where there is none."""
    if name == rationale_judge.PROMPT.stem:
        return prompt_file.load_prompt(rationale_judge.PROMPT, language)
    return prompt_file.load_prompt(FOLDER / f"{name}.toml", language, METHODS[name].prompt_places)


def words_hash(name: str) -> str:
    """SHA-256 over all that a method's prompts say, in every language."""
    every = [load_prompt(name, language) for language in LANGUAGES]
    words = json.dumps([[p.language, p.system, p.user] for p in every], ensure_ascii=False)
    return hashlib.sha256(words.encode("utf-8")).hexdigest()


def versions() -> dict[str, str]:
    """{"rationale/3": hash of its words, ...} as pinned, old versions included."""
    return json.loads((FOLDER / "versions.json").read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    """Pins the hashes of new versions. Raises UserError where the words of a pinned version were changed."""
    argparse.ArgumentParser(prog="python -m data_gen.prompts", description=__doc__.splitlines()[0]).parse_args(argv)
    file = FOLDER / "versions.json"
    pinned = versions() if file.exists() else {}
    for name in NAMES:
        version = load_prompt(name, "en").version
        if pinned.setdefault(version, words_hash(name)) != words_hash(name):
            raise UserError(f"prompts/{name}.toml: the words of {version} were changed; raise `version` in the file")
    text = json.dumps(pinned, indent=1, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8")
    print(f"{len(pinned)} versions pinned in {file.name}")
