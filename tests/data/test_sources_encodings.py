"""Published files in encodings other than UTF-8: one line that names file, byte and encoding, or the right text."""

import csv
import io
import json

import pytest

from data_gen.commands import convert as command
from mmed_jax.common.errors import UserError
from mmed_jax.data.languages.scripts import wrong_script
from mmed_jax.data.sources import SOURCES, get_source
from mmed_jax.data.sources.mfds_edrug import QUESTIONS
from tests.support.sources import convert, put

# A short and a long text of each language, and the encodings its files are met in.
TEXTS = {
    "en": ("The patient’s airways narrow – why?", "Asthma narrows the patient’s airways. " * 9),
    "fr": (
        "Quel traitement est indiqué chez l’enfant fébrile ?",
        "La fièvre élevée persiste après le traitement. " * 9,
    ),
    "es": ("¿Cuál es el más adecuado en niños?", "La infección pulmonar del niño no mejoró según lo previsto. " * 9),
    "ru": ("Какой препарат снижает давление?", "Пациент жалуется на боль в груди и одышку при нагрузке. " * 9),
    "ko": ("가슴 통증의 원인은 무엇인가?", "환자는 사흘 전부터 열이 나고 기침을 한다고 말하였다. " * 9),
    "ja": ("胸の痛みの原因はどれか。", "患者は三日前から発熱と咳があり、水を飲めないと言っている。" * 9),
    "zh": ("病人头痛三天了，怎么办？", "病人说他三天前开始发热、咳嗽，没有吃药，晚上不能睡。" * 9),
}
TRADITIONAL = ("病人頭痛三天了，怎麼辦？", "病人說他三天前開始發熱、咳嗽，沒有吃藥，晚上不能睡。" * 9)
ENCODINGS = {
    "en": ("cp1252",),
    "fr": ("cp1252", "latin-1"),
    "es": ("cp1252", "latin-1"),
    "ru": ("cp1251", "koi8-r"),
    "ko": ("cp949", "euc_kr"),
    "ja": ("cp932", "shift_jis", "euc_jp"),
    "zh": ("gb18030", "big5"),
}
WIDE = ("utf-16", "utf-16-le", "utf-16-be")


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sheet(header: list, *rows: list) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([header, *rows])
    return out.getvalue()


def form(source: str, t: str, language: str) -> tuple[str, str]:
    """(file name, content) of one row of a source whose every text is `t`."""
    four = {"A": f"1 {t}", "B": f"2 {t}", "C": f"3 {t}", "D": f"4 {t}"}
    options = list(four.values())
    name = {
        "en": "English",
        "zh": "Chinese",
        "ja": "Japanese",
        "ko": "Korean",
        "fr": "French",
        "es": "Spanish",
        "ru": "Russian",
    }[language]
    return {
        "medqa_us": lambda: ("x.jsonl", lines({"question": t, "options": four, "answer_idx": "B"})),
        "medqa_zh": lambda: ("x.jsonl", lines({"question": t, "options": four, "answer_idx": "B"})),
        "medmcqa": lambda: (
            "x.jsonl",
            lines({"question": t, **dict(zip(("opa", "opb", "opc", "opd"), options)), "cop": 4}),
        ),
        "pubmedqa": lambda: (
            "x.json",
            lines({"1": {"QUESTION": t, "CONTEXTS": [t], "final_decision": "no", "LONG_ANSWER": t}}),
        ),
        "mmlu_medical": lambda: ("anatomy.csv", sheet([t, *options, "B"])),
        "jmmlu_medical": lambda: ("anatomy.csv", sheet([t, *options, "B"])),
        "frenchmedmcqa": lambda: (
            "x.json",
            "["
            + lines({"id": 1, "question": t, "correct_answers": ["b"], "answers": dict(zip("abcd", options))})
            + "]",
        ),
        "rumeddanet": lambda: ("x.jsonl", lines({"pairID": 1, "context": t, "question": t, "answer": "да"})),
        "headqa": lambda: (
            "HEAD.json",
            lines(
                {
                    "language": language,
                    "exams": {
                        "E": {
                            "data": [
                                {
                                    "qid": 1,
                                    "qtext": t,
                                    "ra": 2,
                                    "answers": [{"aid": n, "atext": o} for n, o in enumerate(options, 1)],
                                }
                            ]
                        }
                    },
                }
            ),
        ),
        "casimedicos": lambda: (
            "x.jsonl",
            lines(
                {
                    "id": "1",
                    "lang": language,
                    "question": t,
                    "answer": "2",
                    "options": dict(zip("1234", options)),
                    "rationale": t,
                }
            ),
        ),
        "medquad": lambda: ("x.jsonl", lines({"qid": 1, "question": t, "answer": t + t})),
        "xlinghealth": lambda: (
            "x.csv",
            sheet(
                ["id", "label", "question_English", "answer_English", f"question_{name}", f"answer_{name}"][
                    : 4 if language == "en" else 6
                ],
                [1, 1, *([t, t + t] if language == "en" else ["Why?", "So.", t, t + t])],
            ),
        ),
        "toyhom": lambda: ("x.csv", sheet(["department", "title", "ask", "answer"], ["D", t, t, t + t])),
        "cmb_clin": lambda: (
            "x.json",
            "[" + lines({"id": 1, "description": t, "QA_pairs": [{"question": t, "answer": t}]}) + "]",
        ),
        "mfds_edrug": lambda: ("x.csv", sheet(["품목일련번호", "제품명", "주성분", *QUESTIONS], [1, t, t, *[t] * 7])),
        "covid_faq": lambda: (
            "x.csv",
            sheet(["question", "answer", "language", "source", "section"], [t, t, name.lower(), "CDC", "FAQ"]),
        ),
        "mmedbench": lambda: (
            f"{name}.jsonl",
            lines({"question": t, "options": four, "answer_idx": "B", "rationale": t}),
        ),
        "kormedmcqa": lambda: (
            "x.csv",
            sheet(
                ["subject", "year", "period", "q_number", "question", *"ABCDE", "answer"],
                ["doctor", 2022, 1, 1, t, *options, "", 2],
            ),
        ),
        "igakuqa": lambda: (
            "x.jsonl",
            lines({"problem_id": 1, "problem_text": t, "choices": options, "answer": ["b"]}),
        ),
    }[source]()


EVERY = [(source, language) for source in SOURCES for language in SOURCES[source].languages]


@pytest.mark.parametrize(("source", "language"), EVERY, ids=["-".join(e) for e in EVERY])
def test_other_encodings_are_named_and_read_when_told(tmp_path, source, language):
    for long in (0, 1):
        for encoding in (*ENCODINGS[language], *WIDE):
            text = TRADITIONAL[long] if encoding == "big5" else TEXTS[language][long].strip()
            if encoding == "latin-1":
                text = text.replace("’", "'")
            name, content = form(source, text, language)
            (tmp_path / "utf8").mkdir(exist_ok=True)
            (tmp_path / "utf8" / name).write_text(content, encoding="utf-8", newline="")
            right, _ = convert(source, tmp_path / "utf8" / name)
            path = tmp_path / f"{encoding}" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode(encoding))
            if source == "toyhom" and encoding == "gb18030":
                assert convert(source, path)[0] == right
            else:
                with pytest.raises(UserError) as caught:
                    convert(source, path)
                message = str(caught.value)
                assert message.startswith(f"{path}: ") and "UTF-8" in message and "\n" not in message
                same = {"euc_kr": "cp949", "shift_jis": "cp932", "latin-1": "cp1252"}.get(encoding, encoding)
                if len(SOURCES[source].languages) < 4:  # among six languages a short text may be taken for another's
                    assert message.endswith(f"--encoding={same}"), message
            assert convert(source, path, encoding=encoding)[0] == right
            assert right and any(text in json.dumps(r, ensure_ascii=False) for r in right)
    with pytest.raises(UserError, match="is UTF-8; --encoding=cp949 would garble it|holds no|not cp949"):
        convert(source, tmp_path / "utf8" / name, encoding="cp949")


@pytest.mark.parametrize("source", list(SOURCES))
def test_text_read_in_a_wrong_encoding_is_never_kept(tmp_path, source):
    """Whatever anybody tells: bytes of one encoding read as another give no record, or the same text."""
    told = {e for es in ENCODINGS.values() for e in es if e not in ("euc_kr", "shift_jis")}
    for language in SOURCES[source].languages:
        for real in ENCODINGS[language]:
            text = (TRADITIONAL[1] if real == "big5" else TEXTS[language][1].strip()).replace("’", "'")
            name, content = form(source, text, language)
            path = tmp_path / name
            path.write_bytes(content.encode(real))
            for wrong in told - {real, "latin-1", "cp1252"}:
                # Two encodings of one alphabet: capitals for small letters, and the script is right all the same.
                if {real, wrong} <= {"cp1251", "koi8-r"} or real in ("cp1252", "latin-1") and text.isascii():
                    continue
                try:
                    records, _ = convert(source, path, encoding=wrong)
                except UserError:
                    continue
                assert all(text in json.dumps(r, ensure_ascii=False) or r["language"] != language for r in records), (
                    wrong
                )


def test_toyhom_takes_gb18030_only_when_it_reads_as_chinese(tmp_path):
    for language, encodings in ENCODINGS.items():
        for encoding in encodings:
            if encoding == "gb18030":
                continue
            for text in TRADITIONAL if encoding == "big5" else TEXTS[language]:
                path = tmp_path / "x.csv"
                path.write_bytes(form("toyhom", text, language)[1].replace("’", "'").encode(encoding))
                with pytest.raises(UserError, match="x.csv: |none of 1 rows"):
                    convert("toyhom", path)


def test_a_damaged_byte_in_utf8_is_no_other_encoding(tmp_path):
    for source, language in (("kormedmcqa", "ko"), ("rumeddanet", "ru"), ("toyhom", "zh"), ("jmmlu_medical", "ja")):
        name, content = form(source, TEXTS[language][1], language)
        data = content.encode()
        (tmp_path / name).write_bytes(data[:-40] + b"\xff" + data[-40:])
        with pytest.raises(UserError, match=f"{name}: not UTF-8 .*the file is damaged there"):
            convert(source, tmp_path / name)


def test_xml_in_other_encodings(tmp_path):
    text = TEXTS["fr"][0]
    body = (
        f"<Document><Focus>x</Focus><QAPairs><QAPair><Question qid='1'>{text}</Question><Answer>{text} {text}</Answer>"
    )
    body += "</QAPair></QAPairs></Document>"
    path = tmp_path / "a.xml"
    for declared, encoding in (("cp1252", "cp1252"), ("utf-16", "utf-16"), ("utf-8", "utf-8")):
        path.write_bytes(f"<?xml version='1.0' encoding='{declared}'?>{body}".encode(encoding))
        [record], _ = convert("medquad", path)
        assert record["messages"][0]["content"] == text.replace(" ?", "?")
    for declared, encoding, says in (
        (None, "cp1252", "a.xml: not UTF-8 .*--encoding=cp1252"),
        ("utf-7", "utf-8", "a.xml: .*'utf-7'"),
        ("euc-kr", "utf-8", "a.xml: .*'euc-kr'"),
        ("nonsense", "utf-8", "a.xml: .*'nonsense'"),
    ):
        head = f"<?xml version='1.0' encoding='{declared}'?>" if declared else ""
        path.write_bytes((head + body).encode(encoding))
        with pytest.raises(UserError, match=says):
            convert("medquad", path)
    assert convert("medquad", path, encoding="utf-8")[0]


def test_the_flag(tmp_path):
    name, content = form("kormedmcqa", TEXTS["ko"][0], "ko")
    path = tmp_path / name
    path.write_bytes(content.encode("cp949"))
    flags = ["--source=kormedmcqa", f"--input={path}", f"--output={tmp_path / 'o.jsonl'}"]
    for wrong in ("nonsense", "rot13", "base64", "idna"):
        with pytest.raises(UserError, match=f"--encoding={wrong}: no encoding of text files"):
            command.main([*flags, f"--encoding={wrong}"])
    with pytest.raises(
        UserError, match=r"x.csv: not ascii \(byte 0x.. at position \d+, line 2\), which --encoding says"
    ):
        command.main([*flags, "--encoding=ascii"])
    with pytest.raises(UserError, match="none of 1 rows became a record .text is not in Korean: 1.; first: .*x.csv:2"):
        command.main([*flags, "--encoding=euc_jp"])
    command.main([*flags, "--encoding=CP949"])
    assert TEXTS["ko"][0] in (tmp_path / "o.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "language", "encoding"),
    [
        ("kormedmcqa", "ko", "iso2022_kr"),
        ("igakuqa", "ja", "iso2022_jp"),
        ("jmmlu_medical", "ja", "iso2022_jp"),
        ("toyhom", "zh", "hz"),
        ("medqa_zh", "zh", "hz"),
    ],
)
def test_encodings_that_are_ascii_are_told_from_text(tmp_path, source, language, encoding):
    """Their bytes are valid UTF-8: of a short question nothing would be left to see that it is none."""
    text = TEXTS[language][0]
    name, content = form(source, text, language)
    (tmp_path / name).write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match=f"not UTF-8 text .ASCII with the marks of {encoding}.*--encoding={encoding}$"):
        convert(source, tmp_path / name)
    [record] = convert(source, tmp_path / name, encoding=encoding)[0]
    assert text in json.dumps(record, ensure_ascii=False)


@pytest.mark.parametrize(
    ("language", "texts", "wrong"),
    [
        ("fr", ("Quelle rÃ©ponse est exacte Ã\xa0 propos du cÅ“ur ?",), True),
        ("es", ("Â¿CuÃ¡l es el Ã³rgano?",), True),
        ("en", ("The patientâ€™s airways", "30 °C"), False),
        ("fr", ("À la fin, SÃO PAULO",), False),
        ("en", ("It narrows the patient抯 airways.",), True),
        ("en", ("The drug cuбl is given.",), True),
        ("es", ("緾u醠 es el m醩 adecuado?",), True),
        ("en", ("What does ginkgo (银杏) do?", "Nothing is proved."), False),
        ("en", ("А mаn with а соugh", "Аβ amyloid"), False),  # Cyrillic letters that look like Latin ones
        ("en", ("μ-opioid, β2-agonist, Δ9-THC", "α"), False),
        ("en", ("问题是什么？",), True),
        ("fr", ("Quel âge ?", "5"), False),
        ("ru", ("Какой?", "CYP3A4"), False),
        ("ru", ("Âîïðîñ î ëå÷åíèè", "да\nнет"), True),
        ("ru", ("What is the first choice in this disease?",), True),
        ("ko", ("45技 巢磊啊 啊娇",), True),
        ("ko", ("ECG 소견은?", "QT prolongation in patients with heart failure\n12"), False),
        ("ko", ("MRI?", "CT"), False),
        ("ko", ("Sudden chest pain with ST elevation in II, III, aVF and low blood pressure: 진단은?", "12"), False),
        ("ko", ("肝硬化 환자의 腹水는?", "혈액"), False),
        ("ja", ("怱嬝峓嵡偱忋徃偡傞偺偼",), True),
        ("ja", ("心筋梗塞で上昇するのは？", "CK-MB\nCRP"), False),
        ("ja", ("病人头痛三天了怎么办",), True),
        ("ja", ("頰の痛みの原因はどれか", "神経\n血管"), False),
        ("ja", ("呵も努磊な迹闻はどれか。斑の乃みを潦える吹荚", "A"), True),
        ("ja", ("正常値", "120 mmHg"), False),
        ("ja", ("血液検査所見", "白血球増多\n血小板減少\n低蛋白血症"), False),
        ("ja", ("急性心肌梗死首选治疗药物", "阿司匹林"), True),
        ("ja", ("急性心肌梗塞的首選治療藥物", "抗生素"), True),
        ("zh", ("5-Fu", "5-氟尿嘧啶"), False),
        ("zh", ("通草 瞿麦 茵陈 萆薢 萹蓄", "A"), False),
        ("zh", ("糵ア頭稨ぱΑよ或快絪糵", ""), True),
        ("zh", ("Which drug is the first choice here?", "阿司匹林"), True),
        ("zh", ("이 약의 효능은 무엇입니까?",), True),
    ],
)
def test_letters_of_another_script(language, texts, wrong):
    assert wrong_script(language, *texts) is wrong


def test_rows_in_another_script_are_counted(tmp_path):
    def row(n, question):
        return {"question": question, "options": {"A": f"one {n}", "B": "two"}, "answer_idx": "A"}

    path = put(tmp_path / "x.jsonl", [row(1, "What is gout?"), row(2, "痛风是什么病？"), row(3, "The patient抯 arm?")])
    records, run = convert("medqa_us", path)
    assert len(records) == 1 and run.report.dropped == {"text is not in English": 2}
    english = {
        "problem_id": 1,
        "problem_text": "What is the first choice in acute gout?",
        "choices": ["ice", "heat"],
        "answer": ["a"],
    }
    assert len(convert("igakuqa", put(tmp_path / "exam.jsonl", [english]))[0]) == 1  # as the exam asks a few
    assert not get_source("medqa_us").gb18030 and [n for n, s in SOURCES.items() if s.gb18030] == ["toyhom"]
