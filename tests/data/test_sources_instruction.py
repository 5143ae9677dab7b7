"""Question-and-answer adapters on small files of the published form, written here with invented content."""

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import group_ids
from mmed_jax.data.sources.mfds_edrug import QUESTIONS, ends_in_consonant, product_name, question_about
from tests.support.sources import convert, put, say, table


def test_medquad_xml_and_lines(tmp_path):
    (tmp_path / "1_Set").mkdir()
    (tmp_path / "1_Set" / "0001.xml").write_text(
        '<Document id="1" source="GHR" url="u"><Focus>Gout</Focus><QAPairs><QAPair pid="1">'
        '<Question qid="1-1" qtype="causes">'
        "What causes Gout ?</Question><Answer>What causes gout? Crystals.</Answer></QAPair><QAPair pid='2'>"
        "<Question qid='1-2' qtype='x'>Who ?</Question><Answer/></QAPair></QAPairs></Document>"
    )
    [record], run = convert("medquad", tmp_path)
    assert say(record) == ("What causes Gout?", "Crystals.") and record["provenance"]["group"] == "medquad:gout"
    assert run.report.dropped == {"no answer": 1}
    row = {
        "qid": "1-1",
        "source": "GHR",
        "focus": "Gout",
        "url": "u",
        "question": "What causes Gout ?",
        "answer": "Crystals.",
    }
    [same], _ = convert("medquad", put(tmp_path / "sample.jsonl", [row]))
    assert (same["id"], say(same)) == (record["id"], say(record))
    (tmp_path / "1_Set" / "0002.xml").write_text("<Document>\n<broken")
    with pytest.raises(UserError, match="0002.xml:2: broken XML"):
        convert("medquad", tmp_path)


def test_xlinghealth_one_row_per_language_true_pairs_only(tmp_path):
    header = ["id", "label", "answer_ids"]
    header += [
        f"{part}_{language}"
        for language in ("English", "Chinese", "Spanish", "Hindi")
        for part in ("question", "answer")
    ]
    good = [5, 1, 5, "q en", "a en", "问", "答", "q es", None, "h", "h"]
    nothing = [7, 1, 7, "q2 en", "No answers", "问二", "没有答案", "q2 es", "No hay respuestas", "h", "h"]
    path = table(tmp_path / "LiveQA.xlsx", header, good, [5, 0, 9, *["x"] * 8], nothing)
    records, run = convert("xlinghealth", path)
    assert [(r["language"], *say(r)) for r in records] == [("en", "q en", "a en"), ("zh", "问", "答")]
    assert run.report.read == 9 and run.report.dropped == {"wrong pairing (label 0)": 3, "no answer": 4}
    assert group_ids(records) == [0, 0] and records[1]["id"] == "xlinghealth-all-LiveQA-zh-5"


def test_toyhom_gb18030(tmp_path):
    text = "department,title,ask,answer\n内科,头痛怎么办？,我头痛三天了。,多休息。\n"
    text += "内科,发热？,无,喝水。\n内科,咳嗽,咳嗽很久,\n"
    path = put(tmp_path / "内科.csv", text, "gb18030")
    records, run = convert("toyhom", path)
    assert [say(r) for r in records] == [("头痛怎么办？\n我头痛三天了。", "多休息。"), ("发热？", "喝水。")]
    assert records[0]["provenance"]["department"] == "内科" and run.report.dropped == {"no answer": 1}
    again, _ = convert("toyhom", put(tmp_path / "again.csv", text))
    assert [r["id"] for r in again] == [r["id"] for r in records]  # by content, whatever the file is called


def test_cmb_clin_one_record_per_question_without_the_title(tmp_path):
    pairs = [{"question": "诊断？", "answer": "疝。"}, {"question": "治疗？", "answer": "手术。"}]
    records, _ = convert(
        "cmb_clin",
        put(tmp_path / "x.json", [{"id": "0", "title": "腹外疝", "description": "男，49岁。", "QA_pairs": pairs}]),
    )
    assert [say(r) for r in records] == [("男，49岁。\n\n诊断？", "疝。"), ("男，49岁。\n\n治疗？", "手术。")]
    assert group_ids(records) == [0, 0]


def test_mfds_names_the_product_and_drops_repeated_answers(tmp_path):
    header = ["품목일련번호", "제품명", "업체명", "주성분", *QUESTIONS]
    rows = [["1", "가나정(수출명:X)", "u", "갑", "효능 하나", "하루 한 번", None, "주의", None, None, "실온"]]
    rows += [["2", "다라시럽", "u", "을", "효능 하나", "하루 두 번", None, None, None, None, "실온"]]
    records, run = convert("mfds_edrug", table(tmp_path / "e.xlsx", header, *rows))
    assert [say(r) for r in records] == [
        ("가나정의 효능은 무엇입니까?", "효능 하나"),
        ("가나정은 어떻게 사용합니까?", "하루 한 번"),
        ("가나정의 사용상 주의사항은 무엇입니까?", "주의"),
        ("가나정은 어떻게 보관해야 합니까?", "실온"),
        ("다라시럽은 어떻게 사용합니까?", "하루 두 번"),
    ]
    assert run.report.read == 14 and run.report.dropped == {"no answer": 7, "duplicate of an earlier row": 2}
    assert {r["provenance"]["group"] for r in records} == {"mfds_edrug:갑", "mfds_edrug:을"}


@pytest.mark.parametrize(
    ("name", "short", "closed"),
    [
        ("게보린정(수출명:돌로린정)", "게보린정", True),
        ("판피린큐", "판피린큐", False),
        ("마그밀정(수산화마그네슘)", "마그밀정(수산화마그네슘)", True),
        ("가스부틴정100mg(트리메부틴말레산염)", "가스부틴정100mg(트리메부틴말레산염)", True),
        ("갈타제산(베타(아스))", "갈타제산(베타(아스))", True),
        ("크림0.5%", "크림0.5%", False),
        ("액500mL", "액500mL", False),
        ("비타민1000", "비타민1000", True),
        ("콜드5", "콜드5", False),
        ("오라메디연고{수출명:A(B)}", "오라메디연고", False),
        ("케펜텍플라스타(케토프로펜)\n(수출명 : KEFEN)", "케펜텍플라스타(케토프로펜)", False),
        ("타이레놀 ER", "타이레놀 ER", None),
    ],
)
def test_mfds_product_names_and_particles(name, short, closed):
    assert product_name(name) == short and ends_in_consonant(short) is closed
    particle = {True: "은", False: "는", None: "은(는)"}[closed]
    assert question_about("이 약은 어떻게 보관해야 합니까?", name) == f"{short}{particle} 어떻게 보관해야 합니까?"


def test_mfds_digits_as_they_are_read():
    # 영 일 이 삼 사 오 육 칠 팔 구
    assert [ends_in_consonant(f"정{digit}") for digit in range(10)] == [
        (ord(name) - ord("가")) % 28 != 0 for name in "영일이삼사오육칠팔구"
    ]


def test_covid_faq_licences_groups_and_languages(tmp_path):
    header = ["question", "answer", "url", "language", "source", "section", "wrong_answer"]
    rows = [
        [f"{n} {i}", "a\nb", "u", n, "CDC", "FAQ", "w"] for n in ("english", "korean", "vietnamese") for i in (1, 2)
    ]
    rows += [
        ["who en", "x", "u", "english", "WHO", "Masks", "w"],
        ["who en 2", "x", "u", "english", "WHO", "Masks", "w"],
    ]
    rows += [["кто", "x", "u", "russian", "WHO", "Masks", "w"]]
    records, run = convert("covid_faq", table(tmp_path / "multilingual.csv", header, *rows))
    one = {r["messages"][0]["content"]: r for r in records}
    assert one["english 2"]["provenance"]["group"] == one["korean 2"]["provenance"]["group"]
    assert one["english 1"]["provenance"]["group"] != one["korean 2"]["provenance"]["group"]
    assert len({one[q]["provenance"]["group"] for q in ("who en", "who en 2", "кто")}) == 1
    assert one["кто"]["license"] == "CC BY-NC-SA 3.0 IGO" and "public domain" in one["korean 1"]["license"]
    assert run.report.dropped == {"language not supported (vietnamese)": 2}
