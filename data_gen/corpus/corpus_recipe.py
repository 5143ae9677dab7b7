"""Recipes of corpora: which inputs, which filters, with which thresholds. configs/mmedc.py is one.

A recipe is an ml_collections ConfigDict with every key of `base()`; --recipe.KEY=VALUE sets any of them:
    --recipe.languages=fr,es   --recipe.step.keywords.mode=paper   --recipe.step.keywords.thresholds.ko=4,0.03
    --recipe.step.keywords.lists.fr=mine.txt   --recipe.source.textbooks.license="CC BY 4.0"
"""

import dataclasses
import json
import re
from typing import Any

from ml_collections import ConfigDict

from data_gen.corpus.pdf_settings import PdfSettings
from data_gen.corpus.readers import FORMATS, Fields
from data_gen.corpus.units import BY_FOLDER
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.config.overrides import set_override
from mmed_jax.config.recipes import open_recipe
from mmed_jax.config.values import flatten
from mmed_jax.data.records.schema import LANGUAGES

# Kinds of sources: the columns of the published table of tokens.
KINDS = ("filtered_web", "textbooks", "websites", "small_corpora")
MISSING = ("error", "skip")
OUTPUT_FORMATS = ("jsonl", "parquet")
# In the order in which they run.
STEPS = (
    "licenses",
    "language",
    "keywords",
    "quality",
    "exact_duplicates",
    "near_duplicates",
    "decontamination",
    "personal_data",
)
# Mappings that take names of one's own: language -> file, language -> threshold -> value.
_FREE = ("step.keywords.lists.", "step.quality.thresholds.")


def base() -> ConfigDict:
    """Every key of a recipe, with its meaning and neutral value. Needs the extra `corpus`."""
    from data_gen.corpus.pipeline_steps import SETTINGS

    c = ConfigDict()
    # Name of the corpus (lower case, digits, _); for the report: a title, a paragraph.
    c.name, c.title, c.description = "", "", ""
    # Folder of test sets where --benchmarks names none (@: in data_gen); "" = none, and no decontamination.
    c.benchmarks = ""
    # Languages of the corpus.
    c.languages = LANGUAGES
    # Names of the entries of `source` that are read.
    c.sources = ()
    c.source = ConfigDict()
    # A source of which no file is there: "error", or "skip" (said in the report).
    c.missing = "error"
    # What one task reads at least: megabytes of an input file.
    c.unit_mb = 100.0
    # Files of the finished corpus: "jsonl" (packed with zstd) or "parquet", of the same keys.
    c.output_format = "jsonl"
    # The steps that run, of STEPS; their order is fixed.
    c.steps = STEPS
    # Settings of each, as their modules explain them.
    c.step = ConfigDict({name: _as_config(settings()) for name, settings in SETTINGS.items()})
    return c


def source(path: str = "", **values: object) -> ConfigDict:
    """One entry of `source`. Keys:

    path      file, folder or glob (** goes down) below --data_dir; one that begins with @ lies in data_gen
    kind      of KINDS: what the report counts it as
    format    of readers.FORMATS, for files whose names do not say it; "" = by suffix
    language  of all its documents; "folder" = the nearest folder above a file that is named by a code (textbooks/fr/);
              "" = as each says, else as it is identified
    license   of documents that name none; "" = unknown, and left out unless licences are not asked for
    keywords  whether its documents must pass the keyword filter
    quality   whether they must pass the quality filter
    fields    names of the columns or keys: text, id, language, license, url, date
    pdf       how PDF files are read (pdf_settings.PdfSettings): ocr, pages, vertical, dpi, timeout_s
    """
    entry = {
        "path": path,
        "kind": "filtered_web",
        "format": "",
        "language": "",
        "license": "",
        "keywords": True,
        "quality": True,
        "fields": dataclasses.asdict(Fields()),
        "pdf": dataclasses.asdict(PdfSettings()),
    }
    for key in values:
        if key not in entry:
            raise UserError(f"source: no key '{key}'{nearest(key, entry)}")
    for group in ("fields", "pdf"):
        known: dict[str, Any] = entry[group]  # type: ignore[assignment]
        given: dict[str, Any] = values.pop(group, {})  # type: ignore[assignment]
        for key in given:
            if key not in known:
                raise UserError(f"source: {group}: no key '{key}'{nearest(key, known)}")
        entry[group] = {**known, **given}
    return ConfigDict({**entry, **values})


def _as_config(settings: Any) -> dict[str, Any]:
    """Settings of a step as a ConfigDict holds them."""
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def load_recipe(name: str, overrides: dict[str, str]) -> ConfigDict:
    """The recipe `name` ("mmedc", "mmedc:demo", or a path to a .py file) with overrides, checked.

    Raises UserError: no such recipe, variant or key; a value of another type; a contradiction.
    """
    return open_recipe(name, "corpus", overrides, _override, check)


def _override(recipe: ConfigDict, key: str, text: str) -> None:
    """Sets one key from its text, in the type of its default; tuples of numbers stay numbers."""
    parent, _, leaf = key.rpartition(".")
    if key.startswith(_FREE):
        node = recipe
        for part in parent.split("."):
            if part not in node:
                node[part] = ConfigDict()
            node = node[part]
        node[leaf] = _value(text)
        return
    before = flatten(recipe).get(key)
    set_override(recipe, key, text, flag="--recipe")
    if isinstance(before, tuple) and before and all(isinstance(v, int | float) for v in before):
        parts = [p.strip() for p in text.split(",")]
        try:
            numbers = tuple(type(old)(float(p)) if isinstance(old, float) else int(p) for p, old in zip(parts, before))
        except ValueError:
            numbers = ()
        if len(numbers) != len(before) or len(parts) != len(before):
            raise UserError(f"--recipe.{key}={text}: must be {len(before)} numbers, for example {before}")
        _node(recipe, parent)[leaf] = numbers


def _value(text: str) -> Any:
    """A number or what else JSON holds, as it is written; else the text."""
    try:
        return loads(text)
    except BadJSON:
        return text


def _node(recipe: ConfigDict, path: str) -> ConfigDict:
    node = recipe
    for part in filter(None, path.split(".")):
        node = node[part]
    return node


def check(recipe: ConfigDict, name: str) -> None:
    """Raises UserError for a recipe that contradicts itself."""

    def wrong(text: str) -> UserError:
        return UserError(f"--recipe={name}: {text}")

    known = base()
    for key in known:
        if key not in recipe:
            raise wrong(f"{key} is missing; begin with data_gen.corpus.corpus_recipe.base() and change values")
    for key in recipe:
        if key not in known:
            raise wrong(f"{key}: no such key{nearest(key, known)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(recipe.name)):
        raise wrong(f"name '{recipe.name}': use lower-case letters, digits and _, for example mmedc")
    choices = {"languages": (recipe.languages, LANGUAGES), "steps": (recipe.steps, STEPS)}
    choices |= {"sources": (recipe.sources, tuple(recipe.source))}
    for key, (values, valid) in choices.items():
        for value in values:
            if value not in valid:
                raise wrong(f"{key} names '{value}'{nearest(value, valid)}")
        if len(set(values)) < len(values):
            raise wrong(f"{key} names a value twice")
    if not recipe.languages or not recipe.sources:
        raise wrong(f"{'sources' if recipe.languages else 'languages'} is empty")
    for key, valid in (("missing", MISSING), ("output_format", OUTPUT_FORMATS)):
        if recipe[key] not in valid:
            raise wrong(f"{key} '{recipe[key]}'{nearest(recipe[key], valid)}")
    if not isinstance(recipe.unit_mb, int | float) or not 0.001 <= recipe.unit_mb <= 10_000:
        raise wrong(f"unit_mb={recipe.unit_mb}: must be between 0.001 and 10,000")
    for entry in recipe.sources:
        s = recipe.source[entry]
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", entry):
            raise wrong(f"source.{entry}: its name becomes a folder; use letters, digits, _, . and -")
        languages = ("", BY_FOLDER, *LANGUAGES)
        for key, valid in (("kind", KINDS), ("format", ("", *FORMATS)), ("language", languages)):
            if s[key] not in valid:
                raise wrong(f"source.{entry}.{key} '{s[key]}'{nearest(s[key], valid)}")
        if not s.path:
            raise wrong(f"source.{entry}.path is empty")
        try:
            PdfSettings(**s.pdf)
        except UserError as e:
            raise wrong(f"source.{entry}.{e}") from None
    make_settings(recipe)


def make_settings(recipe: ConfigDict) -> dict[str, Any]:
    """{step: its settings as JSON holds them} of the steps that run. Raises UserError where one is wrong."""
    from data_gen.corpus.pipeline_steps import SETTINGS

    known, made = as_dict(recipe)["step"], {}
    for name in STEPS:
        if name in recipe.steps and name in SETTINGS:
            values = dict(known[name])
            if name == "language":
                values["languages"] = list(recipe.languages)
            try:
                made[name] = json.loads(json.dumps(dataclasses.asdict(SETTINGS[name](**values))))
            except TypeError as e:
                raise UserError(f"step.{name}: {e}") from None
    return made


def as_dict(recipe: ConfigDict) -> dict[str, Any]:
    """The recipe as JSON can hold it."""
    return json.loads(recipe.to_json())
