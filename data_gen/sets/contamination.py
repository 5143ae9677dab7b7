"""Rows that give a benchmark's test questions away: by id, by text, by near-duplicate, by family.

Four looks, in this order; the first that finds something names the reason:
  id      the row's id, or its source and original id, is that of a benchmark item
  parent  it was made from a benchmark item: the row's parent, a parent in its history, or its id without "@ko", "+full"
          and the like names one; or the other way round, where the benchmark is a translation
  group   the row's family is a benchmark item's: a parallel translation of a test question
  text    its question is a test question's, letter for letter after normalisation (short or formulaic questions: with
          the options)
  near    enough of a test item's character n-grams stand in the row, rare ones counting for more: THRESHOLD of the
          weight of passage, question and options together, or QUESTION_THRESHOLD of the question alone. Containment,
          not similarity: a test question inside a longer dialogue counts.
Parents and groups are compared within one source, where both sides name theirs and the name does not say it itself
("headqa-es-17"); bare numbers within one source only.
A translation has none of its parent's text, so the caller looks at parents too and removes whole families
(data_gen.sets.groups). Text and near look within one language.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from data_gen.gates.ngrams import is_dense, normal_text, shingles, text_key
from data_gen.sets.groups import MADE, bare, named_source
from mmed_jax.data.records.schema import LANGUAGES, kind_of

THRESHOLD = 0.5
QUESTION_THRESHOLD = 0.9
# n-gram lengths: long enough that one in common is no accident.
SIZE, DENSE_SIZE = 16, 7
# Letters and digits below which a question alone does not identify anything ("Which is false?").
_SHORT, _SHORT_DENSE = 40, 18
# What a list puts before its items: "A. ", "(2) ".
_LIST_MARK = re.compile(r"^\s*\(?(?:[A-Z]|\d{1,2})[.):、．]\s*")


class Hit(NamedTuple):
    """Why a row is contaminated: which benchmark, which item, by what look, how much of it (1.0 = all)."""

    benchmark: str
    item: str
    look: str
    score: float


def question_of(record: dict) -> str:
    """The question as the benchmark asks it: a dialogue's user messages, a question without its options."""
    if kind_of(record) == "mcq":
        return record["question"]
    return "\n".join(m["content"] for m in record["messages"] if m["role"] == "user")


def _options(record: dict) -> str:
    return "\n".join(sorted(map(normal_text, record.get("options", {}).values())))


def _grams(parts: Iterable[str]) -> np.ndarray:
    grams = [shingles(part, SIZE, DENSE_SIZE) for part in parts]
    return np.unique(np.concatenate(grams)) if grams else np.empty(0, np.uint64)


def _parts(record: dict) -> list[str]:
    """The texts to look in. Lines of a message are looked at alone too: it may list a question's options."""
    if kind_of(record) == "mcq":
        return [record.get("context", ""), record["question"], *record["options"].values(), record["rationale"]]
    messages = [m["content"] for m in record["messages"]]
    return messages + [_LIST_MARK.sub("", line) for m in messages if "\n" in m for line in m.splitlines()]


def _id(record: dict) -> object:
    """The id; a bare number ("17") only with its source."""
    return (named_source(record), record["id"]) if bare(record["id"]) else record["id"]


def _original(record: dict) -> tuple[str, str] | None:
    about = record["provenance"]
    if not about.get("original_id"):
        return None
    # Some sets number each split from 1: the number alone names nothing.
    return record["source"], f"{about.get('split', '')}:{about.get('exam', '')}:{about['original_id']}"


def _lineage(record: dict) -> list[tuple[str, str]]:
    """(look, name) of what a record descends from: parents, the id its own is made of, its group."""
    about = record["provenance"]
    parents = [about.get("parent"), *(step.get("parent") for step in about.get("history", ()))]
    if (origin := MADE.sub("", record["id"])) != record["id"]:
        parents.append(origin)
    names = [("parent", str(name)) for name in dict.fromkeys(parents) if name]
    return [*names, ("group", str(about["group"]))] if about.get("group") else names


def _places(name: str, source: str) -> set[str]:
    """The sources within which an item's name is known: its own, and any ("") where the name itself says it."""
    return {source, ""} if name.startswith(source) and not bare(name) else {source}


class Benchmarks:
    """Test items to be kept out. `add` them all, then `check` rows; memory is about 20 bytes an n-gram."""

    def __init__(self, threshold: float = THRESHOLD, question_threshold: float = QUESTION_THRESHOLD) -> None:
        self.threshold, self.question_threshold = threshold, question_threshold
        self.items: list[tuple[str, str]] = []  # (benchmark, id)
        self._languages: list[int] = []
        self._ids: dict[object, int] = {}
        self._names: dict[tuple[str, str], int] = {}  # (source or "", id, parent or group)
        self._unnamed: dict[str, int] = {}  # the same, whatever the source
        self._exact: dict[bytes, int] = {}
        self._options_of: dict[bytes, set[str]] = defaultdict(set)
        self._pending: list[tuple[np.ndarray, np.ndarray, int]] = []  # n-grams, whether of the question, item
        self._index: dict[int, tuple[np.ndarray, ...]] | None = None
        self._totals = np.empty((0, 2))  # weight of an item's n-grams: all, the question's

    def __len__(self) -> int:
        return len(self.items)

    def add(self, name: str, records: Iterable[dict]) -> int:
        """Takes the items of one benchmark; returns how many."""
        before = len(self.items)
        for record in records:
            number = len(self.items)
            self.items.append((name, record["id"]))
            self._languages.append(LANGUAGES.index(record["language"]))
            source = named_source(record)
            for ident in (_id(record), _original(record)):
                self._ids.setdefault(ident, number)
            for known in (record["id"], *(other for _, other in _lineage(record))):
                for place in _places(known, source):
                    self._names.setdefault((place, known), number)
                if not bare(known):
                    self._unnamed.setdefault(known, number)
            question, options = question_of(record), _options(record)
            self._options_of[text_key(record["language"], question)].add(options)
            self._exact.setdefault(text_key(record["language"], question), number)
            self._exact.setdefault(text_key(record["language"], question, options), number)
            in_question = shingles(question, SIZE, DENSE_SIZE)
            whole = _grams([record.get("context", ""), question, *record.get("options", {}).values()])
            # A question too short to name anything is looked for with its options only.
            self._pending.append((whole, np.isin(whole, in_question) & _identifies(question), number))
        self._ids.pop(None, None)
        self._index = None
        return len(self.items) - before

    def check(self, record: dict) -> Hit | None:
        """Whether this row gives a test item away (see the module's head), and which."""
        if not self.items:
            return None
        for look in (self._by_id, self._by_lineage, self._by_text, self._by_near):
            hit = look(record)
            if hit:
                return hit
        return None

    def _hit(self, number: int | None, look: str, score: float = 1.0) -> Hit | None:
        return None if number is None else Hit(*self.items[number], look, round(score, 3))

    def _by_id(self, record: dict) -> Hit | None:
        numbers = (self._ids.get(ident) for ident in (_id(record), _original(record)) if ident)
        return self._hit(next((n for n in numbers if n is not None), None), "id")

    def _by_lineage(self, record: dict) -> Hit | None:
        source = named_source(record)
        # The row's own id comes last: an item that was made from this row.
        for look, name in (*_lineage(record), ("parent", record["id"])):
            number = self._names.get((source, name))
            if number is None and not bare(name):
                number = self._names.get(("", name)) if source else self._unnamed.get(name)
            if number is not None:
                return self._hit(number, look)
        return None

    def _by_text(self, record: dict) -> Hit | None:
        question, language = question_of(record), record["language"]
        key = text_key(language, question)
        number = self._exact.get(key)
        if number is None:
            return None
        if len(self._options_of[key]) == 1 and _identifies(question):
            return self._hit(number, "text")
        return self._hit(self._exact.get(text_key(language, question, _options(record))), "text")

    def _by_near(self, record: dict) -> Hit | None:
        if self._index is None:
            self._build()
        index = self._index.get(LANGUAGES.index(record["language"]))
        if index is None:
            return None
        hashes, items, weights, in_question = index
        wanted = _grams(_parts(record))
        low = np.searchsorted(hashes, wanted, "left")
        counts = np.searchsorted(hashes, wanted, "right") - low
        low, counts = low[counts > 0], counts[counts > 0]
        if not len(low):
            return None
        places = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        numbers, where = np.unique(items[places], return_inverse=True)
        whole = np.bincount(where, weights[places]) / self._totals[numbers, 0]
        alone = np.bincount(where, weights[places] * in_question[places]) / np.maximum(self._totals[numbers, 1], 1e-9)
        over = np.maximum(whole / self.threshold, alone / self.question_threshold)
        best = int(np.argmax(over))
        return self._hit(int(numbers[best]), "near", float(max(whole[best], alone[best]))) if over[best] >= 1 else None

    def _build(self) -> None:
        """Per language: n-gram hashes in order, the item each belongs to, its weight log(1 + items / items with it)."""
        by_language: dict[int, list[tuple[np.ndarray, np.ndarray, int]]] = defaultdict(list)
        for pending in self._pending:
            by_language[self._languages[pending[2]]].append(pending)
        self._index, self._totals = {}, np.zeros((len(self.items), 2))
        for language, parts in by_language.items():
            hashes, in_question = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            items = np.repeat(np.array([n for _, _, n in parts], np.int32), [len(h) for h, _, _ in parts])
            order = np.argsort(hashes, kind="stable")
            hashes, items, in_question = hashes[order], items[order], in_question[order]
            _, where, counts = np.unique(hashes, return_inverse=True, return_counts=True)
            weights = np.log1p(len(parts) / counts)[where].astype(np.float32)
            self._totals[:, 0] += np.bincount(items, weights, len(self.items))
            self._totals[:, 1] += np.bincount(items, weights * in_question, len(self.items))
            self._index[language] = hashes, items, weights, in_question


def _identifies(question: str) -> bool:
    return len(normal_text(question)) >= (_SHORT_DENSE if is_dense(question) else _SHORT)
