"""Which language a text is in: scripts first, then statistics; quantities as seven languages write them."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.gates.quantities import changed, missing, quantities
from mmed_jax.data.languages.identify import language_of, language_problem
from mmed_jax.data.sources import Conversion, get_source

SAMPLES = {
    "en": "Primary biliary cholangitis is treated with ursodeoxycholic acid, which slows the disease.",
    "fr": "La cholangite biliaire primitive est traitée par l'acide ursodésoxycholique, qui ralentit la maladie.",
    "es": "La colangitis biliar primaria se trata con ácido ursodesoxicólico, que retrasa la enfermedad.",
    "zh": "原发性胆汁性胆管炎（PBC）的一线治疗药物是熊去氧胆酸，可延缓疾病进展。",
    "ja": "原発性胆汁性胆管炎（PBC）の第一選択薬はウルソデオキシコール酸であり、進行を遅らせる。",
    "ko": "원발 담즙성 담관염(PBC)의 일차 치료제는 우르소데옥시콜산이며 질병의 진행을 늦춘다.",
    "ru": "Первичный билиарный холангит (ПБХ, PBC) лечат урсодезоксихолевой кислотой, она замедляет болезнь.",
}


@pytest.mark.parametrize("asked", SAMPLES)
def test_each_language_is_itself_and_no_other(asked: str):
    problems = {code: language_problem(text, asked) for code, text in SAMPLES.items()}
    assert problems.pop(asked) is None
    assert all(problems.values()), problems


def test_short_names_and_formulas_pass_everywhere():
    for code in SAMPLES:
        for text in ("HIV", "5 mg/kg", "α-fetoprotein", "CO₂ > 45 mmHg", "—", "Plasmodium falciparum"):
            assert language_problem(text, code) is None, (code, text)
    assert language_problem("肝細胞癌", "ja") is None and language_problem("肝細胞癌", "zh") is None


@pytest.mark.parametrize(
    "text, asked",
    [
        ("患者应立即接受手术治疗，术后给予抗生素治疗并密切观察生命体征的变化情况。", "ja"),  # Han without kana
        ("患者は直ちに手術を受けるべきである。", "zh"),
        ("The patient should 立即接受手术治疗并且给予抗生素 and be observed 密切观察生命体征", "en"),
        ("환자는 즉시 手術을 받아야 하며 手術後 抗生物質을 投與하고 患者의 生命徵候를 密接히 觀察해야 한다.", "ko"),
        ("Пацієнта слід негайно прооперувати, після операції призначити антибіотики.", "ru"),
        (
            "Die primär biliäre Cholangitis wird mit Ursodeoxycholsäure behandelt, welche das Fortschreiten der "
            "Erkrankung "
            "der Leber verlangsamt und die Überlebenszeit der Patienten deutlich verlängert.",
            "en",
        ),
        ("المريض يحتاج إلى عملية جراحية فورية", "fr"),
    ],
)
def test_mixtures_and_neighbours_are_found(text: str, asked: str):
    assert language_problem(text, asked)


def test_real_texts_are_in_their_language(shared_dir):
    wrong = checked = told = other = 0
    for source, path in (
        ("casimedicos", "casimedicos_en_es_fr"),
        ("rumeddanet", "rumeddanet_ru/dev_v1.jsonl"),
        ("jmmlu_medical", "jmmlu_medical_ja"),
        ("frenchmedmcqa", "frenchmedmcqa_fr/dev.json"),
    ):
        for r in Conversion(get_source(source), shared_dir / "data" / path):
            checked += 1
            text = f"{r['question']}\n{r['rationale']}"
            wrong += language_problem(text, r["language"]) is not None
            found = language_of(text)
            other += found not in (r["language"], None)
            told += found is not None
    assert checked > 2000 and wrong == 0 and other <= 4 and told > 0.98 * checked


# Languages that are none of the seven, in sentences and in the words that answers are marked with.
OTHERS = """
O paciente apresenta febre e tosse há três dias. | A resposta correta é a B, porque o paciente tem febre. | Resposta: A
Il paziente ha febbre e tosse da tre giorni. | La risposta corretta è la B. | Risposta: A
La metformina è il farmaco di prima scelta nel diabete di tipo 2 perché riduce la produzione epatica di glucosio.
El pacient té febre i tos des de fa tres dies. | El tractament de primera línia és l'amoxicil·lina.
O paciente ten febre e tose desde hai tres días. | A resposta correcta é a B.
A metformina é o fármaco de elección na diabetes tipo 2 porque reduce a produción hepática de glicosa.
Pacientul are febră și tuse de trei zile. | Răspunsul corect este B. | Răspuns: A
Der Patient hat seit drei Tagen Fieber und Husten. | Die richtige Antwort ist B. | Antwort: A
De patiënt heeft sinds drie dagen koorts en hoest. | Het juiste antwoord is B. | Prawidłowa odpowiedź to B.
Пацієнт має гарячку та кашель. | Відповідь: A | У пацыента ліхаманка і кашаль. | Правільны адказ: Б
Пациентът има треска и кашлица от три дни. | Верният отговор е Б. | Отговор: А | Лечението се провежда с антибиотици.
Пацијент има температуру и кашаљ. | Тачан одговор је Б. | Одговор: А | Пациентот има треска. | Науқаста қызба бар.
المريض يعاني من الحمى | रोगी को बुखार है
Hastanın üç gündür ateşi ve öksürüğü var. | Bệnh nhân bị sốt và ho ba ngày nay. | Patienten har haft feber i tre dage.
"""


def test_the_report_and_the_gates_tell_languages_alike():
    """None of the neighbours counts as one of the seven; what is counted as one passes its gate, and no other's."""
    others = [text.strip() for line in OTHERS.strip().splitlines() for text in line.split(" | ")]
    assert {text: code for text in others if (code := language_of(text))} == {}
    for code, text in SAMPLES.items():
        assert language_of(text) == code and language_of(text * 3) == code
        assert [other for other in SAMPLES if language_problem(text, other, simplified=True) is None] == [code]


def values(text: str) -> list[set[Decimal]]:
    return [set(q.values) for q in quantities(text)]


def test_numbers_in_the_writings_of_seven_languages():
    def d(*numbers: str) -> set[Decimal]:
        return {Decimal(n) for n in numbers}

    assert values("1,000 and 1.500 and 36,6 and .05") == [d("1000", "1"), d("1500", "1.5"), d("36.6"), d("0.05")]
    assert values("1\u202f000 mg, 12 000,5 et 1.234.567,89") == [d("1000"), d("12000.5"), d("1234567.89")]
    mixed = "1.234,567 1,234.56 100,200.5 12 345,678"
    assert values(mixed) == [d("1234.567"), d("1234.56"), d("100200.5"), d("12345.678")]
    assert values("３万人、５．５％") == [d("3", "30000"), d("5.5")]
    assert values("250万, 2 млн, 2 million") == [d("250", "2500000"), d("2", "2000000"), d("2", "2000000")]
    units = "5 mg 5мг 5毫克 5ミリグラム 5밀리그램 5 µg 5мкг 120 мм рт. ст. 37℃ 5 mmHg 10%"
    assert [q.unit for q in quantities(units)] == [
        "mg",
        "mg",
        "mg",
        "mg",
        "mg",
        "ug",
        "ug",
        "mmhg",
        "c",
        "mmhg",
        "%",
    ]
    assert [q.unit for q in quantities("5 men, 3 little, 7 gatos, 4 г., 10⁹/L")] == ["", "", "", "g", ""]


@settings(max_examples=1000)
@given(st.text(alphabet="0123456789.,\u00a0 ３．万%mg-", max_size=24))
def test_any_writing_is_read(text: str):
    found = quantities(text)
    assert all(q.values for q in found) and missing(found, found) == []
    assert bool(found) == any(c.isdigit() for c in text)


@pytest.mark.parametrize(
    "text, language, problem",
    [
        ("Qual é o tratamento de primeira linha para a hipertensão arterial numa mulher grávida?", "es", "reads as pt"),
        ("Homem de 60 anos com febre e tosse há três dias. Que exame pediria em primeiro lugar?", "es", "reads as pt"),
        ("Quin és el tractament de primera línia de la pneumònia adquirida a la comunitat?", "es", "reads as ca"),
        (
            "Първа линия на лечение при възрастни са инхибиторите, а при някои пациенти се добавя и диуретик.",
            "ru",
            "reads as bg",
        ),
        ("這個病人的血壓很高，應該先檢查腎臟功能。", "zh", "Traditional characters"),
    ],
)
def test_neighbours_are_told_from_the_language_asked_for(text: str, language: str, problem: str):
    assert language_problem(text, language, simplified=True) == problem
    assert language_problem(text, language, sure=1e9) is None or language == "ru"  # else Traditional is Chinese too
    assert language_of(text) == ("zh" if language == "zh" else None)


def test_missing_numbers():
    source = quantities("Give 1,500 mg in 0.5 L over 2 hours, then 37.5 °C.", "en")
    assert missing(source, quantities("Donner 1500 mg dans 0,5 L en 2 heures, puis 37,5 °C.", "fr")) == []
    assert [q.text for q in missing(source, quantities("150 mg, 0.5 L, two hours, 37.5"))] == ["1,500", "2"]
    assert [q.small for q in quantities("two 2 and 12 and 13 and 5 mg and 5 h")] == [True, True, False, False, True]


@pytest.mark.parametrize(
    "text, language, read",
    [
        ("1,500", "en", "1500"),
        ("1.500", "en", "1.5"),
        ("1,500", "fr", "1.5"),
        ("1.500", "es", "1500"),
        ("0.125", "es", "0.125"),
        ("1,500", "es", "1.5 1500"),
        ("1.500", "ru", "1.5 1500"),
        ("1,234,567", "fr", "1234567"),
        ("1 500", "fr", "1500"),
        ("1.500", "", "1.5 1500"),
    ],
)
def test_points_and_commas_mean_what_they_do_in_the_language(text: str, language: str, read: str):
    assert sorted(quantities(text, language)[0].values) == [Decimal(v) for v in read.split()]


@pytest.mark.parametrize(
    "one, other",
    [
        (
            "A child of 12 kg gets 10 mg/kg/day for 24 hours",
            "fr:Un enfant de 12 kg reçoit 10 mg/kg/jour pendant 24 heures",
        ),
        ("10 mg/kg/day, 140/90 mmHg, 80 bpm, a 45-year-old", "zh:每日10 mg/kg，140/90毫米汞柱，80次/分，45岁"),
        ("a 45-year-old, 38.5 °C, 3 days, 300 mg/day", "ja:45歳、38.5℃、3日間、1日300mg"),
        ("5 to 10 mg every 6 hours, <5%, at least 20%", "es:de 5 a 10 mg cada 6 horas, menos del 5 % (<5 %), >= 20 %"),
        ("3 months, 2 weeks, 80/min, 38 °C, 4.5 g/dL", "ko:3개월, 2주, 분당 80회(80회/분), 섭씨 38도, 4.5 g/dL"),
        ("120/80 mmHg, 45 years, 2 hours, 500 mg", "ru:120/80 мм рт. ст., 45 лет, 2 часа, 500 миллиграммов"),
        ("stage III, grade 4 350 mg of it", "es:estadio III, de grado 4 350 mg"),
        ("2 million every 4 h, 2 cm, 39.5 °C, over 50 years", "es:2 millones cada 4 h, 2 cms, 39,5º, a la edad de 50"),
        ("not more than 5 min, at most 3 h", "zh:不超过5分钟，3小时以内"),
        ("20 mg in 2019", "ja:2019年に20ミリグラム"),
    ],
)
def test_the_same_quantities_in_other_languages(one: str, other: str):
    language, _, other = other.partition(":")
    a, b = quantities(one, "en"), quantities(other, language)
    assert missing(a, b) == [] and changed(a, b, other) == [] and changed(b, a, one) == []
    assert [q for q in missing(b, a) if not q.small] == []


@pytest.mark.parametrize(
    "one, other",
    [
        ("5 mg", "5 g"),
        ("5 mg", "5"),
        ("12 kg", "12 lb"),
        ("38 °C", "38 °F"),
        ("10 mg/kg/day", "10 mg/kg"),
        ("12 mg/dL", "12 mg/L"),
        ("12 mg/dL", "12 mg"),
        ("24 hours", "24 minutes"),
        ("3 days", "3 months"),
        ("3 days", "3"),
        ("<5%", ">5%"),
        ("under 5%", "5%以上"),
        ("5 to 10 mg", "5 to 10 g"),
        ("500 mg", "500 g"),
        ("80 bpm", "80 mmHg"),
    ],
)
def test_changed_and_dropped_units_and_bounds(one: str, other: str):
    assert changed(quantities(one), quantities(other), other)
