"""Pages of books: which text layers are right, which lines run along, where words are put together."""

import hypothesis
import hypothesis.strategies as st
import pytest

from data_gen.corpus.book_pages import BookPage, drop_running_lines, join_lines, join_pages, join_words, page_ranges
from data_gen.corpus.text_layer import clean, garbled, is_image_book, picked_pages, shows_more

BODY = [f"Line {word} of the body of this page." for word in ("one", "two", "three", "four", "five", "six", "seven")]


def chapter(number: int) -> str:
    return ("Anaemia", "Asthma", "Diabetes")[number // 20]


def book(pages: int) -> list[list[str]]:
    """Title on the left pages, chapter on the right ones, a number below; a word in the middle of every page."""
    texts = []
    for n in range(pages):
        head = f"Handbook of Medicine   {n + 1}" if n % 2 else f"{n + 1}  {chapter(n)}"
        body = [f"{line} {chr(0x430 + n % 32)}{chr(0x61 + n // 32)}" for line in BODY]
        texts.append([head, "", *body, f"– {n + 1} –"])
        texts[-1][5] = "Treatment"
    return texts


def test_running_lines_go_and_those_of_the_text_stay():
    pages = book(60)
    kept = drop_running_lines(pages)
    assert kept == [page[2:-1] for page in pages]
    assert all("Treatment" in page for page in kept)
    short = book(2)
    assert drop_running_lines(short) == short, "two pages are too few to tell"
    # A line that the pages of one chapter have at their top goes there, and stays where it is the heading of another.
    once = [["Asthma", f"{'x' * n}."] for n in range(9)] + [[f"{'y' * n}."] for n in range(30)] + [["Asthma"]]
    assert [p for p in drop_running_lines(once) if "Asthma" in p] == [["Asthma"]]


def test_roman_page_numbers_are_numbers():
    pages = [[f"Foreword {n}", f"{'word ' * (i + 1)}end"] for i, n in enumerate(("vii", "viii", "ix", "x"))]
    assert all(len(page) == 1 for page in drop_running_lines(pages))


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("the cardio-\nvascular system", "the cardiovascular system"),
        ("кардио-\nлогия и терапия", "кардиология и терапия"),
        ("la res-\npiración", "la respiración"),
        ("soft\u00ad\nware and hard\u00adware", "software and hardware"),
        ("an anti-\ninflammatory drug; anti-inflammatory", "an anti-inflammatory drug; anti-inflammatory"),
        ("peut-\nêtre, mais peut-être", "peut-être, mais peut-être"),
        ("the Epstein-\nBarr virus", "the Epstein-\nBarr virus"),
        ("doses of 5-\n10 mg", "doses of 5-\n10 mg"),
        ("витамин-\nfree", "витамин-\nfree"),
        ("内-\n科", "内-\n科"),
        ("electro-\ncardio-\ngraphy", "electrocardiography"),
        ("a list:\n- one\n- two", "a list:\n- one\n- two"),
    ],
)
def test_words_divided_at_line_ends(text, joined):
    assert join_words(text) == joined


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.lists(st.text("abcdefgé", min_size=2, max_size=12), min_size=1, max_size=30), st.randoms())
def test_any_division_is_undone(words, draw):
    """Words that stand nowhere with a hyphen, divided anywhere, are the same text again."""
    divided = [f"{w[:k]}-\n{w[k:]}" if draw.random() < 0.4 else w for w in words for k in [draw.randrange(1, len(w))]]
    assert join_words(" ".join(divided)) == " ".join(words)


def test_a_sentence_goes_on_over_the_page():
    def joined(*texts):
        return join_pages([BookPage(number, text) for number, text in enumerate(texts, 1)])

    text = joined("It is a dis-", "ease of the lung", "and of the heart.", "New.")
    assert text == "It is a disease of the lung and of the heart.\n\nNew."
    assert joined("肺炎是肺的", "一种感染。", "糖尿病") == "肺炎是肺的一种感染。\n\n糖尿病"
    assert page_ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (
            "Fever is a sign of infection, which the\nbody fights.",
            "Fever is a sign of infection, which the body fights.",
        ),
        ("Лихорадка сопровождает инфекцию и\nпроходит сама.", "Лихорадка сопровождает инфекцию и проходит сама."),
        ("肺炎是由细菌或病毒引起的肺部感\n染。", "肺炎是由细菌或病毒引起的肺部感染。"),
        (
            "患者は疲労を感じ、皮膚が青白く、\n息切れがする。\n血液検査",
            "患者は疲労を感じ、皮膚が青白く、息切れがする。\n血液検査",
        ),
        ("息切れの症状があらわれます\n。血液検査", "息切れの症状があらわれます。血液検査"),
    ],
)
def test_lines_of_a_sentence_are_one(text, joined):
    assert join_lines(text) == joined


@pytest.mark.parametrize(
    "text",
    [
        "Signs are these and they are seen together:\nfever\ncough\nloss of weight",
        "The heart pumps the blood through the body.\nThe lungs bring oxygen into it, which is needed.",
        "a) the first answer of this question is long\nb) the second answer of this question is too",
        "Ibuprofen 400 mg three times a day with food\nParacetamol 500 mg four times a day if needed",
        "肺炎\n肺炎是由细菌或病毒引起的肺部感染，常见。\n患者发热咳嗽，呼吸困难，需要治疗和休息。",
        "철분 부족은 세계에서 가장 흔한 빈혈의\n원인이다",
    ],
)
def test_other_lines_stay(text):
    assert join_lines(text) == text


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.text("aB.-\n ，肺の가1", max_size=60))
def test_joining_lines_changes_nothing_but_spaces(text):
    joined = join_lines(text)
    assert "".join(joined.split()) == "".join(text.split()) and joined.count("\n\n") == text.count("\n\n")


def test_what_a_layer_is_worth():
    right = "The heart pumps blood through the vessels of the body. " * 5
    assert garbled(right) == garbled("") == garbled("Cœur, œdème, été : où ? Ça dépend de l’âge.\ufffe\r\n" * 4) == ""
    assert garbled(f"Contents\nAnaemia {'.' * 40} 12\nAsthma {'.' * 42} 15") == ""
    assert garbled(right + "\ufffd" * 20) == garbled(right + "\uf0a7" * 20) == "characters without a meaning"
    assert garbled("\x03\x18\x07 kd\x02e" * 9) == "characters without a meaning"
    assert garbled("Ìåäèöèíà è õèðóðãèÿ ëåãêèõ ó äåòåé") == "letters of a wrong encoding"
    assert garbled("^%$ #@! a &*( )_+ b ~`{ }|: c <>? ;'] d" * 3) == "few letters among its signs"
    assert clean("cardio\ufffevascular\r\nnext\x02 \x0cline") == "cardio-\nvascular\nnext line"


def test_a_sparse_page_is_compared_with_its_ink():
    assert not shows_more(0, 0.0) and not shows_more(8, 0.0004) and not shows_more(150, 0.02)
    assert shows_more(0, 0.01) and shows_more(30, 0.1)


def test_the_papers_rules():
    """Of books of 99, 100, 101 and 400 pages, counted from 0."""
    pages = {count: list(picked_pages(count)) for count in (99, 100, 101, 400)}
    assert pages == {
        count: [n for n in range(count) if count < 100 or n > 0.018 * count + 3 and n < count - 5] for count in pages
    }
    assert [len(p) for p in pages.values()] == [99, 90, 91, 384]
    assert is_image_book(["a" * 199] * 3) and not is_image_book(["a" * 200] * 3)
    assert is_image_book(["a" * 300 + " " * 301]) and not is_image_book(["a" * 300 + "." * 299])
