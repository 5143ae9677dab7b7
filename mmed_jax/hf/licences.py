"""The licence of a base model, as far as files and name say it, and what a Llama licence asks of derived models.

Sources: the community licences of Meta Llama 3 and of Llama 3.1, 3.2 and 3.3, section 1 b. The first wants "Built with
Meta Llama 3" and names that begin with "Llama 3", the later ones "Built with Llama" and names that begin with "Llama";
each wants its attribution in a file NOTICE.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Terms(NamedTuple):
    """title, link: of the licence. notice: what has to be shown. start: what a derived model's name begins with.

    work: what it licenses, as its attribution calls it.
    """

    title: str
    link: str
    notice: str
    start: str
    work: str

    @property
    def attribution(self) -> str:
        """What the file NOTICE holds."""
        return f"{self.work} is licensed under the {self.title}, Copyright © Meta Platforms, Inc. All Rights Reserved."


# By the identifier that the hub has for them ("license:" of a model card).
LLAMA_TERMS = {
    "llama3": Terms(
        *("Meta Llama 3 Community License", "https://llama.com/llama3/license/", "Built with Meta Llama 3", "Llama 3"),
        "Meta Llama 3",
    ),
    **{
        f"llama3.{n}": Terms(
            *(f"Llama 3.{n} Community License", f"https://llama.com/llama3_{n}/license/", "Built with Llama", "Llama"),
            f"Llama 3.{n}",
        )
        for n in (1, 2, 3)
    },
}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NOTICE = "NOTICE"  # file of an export that a Llama licence holds for
# A release, and no size: open_llama_3b is of another family.
_LLAMA_NAME = re.compile(r"llama[-_ ]?3(?:[._]([123]))?(?![0-9.]|b(?![a-z]))", re.IGNORECASE)
_OFFICIAL = re.compile(r"(Meta-)?Llama-3(\.[123])?-\d+B(-Instruct)?")


def licence_of(name: str, folder: Path | None = None) -> tuple[str, str]:
    """The licence of a model as (identifier, where that is known from); ("", "") where nothing says it.

    Args:
      name: of the model, on the hub or of its folder. folder: with its files, None where they are not at hand.

    Returns:
      The identifier is what the folder's model card has for `license`, else that of the Llama release in the name.
    """
    if folder is not None and (found := _licence_of_card(folder / "README.md")):
        return found, "its model card"
    if named := _LLAMA_NAME.search(name.rpartition("/")[2]):
        return f"llama3.{named[1]}" if named[1] else "llama3", "its name"
    return "", ""


def base_facts(name: str, licence: str, known_from: str) -> dict[str, Any]:
    """What a card says of a base (hf.provenance): {"name", "hub", "random", "licence", "licence_from"}."""
    return {
        "name": name,
        "hub": HUB_NAME.fullmatch(name) is not None,
        "random": False,
        "licence": licence,
        "licence_from": known_from,
    }


def official_name(folder_name: str) -> str:
    """The hub's name of a Llama 3 release in a folder that is called as `hf download` is shown here; else ""."""
    return f"meta-llama/{folder_name}" if _OFFICIAL.fullmatch(folder_name) else ""


def licences_of(provenance: Mapping[str, Any]) -> list[str]:
    """Licences of the base and, of a mean of models, of its parents' bases, as far as they are known."""
    bases = [provenance["base"], *(parent["base"] for parent in provenance.get("merged", ()))]
    return list(dict.fromkeys(base["licence"] for base in bases if base["licence"]))


def names_problem(licences: Sequence[str], name: str) -> str:
    """The first `name_problem`, "" where there is none."""
    return next(filter(None, (name_problem(licence, name) for licence in licences)), "")


def write_notice(folder: Path, provenance: Mapping[str, Any] | None) -> None:
    """Writes the file NOTICE with the attribution that a Llama licence asks of copies; nothing for other licences."""
    held = [LLAMA_TERMS[x] for x in licences_of(provenance) if x in LLAMA_TERMS] if provenance else []
    if held:
        (folder / NOTICE).write_text("".join(f"{terms.attribution}\n" for terms in held), encoding="utf-8")


def name_problem(licence: str, name: str) -> str:
    """Why a model derived under `licence` may not be handed on as `name`; "" where it may.

    Hyphens and underscores count as the spaces that names on the hub can't have.
    """
    terms = LLAMA_TERMS.get(licence)
    if terms is None or _letters(name).startswith(_letters(terms.start)):
        return ""
    return f"the {terms.title} wants the name of a derived model to begin with '{terms.start.replace(' ', '-')}'"


def _letters(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _licence_of_card(file: Path) -> str:
    """`license` in the YAML head of a model card, `license_name` where that is "other"; "" where there is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    values = dict(re.findall(r"^(license(?:_name)?):[ \t]*[\"']?([\w.+-]+)", head[1] if head else "", re.MULTILINE))
    licence = values.get("license", "").lower()
    return values.get("license_name", "").lower() if licence == "other" else licence
