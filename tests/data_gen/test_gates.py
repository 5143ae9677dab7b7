"""Every gate on rows that are right and rows that are wrong, in the seven languages and from a model that errs."""

from types import SimpleNamespace

import pytest

from data_gen.gates.fields import named_texts
from data_gen.gates.letter_balance import LetterBalance, skewed
from data_gen.gates.quantities import quantities
from data_gen.gates.text_quality import volume
from data_gen.methods import METHODS, THRESHOLDS, default_gates, make_method
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES, validate_record
from mmed_jax.data.sources import Conversion, get_source
from mmed_jax.llm_api.types import Job, Reject, Request
from tests.support.fake_model import answer

SETTINGS = SimpleNamespace(model="m", params={"temperature": 0.2})

QUESTION = {
    "en": ("Which drug is first-line treatment of biliary cholangitis?", ["Ursodeoxycholic acid", "Prednisone"]),
    "zh": ("原发性胆汁性胆管炎的一线治疗药物是什么？", ["熊去氧胆酸", "泼尼松"]),
    "ja": ("胆汁性胆管炎の第一選択薬はどれか。", ["ウルソデオキシコール酸", "プレドニゾロン"]),
    "ko": ("담즙성 담관염의 일차 치료제는 무엇인가?", ["우르소데옥시콜산", "프레드니손"]),
    "fr": ("Quel est le traitement initial de la cholangite ?", ["Acide ursodésoxycholique", "Prednisone"]),
    "es": ("¿Cuál es el tratamiento inicial de la colangitis?", ["Ácido ursodesoxicólico", "Prednisona"]),
    "ru": ("Какой препарат первой линии при холангите?", ["Урсодезоксихолевая кислота", "Преднизолон"]),
}
RATIONALE = {
    "en": "Ursodeoxycholic acid slows the progression of the disease and improves survival. Prednisone does neither. "
    "Therefore, the correct answer is {}.",
    "zh": "熊去氧胆酸可以延缓疾病进展并改善患者的生存率，而泼尼松没有这样的作用，长期使用还会加重骨质疏松。因"
    "此，正确答案是{}。",
    "ja": "ウルソデオキシコール酸は病気の進行を遅らせ、生存率を改善する。プレドニゾロンにはそのような効果がな"
    "い。したがって、正解は{}である。",
    "ko": "우르소데옥시콜산은 질병의 진행을 늦추고 생존율을 높인다. 프레드니손은 그런 효과가 없다. 따라서 정답"
    "은 {}이다.",
    "fr": "L'acide ursodésoxycholique ralentit la progression de la maladie et améliore la survie. La prednisone "
    "n'a pas cet "
    "effet. La bonne réponse est donc la {}.",
    "es": "El ácido ursodesoxicólico retrasa la progresión de la enfermedad y mejora la supervivencia. La prednisona "
    "no lo "
    "hace. Por tanto, la respuesta correcta es la {}.",
    "ru": "Урсодезоксихолевая кислота замедляет прогрессирование болезни и улучшает выживаемость. Преднизолон такого "
    "действия не имеет. Следовательно, правильный ответ — {}.",
}
REFUSALS = (
    "I'm sorry, but I can't help with that. Please consult a qualified professional about this medical question "
    "instead.",
    "很抱歉，我无法回答这个医学问题，请您咨询专业的医生，以便获得准确的诊断和治疗建议，谢谢您的理解。",
    "申し訳ありませんが、この医学的な質問にはお答えできません。専門の医師に相談してください。ご理解のほどお願"
    "いします。",
    "죄송하지만 이 의학적 질문에는 답변을 드릴 수 없습니다. 전문 의사와 상담하시기 바랍니다. 양해해 주셔서 감사합니다.",
    "Je suis désolé, mais je ne peux pas répondre à cette question médicale. Veuillez consulter un médecin.",
    "Lo siento, pero no puedo responder a esta pregunta médica. Por favor, consulte a un profesional de la salud.",
    "Извините, но я не могу ответить на этот медицинский вопрос. Пожалуйста, обратитесь к врачу-специалисту.",
)


def mcq(language: str = "en", answer_idx: str = "A", **more) -> dict:
    question, options = QUESTION[language]
    fields = {"question": question, "options": dict(zip("AB", options)), "answer_idx": answer_idx, **more}
    return validate_record({"id": f"q-{language}", "language": language, "license": "MIT", **fields}, "test")


def job(method: str, parent: dict, **target) -> Job:
    request = Request(model="m", messages=(), params={}, schema=None, prompt_version=f"{method}/1")
    return Job(parent["id"], method, request, parent, {"language": parent["language"], **target})


def verdict(method: str, parent: dict, record: dict, thresholds: dict | None = None, **target) -> str:
    """The reason of the first gate that rejects, or the flags with commas."""
    flags = []
    for gate in default_gates(method, thresholds):
        try:
            flags.append(gate(job(method, parent, **target), record))
        except Reject as e:
            return e.reason
    return ",".join(f for f in flags if f)


@pytest.mark.parametrize("language", LANGUAGES)
def test_rationales(language: str):
    parent, text = mcq(language), RATIONALE[language]
    assert verdict("rationale", parent, {**parent, "rationale": text.format("A")}) == ""
    assert verdict("rationale", parent, {**parent, "rationale": text.format("B")}) == "key"
    other = "fr" if language != "fr" else "es"
    assert verdict("rationale", parent, {**parent, "rationale": RATIONALE[other].format("A")}) == "language"
    assert verdict("rationale", parent, {**parent, "rationale": parent["question"]}) in ("copy", "too_short")
    loop = text.split("A")[0].format("") * 12
    assert verdict("rationale", parent, {**parent, "rationale": loop}) == "repetition"


def test_a_rationale_without_letters_names_the_option_or_is_refused():
    parent = mcq()
    said = "Ursodeoxycholic acid slows the progression of the disease, as trials over several years have shown clearly."
    unsaid = "This drug slows the progression of the disease, as trials over several years have shown very clearly."
    assert verdict("rationale", parent, {**parent, "rationale": said}) == ""
    assert verdict("rationale", parent, {**parent, "rationale": unsaid}) == "key"
    assert verdict("rationale", parent, {**parent, "rationale": unsaid}, {"key_required": False}) == "key_unstated"


ARTERIES = {"A": "Left anterior descending artery", "B": "Right coronary artery", "C": "Left circumflex artery"}
ARGUES = "ST elevation in II, III and aVF points at the inferior wall of the heart, which has its own supply of blood. "


@pytest.mark.parametrize(
    "end",
    [
        "The right coronary artery is often named, but the culprit is the left circumflex artery. Therefore the left "
        "circumflex artery is occluded.",
        "The right coronary artery is not occluded in such a case, as the lead aVR shows.",
        "None of the options is correct: the right coronary artery would give another picture.",
        "I am not certain. It could be the right coronary artery or the left circumflex artery.",
        "It could be the right coronary artery or another one.",
        "C fits best here. The right coronary artery does not.",
        "The right coronary artery comes to mind; one should choose C here.",
        "The right coronary artery would give a slow pulse, so I settle on option C.",
        "The right coronary artery is likely in others. The correct answer is number 3, the circumflex.",
        "Neither the right coronary artery nor the left circumflex artery is occluded.",
        "It is the left circumflex artery rather than the right coronary artery.",
        "This is known from the anatomy of the heart and of its vessels.",
        "B is correct in most cases, but here option C fits best.",
        "None of these options is right. Therefore, the correct answer is B.",
    ],
)
def test_rationales_that_argue_for_another_option_or_for_none(end: str):
    parent = {**mcq(), "options": ARTERIES, "answer_idx": "B"}
    assert verdict("rationale", parent, {**parent, "rationale": ARGUES + end}) == "key"


@pytest.mark.parametrize(
    "end",
    [
        "Therefore the right coronary artery is occluded.",
        "It is the right coronary artery, not the left circumflex artery.",
        "The left circumflex artery is ruled out by lead I, and the right coronary artery remains.",
        "The left circumflex artery would raise lead I. Only the right coronary artery fits. It is treated by "
        "reperfusion.",
        "So the vessel is the right coronary artery (option B), while option C would not show in these leads.",
        "Hepatitis C and vitamin C play no part. The right coronary artery is the vessel in question.",
        "I think of a vessel that may be narrow or closed. Therefore, the correct answer is B.",
    ],
)
def test_rationales_that_name_the_right_option_in_words(end: str):
    parent = {**mcq(), "options": ARTERIES, "answer_idx": "B"}
    assert verdict("rationale", parent, {**parent, "rationale": ARGUES + end}) == ""


@pytest.mark.parametrize(
    "language, said, denied",
    [
        ("zh", "因此应选用熊去氧胆酸，而不是泼尼松。", "因此应选用泼尼松，而不是熊去氧胆酸。"),
        (
            "ja",
            "プレドニゾロンは適応ではない。したがってウルソデオキシコール酸を用いる。",
            "ウルソデオキシコール酸は適応ではない。したがってプレドニゾロンを用いる。",
        ),
        (
            "ko",
            "프레드니손은 쓰지 않는다. 따라서 우르소데옥시콜산을 쓴다.",
            "우르소데옥시콜산은 쓰지 않는다. 따라서 프레드니손을 쓴다.",
        ),
        (
            "fr",
            "On donne l'acide ursodésoxycholique et non la prednisone.",
            "On donne la prednisone et non l'acide ursodésoxycholique.",
        ),
        (
            "es",
            "No se usa prednisona. Se da ácido ursodesoxicólico.",
            "Me quedo con la opción B, aunque el ácido ursodesoxicólico es conocido.",
        ),
        (
            "ru",
            "Преднизолон не показан. Назначают урсодезоксихолевую кислоту.",
            "Урсодезоксихолевая кислота не показана. Назначают преднизолон.",
        ),
    ],
)
def test_conclusions_in_words_in_other_languages(language: str, said: str, denied: str):
    parent = mcq(language)
    before = RATIONALE[language].split("。因")[0].split("。したがって")[0].split(" 따라서")[0]
    before = before.split(" La bonne")[0].split(" Por tanto")[0].split(" Следовательно")[0].rstrip("。") + ". "
    assert verdict("rationale", parent, {**parent, "rationale": before + said}) == ""
    assert verdict("rationale", parent, {**parent, "rationale": before + denied}) == "key"


def test_several_right_answers():
    options = {"A": "Fever", "B": "Headache", "C": "Rash"}
    parent = {**mcq(), "options": options, "answer_idx": "A,C"}
    text = "Fever and rash are both signs of the disease, and both appear within two days. The correct answers are {}."
    assert verdict("rationale", parent, {**parent, "rationale": text.format("A and C")}) == ""
    assert verdict("rationale", parent, {**parent, "rationale": text.format("A and B")}) == "key"
    assert verdict("rationale", parent, {**parent, "rationale": text.format("A")}) == "key"


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_in_every_language(text: str):
    parent = mcq()
    assert verdict("rationale", parent, {**parent, "rationale": text}) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is the rationale: ",
        "My training data end in 2023. ",
        "```json ",
        "<|eot_id|>",
        "<<<DATA 0123456789ab",
        '{"rationale": "',
        "Based on the provided passage, ",
        "According to the given answer, ",
    ],
)
def test_boilerplate_and_leaks(text: str):
    parent = mcq()
    whole = RATIONALE["en"].format("A")
    assert verdict("rationale", parent, {**parent, "rationale": f"{text}{whole}"}) == "boilerplate"
    quoted = {**parent, "question": f"{text} What is this?"}  # the source says it itself
    assert verdict("rationale", quoted, {**quoted, "rationale": f"{text}{whole}"}) == ""


@pytest.mark.parametrize(
    "said",
    [
        "According to the passage, it slows the disease. ",
        "As an AI, I was told by the system prompt to say so. ",
        "It slows the disease. I'm sorry, but I cannot help with the rest. ",
        "I was instructed to explain this. ",
    ],
)
def test_words_about_the_task_in_the_middle(said: str):
    parent = mcq()
    text = f"Ursodeoxycholic acid is a bile acid. {said}{RATIONALE['en'].format('A')}"
    assert verdict("rationale", parent, {**parent, "rationale": text}) == "boilerplate"


@pytest.mark.parametrize("start", ["Of course, no drug cures it. ", "Certainly the liver is at fault. "])
def test_words_that_only_look_like_a_preamble(start: str):
    parent = mcq()
    assert verdict("rationale", parent, {**parent, "rationale": start + RATIONALE["en"].format("A")}) == ""


def test_length_and_disclaimer():
    parent = mcq()
    assert verdict("rationale", parent, {**parent, "rationale": "It is A."}) == "too_short"
    long = " ".join(f"word{i} is one of many words that say little." for i in range(400))
    assert verdict("rationale", parent, {**parent, "rationale": long}) == "too_long"
    advice = RATIONALE["en"].format("A") + " Consult your doctor."
    assert verdict("rationale", parent, {**parent, "rationale": advice}) == "disclaimer"
    assert volume("糖尿病患者") == 12.5 and volume("abcde") == 5


def translated(**changes) -> tuple[dict, dict]:
    parent = mcq(
        "en",
        question="A child of 12 kg is given 1,500 mg over 24 hours. What is the dose in mg/kg per day?",
        options={"A": "125 mg/kg", "B": "1.25 mg/kg"},
    )
    made = {
        **parent,
        "id": "q-en@fr",
        "language": "fr",
        "method": "translation",
        "question": "Un enfant de 12 kg reçoit 1 500 mg en 24 heures. Quelle est la dose en mg/kg par jour ?",
        "options": {"A": "125 mg/kg", "B": "1,25 mg/kg"},
    }
    return parent, {**made, **changes}


def test_translations_keep_numbers_units_letters_and_key():
    def reason(**changes) -> str:
        parent, record = translated(**changes)
        return verdict("translation", parent, record, language="fr")

    assert reason() == "options_unchanged"  # numbers read the same in both
    assert reason(question="Un enfant de 12 kg reçoit 150 mg en 24 heures. Quelle est la dose par jour ?") == "numbers"
    assert reason(question="Un enfant de 12 g reçoit 1500 mg en 24 heures. Quelle est la dose par jour ?") == "numbers"
    assert reason(options={"A": "125 mg/kg", "B": "12,5 mg/kg"}) == "numbers"
    assert reason(options={"A": "125 mg/kg", "B": "125 mg/kg"}) == "options"
    assert reason(options={"A": "125 mg/kg"}) == "options"
    assert reason(answer_idx="B") == "options"
    assert reason(question=translated()[0]["question"]) in ("language", "copy")
    for dose in ("1,5 mg", "1.5 mg", "1,500 mg", "1 500 g", "1 500", "1 500 mg/kg"):
        given = f"Un enfant de 12 kg reçoit {dose} en 24 heures. Quelle est la dose en mg/kg par jour ?"
        assert reason(question=given) == ("options_unchanged" if dose == "1 500 mg/kg" else "numbers"), dose
    assert reason(question=translated()[1]["question"].replace("heures", "minutes")) == "numbers"
    assert reason(options={"A": "125 mg", "B": "1,25 mg"}) == "numbers"
    stated = "Un enfant de 12 kg reçoit 1500 mg en 24 heures. Dose en mg/kg ? La bonne réponse est A."
    assert reason(question=stated) == "key"
    added = "Un enfant de 12 kg reçoit 1500 mg en 24 heures (en deux jours 3000 mg). Quelle dose en mg/kg ?"
    assert reason(question=added) == "options_unchanged,number_added"


def test_translations_state_the_answer_of_their_source():
    parent = {**mcq("en"), "rationale": RATIONALE["en"].format("A")}

    def reason(language: str, letter: str, source: dict = parent) -> str:
        record = {**mcq(language), "rationale": RATIONALE[language].format(letter)}
        return verdict("translation", source, record, language=language)

    for language in LANGUAGES[1:]:
        assert reason(language, "A") == ""
        assert reason(language, "B") == "key"
        assert reason(language, "A", {**parent, "rationale": RATIONALE["en"].split(" Therefore")[0]}) == "answer_stated"
    # The source may err; its translation is none the worse for it.
    assert reason("es", "B", {**parent, "rationale": RATIONALE["en"].format("B")}) == ""


@pytest.mark.parametrize(
    "texts, made",
    [
        (("3 days", "5 days"), ("5 días", "3 días")),
        (("Stage III", "Stage II"), ("Estadio II", "Estadio III")),
        (("Under 5%", "Over 5%"), ("Más del 5 %", "Menos del 5 %")),
        (("12 mg/dL", "12 mg/L"), ("12 mg/L", "12 mg/dL")),
        (("2 hours", "2 minutes"), ("2 minutos", "2 horas")),
    ],
)
def test_options_that_changed_places_are_told_by_their_numbers(texts: tuple, made: tuple):
    parent, spanish = mcq("en"), mcq("es")
    parent = {**parent, "options": dict(zip("AB", texts))}
    for order, moved in ((made, True), (made[::-1], False)):
        record = {**spanish, "options": dict(zip("AB", order))}
        assert (verdict("translation", parent, record, language="es") == "numbers") == moved


def test_options_of_translations_are_in_the_language_asked_for():
    def reason(language: str, *options: str, source: tuple = ()) -> str:
        parent, record = mcq("en"), mcq(language)
        parent = {**parent, "options": dict(zip("ABC", source or ("Dose of the drug", "Rest at home", "Later visit")))}
        return verdict("translation", parent, {**record, "options": dict(zip("ABC", options))}, language=language)

    assert reason("ko", "약의 용량", "자택에서 휴식", "나중에 방문") == ""
    assert reason("ko", "약의 용량", "rest at home for a week", "나중에 방문") == "language"
    assert reason("ko", "薬の用量について", "자택에서 휴식", "나중에 방문") == "language"
    assert reason("es", "剂量", "Reposo en casa", "Visita posterior") == "language"
    prose = ("Dose of the drug in the morning", "Rest at home for a week", "Later visit to the clinic")
    assert reason("fr", *prose, source=prose) == "language"
    assert reason("fr", "Dose du médicament le matin", "Repos à la maison", prose[2], source=prose) == (
        "options_unchanged"
    )
    third = ("Dosis des Medikaments am Morgen", "Ruhe zu Hause für eine Woche", "Späterer Besuch in der Klinik")
    assert reason("fr", *third, source=prose) == "language"
    names = ("Escherichia coli", "Candida albicans", "CD4")
    assert reason("ko", *names, source=names) == reason("es", *names, source=names) == "options_unchanged"


def test_expansions_keep_the_given_facts():
    parent = validate_record(
        {
            "id": "e",
            "language": "en",
            "messages": [
                {"role": "user", "content": "What is the usual adult dose of paracetamol?"},
                {"role": "assistant", "content": "500 mg to 1 g, up to 4 g daily"},
            ],
        },
        "test",
    )

    def reason(text: str) -> str:
        record = {**parent, "messages": [parent["messages"][0], {"role": "assistant", "content": text}]}
        given = ["500 mg to 1 g, up to 4 g daily"]
        return verdict("answer_expanding", parent, record, question="?", given=given, letters="")

    good = "The usual adult dose of paracetamol is 500 mg to 1 g per intake, up to 4 g daily; more harms the liver."
    assert reason(good) == ""
    assert reason(good.replace("500", "5000")) == reason(good.replace("500 mg", "500 g")) == "facts"
    assert reason("Paracetamol is given by mouth; 500 mg is a common strength of tablets in pharmacies.") == "facts"
    assert reason("500 mg to 1 g, up to 4 g daily.") == "copy"
    assert reason(good + " It is absorbed within 45 min and bound by 20 % to proteins.") == "number_added"


def test_expansion_of_a_choice_argues_for_the_key():
    parent = mcq()
    right = "Ursodeoxycholic acid is the first-line treatment, since it slows the disease and is safe to take."
    record = {
        "id": "x",
        "language": "en",
        "messages": [{"role": "user", "content": parent["question"]}, {"role": "assistant", "content": right}],
    }
    target = {"question": "?", "given": ["Ursodeoxycholic acid"], "letters": "A"}
    assert verdict("answer_expanding", parent, record, **target) == ""
    record["messages"][1]["content"] = right + " But the correct answer is B."
    assert verdict("answer_expanding", parent, record, **target) == "key"


def test_answers_from_passages_invent_no_figures():
    passage = "Paracetamol is absorbed within 45 minutes; the half-life is 2.5 hours and 4 g a day are enough. "
    passage += " ".join(f"It is metabolised in the liver, and sentence {c} says what it does." for c in "abcdefghijklm")
    parent = {"id": "p", "language": "en", "text": passage, "source": "s", "license": "MIT", "provenance": {}}

    def reason(text: str) -> str:
        asked = {"role": "user", "content": "What is the half-life of paracetamol?"}
        record = {"id": "p#1", "language": "en", "messages": [asked, {"role": "assistant", "content": text}]}
        return verdict("qa_generation", parent, record, passage=passage)

    assert reason("The half-life of paracetamol is 2.5 hours.") == ""
    assert reason("The half-life of paracetamol is 25 hours.") == "facts"
    assert reason("The half-life of paracetamol is 2.5 days.") == reason("Up to 4 mg a day are enough.") == "facts"
    assert reason(passage) == "copy"


def test_originals_are_checked_for_language_only(shared_dir):
    found = {}
    for r in Conversion(get_source("covid_faq"), shared_dir / "data/covid_faq_multilingual/cdc.csv"):
        reason = verdict("original", r, r)
        if reason:
            found[r["language"]] = reason, r["messages"][1]["content"][:15]
    # English text in two rows of other languages.
    assert found == {"zh": ("language", "CDC recommends "), "es": ("language", "CDC recommends ")}


WRONG = {
    "rationale": {
        "language": "language",
        "hidden_key": "key",
        "boilerplate": "boilerplate",
        "short": "too_short",
    },
    "answer_expanding": {"language": "language", "copy": "copy", "boilerplate": "boilerplate", "short": "too_short"},
    "translation": {"numbers": "numbers", "language": "language", "boilerplate": "boilerplate"},
}


@pytest.mark.parametrize("method", ["rationale", "answer_expanding", "qa_generation", "translation"])
def test_with_a_model_that_errs(method: str, shared_dir):
    """Good answers of the stand-in model pass for real questions in several languages; bad ones get their reason."""
    data = shared_dir / "data"
    sources = [
        ("casimedicos", "casimedicos_en_es_fr/fr_dev.jsonl"),
        ("headqa", "headqa_es_en/dev_HEAD.json"),
        ("jmmlu_medical", "jmmlu_medical_ja"),
        ("rumeddanet", "rumeddanet_ru/dev_v1.jsonl"),
        ("medqa_zh", "medqa_zh"),
        ("medqa_us", "medqa_us/dev_mediq.jsonl"),
    ]
    options = {"translation": {"languages": LANGUAGES}, "rationale": {"replace": True}}.get(method, {})
    made, gates = make_method(method, **options), default_gates(method)
    reasons: dict[str, list[str]] = {}
    for source, path in sources:
        parents = []
        for r in Conversion(get_source(source), data / path):
            if len(parents) == 6:
                break
            parents.append({**r, "rationale": ""} if method != "translation" else r)
        for each in made.jobs(parents, SETTINGS):
            for wrong in ("", *WRONG.get(method, {})):
                figures = [q for _, t in named_texts(each.parent) for q in quantities(t) if not q.small]
                if wrong == "numbers" and not figures:
                    continue
                try:
                    for record in made.parse(each, answer(list(each.request.messages), wrong)):
                        for gate in gates:
                            gate(each, record)
                    reasons.setdefault(wrong, []).append("accepted")
                except Reject as e:
                    reasons.setdefault(wrong, []).append(e.reason)
    good = reasons.pop("")
    assert len(good) >= 6 and good.count("accepted") >= 0.9 * len(good), sorted(set(good))
    for wrong, found in reasons.items():
        assert found.count(WRONG[method][wrong]) >= 0.8 * len(found), (wrong, sorted(set(found)))
        # A wrong language keeps names and quotations of the right one, which may be most of the text.
        assert found.count("accepted") <= (0.15 if wrong == "language" else 0.03) * len(found), (wrong, found)


def test_letters_of_a_whole_set():
    balance = LetterBalance()
    for i in range(400):
        balance.add({**mcq(answer_idx="AB"[i % 10 != 0]), "source": "skewed"})
        balance.add({**mcq(answer_idx="AB"[i % 2]), "source": "even"})
    balance.add({**mcq(answer_idx="B"), "source": "single"})
    balance.add({**mcq(), "answer_idx": "A,B", "source": "several"})
    table = balance.table()
    assert [b.source for b in table] == ["even", "single", "skewed"]
    assert [(b.source, b.letter, b.share) for b in skewed(table)] == [("skewed", "B", 0.9)]


def test_thresholds_and_methods_are_checked():
    with pytest.raises(UserError, match="did you mean 'key_stated'"):
        default_gates("rationale", {"key_state": 1})
    with pytest.raises(UserError, match="did you mean 'translation'"):
        default_gates("translate")
    assert set(THRESHOLDS["longest"]) == {m.name for m in METHODS.values() if m.gates} | {"original"}
