"""The check of rationales by people: which are drawn, the raters' sheets, and what they say together.

As MMedBench did (arXiv 2402.13963; 1,136 of 1,200 passed), each rationale is judged by three criteria: logical
consistency, factual accuracy, sound reasoning. Ours: each is judged by two raters, who see it in another order; it is
checked when both have rated it, and passed when both say yes to all three.

    SHEETS/rater1.xlsx, rater2.xlsx   with their keys beside them (mmed_jax/evaluation/ratings/sheets.py)
    SHEETS/draw.json                  what was drawn, with a hash of each rationale
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from data_gen.sets.mmedbench_format import SPLITS, read_built, text_hash
from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import open_file
from mmed_jax.common.output_files import write_json
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.metrics.intervals import wilson
from mmed_jax.evaluation.ratings.agreement import agreement
from mmed_jax.evaluation.ratings.explanations import Explanation, draw
from mmed_jax.evaluation.ratings.sheets import YES_NO_CRITERIA, read_sheet, write_sheet

RUN = "mmedbench"
DRAW = "draw.json"
Verdicts = Mapping[tuple[str, str], Mapping[str, float]]  # {(split, id): {criterion: 1 or 0}} of one rater


def draw_rationales(
    folder: Path, items: int, seed: int, *, languages: Sequence[str] = (), splits: Sequence[str] = SPLITS
) -> list[tuple[str, dict]]:
    """(split, record) of at most `items` rationales a language, by a hash of (seed, split, id).

    Raises UserError for an unknown language or split, or where nothing has a rationale.
    """
    for flag, names, known in (("--languages", languages, LANGUAGES), ("--splits", splits, SPLITS)):
        for name in names:
            if name not in known:
                raise UserError(f"{flag}={name}: unknown{nearest(name, known)}")
    by_language: dict[str, list[tuple[str, str, dict]]] = {code: [] for code in languages or LANGUAGES}
    for split in splits:
        for record in read_built(folder, split):
            if record["rationale"].strip() and record["language"] in by_language:
                place = draw(seed, split, record["id"])
                by_language[record["language"]].append((place, split, record))
    chosen = [
        (split, record)
        for rows in by_language.values()
        for _, split, record in sorted(rows, key=lambda row: row[:2])[: items or None]
    ]
    if not chosen:
        raise UserError(f"--input={folder}: no question of {', '.join(splits)} has a rationale")
    return chosen


def write_sheets(
    output: Path, chosen: Sequence[tuple[str, dict]], *, raters: int, seed: int, suffix: str
) -> list[Path]:
    """Writes a sheet for each rater and draw.json. Returns the sheets. Raises UserError for a suffix there is not."""
    explanations = [
        Explanation(
            run=RUN,
            benchmark=split,
            id=record["id"],
            language=record["language"],
            question="\n\n".join(filter(None, (record.get("context"), record["question"]))),
            options=record["options"],
            answer=record["answer_idx"],
            reference="",
            text=record["rationale"],
        )
        for split, record in chosen
    ]
    sheets = [output / f"rater{number}{suffix}" for number in range(1, raters + 1)]
    for number, sheet in enumerate(sheets, 1):
        write_sheet(sheet, explanations, seed=seed + number, yes_no=True)
    items = [
        {"split": split, "id": r["id"], "language": r["language"], "rationale": text_hash(r["rationale"])}
        for split, r in chosen
    ]
    write_json(output / DRAW, {"seed": seed, "sheets": [sheet.name for sheet in sheets], "items": items})
    return sheets


def read_draw(folder: Path) -> dict[str, Any]:
    """What a folder of sheets was drawn from. Raises UserError where it is no such folder."""
    path = folder / DRAW
    if not path.is_file():
        raise UserError(f"--sheets={folder}: no folder of `python -m data_gen check sheet` ({path} is missing)")
    with open_file(path) as stream:
        drawn: Any = jsonl.parse_json(jsonl.decode(stream.read(), str(path)), str(path))
    names = ("split", "id", "language", "rationale")
    items = drawn.get("items") if isinstance(drawn, dict) else None
    fits = isinstance(items, list) and all(
        isinstance(i, dict) and all(isinstance(i.get(n), str) for n in names) for i in items
    )
    if not fits or not isinstance(drawn.get("sheets"), list) or not all(isinstance(s, str) for s in drawn["sheets"]):
        raise UserError(f"{path}: not what `python -m data_gen check sheet` writes")
    return drawn


def read_verdicts(folder: Path, drawn: Mapping[str, Any]) -> dict[str, Verdicts]:
    """{sheet: what its rater said} of all sheets of a folder. Raises UserError with file, row and column."""
    known = {(item["split"], item["id"]) for item in drawn["items"]}
    verdicts: dict[str, Verdicts] = {}
    for name in drawn["sheets"]:
        scores = read_sheet(folder / Path(name).name).scores
        verdicts[Path(name).stem] = {(split, ident): given for (_, split, ident), given in scores.items()}
        for place in verdicts[Path(name).stem]:
            if place not in known:
                raise UserError(f"{folder / name}: holds {place[1]}, which was not drawn; its key is of another draw")
    return verdicts


def checks_of(drawn: Mapping[str, Any], verdicts: Mapping[str, Verdicts]) -> list[dict]:
    """One line for each rationale that all raters rated: {"split", "id", "rationale", "passed", "raters"}."""
    lines = []
    for item in drawn["items"]:
        place = item["split"], item["id"]
        given = {name: said[place] for name, said in verdicts.items() if place in said}
        if len(given) == len(verdicts):
            raters = {name: {c: bool(v) for c, v in said.items()} for name, said in given.items()}
            passed = all(all(said.values()) for said in raters.values())
            lines.append({**item, "passed": passed, "raters": raters})
    return lines


def summarise_checks(drawn: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a report says: counts by language, share passed with its 95 % interval, agreement by criterion.

    "agreement" has a line for every two raters and criterion, and one for "passed": all three at once.
    """
    drawn_by, checked = Counter(i["language"] for i in drawn["items"]), Counter(c["language"] for c in checks)
    passed = Counter(c["language"] for c in checks if c["passed"])
    rows = []
    for code in [*(c for c in LANGUAGES if drawn_by[c]), "all"]:
        n, ok = (len(checks), passed.total()) if code == "all" else (checked[code], passed[code])
        of = drawn_by.total() if code == "all" else drawn_by[code]
        rows.append(
            {"language": code, "drawn": of, "checked": n, "passed": ok, "interval95": wilson(ok, n) if n else None}
        )
    return {"seed": drawn["seed"], "languages": rows, "agreement": list(_agreement(checks))}


def _agreement(checks: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for one, other in combinations(checks[0]["raters"] if checks else (), 2):
        for criterion in (*YES_NO_CRITERIA, "passed"):
            pairs = [[_said(c["raters"][name], criterion) for c in checks] for name in (one, other)]
            found = agreement(*pairs)
            yield {
                "raters": [one, other],
                "criterion": criterion,
                "items": found.items,
                "share": found.share,
                "kappa": found.kappa,
            }


def _said(verdict: Mapping[str, bool], criterion: str) -> bool:
    return all(verdict.values()) if criterion == "passed" else verdict[criterion]
