"""Test questions of benchmarks are taken out of documents: on running text, by paragraph, named.

The rules of data_gen.sets.contamination, for texts that may be as long as a book: a test item is found where enough of
its character n-grams stand (letters and digits only: 16, of Han, kana and hangul 7; rare ones count for more):
THRESHOLD of the weight of passage, question and options together, or QUESTION_THRESHOLD of the question alone. But:
  place      the n-grams have to stand near one another, within twice the length of the item and a little more: every
             common phrase stands somewhere in a book
  lines      text runs on over the ends of lines, so that wrapping hides nothing
  shortness  a question that names nothing by itself ("Which of these is wrong?") counts only where at least half of its
             options, and two, follow; one shorter than an n-gram is not looked for at all (`BenchmarkIndex.unfindable`)
  language   not looked at: a document may quote in another one
A hit takes out the paragraphs (of long ones, the sentences) that hold it; a document of which too little is left is
dropped.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_gen.corpus.document_steps import DocumentRewriter
from data_gen.gates.ngrams import is_dense, mix64, normal_text
from data_gen.sets.contamination import DENSE_SIZE, QUESTION_THRESHOLD, SIZE, THRESHOLD, question_of
from mmed_jax.common.errors import UserError

# Letters and digits below which a question names nothing by itself, as in data_gen.sets.contamination.
_SHORT, _SHORT_DENSE = 40, 18
# A window is twice the item's length and so many letters and digits more.
_MARGIN = 400
# A paragraph longer than this is cut into sentences.
_LONG = 1000
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")
_LINE = re.compile(r"[^\n]*\n+|[^\n]+$")
# Of a paragraph that part belongs to a hit, or the paragraph to that part of the hit, from which it goes.
_OF_PARAGRAPH, _OF_HIT = 0.3, 0.3
TOO_LITTLE = "too little left beside test questions"


@dataclass(frozen=True)
class DecontaminationSettings:
    """What is taken out; JSON-able.

    threshold, question_threshold: shares of an item's weight (see the module's head). least_letters, least_share: a
    document that loses a paragraph is dropped where fewer letters and digits are left, or a smaller share of them.
    """

    threshold: float = THRESHOLD
    question_threshold: float = QUESTION_THRESHOLD
    least_letters: int = 200
    least_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("threshold", "question_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"decontamination: {name}={getattr(self, name)} is not above 0 and at most 1")


class Found(NamedTuple):
    """A test item in a document: of which benchmark, which, and how much of its weight stands together."""

    benchmark: str
    item: str
    share: float


class Item(NamedTuple):
    """A test item: its letters and digits; `options` only where they have to confirm a question that names nothing."""

    benchmark: str
    ident: str
    letters: int
    options: tuple[str, ...] = ()


def _rolling(letters: str, size: int) -> np.ndarray:
    """Hashes of all n-grams of a normal text in order, uint64 [len - size + 1] ([0] for a shorter one)."""
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    count = max(0, len(codes) - size + 1)
    hashes = np.zeros(count, np.uint64)
    for i in range(size):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += codes[i : i + count]
    return mix64(hashes)


def _size(letters: str) -> int:
    return DENSE_SIZE if is_dense(letters) else SIZE


class BenchmarkIndex:
    """N-grams of test items: `add` benchmarks, `save`, and `load` in every process, which maps the files into memory.

    17 bytes an n-gram, about 8 kB an item.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.unfindable: dict[str, int] = defaultdict(int)  # items by benchmark that are too short to be looked for
        self._pending: list[tuple[np.ndarray, np.ndarray, int]] = []
        self._arrays: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def add(self, benchmark: str, records: Iterable[dict]) -> int:
        """Takes the items of a benchmark (records of mmed_jax.data.records.schema); returns how many."""
        before = len(self.items)
        for record in records:
            question, options = (
                normal_text(question_of(record)),
                list(map(normal_text, record.get("options", {}).values())),
            )
            parts = [normal_text(record.get("context", "")), question, *options]
            short = len(question) < (_SHORT_DENSE if is_dense(question) else _SHORT)
            asked = np.unique(_rolling(question, _size(question)))
            if short and not parts[0]:
                # The question's n-grams alone are looked for, its options then read where it stands.
                grams, confirming = asked, tuple(option for option in options if option)
            else:
                grams, confirming = np.unique(np.concatenate([_rolling(part, _size(part)) for part in parts])), ()
            if not len(grams) or short and not parts[0] and len(confirming) < 2:
                self.unfindable[benchmark] += 1
                grams = grams[:0]
            self._pending.append((grams, np.isin(grams, asked) & ((not short) | bool(confirming)), len(self.items)))
            self.items.append(Item(benchmark, record["id"], sum(map(len, parts)), confirming))
        self._arrays = None
        return len(self.items) - before

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """hashes uint64 [g] in order; items int32, weights float32, question bool [g]; totals float64 [n, 2]: the
        weight of an item's n-grams, and of its question's."""
        if self._arrays is None:
            self._arrays = self._build()
        return self._arrays

    def _build(self) -> dict[str, np.ndarray]:
        empty = [(np.empty(0, np.uint64), np.empty(0, bool), 0)]
        hashes, question = (np.concatenate([part[i] for part in self._pending or empty]) for i in (0, 1))
        items = np.repeat(np.array([n for _, _, n in self._pending], np.int32), [len(g) for g, _, _ in self._pending])
        order = np.argsort(hashes, kind="stable")
        hashes, items, question = hashes[order], items[order], question[order].astype(bool)
        _, where, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        weights = (
            np.log1p(len(self.items) / counts)[where].astype(np.float32) if len(hashes) else np.empty(0, np.float32)
        )
        totals = np.zeros((len(self.items), 2))
        totals[:, 0] = np.bincount(items, weights, len(self.items)) if len(items) else 0
        totals[:, 1] = np.bincount(items, weights * question, len(self.items)) if len(items) else 0
        return {"hashes": hashes, "items": items, "weights": weights, "question": question, "totals": totals}

    def save(self, folder: Path) -> None:
        """Writes a .npy file an array, and items.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self.arrays.items():
            np.save(folder / f"{name}.npy", array)
        about = {"items": self.items, "unfindable": dict(self.unfindable)}
        (folder / "items.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "BenchmarkIndex":
        """Raises UserError where there is none."""
        try:
            about = json.loads((folder / "items.json").read_text(encoding="utf-8"))
            names = ("hashes", "items", "weights", "question", "totals")
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        except (OSError, ValueError) as error:
            raise UserError(f"no index of benchmarks: {error}", place=folder) from error
        index = cls()
        index.items = [Item(name, ident, n, tuple(options)) for name, ident, n, options in about["items"]]
        index.unfindable.update(about["unfindable"])
        index._arrays = arrays
        return index


class _Hits(NamedTuple):
    """N-grams of one item in a text, in order of place: where they begin, their number among the item's, their weight,
    whether they are of the question, how long they are."""

    places: np.ndarray
    grams: np.ndarray
    weights: np.ndarray
    question: np.ndarray
    sizes: np.ndarray


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each range, one after the other."""
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


def _hits(letters: str, index: BenchmarkIndex, settings: DecontaminationSettings) -> Iterator[tuple[int, _Hits]]:
    """(number of an item, its n-grams in the text) for every item of which the whole text has enough."""
    arrays = index.arrays
    entries, places, sizes = [], [], []  # of the index; where in the text; how long
    for size in (SIZE, DENSE_SIZE) if any(c > "\u2e7f" for c in letters) else (SIZE,):
        hashes = _rolling(letters, size)
        by_hash = np.argsort(hashes, kind="stable")
        distinct, first, times = np.unique(hashes[by_hash], return_index=True, return_counts=True)
        low = np.searchsorted(arrays["hashes"], distinct, "left")
        counts = np.searchsorted(arrays["hashes"], distinct, "right") - low
        entry = _ranges(low, counts)
        wanted = _enough(entry, arrays, settings)
        which = np.repeat(np.arange(len(distinct)), counts)[wanted]
        entries.append(np.repeat(entry[wanted], times[which]))
        places.append(by_hash[_ranges(first[which], times[which])])
        sizes.append(np.full(len(places[-1]), size))
    entry, place, length = map(np.concatenate, (entries, places, sizes))
    items = arrays["items"][entry]
    order = np.lexsort((place, items))
    entry, place, length, items = entry[order], place[order], length[order], items[order]
    for part in np.split(np.arange(len(items)), np.flatnonzero(np.diff(items)) + 1):
        if len(part):
            e = entry[part]
            yield int(items[part[0]]), _Hits(place[part], e, arrays["weights"][e], arrays["question"][e], length[part])


def _enough(entry: np.ndarray, arrays: dict[str, np.ndarray], settings: DecontaminationSettings) -> np.ndarray:
    """Numbers of those distinct entries whose items reach a third of a threshold with n-grams of one size.

    An item may have n-grams of both sizes, so that less than the threshold of each may be enough together.
    """
    items, where = np.unique(arrays["items"][entry], return_inverse=True)
    if not len(items):
        return np.empty(0, np.int64)
    weights, totals = arrays["weights"][entry], arrays["totals"][items]
    whole = np.bincount(where, weights) / np.maximum(totals[:, 0], 1e-9)
    asked = np.bincount(where, weights * arrays["question"][entry]) / np.maximum(totals[:, 1], 1e-9)
    enough = (whole >= settings.threshold / 3) | (asked >= settings.question_threshold / 3)
    return np.flatnonzero(enough[where])


def _windows(
    hits: _Hits, totals: np.ndarray, width: int, settings: DecontaminationSettings
) -> Iterator[tuple[int, int, float]]:
    """(first, last, share): runs of an item's n-grams that reach a threshold within `width` letters."""
    _, once = np.unique(hits.grams, return_index=True)
    if _over(hits.weights[once].sum(), (hits.weights * hits.question)[once].sum(), totals, settings) < 1:
        return
    grams, weights, question = hits.grams.tolist(), hits.weights.tolist(), hits.question.tolist()
    places = hits.places.tolist()
    inside: dict[int, int] = defaultdict(int)
    whole = asked = 0.0
    first = last = 0
    while last < len(places):
        while places[last] - places[first] > width:
            inside[grams[first]] -= 1
            if not inside[grams[first]]:
                whole, asked = whole - weights[first], asked - weights[first] * question[first]
            first += 1
        if not inside[grams[last]]:
            whole, asked = whole + weights[last], asked + weights[last] * question[last]
        inside[grams[last]] += 1
        last += 1
        if _over(whole, asked, totals, settings) >= 1:
            end = last
            while end < len(places) and places[end] - places[first] <= width:
                end += 1
            seen = np.unique(hits.grams[first:end], return_index=True)[1] + first
            share = max(
                hits.weights[seen].sum() / totals[0], (hits.weights * hits.question)[seen].sum() / max(totals[1], 1e-9)
            )
            yield first, end, float(share)
            inside.clear()
            whole = asked = 0.0
            first = last = end


def _over(whole: float, asked: float, totals: np.ndarray, settings: DecontaminationSettings) -> float:
    """How far an item's weights are beyond the nearer threshold (1: at it). A little is given for rounding."""
    alone = asked / totals[1] / settings.question_threshold if totals[1] else 0.0
    return max(whole / totals[0] / settings.threshold, alone) * (1 + 1e-6) if totals[0] else 0.0


def paragraphs(text: str) -> list[str]:
    """The pieces that are taken out or stay, in order; together they are the text."""
    pieces = []
    for line in _LINE.findall(text):
        if len(line) <= _LONG:
            pieces.append(line)
            continue
        start = 0
        for match in _SENTENCE.finditer(line):
            pieces.append(line[start : match.end()])
            start = match.end()
        pieces.append(line[start:])
    return [piece for piece in pieces if piece]


def find_items(
    letters: str, index: BenchmarkIndex, settings: DecontaminationSettings
) -> list[tuple[Found, np.ndarray]]:
    """Test items in a normal text (normal_text), each with the letters that are its own, bool [len(letters)]."""
    results: list[tuple[Found, np.ndarray]] = []
    if not len(index.arrays["hashes"]):
        return results
    for number, hits in _hits(letters, index, settings):
        item, totals = index.items[number], index.arrays["totals"][number]
        width = 2 * item.letters + _MARGIN
        # A question that names nothing by itself has to be there as a question.
        ask = (
            settings
            if not item.options
            else DecontaminationSettings(settings.question_threshold, settings.question_threshold)
        )
        for first, end, share in _windows(hits, totals, width, ask):
            start = int(hits.places[first])
            mine = np.zeros(len(letters), bool)
            for place, size in zip(hits.places[first:end], hits.sizes[first:end]):
                mine[place : place + size] = True
            if item.options:
                behind = letters[start : start + width]
                there = [option for option in item.options if option in behind]
                if len(there) < max(2, -(-len(item.options) // 2)):
                    continue
                for option in there:
                    place = start + behind.index(option)
                    mine[place : place + len(option)] = True
            results.append((Found(item.benchmark, item.ident, round(min(share, 1.0), 3)), mine))
    return results


def take_out(
    text: str, index: BenchmarkIndex, settings: DecontaminationSettings
) -> tuple[str, list[Found], str | None]:
    """(the text without paragraphs that hold test items, the items, why the document is dropped or None)."""
    pieces = paragraphs(text)
    normals = [normal_text(piece) for piece in pieces]
    found = find_items("".join(normals), index, settings)
    if not found:
        return text, [], None
    ends = np.cumsum([0, *map(len, normals)])
    lengths = np.diff(ends)
    gone = np.zeros(len(pieces), bool)
    for _, mine in found:
        share = np.diff(np.r_[0, np.cumsum(mine)][ends])
        gone |= (share > 0) & ((share >= _OF_PARAGRAPH * lengths) | (share >= _OF_HIT * mine.sum()))
    for i in np.flatnonzero(lengths[1:] == 0) + 1:
        gone[i] = gone[i - 1]  # signs alone go with what stands before them
    left = int(lengths[~gone].sum())
    kept = "".join(piece for piece, out in zip(pieces, gone) if not out)
    little = left < settings.least_letters or left < settings.least_share * ends[-1]
    items = list(dict.fromkeys(hit for hit, _ in found))
    return kept, items, TOO_LITTLE if little else None


class Decontaminate(DocumentRewriter):
    """Step: takes test questions out of documents; the hits stand as `test_items` in the metadata.

    Counts: `test items NAME` of every benchmark, `documents with test items`.
    """

    name = "decontamination"
    _lazy = ("_index",)

    def __init__(self, settings: DecontaminationSettings, index: Path | str, exclusion_writer=None) -> None:
        """index: a folder of BenchmarkIndex.save."""
        super().__init__(exclusion_writer)
        self.settings, self.folder = settings, str(index)
        self._index: BenchmarkIndex | None = None

    def rewrite(self, doc) -> tuple[str, dict[str, int], str | None]:
        self._index = self._index or BenchmarkIndex.load(Path(self.folder))
        text, found, reason = take_out(doc.text, self._index, self.settings)
        if not found:
            return text, {}, None
        doc.metadata["test_items"] = [list(hit) for hit in found]
        counts: dict[str, int] = defaultdict(int)
        for hit in found:
            counts[f"test items {hit.benchmark}"] += 1
        counts["documents with test items"] = 1
        return text, counts, reason
