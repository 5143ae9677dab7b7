"""Which of datatrove's steps a document goes through, made from the settings of a recipe."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_gen.corpus.decontamination import Decontaminate, DecontaminationSettings
from data_gen.corpus.keywords import KeywordFilter, KeywordSettings
from data_gen.corpus.language import LanguageFilter, LanguageSettings
from data_gen.corpus.license_filter import LicenseFilter, LicenseSettings
from data_gen.corpus.near_duplicates import NearSettings
from data_gen.corpus.personal_data import MaskPersonalData, PersonalDataSettings
from data_gen.corpus.quality import QualityFilter, QualitySettings

# Name in a recipe -> (settings, step). In the order in which they run; `first` before duplicates, `last` behind them.
FIRST: dict[str, tuple[Any, Any]] = {
    "licenses": (LicenseSettings, LicenseFilter),
    "language": (LanguageSettings, LanguageFilter),
    "keywords": (KeywordSettings, KeywordFilter),
    "quality": (QualitySettings, QualityFilter),
}
LAST: dict[str, tuple[Any, Any]] = {
    "decontamination": (DecontaminationSettings, Decontaminate),
    "personal_data": (PersonalDataSettings, MaskPersonalData),
}
# Steps that a recipe may spare a source.
SPARED = ("keywords", "quality")
# Of all steps that have any.
SETTINGS: dict[str, Any] = {name: settings for name, (settings, _) in (FIRST | LAST).items()}
SETTINGS["near_duplicates"] = NearSettings


def first_steps(settings: dict[str, Any], source: dict[str, Any], drops: Callable[[str], Any]) -> list[PipelineStep]:
    """The steps before duplicates are looked for, without those that the recipe spares a source."""
    spared = {name for name in SPARED if not source[name]}
    names = [name for name in FIRST if name in settings and name not in spared]
    return [_make(FIRST[name], settings[name], drops(name)) for name in names]


def last_steps(settings: dict[str, Any], index: str, drops: Callable[[str], Any]) -> dict[str, PipelineStep]:
    """The steps behind the removal of duplicates, by name. index: folder of the benchmarks' index."""
    more = {"decontamination": {"index": index}}
    return {n: _make(LAST[n], settings[n], drops(n), **more.get(n, {})) for n in LAST if n in settings}


def _make(classes: tuple[Any, Any], settings: dict[str, Any], drops: Any, **more: Any) -> PipelineStep:
    make_settings, make_step = classes
    return make_step(make_settings(**settings), exclusion_writer=drops, **more)


def files_of(settings: dict[str, Any]) -> dict[str, Path]:
    """Files that verdicts of the first steps depend on, by name: keyword lists, the module of a scorer."""
    files = KeywordSettings(**settings["keywords"]).files() if "keywords" in settings else {}
    if scorer := settings.get("quality", {}).get("scorer"):
        module = importlib.util.find_spec(scorer.partition(":")[0])
        if module is not None and module.origin:  # one that is not there is the filter's to say
            files["scorer"] = Path(module.origin)
    return files
