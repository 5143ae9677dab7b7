"""Recipes: what a set is built from and how. configs/mmed_ift.py, mmed_ift_mc.py and mmedbench.py are three of them.

A recipe is an ml_collections ConfigDict with every key of `base()`; --recipe.KEY=VALUE sets any of them:
    --recipe.languages=en,ko   --recipe.source.medquad.limit=500   --recipe.targets=ko=20000,fr=20000
"""

import json
import re
from collections import Counter
from collections.abc import Callable

from ml_collections import ConfigDict

from data_gen.methods import METHODS, THRESHOLDS
from data_gen.sets.licenses import FILTERS
from data_gen.sets.mmedbench_format import EXTRA
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.hashes import json_hash
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.config.overrides import set_override
from mmed_jax.config.recipes import open_recipe
from mmed_jax.config.values import flatten
from mmed_jax.data.records.schema import KINDS, LANGUAGES
from mmed_jax.data.sources import SOURCES
from mmed_jax.data.sources.encodings import known_encoding

# Values that are a mapping with names of its own.
_FREE = ("targets", "gates", "params", "options")
MISSING = ("error", "skip")
FORMATS = ("set", "mmedbench")
# Keys that came later, with what they were before there were any: left out of `as_dict` at these values, so that
# recipes keep their hash.
_LATER = {
    "format": "set",
    "extra": [],
    "shuffle_options": False,
    "encoding": "",
    "prefer": "",
    "skip": [],
    "divide": [],
    "closed_book": False,
    "test_answers": False,
}
WITHOUT = ("keep", "drop")
# Methods that add rows, and may stop where a language has enough.
FILLING = tuple(name for name, method in METHODS.items() if not method.enriches)


def base() -> ConfigDict:
    """Every key of a recipe, with its meaning and neutral value."""
    c = ConfigDict()
    # Name of the set (lower case, digits, _), its version (three numbers) and kind ("instruction" or "mcq").
    c.name, c.version, c.kind = "", "1.0.0", "instruction"
    # What is written: "set" (JSONL, TFDS, Parquet, with validation held out), or "mmedbench" (a benchmark in the files
    # of MMedBench: every row of its sources as published, in the splits that the sources name).
    c.format = "set"
    # "mmedbench": keys of a line beside the published ones (data_gen.sets.mmedbench_format.EXTRA).
    c.extra = ()
    # "mmedbench": options of every question in an order drawn by the seed, before anything is generated.
    c.shuffle_options = False
    # For the card: a title, a paragraph, BibTeX.
    c.title, c.description, c.citation = "", "", ""
    # Decides samples, order of selection and the split; together with the ledger it determines every byte.
    c.seed = 0
    # Languages of the set, in the order of the tables.
    c.languages = LANGUAGES
    # Names of the entries of `source`, in the order in which duplicates are resolved (the earlier row stays).
    c.sources = ()
    c.source = ConfigDict()
    # Names of the entries of `step`, in the order in which they run.
    c.steps = ()
    c.step = ConfigDict()
    # Rows wanted of each language; absent = all there are. Steps with `fill` make what is missing.
    c.targets = ConfigDict()
    # Share of the families (a question with all its translations and expansions) held out, by language.
    c.validation_fraction = 0.01
    # Near duplicates: Jaccard similarity of n-grams; 0 = exact copies only.
    c.near_duplicates = 0.85
    # Benchmark items: weight of n-grams found in a row from which it is contaminated (all of an item; its question).
    c.contamination, c.contamination_question = 0.5, 0.9
    # How far above an even share one letter of right answers may be before the report says so.
    c.letter_excess = 0.15
    # Multiple choice: questions that got no rationale, "keep" (they train the direct answer only) or "drop".
    c.without_rationale = "keep"
    # Values that replace those of data_gen.methods.THRESHOLDS.
    c.gates = ConfigDict()
    # Licence texts that are let in although the filter would not.
    c.licenses_also = ()
    # A source that is not in --data_dir: "error", or "skip" (said in the card).
    c.missing = "error"
    # Parameters of every request; what the command line gives wins.
    c.params = ConfigDict({"temperature": 0.3, "seed": 0})
    # How often an unusable answer is asked for again; whether the endpoint is given a JSON schema.
    c.redraws, c.structured = 1, True
    # Random rows shown per language in the report.
    c.samples = 4
    return c


def source(adapter: str = "", path: str = "", **values: object) -> ConfigDict:
    """One entry of `source`. Keys:

    adapter   name of mmed_jax.data.sources ("" = files of records, or passages)
    path      file or folder below --data_dir, * allowed; "" = the one whose name begins with the adapter's
    kind      "instruction" or "mcq"; "" = the adapter's first; "passage" = texts for question-answer generation
    split     keep this split only; files that name none count as it. "" = everything
    languages keep these; () = the recipe's
    keep      whether the rows themselves belong into the set, or are material for steps only
    limit     at most so many rows (chosen by hash, not the first ones); 0 = all
    encoding  of published text files that are not UTF-8 ("cp949"); "" = UTF-8
    prefer    name of a folder inside, read instead of the whole where it is there ("4_options")
    skip      files whose name holds one of these are not of the source
    divide    shares of train, validation and test, for files that name no split: by hash of the question; `split` picks
    closed_book  leave the passage of a question out
    language, license   of passages whose files do not say it
    """
    entry = {
        "adapter": adapter,
        "path": path,
        "kind": "",
        "split": "train",
        "languages": (),
        "keep": True,
        "limit": 0,
        "encoding": "",
        "prefer": "",
        "skip": (),
        "divide": (),
        "closed_book": False,
        "language": "",
        "license": "",
    }
    return ConfigDict(_known(entry, values, "source"))


def step(method: str, sources: tuple[str, ...], **values: object) -> ConfigDict:
    """One entry of `step`. Keys:

    method    one of data_gen.methods.METHODS ("answer_expanding", "rationale", ...)
    sources   names of sources, or of earlier steps, whose rows are its inputs
    languages translation: into these; other methods: inputs of these only; () = the recipe's
    limit     at most so many inputs of a source and language (chosen by hash); 0 = all
    fill      methods that make new rows: only as many as the language lacks to its target
    options   the method's own (pairs, max_chars, ...)
    test_answers  format "mmedbench": let the model see the right answers of questions of the test split
    """
    entry = {
        "method": method,
        "sources": tuple(sources),
        "languages": (),
        "limit": 0,
        "fill": False,
        "options": {},
        "test_answers": False,
    }
    return ConfigDict(_known(entry, values, "step"))


def _known(entry: dict, values: dict, what: str) -> dict:
    for key in values:
        if key not in entry:
            raise UserError(f"{what}: no key '{key}'{nearest(key, entry)}")
    return {**entry, **values}


def load_recipe(name: str, overrides: dict[str, str]) -> ConfigDict:
    """The recipe `name` ("mmed_ift", "mmed_ift_mc:open", or a path to a .py file) with overrides, checked.

    Raises UserError: no such recipe, variant or key; a value of another type; a contradiction.
    """
    return open_recipe(name, "data", overrides, _override, check)


def _override(recipe: ConfigDict, key: str, text: str) -> None:
    """Sets one key from its text; mappings with names of their own take name=value pairs beside what they hold."""
    parent, _, leaf = key.rpartition(".")
    if key in _FREE[:3] or leaf == "options":
        node = recipe
        for part in filter(None, parent.split(".")):
            if part not in node:
                raise UserError(f"--recipe.{key}: no such key{nearest(key, flatten(recipe))}")
            node = node[part]
        given = {} if not text else dict(node[leaf])  # nothing after the = empties the mapping
        for part in filter(None, (p.strip() for p in text.split(","))):
            item, eq, value = part.partition("=")
            if not eq:
                raise UserError(f"--recipe.{key}={text}: must be name=value,name=value")
            try:
                given[item.strip()] = loads(value)
            except BadJSON:
                given[item.strip()] = value
        node[leaf] = ConfigDict(given)
        return
    set_override(recipe, key, text, flag="--recipe")


def check(recipe: ConfigDict, name: str) -> None:
    """Raises UserError for a recipe that contradicts itself."""

    def wrong(text: str) -> UserError:
        return UserError(f"--recipe={name}: {text}")

    for key in base():
        if key not in recipe:
            raise wrong(f"{key} is missing; begin with data_gen.sets.recipes.base() and change values")
    for key in recipe:
        if key not in base():
            raise wrong(f"{key}: no such key{nearest(key, base())}")
    if recipe.kind not in KINDS:
        raise wrong(f"kind '{recipe.kind}'{nearest(recipe.kind, KINDS)}")
    entries = [*recipe.source.values(), *recipe.step.values()]
    for code in (*recipe.languages, *recipe.targets, *(c for entry in entries for c in entry.languages)):
        if code not in LANGUAGES:
            raise wrong(f"language '{code}'{nearest(code, LANGUAGES)}")
    for code, rows in recipe.targets.items():
        if not isinstance(rows, int) or rows < 0:
            raise wrong(f"targets.{code}={rows}: must be a whole number")
    for key in recipe.gates:
        if key not in THRESHOLDS:
            raise wrong(f"gates.{key}: no such threshold{nearest(key, THRESHOLDS)}")
    if recipe.missing not in MISSING:
        raise wrong(f"missing '{recipe.missing}'{nearest(recipe.missing, MISSING)}")
    for entry in recipe.sources:
        if entry not in recipe.source:
            raise wrong(f"sources names '{entry}'{nearest(entry, recipe.source)}")
        s = recipe.source[entry]
        if s.adapter and s.adapter not in SOURCES:
            raise wrong(f"source.{entry}: no adapter '{s.adapter}'{nearest(s.adapter, SOURCES)}")
        if s.get("encoding"):
            known_encoding(s.encoding, f"--recipe={name}: source.{entry}.encoding")
        if s.kind not in ("", *KINDS, "passage"):
            raise wrong(f"source.{entry}: kind '{s.kind}'{nearest(s.kind, (*KINDS, 'passage'))}")
    known = list(recipe.sources)
    for entry in recipe.steps:
        if entry not in recipe.step:
            raise wrong(f"steps names '{entry}'{nearest(entry, recipe.step)}")
        t = recipe.step[entry]
        if t.method not in METHODS:
            raise wrong(f"step.{entry}: no method '{t.method}'{nearest(t.method, METHODS)}")
        for origin in t.sources:
            if origin not in known:
                raise wrong(f"step.{entry}: '{origin}' is neither a source nor an earlier step{nearest(origin, known)}")
        if t.fill and t.method not in FILLING:
            raise wrong(f"step.{entry}: fill is for {', '.join(FILLING)}")
        known.append(entry)
    _values(recipe, wrong)
    _check_format(recipe, wrong)


def _check_format(recipe: ConfigDict, wrong: Callable[[str], UserError]) -> None:
    """Raises UserError where the format asked for and the rest of the recipe do not go together."""
    if recipe.format not in FORMATS:
        raise wrong(f"format '{recipe.format}'{nearest(recipe.format, FORMATS)}")
    for name in recipe.sources:
        _shares(name, recipe.source[name], wrong)
    if recipe.format == "set":
        for key in ("extra", "shuffle_options"):
            if recipe[key]:
                raise wrong(f"{key} is for format mmedbench")
        return
    for key in recipe.extra:
        if key not in EXTRA:
            raise wrong(f"extra '{key}'{nearest(key, EXTRA)}")
    needed = {"kind": "mcq", "without_rationale": "keep", "validation_fraction": 0}
    for key, value in needed.items():
        if recipe[key] != value:
            raise wrong(f"{key}={recipe[key]}: a recipe of format mmedbench has {value}")
    if any(recipe.targets.values()):
        raise wrong("targets: a recipe of format mmedbench keeps all rows of its sources")
    for name in recipe.sources:
        if recipe.source[name].keep and recipe.source[name].split not in ("train", "test"):
            raise wrong(f"source.{name}: split '{recipe.source[name].split}': must be train or test in this format")
    for name in recipe.steps:
        entry = recipe.step[name]
        method = METHODS[entry.method]
        if not method.enriches:
            raise wrong(f"step.{name}: {entry.method} makes new questions; a benchmark holds the published ones")
        tests = [s for s in entry.sources if s in recipe.source and recipe.source[s].split == "test"]
        if tests and method.shows_answers and not entry.test_answers:
            raise wrong(
                f"step.{name}: {entry.method} shows a model the answers of {tests[0]}, which is of the test split; "
                f"--recipe.step.{name}.test_answers=true if that is meant"
            )


def _shares(name: str, entry: ConfigDict, wrong: Callable[[str], UserError]) -> None:
    """Turns `divide` into three numbers. Raises UserError where they are none."""
    if not entry.divide:
        return
    texts = [str(share) for share in entry.divide]
    if len(texts) != 3 or not all(t.isdecimal() for t in texts) or not any(map(int, texts)):
        raise wrong(f"source.{name}.divide={','.join(texts)}: must be three whole numbers, as 8,1,1")
    if entry.split not in ("train", "validation", "test"):
        raise wrong(f"source.{name}: divide needs a split to pick, train, validation or test")
    entry.divide = tuple(map(int, texts))


def _values(recipe: ConfigDict, wrong: Callable[[str], UserError]) -> None:
    """Raises UserError for a value that would break the build after its requests are paid for."""

    def number(name: str, value: object, low: float, high: float, whole: bool = False) -> None:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            raise wrong(f"{name}={value}: must be {what} from {low} to {high}")

    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(recipe.name)):
        raise wrong(f"name '{recipe.name}': use lower-case letters, digits and _, for example mmed_ift")
    if not re.fullmatch(r"\d+\.\d+\.\d+", str(recipe.version)):
        raise wrong(f"version '{recipe.version}': use three numbers, for example 1.0.0")
    if not isinstance(recipe.validation_fraction, int | float) or not 0 <= recipe.validation_fraction < 1:
        raise wrong(f"validation_fraction={recipe.validation_fraction}: must be 0 or more and below 1")
    for name in ("near_duplicates", "contamination", "contamination_question", "letter_excess"):
        number(name, recipe[name], 0, 1)
    if recipe.contamination == 0 or recipe.contamination_question == 0:
        raise wrong("contamination and contamination_question must be above 0: 0 would take every row for a test item")
    number("samples", recipe.samples, 0, 1000, whole=True)
    number("redraws", recipe.redraws, 0, 20, whole=True)
    number("seed", recipe.seed, 0, 2**63 - 1, whole=True)
    if recipe.without_rationale not in WITHOUT:
        raise wrong(f"without_rationale '{recipe.without_rationale}'{nearest(recipe.without_rationale, WITHOUT)}")
    if not recipe.languages:
        raise wrong("languages is empty")
    named = {"languages": recipe.languages, "sources": recipe.sources, "steps": recipe.steps}
    named |= {f"source.{n}.languages": recipe.source[n].languages for n in recipe.sources}
    named |= {f"step.{n}.languages": recipe.step[n].languages for n in recipe.steps}
    for name, values in named.items():
        if twice := [v for v, n in Counter(values).items() if n > 1]:
            raise wrong(f"{name} names '{twice[0]}' twice")
    for name in (*(f"source.{n}" for n in recipe.sources), *(f"step.{n}" for n in recipe.steps)):
        kind, _, entry = name.partition(".")
        number(f"{name}.limit", recipe[kind][entry].limit, 0, 10**9, whole=True)
    for name, value in recipe.gates.items():
        _threshold(f"gates.{name}", value, THRESHOLDS[name], wrong)


def _threshold(name: str, value: object, default: object, wrong: Callable[[str], UserError]) -> None:
    """Raises UserError where a threshold has another form than its default."""
    if isinstance(default, dict):
        if not hasattr(value, "items"):
            raise wrong(f"{name}={value}: must be numbers by method, {', '.join(default)}")
        for method, limit in value.items():
            if method not in default:
                raise wrong(f"{name}.{method}: no such method{nearest(method, default)}")
            _threshold(f"{name}.{method}", limit, default[method], wrong)
    elif isinstance(default, tuple):
        pair = list(value) if isinstance(value, list | tuple) else []
        if len(pair) != 2 or not all(_is_number(v) for v in pair) or not 0 < pair[0] < pair[1]:
            raise wrong(f"{name}={value}: must be two numbers, the smaller first")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise wrong(f"{name}={value}: must be true or false")
    elif not _is_number(value) or value < 0 or isinstance(default, float) and value > 1:
        raise wrong(f"{name}={value}: must be a number" + (" from 0 to 1" if isinstance(default, float) else ""))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_dict(recipe: ConfigDict) -> dict:
    """The recipe as JSON can hold it."""
    plain = json.loads(recipe.to_json())
    for entry in (plain, *plain.get("source", {}).values(), *plain.get("step", {}).values()):
        for key, value in _LATER.items():
            if entry.get(key) == value:
                del entry[key]
    return plain


def recipe_hash(recipe: ConfigDict) -> str:
    """16 hex digits that stand for all of a recipe."""
    return json_hash(as_dict(recipe), 16)


__all__ = ["FILTERS", "as_dict", "base", "check", "load_recipe", "recipe_hash", "source", "step"]
