"""What is rated: explanations that several runs gave to the same items, out of their predictions.jsonl."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import check_file, open_file
from mmed_jax.common.paths import expand_home
from mmed_jax.data.records.schema import LANGUAGES

Key = tuple[str, str, str]  # run, benchmark, id


@dataclass(frozen=True)
class Explanation:
    """One run's explanation of one item. question: after its passage, where one was shown."""

    run: str
    benchmark: str
    id: str
    language: str
    question: str
    options: Mapping[str, str]
    answer: str  # right letters, "A,C"
    reference: str
    text: str

    @property
    def key(self) -> Key:
        """What identifies it: (run, benchmark, id)."""
        return self.run, self.benchmark, self.id


def named_paths(text: str, flag: str) -> dict[str, str]:
    """{name: path} out of "name=path,name=path"; a path alone is named after its last part, without suffix."""
    paths: dict[str, str] = {}
    for part in (p.strip() for p in text.split(",")):
        if not part:
            continue
        name, _, path = ("", "", part) if Path(part).exists() else part.rpartition("=")
        name = name.strip() or Path(path).name.partition(".")[0]
        if name in paths:
            raise UserError(f"{flag}: '{name}' stands for two paths; name them: NAME=PATH,NAME=PATH")
        paths[name] = path.strip()
    if not paths:
        raise UserError(f"{flag}={text}: names nothing")
    return paths


def load_runs(paths: Mapping[str, str]) -> dict[str, list[dict]]:
    """{run name: lines of its predictions.jsonl}; paths are folders of evaluations, or such files.

    Raises UserError for a missing file, a line without one of the fields, or an item that stands twice.
    """
    runs = {}
    for name, path in paths.items():
        file = expand_home(path)
        file = file / "predictions.jsonl" if file.is_dir() else file
        check_file(file)
        if not file.is_file():
            raise UserError(f"--runs={name}={path}: no predictions.jsonl there")
        rows, seen = [], set()
        with open_file(file) as stream:
            for where, row in jsonl.read_objects(stream, str(file)):
                for field in ("benchmark", "id", "language", "options", "answer"):
                    if field not in row:
                        raise UserError(f"{where}: field '{field}' is missing")
                if row["language"] not in LANGUAGES:
                    raise UserError(f"{where}: language '{row['language']}'{nearest(row['language'], LANGUAGES)}")
                key = row["benchmark"], row["id"]
                if key in seen:
                    raise UserError(f"{where}: item {key[0]} {key[1]} stands twice")
                seen.add(key)
                rows.append(row)
        runs[name] = rows
    return runs


def select_explanations(
    runs: Mapping[str, Sequence[dict]],
    *,
    items: int = 0,
    seed: int = 0,
    checked: bool = False,
    languages: Iterable[str] = (),
) -> list[Explanation]:
    """The explanations of the items that every run explained and that have a reference: by item, then by run.

    Args:
      items: at most so many items a language, drawn by `seed` (0: all); the draw does not depend on the order of lines.
      checked: only items whose reference people have checked and passed. languages: only these.
    Raises:
      UserError: there is no such item.
    """
    tables = {name: {(r["benchmark"], r["id"]): r for r in rows if _usable(r, checked)} for name, rows in runs.items()}
    first = next(iter(tables.values()))
    common = [key for key in first if all(key in table for table in tables.values())]
    wanted = set(languages)
    for code in wanted - set(LANGUAGES):
        raise UserError(f"--languages={code}: not a language{nearest(code, LANGUAGES)}")
    chosen = []
    for language in LANGUAGES:
        keys = sorted(k for k in common if first[k]["language"] == language and (not wanted or language in wanted))
        keys.sort(key=lambda k: draw(seed, *k))
        chosen += keys[: items or None]
    if not chosen:
        what = "human-checked reference" if checked else "reference"
        raise UserError(
            f"no item of {', '.join(runs)} has a generated rationale in every run and a {what}; evaluate with "
            "--mode=rationale on records with rationales"
        )
    return [_explanation(name, tables[name][key]) for key in chosen for name in runs]


def draw(seed: int, *parts: str) -> str:
    """A hash for drawing and ordering: hex digits that depend on the seed and the parts alone."""
    return hashlib.sha256("\x1f".join((str(seed), *parts)).encode()).hexdigest()


def _usable(row: dict, checked: bool) -> bool:
    texts = bool(row.get("rationale")) and row.get("generated_rationale") is not None
    return texts and (not checked or row.get("rationale_checked") is True)


def _explanation(run: str, row: dict) -> Explanation:
    # Lines of earlier versions have only the whole prompt.
    question = "\n\n".join(filter(None, (row.get("context"), row.get("question")))) or row.get("prompt") or ""
    return Explanation(
        run=run,
        benchmark=row["benchmark"],
        id=row["id"],
        language=row["language"],
        question=question,
        options=row["options"],
        answer=row["answer"],
        reference=row["rationale"],
        text=row["generated_rationale"],
    )
