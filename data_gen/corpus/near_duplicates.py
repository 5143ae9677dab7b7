"""Documents that are almost the same: MinHash over word n-grams, banded (Broder 1997), within a language.

14 bands of 8 hashes over 5-grams of words, the setting of FineWeb: two documents that share the part s of their n-grams
meet in a band with probability 1 - (1 - s^8)^14, which is one half near s = 0.7. What datatrove's stages lose, and
what this does instead (each has its test):
  numbers     stay as they are; there every number becomes 0
  doses       documents whose sets of quantities differ (5 mg, 8 hours, 3 tablets) are never duplicates, however long
              they are: a leaflet of another strength is another leaflet
  words       one character of Han, kana or hangul each, else runs of letters and digits: no models of a language
  short ones  a document of fewer than five words is one n-gram of all its words
  candidates  documents that meet in a band are compared by all 112 hashes before one counts as the other's duplicate
  chains      of a like b like c, c stays unless it is like a; there the whole chain is one
  removal     by document id (removal.py), so that files may come, go and change their order
A signature is a pure function of text, language and settings. 240 bytes a document.
"""

import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_gen.corpus.removal import Removals, id_key, key_array
from data_gen.corpus.text_forms import nfkc
from data_gen.gates.ngrams import mix64
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.languages.scripts import SCRIPTS

_NONE, _RUN, _DENSE = 0, 1, 2
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Hashes of n-grams at once: 112 of each are in memory.
_BLOCK = 4096
_UNITS = """
    mg mcg µg μg ug g kg ml cl dl l iu ui u mmol mol mmhg kpa bpm gy % °c mm cm h hr min s
    hours? minutes? days? weeks? months? tablets? capsules? drops? puffs? times doses? sachets? units?
    heures? jours? semaines? mois comprimés? gélules? gouttes? fois sachets? unités?
    horas? minutos? días? semanas? meses comprimidos? cápsulas? gotas? veces dosis sobres? unidades
    мг мкг г кг мл л ме ед час(?:а|ов)? минут[аы]? дн(?:я|ей) день недел[яиью]+ месяц(?:а|ев)? таблет(?:ка|ки|ок)
    капсул[аы]? кап(?:ля|ли|ель) раза? доз[аы]?
    毫克 微克 千克 公斤 克 毫升 升 小时 分钟 天 日 周 个月 次 片 粒 滴 袋 支 单位
    ミリグラム グラム ミリリットル 時間 分 週 か月 ヶ月 回 錠 カプセル 包 滴 単位
    밀리그램 그램 밀리리터 시간 분 일 주 개월 회 정 캡슐 포 방울 단위
"""
_LATIN_UNITS = [u for u in _UNITS.split() if u[0] < "\u2e80"]
_DENSE_UNITS = sorted((u for u in _UNITS.split() if u[0] >= "\u2e80"), key=len, reverse=True)
# No part of a word or number, nor of a date or time of day ("5月3日", "5월 3일", "3時5分").
_BEGINNING = r"(?<![^\W\u2e80-\uffff])(?<![.,月时時월시])(?<![월시] )"
_DOSE = re.compile(
    rf"{_BEGINNING}\d+(?:[.,]\d+)*\s?-?(?:(?:{'|'.join(_LATIN_UNITS)})(?![^\W\d_])|(?:{'|'.join(_DENSE_UNITS)}))"
)


@dataclass(frozen=True)
class NearSettings:
    """What near duplicates depend on; JSON-able.

    n_grams: words of an n-gram. bands, rows: of the signature. least: share of all hashes that has to agree, 0 to let
    every pair pass that meets in a band. doses: keep documents apart whose quantities differ. seed: of the hashes.
    """

    n_grams: int = 5
    bands: int = 14
    rows: int = 8
    least: float = 0.7
    doses: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.n_grams, self.bands, self.rows) < 1:
            raise UserError("near duplicates: n_grams, bands and rows are at least 1")
        if not 0 <= self.least <= 1:
            raise UserError(f"near duplicates: least={self.least} is not between 0 and 1")


@functools.cache
def _classes() -> np.ndarray:
    """uint8 [65536]: _RUN for letters and digits, _DENSE for those that are a word each, _NONE for the rest."""
    kinds = np.zeros(1 << 16, np.uint8)
    for code in range(1 << 16):
        if (character := chr(code)).isalnum():
            dense = code >= 0x1100 and any(SCRIPTS[n].match(character) for n in ("han", "kana", "hangul"))
            kinds[code] = _DENSE if dense else _RUN
    kinds[[ord("ー"), ord("々")]] = _DENSE
    return kinds


@functools.cache
def _powers(count: int) -> np.ndarray:
    """Odd numbers uint64 [count]: a word's letters are weighed by them."""
    with np.errstate(over="ignore"):
        return np.multiply.accumulate(np.full(count, _MULTIPLIER, np.uint64))


def word_hashes(text: str) -> np.ndarray:
    """A hash for every word of a text in order, uint64 [n]; words as this module's head says, NFKC and lower case."""
    codes = np.frombuffer(nfkc(text).lower().encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _classes()[np.minimum(codes, 0xFFFF)]
    beyond = codes > 0xFFFF
    kinds[beyond] = np.where((codes[beyond] >= 0x20000) & (codes[beyond] < 0x40000), _DENSE, _NONE)
    before = np.r_[np.uint8(_NONE), kinds[:-1]]
    starts = np.flatnonzero((kinds == _DENSE) | (kinds == _RUN) & (before != _RUN))
    if not len(starts):
        return np.empty(0, np.uint64)
    place = np.arange(len(codes)) - np.repeat(np.r_[0, starts], np.diff(np.r_[0, starts, len(codes)]))
    letters = np.where(kinds == _NONE, np.uint64(0), codes.astype(np.uint64) + np.uint64(1))
    return mix64(np.add.reduceat(letters * _powers(256)[np.minimum(place, 255)], starts))


def ngram_hashes(words: np.ndarray, size: int) -> np.ndarray:
    """Distinct hashes of a text's n-grams of `size` words, uint64; of all words together where there are fewer."""
    size = min(size, len(words))
    if not size:
        return words
    count = len(words) - size + 1
    hashes = np.zeros(count, np.uint64)
    for i in range(size):
        hashes = hashes * _MULTIPLIER + words[i : i + count]
    return np.unique(mix64(hashes))


def doses(text: str) -> frozenset[str]:
    """The quantities of a text as they are written, without spaces: {"5mg", "8hours"}."""
    return frozenset(re.sub(r"[\s-]", "", dose) for dose in _DOSE.findall(nfkc(text).lower()))


class Signer:
    """Signatures of documents."""

    def __init__(self, settings: NearSettings) -> None:
        self.settings = settings
        rng = np.random.Generator(np.random.PCG64(settings.seed))
        count = settings.bands * settings.rows
        self._factors = rng.integers(0, 2**64, (count, 1), np.uint64) | np.uint64(1)
        self._terms = rng.integers(0, 2**64, (count, 1), np.uint64)

    def hashes(self, text: str) -> np.ndarray | None:
        """The smallest hashes of a text's n-grams, uint64 [bands * rows]; None for a text without a word."""
        grams = ngram_hashes(word_hashes(text), self.settings.n_grams)
        if not len(grams):
            return None
        smallest = np.full(len(self._factors), np.uint64(2**64 - 1))
        for start in range(0, len(grams), _BLOCK):
            values = grams[start : start + _BLOCK] * self._factors + self._terms
            np.minimum(smallest, values.min(axis=1), out=smallest)
        return smallest

    def keys(self, hashes: np.ndarray, text: str, language: str | None) -> np.ndarray:
        """A key for every band, uint64 [bands]: of its hashes, the language and the doses of the text."""
        named = [language or "", *(sorted(doses(text)) if self.settings.doses else ())]
        about = hashlib.blake2b("\x1f".join(named).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        rows = hashes.reshape(self.settings.bands, self.settings.rows)
        keys = np.arange(self.settings.bands, dtype=np.uint64) ^ np.frombuffer(about, "<u8")
        for i in range(self.settings.rows):
            keys = mix64(keys * _MULTIPLIER + rows[:, i])
        return keys


@dataclass(frozen=True)
class Signatures:
    """Signatures of n documents; those without a word have none.

    ids: of removal.key_array, uint64 [n, 2]. keys: of the bands, uint64 [n, bands]. checks: a byte of each hash, uint8
    [n, bands * rows].
    """

    ids: np.ndarray
    keys: np.ndarray
    checks: np.ndarray

    @classmethod
    def of(cls, documents: Iterable[tuple[str, str, str | None]], settings: NearSettings) -> "Signatures":
        """Of documents as (id, text, language)."""
        signer = Signer(settings)
        ids, keys, checks = [], [], []
        for ident, text, language in documents:
            hashes = signer.hashes(text)
            if hashes is not None:
                ids.append(id_key(ident))
                keys.append(signer.keys(hashes, text, language))
                checks.append((mix64(hashes) & np.uint64(255)).astype(np.uint8))
        count = settings.bands * settings.rows
        return cls(
            key_array(ids),
            np.array(keys, np.uint64).reshape(-1, settings.bands),
            np.array(checks, np.uint8).reshape(-1, count),
        )

    @classmethod
    def joined(cls, parts: Iterable["Signatures"]) -> "Signatures":
        parts = list(parts)
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "keys", "checks")))

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, ids=self.ids, keys=self.keys, checks=self.checks)

    @classmethod
    def load(cls, path: Path) -> "Signatures":
        try:
            with np.load(path) as arrays:
                return cls(arrays["ids"], arrays["keys"], arrays["checks"])
        except (ValueError, EOFError, KeyError, OSError) as error:
            raise WorkError(f"no signatures of documents: {error}", place=path) from error


def near_duplicates(table: Signatures, settings: NearSettings, earlier: np.ndarray | None = None) -> Removals:
    """Which documents almost repeat another one that stays: each that goes was compared with the one it goes for.

    earlier: bool [n], documents of an earlier corpus, which stay; None for none. Documents are taken in the order of
    their keys, those of an earlier corpus first; one that stays removes all that it was found to be like. There are no
    chains: what is like a document that went is not removed for that. Rounds go on among those that stay until none is
    found.
    """
    earlier = np.zeros(len(table.ids), bool) if earlier is None else earlier
    order = np.lexsort((table.ids[:, 1], table.ids[:, 0], ~earlier))
    goes_for = np.full(len(order), -1)
    left = order  # those that stay so far, in order
    while True:
        pairs = candidate_pairs(table.keys[left])
        pairs = pairs[_agreement(table.checks[left], pairs) >= settings.least]
        found = False
        for first, other in pairs.tolist():
            if goes_for[left[first]] < 0 and goes_for[left[other]] < 0 and not earlier[left[other]]:
                goes_for[left[other]] = left[first]
                found = True
        if not found:
            break
        left = left[goes_for[left] < 0]
    gone = order[goes_for[order] >= 0]
    gone = gone[np.lexsort((table.ids[gone, 1], table.ids[gone, 0]))]
    return Removals(table.ids[gone], table.ids[goes_for[gone]])


def candidate_pairs(keys: np.ndarray) -> np.ndarray:
    """Pairs (smaller, greater) of rows that share a key in a band, int [m, 2], in order.

    Of the rows that share one, each with the first and with the one before it: their number grows with the rows.
    """
    pairs = [np.empty((0, 2), np.int64)]
    for band in keys.T:
        by_key = np.argsort(band, kind="stable")
        same = band[by_key][1:] == band[by_key][:-1]
        places = np.flatnonzero(same) + 1
        first = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(band)), 0)) if len(band) else places
        pairs += [np.stack([by_key[other], by_key[places]], axis=1) for other in (places - 1, first[places])]
    return np.unique(np.concatenate(pairs), axis=0)


def _agreement(checks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The estimated share of common n-grams of pairs, float [m]: of the hashes that agree, less chance (1 in 256)."""
    shares = [
        (checks[block[:, 0]] == checks[block[:, 1]]).mean(axis=1)
        for block in np.array_split(pairs, max(1, len(pairs) // 100_000))
    ]
    return (np.concatenate(shares) - 1 / 256) / (1 - 1 / 256)
