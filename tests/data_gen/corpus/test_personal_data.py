"""Personal data: what is masked, what only looks like it, telephone numbers by language."""

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from data_gen.corpus.personal_data import MaskPersonalData, PersonalDataSettings, mask_personal_data
from mmed_jax.common.errors import UserError
from tests.data_gen.corpus.corpus_texts import MEDICAL, ORDINARY

ASK = PersonalDataSettings()
PHONES = PersonalDataSettings(phones=("all",))


@pytest.mark.parametrize(
    "text, masked",
    [
        ("Write to jane.doe+x@clinic.co.uk.", "Write to name@example.org."),
        ("mailto:a@b.fr, c_d@e-f.museum;", "mailto:name@example.org, name@example.org;"),
        ("联系info@医院.中国。", "联系name@example.org。"),
        ("邮箱：info@hospital.cn。", "邮箱：name@example.org。"),
        ("From 81.200.64.51, port 80", "From 192.0.2.1, port 80"),
        ("IPv6 2a00:1450:4001:82a::200e end", "IPv6 192.0.2.1 end"),
    ],
)
def test_addresses_are_masked(text, masked):
    new, counts = mask_personal_data(text, "en", ASK)
    assert new == masked and sum(counts.values()) == masked.count("example.org") + masked.count("192.0.2.1")
    assert mask_personal_data(new, "en", ASK) == (new, {})


@pytest.mark.parametrize(
    "text",
    [
        *(
            "trypsin (EC 3.4.21.4)",
            "EC: 1.14.99.50",
            "EC number 3.6.99.88",
            "4.2.1.1 Posology",
            "version 10.2.33.1",
            "v1.2.3.4.5",
        ),
        *(
            "192.168.1.77",
            "127.0.0.1",
            "10.200.64.51",
            "300.200.100.50",
            "at 10:30:25",
            "a::b",
            "ratio 1:2:3",
            "08:15:00",
        ),
        *("5 mg @ 8 h", "@handle", "p@x", "user@localhost", "2 @ 3.5", "μ@σ.1"),
    ],
)
def test_what_only_looks_like_an_address_stays(text):
    assert mask_personal_data(text, "en", ASK) == (text, {})


@pytest.mark.parametrize(
    "language, text",
    [
        ("en", "Tel: (555) 123-4567"),
        ("en", "or +44 20 7946 0958 abroad"),
        ("fr", "Tél. : 01 23 45 67 89"),
        ("es", "Teléfono: 912 345 678"),
        ("ru", "Тел.: 8 (495) 123-45-67"),
        ("zh", "电话：010-12345678"),
        ("ja", "電話番号：03-1234-5678"),
        ("ko", "전화: 02-123-4567"),
    ],
)
def test_telephone_numbers_are_masked_where_asked_for(language, text):
    assert mask_personal_data(text, language, ASK) == (text, {})
    masked, counts = mask_personal_data(text, language, PHONES)
    assert "[phone]" in masked and not any(map(str.isdigit, masked)) and counts == {"telephone numbers": 1}
    assert mask_personal_data(text, language, PersonalDataSettings(phones=(language,))) == (masked, counts)


DOSES = "Adults 500-1000 mg\n12-17 years 250 500 750\n2.5 5.0 7.5 10.0\n2024-01-16 120/80 +3 +250\n555 123 4567\n"


@pytest.mark.parametrize("language", MEDICAL)
def test_dose_tables_and_plain_pages_stay_even_then(language):
    text = DOSES + MEDICAL[language] + ORDINARY[language]
    assert mask_personal_data(text, language, PHONES) == (text, {})


@given(st.text("a1.@: -+(0)é", max_size=40))
def test_masking_twice_changes_nothing(text):
    once, _ = mask_personal_data(text, "en", PHONES)
    assert mask_personal_data(once, "en", PHONES)[0] == once


def test_the_step_counts_by_kind():
    docs = [Document("a@b.org and c@d.org", "0", metadata={"language": "en"}), Document("81.200.64.51", "1")]
    step = MaskPersonalData()
    assert [doc.text for doc in step.run(iter(docs))] == ["name@example.org and name@example.org", "192.0.2.1"]
    assert step.stats["e-mail addresses"].total == 2 and step.stats["IP addresses"].total == 1
    kept = PersonalDataSettings(emails=False, ip_addresses=False)
    assert mask_personal_data("a@b.org 81.200.64.51", "en", kept) == ("a@b.org 81.200.64.51", {})
    with pytest.raises(UserError, match="telephone numbers of language 'kr': none; valid: all, en"):
        PersonalDataSettings(phones=("kr",))
