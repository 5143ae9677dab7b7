"""The steps of a build: which inputs each method gets, and what came back."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_gen.methods import METHODS, default_gates, make_method
from data_gen.sets.inputs import Inputs
from mmed_jax.common.row_buffer import RowBuffer
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import LANGUAGES, kind_of

ROUNDS = 4  # how often a language that lacks rows after rejections is given further inputs


@dataclass
class Rows:
    """Generated rows: `buffer`, `step[i]` the index of row i's step. `outcomes[step][state, reason]` counts jobs,
    `skipped[step][why]` inputs that became no job; `replaced[input]` is the row that stands for an input now, and
    `newer[row]` the one that stands for an earlier row (a rationale, a label was added)."""

    buffer: RowBuffer
    step: list[int] = field(default_factory=list)
    outcomes: dict[str, Counter] = field(default_factory=dict)
    skipped: dict[str, Counter] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)
    newer: dict[int, int] = field(default_factory=dict)
    rejects: list[dict] = field(default_factory=list)
    estimates: list[Any] = field(default_factory=list)  # of a dry run, by step
    keys: set[str] = field(default_factory=set)  # ledger keys of all jobs: what the set has cost

    def standing(self) -> Iterator[int]:
        """First forms of the rows that stand in the set beside the inputs."""
        later = {*self.replaced.values(), *self.newer.values()}
        return (i for i in range(len(self.step)) if i not in later)

    def newest(self, row: int) -> int:
        """The newest form of a row."""
        while row in self.newer:
            row = self.newer[row]
        return row

    def pending(self) -> int:
        """Jobs without an answer yet."""
        return sum(n for counts in self.outcomes.values() for (state, _), n in counts.items() if state == "pending")


class Generator:
    """Runs the steps of `recipe` over `inputs`. `run(method, inputs, settings, gates)` is llm_api.runner.run or a
    function like it; `settings` its settings, whose params the recipe's complete."""

    def __init__(self, recipe: Any, inputs: Inputs, folder: Path, run: Callable, settings: Any) -> None:
        self.recipe, self.inputs, self.run = recipe, inputs, run
        self.settings = replace(settings, params={**dict(recipe.params), **settings.params})
        self.rows = Rows(RowBuffer(folder / "rows.jsonl"))
        self.gates = dict(recipe.gates)

    def __call__(self) -> Rows:
        for number, name in enumerate(self.recipe.steps):
            entry = self.recipe.step[name]
            self.rows.outcomes[name], self.rows.skipped[name] = Counter(), Counter()
            if METHODS[entry.method].into_languages:
                for language in entry.languages or self.recipe.languages:
                    self._translate(number, name, language)
            elif entry.fill:
                self._fill(number, name, entry)
            else:
                self._run(number, name, self._method(entry), self._chosen(name, entry))
        return self.rows

    def _method(self, entry: Any, **options: object):
        given = {"redraws": self.recipe.redraws, "structured": self.recipe.structured, **dict(entry.options)}
        return make_method(entry.method, **given, **options)

    def get(self, place: tuple[str, int]) -> dict:
        """The record at ("input", i), in its newest form, or ("row", i)."""
        kind, number = place
        if kind == "input":
            if number not in self.rows.replaced:
                return self.inputs.buffer[number]
            number = self.rows.replaced[number]
        return self.rows.buffer[self.rows.newest(number)]

    def _places(self, entry: Any) -> Iterator[tuple[str, str, int]]:
        """(source or step, "input" or "row", number) of all a step may read, in the recipe's order."""
        for origin in entry.sources:
            if origin in self.recipe.sources:
                for i in self.inputs.rows_of(self.recipe.sources.index(origin)):
                    yield origin, "input", i
            else:
                step, enriched = self.recipe.steps.index(origin), set(self.rows.newer.values())
                yield from ((origin, "row", i) for i, s in enumerate(self.rows.step) if s == step and i not in enriched)

    def _chosen(self, name: str, entry: Any) -> list[tuple[str, int]]:
        """Inputs of a step that writes in its inputs' language: those of the languages, at most `limit` a source and
        language, chosen by hash and kept in their order; with `fill` in that of the hash."""
        languages = set(entry.languages or self.recipe.languages)
        groups: dict[tuple[str, str], list[tuple[int, int, tuple[str, int]]]] = {}
        for order, (origin, kind, number) in enumerate(self._places(entry)):
            row = self.get((kind, number))
            if entry.options.get("language") or row["language"] in languages:
                rank = stable_hash(self.recipe.seed, name, row["id"]) if entry.limit or entry.fill else order
                groups.setdefault((origin, row["language"]), []).append((rank, order, (kind, number)))
        chosen = [item for group in groups.values() for item in sorted(group)[: entry.limit or None]]
        if entry.fill:
            return [place for _, _, place in sorted(chosen)]
        return [place for _, _, place in sorted(chosen, key=lambda item: item[1])]

    def _fill(self, step: int, name: str, entry: Any) -> None:
        """Runs a step for as many inputs as its languages lack rows to their targets, and on where some were rejected;
        for all inputs of the languages that have no target."""
        groups: dict[str, list[tuple[str, int]]] = {}
        for place in self._chosen(name, entry):
            language = entry.options.get("language") or self.get(place)["language"]
            groups.setdefault(language, []).append(place)
        whole = [place for code, places in groups.items() if not self.recipe.targets.get(code) for place in places]
        if whole:
            self._run(step, name, self._method(entry), sorted(whole))
        for code in LANGUAGES:
            if code in groups and self.recipe.targets.get(code):
                self._rounds(step, name, entry, code, groups[code])

    def _rounds(self, step: int, name: str, entry: Any, language: str, candidates: list, **options: object) -> None:
        """Runs a step over as many candidates as the language lacks rows, then over more for those that failed."""
        target = self.recipe.targets.get(language, 0)
        for _ in range(ROUNDS):
            method = self._method(entry, **options)
            inputs = -(-(target - self.count(language)) // method.rows_per_input)
            before = self.rows.pending()
            if inputs <= 0 or not candidates:
                return
            now, candidates = sorted(candidates[:inputs]), candidates[inputs:]
            self._run(step, name, method, now, language)
            if self.rows.pending() > before or self.settings.dry_run:
                return

    def _run(self, step: int, name: str, method: Any, places: list[tuple[str, int]], language: str = "") -> int:
        """Runs one method over its inputs; returns how many rows came of it."""
        outcomes, count = self.rows.outcomes[name], 0
        by_id: dict[str, tuple[str, int]] = {}

        def records() -> Iterator[dict]:
            for kind, number in places:
                record = self.get((kind, number))
                if method.enriches:
                    by_id[record["id"]] = kind, number
                yield record

        label = "/".join(filter(None, (self.settings.run, self.recipe.name, name, language)))
        settings = replace(self.settings, run=label, total=len(places))
        if settings.dry_run:
            from mmed_jax.llm_api.cost_estimate import estimate

            cost = estimate(method, records(), settings, default_gates(method.name, self.gates))
            self.rows.estimates.append(cost)
            print(f"{label}:\n{cost}", flush=True)
            return 0
        results = self.run(method, records(), settings, default_gates(method.name, self.gates))
        with closing(results) if hasattr(results, "close") else nullcontext():  # so that the ledger ends in order
            for outcome in results:
                outcomes[outcome.state, outcome.reason] += 1
                self.rows.keys.add(outcome.job.request.key)
                if outcome.state != "accepted":
                    if outcome.state != "pending":
                        self.rows.rejects.append(
                            {
                                "id": outcome.job.row_id,
                                "stage": f"step {name}",
                                "reason": outcome.reason,
                                "detail": outcome.detail,
                                **({"language": language} if language else {}),
                            }
                        )
                    continue
                for record in outcome.records:
                    about = record["provenance"]
                    flags = sorted({*about.get("flags", ()), *outcome.flags})
                    number = self.rows.buffer.add({**record, "provenance": {**about, "flags": flags}})
                    self.rows.step.append(step)
                    count += 1
                    if method.enriches:  # the same record, completed
                        self._stands_for(*by_id[outcome.job.parent["id"]], number)
        self.rows.skipped[name].update(method.skipped)
        return count

    def _stands_for(self, kind: str, old: int, new: int) -> None:
        if kind == "input" and old not in self.rows.replaced:
            self.rows.replaced[old] = new
            return
        self.rows.newer[self.rows.newest(self.rows.replaced[old] if kind == "input" else old)] = new

    # Translation

    def _translate(self, step: int, name: str, language: str) -> None:
        entry = self.recipe.step[name]
        candidates = self._candidates(name, entry, language)
        if entry.limit:
            candidates = candidates[: entry.limit]
        if not entry.fill:
            self._run(step, name, self._method(entry, languages=(language,)), sorted(candidates), language)
            return
        self._rounds(step, name, entry, language, candidates, languages=(language,))

    def _candidates(self, name: str, entry: Any, language: str) -> list[tuple[str, int]]:
        """Inputs to translate into `language`, by hash: of each family one, and none where the language is there."""
        present: set[int] = set()
        ranked: list[tuple[int, int, str, int]] = []
        for _, kind, number in self._places(entry):
            row = self.get((kind, number))
            about = row["provenance"]
            family = stable_hash(about.get("group") or row["id"])
            if kind == "row":  # a passage gives several rows of one family: each may be translated
                family = stable_hash(row["id"])
            if row["language"] == language:
                present.add(family)
            elif "text" not in row and kind_of(row) == self.recipe.kind:
                ranked.append((stable_hash(self.recipe.seed, name, language, row["id"]), family, kind, number))
        chosen: list[tuple[str, int]] = []
        for _, family, kind, number in sorted(ranked):
            if family not in present:
                present.add(family)
                chosen.append((kind, number))
        return chosen

    def count(self, language: str) -> int:
        """Rows of a language so far: kept inputs and generated rows that stand beside them."""
        keeps = {i for i, s in enumerate(self.recipe.sources) if self.recipe.source[s].keep}
        inputs = (i for i, e in enumerate(self.inputs.entry) if e in keeps and not self.inputs.blocked[i])
        own = sum(self.inputs.buffer[i]["language"] == language for i in inputs)
        return own + sum(self.get(("row", i))["language"] == language for i in self.rows.standing())
