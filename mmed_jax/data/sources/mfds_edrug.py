"""e약은요: the Korean Ministry of Food and Drug Safety's drug information for patients (data.go.kr 15075057).

xlsx: 품목일련번호, 제품명, 업체명, 주성분 and seven columns whose headers are questions about "이 약" (this drug).

A question that stands alone has to name the product, so "이 약" is replaced by the product's name with the particle its
last sound asks for. One sheet row is read as seven rows, one per question. Many products share an answer word for word:
the first is kept. Group: the ingredients. The licence line of the portal could not be checked; each record says so.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Row, Source, cell_problem, dialogue, make_id, need, origin, text

LICENSE = "Korean public-sector data (MFDS), licence line unverified"
# Column header -> the question about {name}; {은} and {을} are the topic and object particles.
QUESTIONS = {
    "이 약의 효능은 무엇입니까?": "{name}의 효능은 무엇입니까?",
    "이 약은 어떻게 사용합니까?": "{name}{은} 어떻게 사용합니까?",
    "이 약을 사용하기 전에 반드시 알아야 할 내용은 무엇입니가?": "{name}{을} 사용하기 전에 반드시 알아야 할 내용은 무엇입니까?",  # noqa: E501
    "이 약의 사용상 주의사항은 무엇입니까?": "{name}의 사용상 주의사항은 무엇입니까?",
    "이 약을 사용하는 동안 주의해야 할 약 또는 음식은 무엇입니까?": "{name}{을} 사용하는 동안 주의해야 할 약 또는 음식은 무엇입니까?",  # noqa: E501
    "이 약은 어떤 이상반응이 나타날 수 있습니까?": "{name}{을} 사용하면 어떤 이상반응이 나타날 수 있습니까?",
    "이 약은 어떻게 보관해야 합니까?": "{name}{은} 어떻게 보관해야 합니까?",
}
# Read aloud in Korean, these digits end in a consonant: 영 일 삼 육 칠 팔.
_CONSONANT_DIGITS = "013678"
# And so do 그램 and its kin, but not 퍼센트 and 리터.
_UNITS = {"g": True, "%": False, "ml": False}


def rows(given: Download | Path) -> Iterator[Row]:
    for row in objects(given, ".xlsx", ".csv"):
        need(row, "품목일련번호", "제품명", "주성분", *QUESTIONS)
        for number, header in enumerate(QUESTIONS, 1):
            raw = {"code": row.raw["품목일련번호"], "product": row.raw["제품명"], "ingredients": row.raw["주성분"]}
            raw |= {"column": number, "header": header, "answer": row.raw[header]}
            yield row._replace(raw=raw, where=f"{row.where} column {header}")


def product_name(name: object) -> str:
    """The name without what it is called abroad: "게보린정(수출명:돌로린정)" -> "게보린정"."""
    without = re.sub(r"[(\[{][^()\[\]{}]*수출[^()\[\]{}]*[)\]}]", "", text(name))
    return " ".join(re.sub(r"[(\[{][^()\[\]{}]*수출.*$", "", without, flags=re.DOTALL).split())


def ends_in_consonant(name: str) -> bool | None:
    """Whether the name, read without what stands in brackets, ends in a consonant; None when that is unclear."""
    while (shorter := re.sub(r"[(\[{][^()\[\]{}]*[)\]}]", "", name).strip()) != name:
        name = shorter
    last = name[-1:]
    if "가" <= last <= "힣":
        return (ord(last) - ord("가")) % 28 != 0
    if last.isdecimal():
        return last in _CONSONANT_DIGITS
    return next((closed for unit, closed in _UNITS.items() if name.lower().endswith(unit)), None)


def question_about(header: str, product: object) -> str:
    """The column's question with the product's name in it."""
    name = product_name(product)
    closed = ends_in_consonant(name)
    topic, thing = {True: ("은", "을"), False: ("는", "를"), None: ("은(는)", "을(를)")}[closed]
    return QUESTIONS[header].format(name=name, 은=topic, 을=thing)


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    if problem := cell_problem(raw["product"]):
        return problem
    if not product_name(raw["product"]):
        return Drop("no product")
    return dialogue(
        "mfds_edrug",
        LICENSE,
        ident=make_id("mfds_edrug", row, raw["code"], raw["column"]),
        language="ko",
        question=question_about(raw["header"], raw["product"]),
        answer=raw["answer"],
        provenance=origin(
            row,
            raw["code"],
            f"mfds_edrug:{text(raw['ingredients'])}",
            column=raw["column"],
            product=text(raw["product"]),
        ),
    )


MFDS_EDRUG = Source(
    name="mfds_edrug",
    kinds=("instruction",),
    languages=("ko",),
    license=LICENSE,
    url="https://www.data.go.kr/data/15075057/openapi.do",
    rows=rows,
    convert=convert,
    expects="the e약은요 xlsx with 품목일련번호, 제품명, 주성분 and seven question columns",
    duplicate_key=lambda record: (record["provenance"]["column"], record["messages"][1]["content"]),
)
