"""The six sources of MMedBench, and KorMedMCQA, in miniature: in the layouts of their publications, texts made up."""

from pathlib import Path

from tests.support.sources import KORMED, french_row, headqa_row, kormed_row, put, table

_ZH = ("高血压", "糖尿病", "肺炎", "贫血", "胃溃疡", "肝硬化")
_JA = ("高血圧", "糖尿病", "肺炎", "貧血", "胃潰瘍", "肝硬変", "喘息", "痛風", "脳梗塞", "白血病")


def _english(n: int) -> dict:
    disease = ("scurvy", "beriberi", "pellagra", "rickets", "goitre", "gout")[n]
    options = {"A": f"Vitamin of {disease}", "B": "Rest in bed", "C": "Surgery", "D": "Nothing at all"}
    question = f"A {30 + n}-year-old sailor tires easily and the doctor thinks of {disease}. What helps him most?"
    return {"question": question, "options": options, "answer_idx": "A", "meta_info": "step1", "answer": options["A"]}


def _chinese(n: int) -> dict:
    options = {"A": "休息", "B": f"治疗{_ZH[n]}", "C": "手术", "D": "观察"}
    return {"question": f"患者诊断为{_ZH[n]}，首选的处理是什么？", "options": options, "answer_idx": "B"}


def _japanese(n: int) -> dict:
    return {
        "problem_id": f"116A{n}",
        "problem_text": f"{_JA[n]}の患者に対してまず行うべき治療はどれか。",
        "choices": [f"{_JA[n]}の薬物療法", "手術", "経過観察", "放射線治療", "安静"],
        "text_only": True,
        "answer": ["a"],
        "points": "1",
    }


def _russian(n: int) -> dict:
    return {
        "pairID": str(n),
        "context": f"Пациенту {40 + n} лет, у него повышено артериальное давление, назначено лечение.",
        "question": f"Повышено ли давление у пациента номер {n} в этом отделении больницы?",
        "answer": "да" if n % 2 else "нет",
    }


def _french(n: int, right: list[str]) -> dict:
    disease = ("le diabète", "la grippe", "la tuberculose", "la goutte")[n]
    names = ("Une première mesure", "Une deuxième mesure", "Une troisième mesure", "Le repos", "Aucune mesure utile")
    answers = {letter: f"{name} contre {disease}" for letter, name in zip("abcde", names)}
    return {
        **french_row(n, right, answers),
        "question": f"Parmi les mesures suivantes, lesquelles traitent {disease} ?",
    }


def _spanish(n: int, **more: object) -> dict:
    disease = ("la diabetes", "la gripe", "la tuberculosis", "la gota")[n]
    texts = (f"El tratamiento de {disease}", "El reposo en cama", "La cirugía urgente", "La observación")
    answers = [{"aid": i, "atext": text} for i, text in enumerate(texts, 1)]
    row = headqa_row("1", n=n, **more)
    return {**row, "qtext": f"¿Cuál es el tratamiento más adecuado para {disease} en adultos?", "answers": answers}


def _head(language: str, *rows: dict) -> dict:
    exam = {"name": "Cuaderno", "year": "2013", "category": "medicine", "data": list(rows)}
    return {"version": "1.0", "language": language, "exams": {"Cuaderno_2013_1_M": exam}}


def raw_sources(folder: Path) -> Path:
    """Writes them; returns the folder. In training and test: en 3 and 2, zh 3 and 1, ja 10 in all, fr 2 and 1, ru 2 and
    2, es 2 and 1 (one with an image), ko 2 and 1; one English question is in both, one Chinese twice in training."""
    us = folder / "medqa_us" / "questions" / "US"
    five = {**_english(0), "options": {**_english(0)["options"], "E": "A fifth one"}}
    for name, rows in (("train", [0, 1, 2]), ("dev", [3]), ("test", [1, 4])):
        put(us / "4_options" / f"phrases_no_exclude_{name}.jsonl", [_english(n) for n in rows])
        put(us / f"{name}.jsonl", [five])
    for name, rows in (("train", [0, 1, 1]), ("dev", [2]), ("test", [3])):
        put(folder / "medqa_zh" / "4_options" / f"{name}.jsonl", [_chinese(n) for n in rows])
    put(folder / "igakuqa" / "data" / "2022" / "116-A.jsonl", [_japanese(n) for n in range(10)])
    put(folder / "igakuqa" / "data" / "2022" / "116-A_translate.jsonl", [_japanese(n) for n in range(10)])
    put(folder / "igakuqa" / "data" / "2022" / "116_metadata.jsonl", [{"pass": 200}])
    french = folder / "frenchmedmcqa"
    put(french / "train.json", [_french(0, ["a", "c"]), _french(1, ["b"])])
    put(french / "dev.json", [_french(2, ["a"])])
    put(french / "test.json", [_french(3, ["d"])])
    for name, rows in (("train_v1", [0, 1]), ("dev_v1", [2]), ("test_v1", [3, 4]), ("private_test_v1", [5])):
        put(folder / "rumeddanet" / f"{name}.jsonl", [_russian(n) for n in rows])
    put(folder / "headqa" / "train_HEAD.json", _head("es", _spanish(0), _spanish(1, image="1.png")))
    put(folder / "headqa" / "train_HEAD_EN.json", _head("en", headqa_row("1", n=0)))
    put(folder / "headqa" / "dev_HEAD.json", _head("es", _spanish(2)))
    put(folder / "headqa" / "test_HEAD.json", _head("es", _spanish(3)))
    for name, rows in (("train", [1, 2]), ("dev", [3]), ("test", [4])):
        cells = [kormed_row(n, n, f"{n}번 환자의 고혈압 치료로 가장 적절한 것은 무엇인가?") for n in rows]
        table(folder / "kormedmcqa" / "doctor" / f"{name}.csv", KORMED, *cells)
    return folder
