"""Published thresholds of the quality rules, by language.

English: those of FineWeb (arXiv 2406.17557), which are the defaults of datatrove's GopherRepetitionFilter,
GopherQualityFilter and FineWebQualityFilter (the first two after Gopher, arXiv 2112.11446, table A1).
The others: FineWeb-2 (arXiv 2506.20920), fra_Latn, spa_Latn, rus_Cyrl, jpn_Jpan, kor_Hang and cmn_Hani of configs/ in
github.com/huggingface/fineweb-2 at d0defb2, Apache-2.0, by Hugging Face; rules that its pipeline switches off are None
here. Not taken over: language_score, which is GlotLID's, and the greatest length of 100,000 words, which no book
would pass.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Of the rules of quality.py; None switches a rule off. Shares are of characters where the name says so."""

    stop_words: tuple[str, ...]
    line_punct: float
    new_lines: float
    char_duplicates: float
    dup_lines: float
    dup_n_grams: tuple[tuple[int, float], ...]
    top_n_grams: tuple[tuple[int, float], ...]
    word_length: tuple[float, float]
    alpha_words: float
    short_lines: float | None = None
    dup_line_chars: float | None = None
    dup_paragraphs: float | None = None
    dup_paragraph_chars: float | None = None
    least_words: int = 50
    least_stop_words: int = 2
    symbols: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3


def _repeated(*shares: float) -> tuple[tuple[int, float], ...]:
    """Thresholds of n-grams of 5 to 10 words."""
    return tuple(zip(range(5, 11), shares))


def _most(*shares: float) -> tuple[tuple[int, float], ...]:
    """Thresholds of the commonest n-gram of 2, 3 and 4 words."""
    return tuple(zip(range(2, 5), shares))


THRESHOLDS = {
    "en": Thresholds(
        stop_words=("the", "be", "to", "of", "and", "that", "have", "with"),
        line_punct=0.12,
        new_lines=0.3,
        char_duplicates=0.01,
        dup_lines=0.3,
        dup_n_grams=_repeated(0.15, 0.14, 0.13, 0.12, 0.11, 0.1),
        top_n_grams=_most(0.2, 0.18, 0.16),
        word_length=(3, 10),
        alpha_words=0.8,
        short_lines=0.67,
        dup_line_chars=0.2,
        dup_paragraphs=0.3,
        dup_paragraph_chars=0.2,
    ),
    "fr": Thresholds(
        stop_words=tuple("de la le et à en l' des du les est d' un une il dans par au".split()),
        line_punct=0.1,
        new_lines=0.185,
        char_duplicates=0.1,
        dup_lines=0.264,
        dup_n_grams=_repeated(0.15, 0.141, 0.131, 0.121, 0.111, 0.1),
        top_n_grams=_most(0.161, 0.149, 0.134),
        word_length=(2, 11),
        alpha_words=0.812,
    ),
    "es": Thresholds(
        stop_words=tuple("de la en el y a que del los se por un con una las su".split()),
        line_punct=0.182,
        new_lines=0.138,
        char_duplicates=0.1,
        dup_lines=0.252,
        dup_n_grams=_repeated(0.145, 0.136, 0.127, 0.117, 0.108, 0.099),
        top_n_grams=_most(0.156, 0.14, 0.125),
        word_length=(3, 14),
        alpha_words=0.825,
    ),
    "ru": Thresholds(
        stop_words=tuple("в и на с года по году из был к не от что за для его как а он также до после".split()),
        line_punct=0.231,
        new_lines=0.139,
        char_duplicates=0.1,
        dup_lines=0.322,
        dup_n_grams=_repeated(0.168, 0.156, 0.145, 0.133, 0.121, 0.109),
        top_n_grams=_most(0.184, 0.164, 0.146),
        word_length=(3, 11),
        alpha_words=0.713,
    ),
    "ja": Thresholds(
        stop_words=tuple("の に を は た て が と で 年 し ・ 月 れ さ".split()),
        line_punct=0.096,
        new_lines=0.13,
        char_duplicates=0.1,
        dup_lines=0.328,
        dup_n_grams=_repeated(0.243, 0.225, 0.207, 0.19, 0.175, 0.159),
        top_n_grams=_most(0.239, 0.196, 0.172),
        word_length=(1, 6),
        alpha_words=0.759,
    ),
    "ko": Thresholds(
        stop_words=tuple("의 다 이 는 에 을 한 년 하 은 를 했 고 에서 가 있 으로 인 월 로 되".split()),
        line_punct=0.062,
        new_lines=0.196,
        char_duplicates=0.1,
        dup_lines=0.374,
        dup_n_grams=_repeated(0.201, 0.184, 0.168, 0.154, 0.14, 0.127),
        top_n_grams=_most(0.282, 0.228, 0.185),
        word_length=(1, 6),
        alpha_words=0.791,
    ),
    "zh": Thresholds(
        stop_words=tuple("的 年 在 月 是 和 日 了 於 · 為 有 被 人 中 为 他 與 後 也 而 由".split()),
        line_punct=0.106,
        new_lines=0.178,
        char_duplicates=0.1,
        dup_lines=0.287,
        dup_n_grams=_repeated(0.198, 0.182, 0.167, 0.154, 0.14, 0.127),
        top_n_grams=_most(0.256, 0.201, 0.171),
        word_length=(1, 5),
        alpha_words=0.735,
    ),
}
