"""Metrics of rationales against the libraries of the papers, called as the papers' code calls them."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from janome.tokenizer import Tokenizer
from nltk.tokenize import word_tokenize
from nltk.tokenize.punkt import PunktSentenceTokenizer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge import Rouge

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.extraction.extract import extract, is_correct, split_rationale
from mmed_jax.evaluation.metrics.rouge import rouge
from mmed_jax.evaluation.metrics.text_similarity import average, default_metrics, pairs_of, score_rationales
from mmed_jax.evaluation.metrics.word_split import words

# Model outputs in the mmedbench family: {"language", "answer": key, "response", "rationale": reference}.
RESPONSES = [json.loads(line) for line in (Path(__file__).parent / "responses.jsonl").open(encoding="utf-8")]
JANOME = Tokenizer()


def papers_rationale(response: str) -> str:
    return response.split("###Answer: OPTION ")[0].replace("###Rationale: ", "").strip()


def papers_right(response: str, key: str) -> bool:
    given = response.split("###Answer: OPTION ")[1].removesuffix(" IS CORRECT.")
    return set(given.split(",")) == set(key.split(","))


def papers_words(text: str, language: str) -> list[str]:
    """As metrics/rationale_similarity.py; sentences for word_tokenize by a Punkt without its download."""
    if language == "zh":
        return list(jieba.cut(text))
    if language == "ja":
        return [token.surface for token in JANOME.tokenize(text)]
    return [w for s in PunktSentenceTokenizer().tokenize(text) for w in word_tokenize(s, preserve_line=True)]


def papers_scores(hypothesis: str, reference: str, language: str) -> dict[str, float]:
    hyp, ref = papers_words(hypothesis, language), papers_words(reference, language)
    smooth = SmoothingFunction().method1
    orders = [(1, 0, 0, 0), (0.5, 0.5, 0, 0), (1 / 3, 1 / 3, 1 / 3, 0), (0.25, 0.25, 0.25, 0.25)]
    found = {
        f"bleu-{n}": sentence_bleu([ref], hyp, weights=w, smoothing_function=smooth) for n, w in enumerate(orders, 1)
    }
    texts = (" ".join(hyp), " ".join(ref)) if language in ("zh", "ja") else (hypothesis, reference)
    return found | {name: s["f"] for name, s in Rouge().get_scores(*texts)[0].items()}


def test_the_fixed_responses_score_as_with_the_papers_code():
    """Accuracy, BLEU-1..4, ROUGE-1/2/L: each item, each language's mean, and the mean of those, to 1e-6."""
    assert {r["language"] for r in RESPONSES} == set(LANGUAGES)
    pairs, papers, right = [], [], []
    for r in RESPONSES:
        found = extract(r["response"], "ABCDE", r["language"])
        right.append(is_correct(found.letters, r["answer"]))
        assert right[-1] == papers_right(r["response"], r["answer"])
        generated = split_rationale(r["response"], "ABCDE", r["language"])
        assert generated == papers_rationale(r["response"])
        pairs.append((r["language"], generated, r["rationale"]))
        papers.append(papers_scores(generated, r["rationale"], r["language"]))
    assert 0 < sum(right) < len(right)
    rows = score_rationales(pairs)
    assert list(rows[0]) == ["language", *default_metrics()]
    for row, expected in zip(rows, papers, strict=True):
        for metric, value in expected.items():
            assert math.isclose(row[metric], value, abs_tol=1e-6), (row["language"], metric)
            assert 0 < row["bleu-1"] < 1
    means = average(rows)
    for metric in papers[0]:
        by_language = {}
        for r, expected in zip(RESPONSES, papers):
            by_language.setdefault(r["language"], []).append(expected[metric])
        each = {lang: sum(v) / len(v) for lang, v in by_language.items()}
        for lang, value in each.items():
            assert math.isclose(means[metric][lang]["mean"], value, abs_tol=1e-6)
            assert means[metric][lang]["count"] == len(by_language[lang])
        assert math.isclose(means[metric]["average"]["mean"], sum(each.values()) / len(each), abs_tol=1e-6)
        assert means[metric]["average"]["count"] == len(RESPONSES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_cut_anywhere_is_split_as_by_the_papers_code(language):
    """Commas, articles and marks at its end are the text's, with the answer behind it or nothing."""
    text = next(r["response"] for r in RESPONSES if r["language"] == language).split("###Answer")[0]
    ends = ("the,", "l'", " y la", "因此，", "**", "_", "`x`", "#", "and the\n", "，所以")
    for cut in [text[:n] for n in range(20, len(text), 7)] + [text.strip() + " " + end for end in ends]:
        for behind in ("", "###Answer: OPTION B IS CORRECT.", "\n###Answer: OPTION A,C IS CORRECT.</s>"):
            assert split_rationale(cut + behind, "ABCDE", language) == papers_rationale(cut + behind)


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", ".", ". ", " ", "é"]), max_size=25),
    st.lists(st.sampled_from(["a", "b", "c", "d", ".", ". ", " ", "é"]), max_size=25),
)
@settings(max_examples=200, deadline=None)
def test_rouge_is_that_of_the_package(a, b):
    hypothesis, reference = " ".join(a), " ".join(b)
    try:
        expected = {name: s["f"] for name, s in Rouge().get_scores(hypothesis, reference)[0].items()}
    except (ValueError, ZeroDivisionError):  # nothing but full stops
        expected = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    assert rouge(hypothesis, reference) == pytest.approx(expected, abs=1e-12)


def test_long_texts_pass_the_packages_recursion():
    words_ = [f"w{i % 700}" for i in range(1500)]
    assert rouge(" ".join(words_), " ".join(words_))["rouge-l"] == pytest.approx(1, abs=1e-7)


def one(language, score):
    return {"language": language, **dict.fromkeys(default_metrics(), score)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_equal_texts_score_one_and_empty_ones_nothing(language):
    reference = next(r["rationale"] for r in RESPONSES if r["language"] == language)
    for text in (reference, words(reference, language)[0], "5 mg"):
        assert score_rationales([(language, f" {text}\n", text)])[0] == one(language, 1.0)
    assert score_rationales([(language, "", reference)])[0] == one(language, 0.0)
    assert score_rationales([(language, reference, " ")])[0] == one(language, None)


def test_words_of_each_language():
    assert words("Dr. Li isn't in. He left.", "en") == ("Dr", ".", "Li", "is", "n't", "in", ".", "He", "left", ".")
    assert words("La fièvre dure. L'asthme non.", "fr")[:4] == ("La", "fièvre", "dure", ".")
    assert words("首选肾上腺素。", "zh") == ("首选", "肾上腺素", "。")
    assert words("胸痛を認める。", "ja") == ("胸痛", "を", "認める", "。")
    assert words("통증이 있다. 열도 있다.", "ko") == ("통증이", "있다", ".", "열도", "있다", ".")


def test_the_sentence_cut_is_what_differs_from_whole_texts():
    """What the module says of word_tokenize: per sentence it is the same, over a whole text a full stop sticks."""
    one, two = "The pH was 7.1 in both.", "The pH was 7.1 in both. Both were treated."
    assert list(words(one, "en")) == word_tokenize(one, preserve_line=True)
    assert "both." in word_tokenize(two, preserve_line=True) and "both." not in words(two, "en")


def test_averages_are_over_items_then_languages():
    rows = [
        {"language": "en", "chrf": 0.2},
        {"language": "en", "chrf": 0.4},
        {"language": "en", "chrf": None},
        {"language": "ko", "chrf": 0.9},
    ]
    found = average(rows)["chrf"]
    assert found["en"] == {"mean": pytest.approx(0.3), "count": 2, "interval95": [0.2, 0.4]}
    assert found["ko"] == {"mean": 0.9, "count": 1, "interval95": None}
    assert found["average"] == {"mean": pytest.approx(0.6), "count": 3, "interval95": None}
    assert list(found) == ["en", "ko", "average"]
    assert average([]) == {} == average([{"language": "en", "chrf": None}])


def scored(seed=0, sizes=None):
    rng = np.random.default_rng(seed)
    return [
        {"language": lang, "chrf": float(x), "bleu-1": float(x / 2)}
        for lang, n in (sizes or {"en": 400, "ja": 100}).items()
        for x in rng.beta(2, 3, n)
    ]


def test_intervals_are_those_of_means():
    """Of a language as wide as the normal approximation, of the mean over languages as independent means add up."""
    rows = scored()
    found = average(rows)["chrf"]
    of = {lang: np.array([r["chrf"] for r in rows if r["language"] == lang]) for lang in ("en", "ja")}
    half = {lang: 1.96 * v.std() / len(v) ** 0.5 for lang, v in of.items()}
    for lang, v in of.items():
        low, high = found[lang]["interval95"]
        assert (low, high) == pytest.approx((v.mean() - half[lang], v.mean() + half[lang]), abs=0.05 * half[lang])
    low, high = found["average"]["interval95"]
    together = (half["en"] ** 2 + half["ja"] ** 2) ** 0.5 / 2
    assert (high - low) / 2 == pytest.approx(together, rel=0.05) and low < found["average"]["mean"] < high


def test_intervals_do_not_depend_on_the_order_of_items_or_on_chance():
    rows = scored(sizes={"en": 30, "ru": 20})
    assert average(rows) == average(scored(sizes={"en": 30, "ru": 20}))
    turned = average(random.Random(0).sample(rows, len(rows)))
    assert {m: {k: c["interval95"] for k, c in b.items()} for m, b in turned.items()} == {
        m: {k: c["interval95"] for k, c in b.items()} for m, b in average(rows).items()
    }


def test_metrics_over_different_items_each_have_their_own():
    rows = scored(sizes={"fr": 20})
    for row in rows[:5]:
        row["bleu-1"] = None
    found = average(rows)
    assert list(found) == ["bleu-1", "chrf"]
    assert (found["bleu-1"]["fr"]["count"], found["chrf"]["fr"]["count"]) == (15, 20)


def test_pairs_of_predictions():
    base = {"language": "en", "generated_rationale": "a", "rationale": "b", "rationale_checked": True}
    changes = ({"rationale_checked": None}, {"rationale_checked": False}, {"rationale": None})
    changes += ({"generated_rationale": None}, {"generated_rationale": ""})
    rows = [base, *({**base, **c} for c in changes)]
    assert pairs_of(rows) == [("en", "a", "b")] * 3 + [("en", "", "b")]
    assert pairs_of(rows, checked=True) == [("en", "a", "b"), ("en", "", "b")]


def test_chrf_is_sacrebleus():
    from sacrebleu.metrics import CHRF

    hypothesis, reference = "급성 충수염이 의심된다.", "급성 충수염으로 진단한다."
    expected = CHRF().sentence_score(hypothesis, [reference]).score / 100
    assert score_rationales([("ko", hypothesis, reference)], ["chrf"])[0]["chrf"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pair", "metrics", "line"),
    [
        (("en", "a", "b"), ["blue-1"], "metric 'blue-1' is unknown, did you mean 'bleu-1'?"),
        (("de", "a", "b"), ["bleu-1"], "language 'de' is unknown"),
        (("en", "a", "b"), ["bertscore"], "bertscore: needs the folder of its model"),
    ],
)
def test_mistakes_are_one_line(pair, metrics, line):
    with pytest.raises(UserError, match=line.replace("?", r"\?")) as e:
        score_rationales([pair], metrics)
    assert "\n" not in str(e.value)


def test_a_library_that_is_not_there_is_one_line():
    """In a process of its own where the libraries cannot be imported; the rest of the metrics still works."""
    code = (
        "import sys\n"
        "for name in ('nltk', 'jieba', 'janome', 'sacrebleu', 'torch'): sys.modules[name] = None\n"
        "from mmed_jax.evaluation.metrics.text_similarity import score_rationales\n"
        "for lang, metric in (('en', 'bleu-1'), ('zh', 'rouge-1'), ('ja', 'rouge-1'), ('ko', 'chrf')):\n"
        "    try: score_rationales([(lang, 'a', 'b')], [metric])\n"
        "    except Exception as e: print(type(e).__name__, e)\n"
        "print(score_rationales([('fr', 'un deux', 'un trois')], ['rouge-1']))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    for line, library in zip(out, ("nltk", "jieba", "janome", "sacrebleu")):
        assert line.startswith("UserError") and f"needs {library}, which is not installed: pip install" in line
    assert "0.49" in out[4] or "0.5" in out[4]
