"""ROUGE-1, ROUGE-2 and ROUGE-L as the `rouge` package 1.0.1 computes them, to the last digit.

That package (github.com/pltrdy/rouge, what the MMedLM code uses) differs from other ROUGEs: sentences end at every ".",
words are what stands between spaces, n-grams count once however often they occur, and ROUGE-L counts the different
words in the union of the longest common subsequences of all pairs of sentences. It is written anew here because it
recurses once a word (Chinese and Japanese explanations, which have no ".", pass Python's limit) and fails on
empty texts.
"""

from collections.abc import Sequence


def rouge(hypothesis: str, reference: str) -> dict[str, float]:
    """{"rouge-1", "rouge-2", "rouge-l"}: F-scores, 0 to 1; 0 where either text has no words.

    Args: words separated by spaces (see word_split.join_words for Chinese and Japanese).
    """
    hyp, ref = _sentences(hypothesis), _sentences(reference)
    if not hyp or not ref:
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    hyp_words, ref_words = [w for s in hyp for w in s], [w for s in ref for w in s]
    common: set[str] = set()
    for r in ref:
        for h in hyp:
            common |= _common_words(r, h)
    return {
        "rouge-1": _overlap(hyp_words, ref_words, 1),
        "rouge-2": _overlap(hyp_words, ref_words, 2),
        "rouge-l": _f(len(common), len(set(hyp_words)), len(set(ref_words))),
    }


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; one of spaces alone has the empty word, as in the original."""
    return [" ".join(s.split()).split(" ") for s in text.split(".") if s]


def _overlap(hyp: Sequence[str], ref: Sequence[str], n: int) -> float:
    a, b = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (hyp, ref))
    return _f(len(a & b), len(a), len(b))


def _f(common: int, hyp: int, ref: int) -> float:
    precision, recall = common / hyp if hyp else 0.0, common / ref if ref else 0.0
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _common_words(x: list[str], y: list[str]) -> set[str]:
    """The different words of a longest common subsequence; among several the one that the original finds."""
    width = len(y) + 1
    table = [[0] * width]
    for word in x:
        above, row = table[-1], [0] * width
        for j in range(1, width):
            if word == y[j - 1]:
                row[j] = above[j - 1] + 1
            else:
                row[j] = above[j] if above[j] > row[j - 1] else row[j - 1]
        table.append(row)
    words, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
