"""Answer extraction on outputs as models really write them: (language, output, expected letters or None)."""

import pytest

from mmed_jax.evaluation.answers import Extraction, extract, is_correct, normalise

DRUGS = {"A": "Aspirin", "B": "Warfarin", "C": "Heparin", "D": "Clopidogrel", "E": "None of the above"}
BUGS = {"A": "S. aureus", "B": "Klebsiella pneumoniae", "C": "E. coli", "D": "C. difficile", "E": "B. fragilis"}
YES_NO = {"A": "yes", "B": "no", "C": "maybe"}
DA_NET = {"A": "да", "B": "нет"}

LETTERS_ONLY = [
    # English: statements
    ("en", "Answer: B", "B"),
    ("en", "The answer is (B).", "B"),
    ("en", "The answer is (B)", "B"),
    ("en", "**Answer:** C", "C"),
    ("en", "**Answer: C**", "C"),
    ("en", "Answer:\nD", "D"),
    ("en", "ANSWER = D", "D"),
    ("en", "Answer - B", "B"),
    ("en", "The correct answer is option D.", "D"),
    ("en", "The correct option is C because beta blockers reduce heart rate.", "C"),
    ("en", "Therefore, the best answer is \"A\".", "A"),
    ("en", "The most appropriate choice is E.", "E"),
    ("en", "So the final answer is $\\boxed{B}$.", "B"),
    ("en", "\\boxed{\\text{C}}", "C"),
    ("en", "<answer>D</answer>", "D"),
    ("en", "Final Answer: [E]", "E"),
    ("en", "I would choose B. The others are contraindicated in pregnancy.", "B"),
    ("en", "I'd go with C, since the troponin is normal.", "C"),
    ("en", "B is the correct answer.", "B"),
    ("en", "Because of the ST elevation, option A is the best choice.", "A"),
    ("en", "The patient has DKA. Thus, D.", "D"),
    ("en", "The answer to this question is B", "B"),
    ("en", "The answer is not A, but C.", "C"),
    ("en", "Answers: A and C", "A,C"),
    ("en", "The correct answers are A, C, and E.", "A,C,E"),
    ("en", "answer: b", "B"),
    ("en", "Answer: (c) and (a)", "A,C"),
    ("en", "###Answer: OPTION B IS CORRECT.", "B"),
    ("en", "###Rationale: Vitamin A is fat soluble.\n###Answer: OPTION D IS CORRECT.</s>", "D"),
    ("en", "###Answer: OPTION A,C IS CORRECT.", "A,C"),
    ("en", "OPTION C,E IS CORRECT", "C,E"),
    ("en", "The reasoning is long.\n\nAnswer: C<|eot_id|>", "C"),
    # English: the last statement wins
    ("en", "The answer is A. Wait, the renal function is poor. The correct answer is C.", "C"),
    ("en", "Answer: A\nOn reflection, the answer is D.", "D"),
    ("en", "A. Aspirin\nB. Warfarin\nC. Heparin\nD. Clopidogrel\n\nAnswer: C", "C"),
    ("en", "Options: A. Aspirin B. Warfarin C. Heparin D. Clopidogrel. The answer is D.", "D"),
    ("en", "Answer: B\n\nQuestion: A 30-year-old man ...\nA. x\nB. y\nAnswer: C", "B"),
    ("en", "Answer: B\n\n### Instruction:\nYou're a doctor.\n\n### Response:\nAnswer: D", "B"),
    ("en", "Could it be A? The correct answer would be A if the patient were febrile, but the answer is B.", "B"),
    # English: short replies
    ("en", "B", "B"),
    ("en", "b", "B"),
    ("en", "(B)", "B"),
    ("en", " B.", "B"),
    ("en", "**B**", "B"),
    ("en", "Option B", "B"),
    ("en", "\"D\"", "D"),
    ("en", "A, C", "A,C"),
    ("en", "A,C,E", "A,C,E"),
    ("en", "C and D", "C,D"),
    ("en", "ACE", "A,C,E"),
    ("en", "B\n\nExplanation: the drug crosses the placenta.", "B"),
    ("en", "B. Warfarin", "B"),
    ("en", "B) Warfarin is teratogenic.", "B"),
    ("en", "(C) Heparin", "C"),
    ("en", "D: Clopidogrel", "D"),
    ("en", "C, because it does not cross the placenta.", "C"),
    ("en", "The drug must not cross the placenta.\n\nC", "C"),
    # English: verdicts
    ("en", "Option A is incorrect. Option B is correct. Option C is incorrect.", "B"),
    ("en", "A is false. B is true. C is false. D is true.", "B,D"),
    ("en", "Neither A nor B is correct.", None),
    ("en", "A is not correct.", None),
    # English: no answer
    ("en", "none of these", None),
    ("en", "None of these options is suitable.", None),
    ("en", "A patient with these findings needs urgent surgery.", None),
    ("en", "A 45-year-old man should be given aspirin.", None),
    ("en", "The answer is a patient-centred approach.", None),
    ("en", "The answer is a beta blocker.", None),
    ("en", "Answer: A patient with sepsis should get fluids.", None),
    ("en", "The answer is hepatitis B.", None),
    ("en", "The answer is vitamin C deficiency.", None),
    ("en", "Vitamin B is the correct answer.", None),
    ("en", "The answer is C. difficile.", None),
    ("en", "E. coli is the most common cause.", None),
    ("en", "The answer is B-cell lymphoma.", None),
    ("en", "The answer is B cell lymphoma.", None),
    ("en", "The answer is A or B.", None),
    ("en", "Answer: A/B", None),
    ("en", "The answer is either A or C", None),
    ("en", "The answer is B. Hmm, or the answer is B or D.", None),
    ("en", "The answer is not B.", None),
    ("en", "Answer: N/A", None),
    ("en", "Answer: None", None),
    ("en", "I cannot determine the answer from the information given.", None),
    ("en", "Which option is correct?", None),
    ("en", "Answer: F", None),
    ("en", "The answer is CAD.", None),
    ("en", "A. Aspirin\nB. Warfarin\nC. Heparin\nD. Clopidogrel", None),
    ("en", "A. Aspirin\nB. Warfarin\nC. Heparin\nD", None),
    ("en", "Answer choices: A. Aspirin B. Warfarin C. Heparin", None),
    ("en", "As an AI model I am not a doctor.", None),
    ("en", "Both drugs may be used; see a doctor.", None),
    ("en", "", None),
    ("en", "   \n", None),
    # Chinese
    ("zh", "答案：A", "A"),
    ("zh", "答案:A", "A"),
    ("zh", "答案：Ａ", "A"),
    ("zh", "正确答案是B。", "B"),
    ("zh", "正确答案是（B）。", "B"),
    ("zh", "因此，答案选择C。", "C"),
    ("zh", "故选D。", "D"),
    ("zh", "故本题选 E。", "E"),
    ("zh", "【答案】C", "C"),
    ("zh", "答案为选项B", "B"),
    ("zh", "综上所述，正确的选项是D：急性阑尾炎。", "D"),
    ("zh", "答案：A、C", "A,C"),
    ("zh", "答案：ABD", "A,B,D"),
    ("zh", "答案是A和C", "A,C"),
    ("zh", "A", "A"),
    ("zh", "Ｂ。", "B"),
    ("zh", "C. 青霉素", "C"),
    ("zh", "C、青霉素", "C"),
    ("zh", "B是正确答案", "B"),
    ("zh", "A选项错误，B选项正确，C选项错误。", "B"),
    ("zh", "答案不是A，而是B。", "B"),
    ("zh", "本题考查肝硬化。A型血的人较多。", None),
    ("zh", "不选A。", None),
    ("zh", "首选ACE抑制剂。", None),
    ("zh", "答案是A或B", None),
    ("zh", "以上都不是", None),
    ("zh", "应选用ABO血型相同的血液。", None),
    ("zh", "A. 青霉素\nB. 红霉素\nC. 四环素", None),
    # Japanese
    ("ja", "正解はAです。", "A"),
    ("ja", "正解：A", "A"),
    ("ja", "答えはBである。", "B"),
    ("ja", "したがって、正解はＣです。", "C"),
    ("ja", "正解：A、C", "A,C"),
    ("ja", "正解はAとDです。", "A,D"),
    ("ja", "解答：b", "B"),
    ("ja", "よって、cが正解である。", "C"),
    ("ja", "正しい選択肢はDです。", "D"),
    ("ja", "【正解】E", "E"),
    ("ja", "Bを選択します。", "B"),
    ("ja", "Aは誤りである。Bが正しい。", "B"),
    ("ja", "答えはAではなくBです。", "B"),
    ("ja", "選択肢C", "C"),
    ("ja", "D：急性心筋梗塞", "D"),
    ("ja", "B型肝炎が疑われる。", None),
    ("ja", "正解はB型肝炎です。", None),
    ("ja", "正解はAまたはBです。", None),
    ("ja", "該当するものはない。", None),
    # Korean
    ("ko", "정답: A", "A"),
    ("ko", "정답：B", "B"),
    ("ko", "정답은 A입니다.", "A"),
    ("ko", "따라서 정답은 C이다.", "C"),
    ("ko", "정답은 (D)입니다.", "D"),
    ("ko", "답: E", "E"),
    ("ko", "정답은 B번입니다.", "B"),
    ("ko", "정답 C", "C"),
    ("ko", "B가 정답입니다.", "B"),
    ("ko", "정답: A, D", "A,D"),
    ("ko", "정답은 A와 C입니다.", "A,C"),
    ("ko", "**정답: D. 급성 충수염**", "D"),
    ("ko", "올바른 선택지는 B입니다.", "B"),
    ("ko", "정답은 A가 아니라 B입니다.", "B"),
    ("ko", "A형 간염이 의심됩니다.", None),
    ("ko", "정답은 B형 간염입니다.", None),
    ("ko", "정답은 A 또는 B입니다.", None),
    ("ko", "해당 사항 없음", None),
    # French
    ("fr", "Réponse : A", "A"),
    ("fr", "Réponse: B.", "B"),
    ("fr", "La bonne réponse est la B.", "B"),
    ("fr", "La réponse correcte est l'option C.", "C"),
    ("fr", "Les bonnes réponses sont A, C et E.", "A,C,E"),
    ("fr", "Réponses : A et C", "A,C"),
    ("fr", "Réponses exactes : B, D", "B,D"),
    ("fr", "La réponse est donc D", "D"),
    ("fr", "Réponse : a, c", "A,C"),
    ("fr", "A et C", "A,C"),
    ("fr", "Les propositions correctes sont B et D.", "B,D"),
    ("fr", "L'option B est correcte car elle inhibe la pompe.", "B"),
    ("fr", "B est la bonne réponse.", "B"),
    ("fr", "Réponse : C'est une urgence.", None),
    ("fr", "Réponse : D'après les données, il faut opérer.", None),
    ("fr", "A priori, aucune de ces réponses.", None),
    ("fr", "La réponse est A ou B.", None),
    ("fr", "Aucune de ces propositions.", None),
    ("fr", "À mon avis, il faut un traitement par antibiotiques.", None),
    # Spanish
    ("es", "Respuesta: A", "A"),
    ("es", "La respuesta correcta es la B.", "B"),
    ("es", "La respuesta correcta es la opción D.", "D"),
    ("es", "Respuesta correcta: C)", "C"),
    ("es", "Por lo tanto, la respuesta es D.", "D"),
    ("es", "La opción correcta es la C, ya que reduce la mortalidad.", "C"),
    ("es", "Las respuestas correctas son A y C.", "A,C"),
    ("es", "La B es la respuesta correcta.", "B"),
    ("es", "La opción B es correcta.", "B"),
    ("es", "Respuesta: E", "E"),
    ("es", "Respuesta: A la exploración presenta fiebre.", None),
    ("es", "A la exploración presenta fiebre.", None),
    ("es", "La respuesta es A o B", None),
    ("es", "Ninguna de las anteriores", None),
    ("es", "E. coli es el germen más frecuente.", None),
    # Russian, Latin letters and Cyrillic lookalikes
    ("ru", "Ответ: A", "A"),
    ("ru", "Ответ: А", "A"),
    ("ru", "Ответ: В.", "B"),
    ("ru", "Ответ: С", "C"),
    ("ru", "Ответ: Е", "E"),
    ("ru", "Ответ: А, С", "A,C"),
    ("ru", "Правильный ответ — B.", "B"),
    ("ru", "Правильный ответ: D", "D"),
    ("ru", "Верный вариант ответа — С.", "C"),
    ("ru", "Правильным ответом является вариант B.", "B"),
    ("ru", "Следовательно, ответ B, так как препарат безопасен.", "B"),
    ("ru", "Ответ: A и C", "A,C"),
    ("ru", "В", "B"),
    ("ru", "С.", "C"),
    ("ru", "B — правильный ответ.", "B"),
    ("ru", "Вариант B верный.", "B"),
    ("ru", "В данном случае показана операция.", None),
    ("ru", "Ответ: В данном случае показана операция.", None),
    ("ru", "Ответ: С учётом анамнеза показана терапия.", None),
    ("ru", "А также необходимо наблюдение.", None),
    ("ru", "Ответ: A или B", None),
    ("ru", "Ни один из вариантов.", None),
    ("ru", "Гепатит B", None),
    # Cyrillic lookalikes outside Russian context are no letters
    ("en", "В", None),
    ("en", "The answer is В.", None),
    # the reply's language need not be the question's
    ("ko", "The answer is B.", "B"),
    ("ja", "答案：C", "C"),
    ("en", "Ответ: В", "B"),
]

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
    ("en", {"A": "x", "B": "y"}, "Answer: C", None, "none"),
    ("en", dict.fromkeys("ABCDEFGH", "t"), "The answer is H.", "H", "sentence:en"),
    ("en", {"A": "ACE inhibitors", "B": "beta blockers", "C": "c", "D": "d", "E": "e"}, "ACE", None, "none"),
]


@pytest.mark.parametrize(("language", "text", "expected"), LETTERS_ONLY)
def test_letters(language, text, expected):
    assert extract(text, "ABCDE", language).letters == expected


@pytest.mark.parametrize(("language", "options", "text", "expected", "rule"), WITH_OPTIONS)
def test_with_option_texts(language, options, text, expected, rule):
    assert extract(text, options, language) == Extraction(expected, rule)


@pytest.mark.parametrize(("language", "text", "expected"), [c for c in LETTERS_ONLY if c[2] and c[2] != "A,C,E"])
def test_option_texts_do_not_disturb_letters(language, text, expected):
    """The same outputs read the same when the options' (unrelated) texts are known."""
    options = {k: f"unrelated text {k.lower()}x" for k in "ABCDE"}
    assert extract(text, options, language).letters == expected


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


@pytest.mark.parametrize("filler", ["lorem ", "A ", "A, ", "( ", "答案", "answer is ", "option A "])
def test_long_repetitive_output_is_read_in_time(filler):
    """A looping model writes thousands of repeats; no rule may take quadratic time over them."""
    import time

    start = time.perf_counter()
    extract(filler * 2000, DRUGS, "en")
    assert time.perf_counter() - start < 5
