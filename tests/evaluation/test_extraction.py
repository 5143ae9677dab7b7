"""Answer extraction on outputs as models really write them."""

import json
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.data.multiple_choice import answer_line, answer_text
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.extraction.extract import Extraction, extract, is_correct, normalise, split_rationale
from mmed_jax.evaluation.extraction.prepare_text import HEAD, TAIL, prepare

DRUGS = {"A": "Aspirin", "B": "Warfarin", "C": "Heparin", "D": "Clopidogrel", "E": "None of the above"}
BUGS = {"A": "S. aureus", "B": "Klebsiella pneumoniae", "C": "E. coli", "D": "C. difficile", "E": "B. fragilis"}
YES_NO = {"A": "yes", "B": "no", "C": "maybe"}
DA_NET = {"A": "да", "B": "нет"}

# One output a line: {"language": of the question, "output": what the model wrote, "letters": expected, or null}.
_CORPUS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").open(encoding="utf-8")]
LETTERS_ONLY = [(c["language"], c["output"], c["letters"]) for c in _CORPUS]

WITH_OPTIONS = [
    ("en", DRUGS, "Warfarin", "B", "option_text"),
    ("en", DRUGS, "warfarin.", "B", "option_text"),
    ("en", DRUGS, "Heparin\nIt does not cross the placenta.", "C", "option_text"),
    ("en", DRUGS, "The correct answer is heparin.", "C", "sentence:en:text"),
    ("en", DRUGS, "Answer: Clopidogrel", "D", "mark:en:text"),
    ("en", DRUGS, "Answer: B Warfarin", "B", "mark:en"),
    ("en", DRUGS, "None of the above", "E", "option_text"),
    ("en", DRUGS, "none of these", None, "none"),
    ("en", DRUGS, "Aspirin and warfarin are both used.", None, "none"),
    ("en", DRUGS, "Answer: Aspirin-like drugs", None, "none"),
    ("en", BUGS, "The answer is C. difficile.", "D", "sentence:en:text"),
    ("en", BUGS, "The answer is C. E. coli", "C", "sentence:en"),
    ("en", BUGS, "E. coli is the most common cause.", None, "none"),
    ("en", BUGS, "E. coli", "C", "option_text"),
    ("en", BUGS, "E. B. fragilis", "E", "leading"),
    ("en", BUGS, "Answer: A. S. aureus\nIt is coagulase positive.", "A", "mark:en"),
    ("en", YES_NO, "Yes, statins reduce mortality.", "A", "yes_no"),
    ("en", YES_NO, "No", "B", "option_text"),
    ("en", YES_NO, "Nobody knows.", None, "none"),
    ("en", YES_NO, "The answer is maybe.", "C", "sentence:en:text"),
    ("ru", DA_NET, "Да", "A", "option_text"),
    ("ru", DA_NET, "Нет, разрыв происходит в другой фазе.", "B", "yes_no"),
    ("ru", DA_NET, "Ответ: нет", "B", "mark:ru:text"),
    ("zh", {"A": "肝硬化", "B": "肝癌"}, "答案：肝癌", "B", "mark:zh:text"),
    ("zh", {"A": "肝炎", "B": "肝癌", "C": "A和B"}, "A和B", "C", "option_text"),
    ("fr", {"A": "B.C.G", "B": "Hépatite B"}, "A. B.C.G", "A", "leading"),
    ("fr", {"A": "Une hémophilie B.", "B": "Autre"}, "La bonne réponse est A. Une hémophilie B.", "A", "sentence:fr"),
    ("en", {"A": "# 1-2", "B": "# 5-16"}, "# 5-16", "B", "option_text"),
    ("en", {"A": "x", "B": "y"}, "Answer: C", None, "none"),
    ("en", dict.fromkeys("ABCDEFGH", "t"), "The answer is H.", "H", "sentence:en"),
    ("en", {"A": "ACE inhibitors", "B": "beta blockers", "C": "c", "D": "d", "E": "e"}, "ACE", None, "none"),
]


def test_letters():
    read = [(language, text, extract(text, "ABCDE", language).letters) for language, text, _ in LETTERS_ONLY]
    assert [pair for pair in zip(read, LETTERS_ONLY, strict=True) if pair[0] != pair[1]] == []


@pytest.mark.parametrize(("language", "options", "text", "expected", "rule"), WITH_OPTIONS)
def test_with_option_texts(language, options, text, expected, rule):
    assert extract(text, options, language) == Extraction(expected, rule)


def test_option_texts_do_not_disturb_letters():
    """The same outputs read the same when the options' (unrelated) texts are known."""
    options = {k: f"unrelated text {k.lower()}x" for k in "ABCDE"}
    cases = [c for c in LETTERS_ONLY if c[2] and c[2] != "A,C,E"]
    read = [(language, text, extract(text, options, language).letters) for language, text, _ in cases]
    assert [pair for pair in zip(read, cases, strict=True) if pair[0] != pair[1]] == []


@pytest.mark.parametrize("letter", "ABCDE")
@pytest.mark.parametrize(
    "mark", ["Answer: {}", "答案：{}", "正解：{}", "정답: {}", "Réponse : {}", "Respuesta: {}", "Ответ: {}"]
)
def test_mark_line_after_any_rationale(mark, letter):
    """The line that ends a trained answer decides, whatever letters the rationale names before it."""
    rationale = "Option A is incorrect. B is correct in children. The answer is C in adults. 答案是D。正解はEです。"
    found = extract(f"{rationale}\n\n{mark.format(letter)}", "ABCDE")
    assert found.letters == letter and found.rule.startswith("mark:")
    assert extract(mark.format("A,C"), "ABCDE").letters == "A,C"


def test_scoring_is_set_equality():
    assert normalise("c, A") == "A,C"
    assert is_correct("C,A", "A,C") and is_correct("B", "B")
    assert not is_correct("A", "A,C") and not is_correct("A,C", "A") and not is_correct(None, "A")


def test_unparsed_names_its_reason():
    assert extract("The answer is A or B.") == Extraction(None, "ambiguous")
    assert extract("no idea") == Extraction(None, "none")


# What a looping or hostile model repeats.
_FILLERS = [
    "<think>",
    "</think>",
    "Answer:",
    "Answer: A. Aspirin, ",
    "Answer B: x\n",
    "answer is ",
    "A is correct. ",
    "(",
    "**",
    "A, ",
    "Aが",
    '{"answer": ',
    "{",
    "\\boxed{",
    "\\text{",
    " ",
    "\n",
    "x \n",
    "\n\n2. ",
    '"',
    "'",
    "答案",
    "##",
    "<|a",
    "if A is right? ",
    "none of A, ",
    "it's A, ",
    "not A but ",
    "all are true except ",
    "makes A the ",
    "..., no ",
    "D：正解\n",
    "A ✅ ",
    "Aspirin (A), ",
    "given the, ",
    "is Aspirin, so ",
    "A\n\nA 6-year-old ",
    "А) Б) ",
]


@pytest.mark.parametrize("filler", _FILLERS)
def test_time_grows_with_the_length(filler):
    """Four times the characters that are read take about four times as long, and those that are left out hardly any."""

    def seconds(characters):
        text = filler * (characters // len(filler))
        start = time.process_time()
        extract(text, DRUGS, "en")
        return time.process_time() - start

    part, whole = seconds((HEAD + TAIL) // 4), seconds(3 * (HEAD + TAIL))
    # Where time grew with the square, it would be 16 times, and over a hundred where all is looked at.
    assert whole < 9 * max(part, 0.1)


@pytest.mark.parametrize("family", ["llama3", "mmedbench"])
@pytest.mark.parametrize("mode", ["direct", "rationale"])
def test_every_trained_answer_is_read_back(repo, family, mode):
    """What stage 2 trains the model to write is what extraction reads, for every record of the embedded demo."""
    records = list(read_records(repo / "data_gen" / "handcrafted" / "mcq.jsonl", "mcq"))
    assert len(records) >= 140
    for record in records:
        found = extract(answer_text(record, mode, family), record["options"], record["language"])
        assert found.letters == record["answer_idx"], (record["id"], found)


# ---- The corpus: outputs as models write them, with the letters and the rule that have to come out ------------------

CORPUS = [
    {"language": file.stem, **json.loads(line)}
    for file in sorted((Path(__file__).parent / "corpus").glob("*.jsonl"))
    for line in file.open(encoding="utf-8")
]
STATED = [c for c in CORPUS if c["rule"].startswith(("mark:", "sentence:", "choose:", "boxed", "is_answer"))]
MARKS = [answer_line(language, "{}") for language in LANGUAGES]


def test_the_corpus_is_what_it_claims_to_be():
    assert len(CORPUS) >= 300 and {c["language"] for c in CORPUS} == set(LANGUAGES)
    assert len({(c["output"], str(c["options"])) for c in CORPUS}) == len(CORPUS)
    kinds = {"right", "wrong", "hedged", "truncated", "contradictory", "multi", "list", "format", "none", "run_on"}
    assert {c["kind"] for c in CORPUS} == kinds
    for language in LANGUAGES:
        assert {c["kind"] for c in CORPUS if c["language"] == language} >= kinds - {"run_on"}
    for c in CORPUS:
        assert {*(c["letters"] or "A").split(","), *c["key"].split(",")} <= set(c["options"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_corpus(language):
    misread = []
    for case in (c for c in CORPUS if c["language"] == language):
        found = extract(case["output"], case["options"], language)
        is_right = is_correct(found.letters, case["key"])
        wanted = {"right": True, "multi": True} | dict.fromkeys(("wrong", "hedged", "truncated", "none"), False)
        if tuple(found) != (case["letters"], case["rule"]) or is_right != wanted.get(case["kind"], is_right):
            misread.append((found, case))
    assert not misread


def test_a_restated_option_list_changes_no_statement():
    """Neither before the output nor after it."""
    for c in STATED:
        lines = "\n".join(f"{k}. {v}" for k, v in c["options"].items())
        for listed in (lines, " ".join(f"({k}) {v}" for k, v in c["options"].items())):
            for text in (f"{listed}\n\n{c['output']}", f"{c['output']}\n\n{listed}"):
                assert extract(text, c["options"], c["language"]) == (c["letters"], c["rule"]), text


def test_the_last_mark_line_wins_over_everything_before_it():
    for i, c in enumerate(c for c in CORPUS if c["kind"] != "run_on"):
        letter, mark = list(c["options"])[i % len(c["options"])], MARKS[i % len(MARKS)]
        text = f"{c['output']}\n\n{mark.format(letter)}"
        assert extract(text, c["options"], c["language"]).letters == letter, text


def test_full_width_letters_read_as_plain_ones():
    wide = {ord(c): ord(c) + 0xFEE0 for c in "ABCDEabcde,:()"}
    for c in CORPUS:
        if c["rule"].startswith("mark:") and "<" not in c["output"]:
            text = c["output"].translate(wide)
            assert extract(text, c["options"], c["language"]) == (c["letters"], c["rule"]), text


def test_labels_in_russian_letters():
    """В is the third letter where Б or Г is one, and looks like the second where none is."""
    listed = "А) Aspirin; Б) Warfarin; В) Heparin; Г) Clopidogrel.\n\n"
    for mark in ("Ответ: {}", "Правильный ответ: {})", "Правильный ответ — {}."):
        read = {k: extract(mark.format(k), "ABCDE", "ru").letters for k in "АБВГ"}
        assert read == {"А": "A", "Б": "B", "В": "B", "Г": "D"}
        read = {k: extract(listed + mark.format(k), DRUGS, "ru").letters for k in "АБВГ"}
        assert read == {"А": "A", "Б": "B", "В": "C", "Г": "D"}
    assert extract("В данном случае ответ: Aspirin", DRUGS, "ru").letters == "A"
    assert extract("Ответ: Б", DRUGS, "en").letters is None


def test_none_of_these_is_no_answer():
    """In any language and dress, where no option says so; letters alone or with texts."""
    said = (
        "none of these",
        "None of the above",
        "neither",
        "以上都不是",
        "以上皆非",
        "没有正确答案",
        "該当なし",
        "どれも正しくない",
        "정답 없음",
        "해당 사항 없음",
        "aucune de ces réponses",
        "aucune proposition n'est exacte",
        "ninguna de las anteriores",
        "ninguna es correcta",
        "ни один из вариантов",
        "ничего из перечисленного",
        "нет верного ответа",
    )
    for text in said:
        for dressed in (text, text.capitalize() + ".", f"**{text}**", *(m.format(text) for m in MARKS)):
            for options in ("ABCDE", DRUGS | {"E": "Apixaban"}, DA_NET if "нет" not in text else YES_NO):
                for language in LANGUAGES:
                    assert extract(dressed, options, language).letters is None, (dressed, options)


# ---- The rationale before the statement ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama3", "mmedbench"])
def test_every_trained_rationale_comes_back_whole(repo, family):
    records = list(read_records(repo / "data_gen" / "handcrafted" / "mcq.jsonl", "mcq"))
    for r in records:
        text = answer_text(r, "rationale", family)
        assert split_rationale(text, r["options"], r["language"]) == r["rationale"].strip(), r["id"]


SPLITS = [
    ("en", "Wheeze and eczema.\n\n**Answer: B**", "Wheeze and eczema."),
    ("en", "Wheeze and eczema. Therefore, the correct answer is B.", "Wheeze and eczema."),
    ("en", "Wheeze and eczema.\n\nAnswer: B\n\nQuestion: what else?\nAnswer: C", "Wheeze and eczema."),
    ("en", "I think A at first. The answer is A. No: the answer is B.", "I think A at first. The answer is A. No"),
    ("en", "Answer: B\n\nBecause of the wheeze.", ""),
    ("en", "B", ""),
    ("en", "No statement here.", "No statement here."),
    ("en", "A is false. B is true.", "A is false. B is true."),
    ("en", "Cut off.\n\n### Question: a new one\nAnswer: C", "Cut off."),
    ("en", "The answer is A or B.", ""),
    ("zh", "血压为９０／６０ mmHg，①首先补液。因此，正确答案是Ｂ。", "血压为９０／６０ mmHg，①首先补液。"),
    ("ja", "ＳＴ上昇（Ⅱ、Ⅲ）と㎎単位の投与。\n\n正解：Ｂ", "ＳＴ上昇（Ⅱ、Ⅲ）と㎎単位の投与。"),
    ("ko", "혈압이 낮다. 따라서 정답은 B입니다.", "혈압이 낮다."),
    ("fr", "Fièvre à 39 °C. La bonne réponse est donc la B.", "Fièvre à 39 °C."),
    ("es", "Fiebre de 39 °C. Por lo tanto, la respuesta correcta es la B.", "Fiebre de 39 °C."),
    ("ru", "Доза 5 µг. Следовательно, правильный ответ: В", "Доза 5 µг."),
    ("en", "###Rationale: Text.\n###Answer: OPTION B IS CORRECT.</s>", "Text."),
    ("en", "", ""),
    ("en", "###Rationale: It lowers the,###Answer: OPTION B IS CORRECT.", "It lowers the,"),
    ("fr", "###Rationale: Le rein et la ###Answer: OPTION A,C IS CORRECT.", "Le rein et la"),
    ("en", "One.###Answer: OPTION A IS CORRECT. ###Rationale: Two.###Answer: OPTION B IS CORRECT.", "One."),
    ("en", "It lowers the, ### Answer: B", "It lowers the,"),
    ("es", "Baja la, Respuesta: B", "Baja la,"),
    ("en", "It lowers the pressure. The correct Answer: B", "It lowers the pressure."),
    ("en", "Wheeze. Answer: B\n\nIncorrect answer: C, it is teratogenic.", "Wheeze."),
    ("en", "Wheeze.\n\nAnswer: B\n\nWhy not:\nAnswer A: too slow.\nAnswer C: too weak.", "Wheeze."),
    ("zh", "血压低。正确答案：B\n错误答案：A、C", "血压低。"),
    ("ja", "血圧が低い。正解：B\n不正解：A、C", "血圧が低い。"),
    ("ko", "혈압이 낮다. 정답: B\n오답: A, C", "혈압이 낮다."),
    ("en", "<think>Maybe A. Answer: A</think>Wheeze. \\(\\boxed{B}\\)", "<think>Maybe A. Answer: A</think>Wheeze."),
]


@pytest.mark.parametrize(("language", "text", "rationale"), SPLITS)
def test_split_rationale(language, text, rationale):
    assert split_rationale(text, "ABCD", language) == rationale


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=60), st.sampled_from(MARKS))
@settings(max_examples=300, deadline=None)
def test_the_way_back_to_the_output_holds_for_any_text(text, mark):
    """Whatever the rationale holds, ligatures, marks and half-width kana too, it comes back to the character."""
    copy = prepare(text, aligned=True)
    assert len(copy.offsets) >= len(copy.text) and all(a <= b for a, b in pairwise(copy.offsets))
    if copy.end == len(text) and not set(text) & set("#*`$_<\\"):
        assert split_rationale(f"0{text}.\n\n{mark.format('B')}") == f"0{text}."


@pytest.mark.parametrize("text", ["ﾊﾞﾝｺﾏｲｼﾝ 5㎎", "e\u0301te\u0301", "\u1112\u1161\u11ab국", "Ａ①ﬁ℃ ½", "한국어 ガ ｶﾞ"])
def test_both_ways_of_preparing_agree(text):
    assert prepare(text, aligned=True).text == prepare(text).text == unicodedata.normalize("NFKC", text)


# ---- Replies that were cut off --------------------------------------------------------------------------------------

DOSES = {"A": "lisinopril", "B": "labetalol", "C": "losartan", "D": "methyldopa"}
_THOUGHTS = ("<think>", "<thinking>", "<reasoning>", "<THINK>", "[THINK]", "◁think▷", "<|channel|>analysis<|message|>")
_QUOTED = (
    "In a similar question the answer is C. Now this patient: lisinopril is",
    "先看一道类似的题，答案：C。\n\n现在看本题，患者为孕妇，",
    "似た問題では正解はCです。しかし、本問では妊婦であり、",
    "비슷한 문제에서 정답은 C입니다. 그러나 이 환자는 임신 중이며",
    "Dans un cas semblable la bonne réponse est C. Ici la patiente est enceinte, donc il faut",
    "En un caso parecido la respuesta es C. Pero aquí la paciente está",
    "В похожем вопросе правильный ответ: C. Но здесь пациентка беременна, поэтому",
)


@pytest.mark.parametrize("text", _QUOTED)
def test_a_cut_reply_is_not_read_for_what_it_quotes(text):
    """Not after finish reason "length", nor in a thought or an object that has no end; a finished reply as before."""
    assert extract(text, DOSES, "en", "length") == Extraction(None, "cut")
    assert split_rationale(text, DOSES, "en", "length") == text
    for opened in _THOUGHTS:
        assert extract(opened + text, DOSES, "en").letters is None
        assert extract(f"{opened}{text}", DOSES, "en", "stop").letters is None
    assert extract('{"step_by_step_thinking": "' + text, DOSES, "en").letters is None
    long = "She is at 24 weeks, and her pressure is 162/104 mmHg.\n" * 20 + text.strip("，、")
    assert extract(long, DOSES, "en").letters is None
    assert extract(f"{text}.\n\nAnswer: B", DOSES, "en", "stop").letters == "B"


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "B. labetalol\n\nLabetalol is safe",
        "Answer: B\n\nLabetalol is safe in pregnancy and",
        "B\n\nShe",
        "She is pregnant.\n\nAnswer: B",
        "She is pregnant. Therefore, the answer is B.",
        "患者为孕妇。\n\n答案：B",
        '{"answer": "B", "why": "safe in',
        "<think>Answer: C</think>\n\nAnswer: B",
        "妊婦である。正解：B",
        "She is pregnant. Therefore, the correct answer is B. labetalol, which",
        "B\n\nQuestion: What else?\nAnswer: C\n\nQuestion: And",
    ],
)
def test_a_cut_reply_counts_where_the_answer_opens_or_closes_it(text):
    assert extract(text, DOSES, "en", "length").letters == "B"


def test_a_cut_thought_that_has_changed_its_mind_is_no_answer():
    assert extract("<think>\nThe answer is probably B. In men the answer is C.", DOSES, "en").letters is None
    assert extract("<think>\nShe is pregnant. The answer is B.", DOSES, "en").letters == "B"


def test_a_cut_list_of_options_is_no_answer():
    for text in (
        "A. lisinopril is harmful. B. labetalol is",
        "A is correct. B is correct. C is",
        "A. lisinopril is an",
    ):
        assert extract(text, DOSES, "en", "length").letters is None


# ---- Fields of JSON -------------------------------------------------------------------------------------------------

FIELDS = (
    "answer",
    "answer_choice",
    "final_answer",
    "finalAnswer",
    "Final Answer",
    "choice",
    "correct_option",
    "letter",
    "答案",
    "正确答案",
    "选项",
    "回答",
    "正解",
    "答え",
    "정답",
    "최종 답변",
    "réponse",
    "bonne_réponse",
    "choix",
    "respuesta_correcta",
    "opción",
    "ответ",
    "правильный_ответ",
)
VALUES = {
    '"B"': "B",
    '"B. labetalol"': "B",
    '"(B)"': "B",
    '"option B"': "B",
    '"b"': "B",
    '"Labetalol"': "B",
    "B": "B",
    '["B"]': "B",
    '"B labetalol"': "B",
    '["A", "C"]': "A,C",
    '"A, C"': "A,C",
    '"A. lisinopril, C. losartan"': "A,C",
    '["A. lisinopril", "C. losartan"]': "A,C",
    "null": None,
    "2": None,
    '"2"': None,
    '"A or B"': None,
    '"none"': None,
    '""': None,
    '["A", "x"]': None,
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    """The field decides, whatever the object says besides, and broken objects are read as far as they go."""
    for value, letters in VALUES.items():
        texts = (
            f'{{"why": "Maybe the answer is D.", "{name}": {value}}}',
            f'{{"{name}": {value}, "why": "The answer is D in men."}}',
            f'Here it is:\n```json\n{{\n  "{name}": {value}\n}}\n```\nI hope this helps.',
            f'{{"why": "x"}} {{"{name}": {value}}}',
            f'{{"why": "Maybe the answer is D.\\n\\n{name}": {value}}}}}',
            f"{{'why': 'The answer is D', '{name}': {value}}}",
        )
        for text in texts:
            assert extract(text, DOSES, "en").letters == letters, text
    assert extract(f"{{'{name}': 'B'}}", DOSES).letters == extract(f"{{“{name}”：“B”}}", DOSES).letters == "B"
    assert extract(f'{{"{name}": "B"}}\n\nWait. Answer: C', DOSES).letters == "C"
    assert extract(f'{{"{name}": "B"}}\n{{"{name}": "C"}}', DOSES).letters is None
    assert extract(f'{{"wrong_{name}": "A", "{name}": "B"}}', DOSES).letters == "B"


# ---- Outputs of real models -----------------------------------------------------------------------------------------


def test_outputs_of_real_models(shared_dir):
    """97 in a hundred are read as expected, and none as a letter that is not."""
    lines = [json.loads(x) for x in (shared_dir / "model_outputs" / "outputs.jsonl").open(encoding="utf-8")]
    read = [(extract(x["output"], x["options"] or "ABCDE", x["language"]).letters, x["expected"]) for x in lines]
    assert [pair for pair in read if pair[0] not in (None, pair[1])] == []
    assert sum(got == expected for got, expected in read) >= 0.97 * len(read)
