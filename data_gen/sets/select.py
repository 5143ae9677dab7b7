"""From candidates to the set: benchmark items out, duplicates out, languages cut to their targets, families split."""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data_gen.gates.letter_balance import Balance, LetterBalance
from data_gen.sets.contamination import Benchmarks
from data_gen.sets.dedup import Deduplicator
from data_gen.sets.groups import Families, family_keys, validation_rows
from data_gen.sets.inputs import Inputs, as_record, blocked_families
from data_gen.sets.run_steps import Rows
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import LANGUAGES, kind_of

KEPT, VALIDATION, TEST = "train", "validation", "test"


@dataclass
class Selection:
    """The rows of the set, in order: `where[i]` (buffer, number) and `split[i]`; what was left out, and why.

    `removed[origin][reason]` counts, `rejects` lists; `candidates` is all there was:
    candidates == len(where) + removed.
    """

    where: list[tuple[int, int]] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    candidates: int = 0
    removed: dict[str, Counter] = field(default_factory=dict)
    rejects: list[dict] = field(default_factory=list)
    contaminated: list[dict] = field(default_factory=list)
    balance: list[Balance] = field(default_factory=list)
    renamed: dict[int, str] = field(default_factory=dict)


class Selector:
    """Selects the rows of a set; see the module's head. `records(split)` reads the result back."""

    def __init__(self, recipe, inputs: Inputs, rows: Rows, benchmarks: Benchmarks, progress) -> None:
        self.recipe, self.inputs, self.rows = recipe, inputs, rows
        self.benchmarks, self.progress = benchmarks, progress
        self.result = Selection()
        self._where: list[tuple[int, int]] = []
        self._origin: list[str] = []

    def get(self, where: tuple[int, int]) -> dict:
        """The record at (0, input number) or (1, row number)."""
        return (self.inputs.buffer, self.rows.buffer)[where[0]][where[1]]

    def __call__(self) -> Selection:
        self._list()
        keep = np.ones(len(self._where), bool)
        splits = self._published(keep) if self.recipe.format == "mmedbench" else self._chosen(keep)
        result, seen, balance = self.result, set(), LetterBalance(self.recipe.letter_excess)
        for place, split in zip(np.flatnonzero(keep), splits):
            record = self.get(self._where[place])
            ident = _free(record["id"], seen)
            if ident != record["id"]:
                result.renamed[len(result.where)] = ident
            balance.add(record)
            result.where.append(self._where[place])
            result.split.append(split)
        if len(seen) != len(result.where):
            raise AssertionError(f"{len(result.where)} rows with {len(seen)} different ids")
        result.balance = balance.table()
        lost = result.candidates - len(result.where) - sum(c.total() for c in result.removed.values())
        if lost:
            raise AssertionError(f"{lost} of {result.candidates} candidates are unaccounted for")
        return result

    def records(self, split: str) -> Iterator[dict]:
        """The records of one split, in order."""
        for number, where in enumerate(self.result.where):
            if self.result.split[number] == split:
                record = self.get(where)
                yield {**record, "id": self.result.renamed[number]} if number in self.result.renamed else record

    def _chosen(self, keep: np.ndarray) -> list[str]:
        """Takes test items, duplicates and rows over target out of `keep`; the split of each row that stays."""
        self._contamination(keep)
        families, languages, hashes = self._pass(keep)
        self._targets(keep, languages, hashes)
        held = validation_rows(families[keep], languages[keep], hashes[keep], self.recipe.validation_fraction)
        return [VALIDATION if validation else KEPT for validation in held]

    def _published(self, keep: np.ndarray) -> list[str]:
        """A benchmark: all rows of its languages, in the splits of their sources."""
        for place in range(len(keep)):
            self.progress(1)
            language = self.get(self._where[place])["language"]
            if language not in self.recipe.languages:
                self._remove(keep, place, "another_language", language)
        return [self.recipe.source[self._origin[place]].split for place in np.flatnonzero(keep)]

    def _list(self) -> None:
        """All candidates: kept inputs, in their completed form, then generated rows."""
        recipe, inputs, rows = self.recipe, self.inputs, self.rows
        for i, entry in enumerate(inputs.entry):
            name = recipe.sources[entry]
            if recipe.source[name].keep:
                self._where.append((1, rows.newest(rows.replaced[i])) if i in rows.replaced else (0, i))
                self._origin.append(name)
        for i in rows.standing():
            self._where.append((1, rows.newest(i)))
            self._origin.append(recipe.steps[rows.step[i]])
        self.result.candidates = len(self._where)
        self.result.removed = {name: Counter() for name in (*recipe.sources, *recipe.steps)}

    def _remove(self, keep: np.ndarray, place: int, reason: str, detail: str, **facts: object) -> None:
        keep[place] = False
        self.result.removed[self._origin[place]][reason] += 1
        ident = self.get(self._where[place])["id"]
        line = {"id": ident, "stage": "selection", "reason": reason, "detail": detail, **facts}
        (self.result.contaminated if reason == "contamination" else self.result.rejects).append(line)

    def _contamination(self, keep: np.ndarray) -> None:
        """Rows that give a benchmark item away, and their families: inputs that are not kept count as parents."""
        lineage, hits = Families(), {}
        for i, row in enumerate(self.inputs.buffer):
            lineage.link(*_lineage(row))
            if i in self.inputs.hits:
                hits[i] = self.inputs.hits[i]
        offset = len(self.inputs.entry)
        for place, where in enumerate(self._where):
            self.progress(1)
            record = self.get(where)
            lineage.link(*_lineage(record))
            hit = self.inputs.hits.get(where[1]) if where[0] == 0 else self.benchmarks.check(as_record(record))
            if hit:
                hits[offset + place] = hit
        blocked = blocked_families(lineage, hits)
        for place in np.flatnonzero(blocked[offset:] >= 0):
            hit = hits.get(offset + int(place))
            cause = hit or hits[int(blocked[offset + place])]
            detail = f"{cause.benchmark}: {cause.item}"
            evidence = {"how": hit.look, "score": hit.score} if hit else {"how": "family"}
            self._remove(keep, int(place), "contamination", detail, **evidence)

    def _pass(self, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Duplicates and rows without rationale out; families, languages and hashes of all candidates."""
        dedup, families = Deduplicator(self.recipe.near_duplicates), Families()
        places, languages, hashes = array("I"), array("B"), array("Q")
        for place, where in enumerate(self._where):
            self.progress(1)
            record = self.get(where)
            families.link(*family_keys(record))
            languages.append(LANGUAGES.index(record["language"]))
            hashes.append(stable_hash(self.recipe.seed, record["id"]))
            if not keep[place]:
                continue
            if record["language"] not in self.recipe.languages:
                self._remove(keep, place, "another_language", record["language"])
            elif self.recipe.without_rationale == "drop" and kind_of(record) == "mcq" and not record["rationale"]:
                self._remove(keep, place, "no_rationale", "")
            else:
                dedup.add(record)
                places.append(place)
        for row, earlier, alike in dedup.duplicates():
            reason = "duplicate" if alike == 1.0 else "near_duplicate"
            of = self.get(self._where[places[earlier]])["id"]
            self._remove(keep, places[row], reason, f"of {of}", score=round(alike, 3))
        return families.numbers(), np.frombuffer(languages, np.uint8), np.frombuffer(hashes, np.uint64)

    def _targets(self, keep: np.ndarray, languages: np.ndarray, hashes: np.ndarray) -> None:
        """Languages with more rows than wanted: hand-written and original rows stay first, the rest by hash."""
        rank = np.array([self._rank(place) for place in range(len(self._where))], np.int64)
        for code, target in self.recipe.targets.items():
            rows = np.flatnonzero(keep & (languages == LANGUAGES.index(code)))
            if not target or len(rows) <= target:
                continue
            order = np.lexsort((hashes[rows], rank[rows]))
            for place in sorted(rows[order[target:]]):
                self._remove(keep, int(place), "over_target", f"{code}: {target}")

    def _rank(self, place: int) -> int:
        name = self._origin[place]
        return 0 if name == "handcrafted" else 1 if name in self.recipe.sources else 2


def _lineage(row: dict) -> list[tuple[str, str]]:
    return [key for key in family_keys(row) if key[0] == "id"]


def _free(ident: str, seen: set[int]) -> str:
    """`ident`, or with -2, -3, ... when an earlier row has it."""
    name, number = ident, 1
    while stable_hash(name) in seen:
        number += 1
        name = f"{ident}-{number}"
    seen.add(stable_hash(name))
    return name
