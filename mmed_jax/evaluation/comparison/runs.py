"""Finished evaluations read back: results.json and predictions.jsonl, checked to belong together."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import check_file, open_file
from mmed_jax.common.paths import expand_home, tail_names
from mmed_jax.evaluation.metrics.text_similarity import AVERAGE
from mmed_jax.evaluation.perplexity.summary import CELL, KIND
from mmed_jax.evaluation.results_json import SCHEMA, SCORES

_LINE = ("benchmark", "id", "language", "answer", "extracted", "correct", "prompt", "output", "options")


@dataclass(frozen=True)
class Tuning:
    """How a run's model was tuned: in words ("full", "LoRA of rank 16, ..", "none"), what was trained, and on what.

    trained: parameters, None where not known. share: of all parameters. base: name or folder, "" where not known.
    """

    text: str = "not known"
    trained: int | None = None
    share: float | None = None
    base: str = ""


@dataclass(frozen=True, eq=False)
class Run:
    """One evaluation.

    Attributes:
      name: what tables call it. results: results.json. lines: of predictions.jsonl, in their order.
      notes: {board: what a reader of its rows there should know}.
    """

    name: str
    path: Path
    results: dict[str, Any]
    lines: list[dict[str, Any]]
    notes: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """How it was asked."""
        return self.results["settings"]

    @property
    def tuning(self) -> Tuning:
        """Of its model; what evaluations of endpoints and of earlier versions do not tell is not known."""
        known = self.results["model"].get("tuning")
        if known is None:
            return Tuning()
        trained = known["trained_parameters"]
        return Tuning(known["text"], trained, trained / known["parameters"], known["base"])


def read_runs(named_folders: Sequence[str], *, texts: bool = False) -> list[Run]:
    """Runs of "PATH" or "NAME=PATH", folders written by `python -m mmed_jax.evaluate`.

    A run without a name is called by as much of the end of its path as tells it from the others.

    Args:
      texts: runs of --perplexity are read as well; else they are refused.

    Raises:
      UserError: no such folder, no results.json, one of another schema, predictions that do not belong to it, or one
        name or folder given twice.
    """
    pairs = []
    for text in named_folders:
        name, sign, path = text.partition("=")
        # A folder may have a "=" in its name; a name has no slash.
        pairs.append(("", text) if not sign or Path(text).is_dir() or "/" in name else (name.strip(), path))
    paths = [expand_home(p).resolve() for _, p in pairs]
    for k, path in enumerate(paths):
        if path in paths[:k]:
            raise UserError(f"{pairs[k][1]}: is named twice")
    names = [name or tail for (name, _), tail in zip(pairs, tail_names(paths), strict=True)]
    for k, name in enumerate(names):
        if name in names[:k]:
            raise UserError(f"{pairs[k][1]}: two runs are called '{name}'; name them as NAME=PATH")
    return [_read(name, expand_home(path), texts) for name, (_, path) in zip(names, pairs)]


def _read(name: str, folder: Path, texts: bool) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    file, journal = folder / "results.json", folder / "predictions.jsonl"
    for path in (file, journal, folder / SCORES):
        check_file(path)
    if not file.is_file():
        hint = "; the evaluation is not finished, its command goes on with it" if journal.is_file() else ""
        raise UserError(f"{folder}: holds no results.json, which `python -m mmed_jax.evaluate` writes{hint}")
    try:
        results = jsonl.loads(file.read_bytes())
    except (OSError, ValueError) as e:
        raise UserError(f"{file}: can't be read ({e})") from None
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        age = "a newer" if isinstance(schema, int) and schema > SCHEMA else "an older"
        if not isinstance(results, dict) or not {"benchmarks", "languages"} & set(results):
            raise UserError(f"{file}: is not a file of `python -m mmed_jax.evaluate`")
        raise UserError(
            f"{file}: has schema {schema or 1}, from {age} version of mmed_jax; this one reads {SCHEMA}: evaluate again"
        )
    scores_texts = results.get("kind") == KIND
    if scores_texts and not texts:
        raise UserError(f"{folder}: holds perplexities of texts (--perplexity), and no answers")
    blocks = "languages" if scores_texts else "benchmarks"
    missing = [k for k in ("settings", "model", "data", blocks, "overall") if k not in results]
    for part in ("settings", "model", blocks, "overall"):
        if not missing and not isinstance(results[part], dict):
            raise UserError(f"{file}: field '{part}': must be an object")
    if not missing and scores_texts:
        cells = [results["overall"], *results["languages"].values()]
        missing = [] if "rule" in results["data"] else ["data.rule"]
        missing += [k for c in cells for k in CELL if k not in c]
    elif not missing:
        missing = [k for k in ("kind", "mode", "prompt_family") if k not in results["settings"]]
    if missing:
        raise UserError(f"{file}: field '{missing[0]}' is missing")
    if not _is_tuning(results["model"].get("tuning")):
        raise UserError(f"{file}: field 'model.tuning': must hold text, base, trained_parameters and parameters")
    return Run(name, folder, results, _documents(journal) if scores_texts else _predictions(journal, results))


def _documents(file: Path) -> list[dict[str, Any]]:
    """The lines of a run of --perplexity."""
    lines: dict[str, dict[str, Any]] = {}
    with open_file(file) as stream:
        for where, line in jsonl.read_objects(stream, str(file)):
            for name, kind in (("id", str), ("language", str), ("bytes", int), ("tokens", int), ("nll", float)):
                if type(line.get(name)) is not kind:
                    raise UserError(f"{where}: field '{name}': missing, or not of its kind")
            if line["id"] in lines:
                raise UserError(f"{where}: document {line['id']} stands twice")
            lines[line["id"]] = line
    return list(lines.values())


def _is_tuning(tuning: Any) -> bool:
    if not isinstance(tuning, dict):
        return tuning is None
    trained, total = tuning.get("trained_parameters"), tuning.get("parameters")
    counts = isinstance(trained, int) and isinstance(total, int) and 0 <= trained and 0 < total
    return counts and all(isinstance(tuning.get(k), str) for k in ("text", "base"))


def _predictions(file: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    if not file.is_file():
        raise UserError(f"{file.parent}: holds results.json and no predictions.jsonl, which it is compared by")
    lines, seen = [], set()
    with open_file(file) as stream:
        for where, line in jsonl.read_objects(stream, str(file)):
            for field in _LINE:
                if field not in line:
                    raise UserError(f"{where}: field '{field}' is missing")
            for field in ("benchmark", "id"):
                if not isinstance(line[field], str):
                    raise UserError(f"{where}: field '{field}': must be text")
            if not isinstance(line["correct"], bool):
                raise UserError(f"{where}: field 'correct': must be true or false")
            if (key := (line["benchmark"], line["id"])) in seen:
                raise UserError(f"{where}: item {key[0]} {key[1]} stands twice")
            seen.add(key)
            lines.append(line)
    there = Counter(line["benchmark"] for line in lines)
    for name, block in results["benchmarks"].items():
        try:
            count = int(block["overall"]["count"])
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{file.parent / 'results.json'}: benchmarks.{name}: no count of its items") from e
        if there.pop(name, 0) != count:
            raise UserError(f"{file}: has not the {count:,} items of {name} that results.json counts; evaluate again")
    if there:
        raise UserError(f"{file}: has items of {next(iter(there))}, which results.json does not know; evaluate again")
    return lines


@functools.lru_cache(maxsize=16)
def read_scores(run: Run) -> dict[tuple[str, str], dict[str, float]] | None:
    """{(benchmark, id): {metric: score}} of a run's rationales; None where there is no file of them.

    Raises:
      UserError: a line that is not one, or scores that are not those results.json averages.
    """
    file = run.path / SCORES
    if not file.is_file():
        return None
    out: dict[tuple[str, str], dict[str, float]] = {}
    with open_file(file) as stream:
        for where, line in jsonl.read_objects(stream, str(file)):
            for field in ("benchmark", "id", "scores"):
                if field not in line:
                    raise UserError(f"{where}: field '{field}' is missing")
            scores = line["scores"]
            if not isinstance(scores, dict) or not all(
                v is None or (type(v) in (int, float) and abs(v) < 1e300) for v in scores.values()
            ):
                raise UserError(f"{where}: field 'scores': must hold numbers")
            if (key := (line["benchmark"], line["id"])) in out:
                raise UserError(f"{where}: item {key[0]} {key[1]} stands twice")
            out[key] = {k: v for k, v in scores.items() if v is not None}
    language = {(p["benchmark"], p["id"]): p["language"] for p in run.lines}
    sums: Counter[tuple[str, str, str]] = Counter()
    counts: Counter[tuple[str, str, str]] = Counter()
    for (name, id_), scores in out.items():
        for metric, score in scores.items():
            cell = name, metric, language.get((name, id_), "")
            sums[cell] += score
            counts[cell] += 1
    for name, block in run.results["benchmarks"].items():
        for metric, by in block.get("rationale", {}).items():
            for key in ((name, metric, k) for k in by if k != AVERAGE):
                cell_of_results, count = by[key[2]], counts[key]
                if count != cell_of_results["count"] or abs(sums[key] / count - cell_of_results["mean"]) > 1e-9:
                    raise UserError(f"{file}: has not the scores that results.json averages; evaluate again")
    return out


def describe(settings: Mapping[str, Any], *, passages: str = "") -> str:
    """How questions were asked, in words that are equal where the ways are: what is compared only with itself.

    Args:
      settings: of results.json. passages: what is said of them where there are some.
    """
    if settings["kind"] != "mcq":
        return "exact match of whole answers"
    parts = [settings["mode"]]
    if score := settings.get("score"):
        parts[0] += f" of the option's {'letter' if score == 'letter' else 'text'}"
        normalise = settings.get("normalise") or "none"
        parts[0] += f" a {normalise.removesuffix('s')}" if normalise != "none" else ""
    parts.append(f"prompt family {settings['prompt_family']}")
    shots = settings.get("few_shot") or 0
    parts.append(f"{shots} example{'s' if shots > 1 else ''}" if shots else "no examples")
    if settings.get("shuffle_seed") is not None:
        parts.append(f"options shuffled with seed {settings['shuffle_seed']}")
    parts += [passages] if passages else []
    return ", ".join(parts)
