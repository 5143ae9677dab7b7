"""What holds for every adapter: accounting, ids, splits, damaged input; and the real files where they are at hand."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.data.sources import SOURCES, Conversion, get_source
from mmed_jax.data.sources.answer_keys import key_at
from mmed_jax.data.sources.source import Row, lettered
from tests.support.sources import chosen, convert, medmcqa, put, say


def test_every_source_of_the_list_is_there():
    assert set(SOURCES) >= {
        "medqa_us",
        "medqa_zh",
        "medmcqa",
        "pubmedqa",
        "mmlu_medical",
        "jmmlu_medical",
        "frenchmedmcqa",
        "rumeddanet",
        "headqa",
        "casimedicos",
        "medquad",
        "xlinghealth",
        "toyhom",
        "cmb_clin",
        "mfds_edrug",
        "covid_faq",
        "mmedbench",
        "kormedmcqa",
        "igakuqa",
    }
    assert {n for n, s in SOURCES.items() if len(s.kinds) == 2} >= {"medmcqa", "pubmedqa", "casimedicos"}
    with pytest.raises(UserError, match=r"no source 'medmqca', did you mean 'medmcqa'\?"):
        get_source("medmqca")


def test_shared_helpers():
    assert lettered(["x", None, "y"]).reason == "empty option" and lettered(["x", "", None]).reason == "no options"
    assert lettered(["x"] * 27).reason == "more than 26 options" and list(lettered(["x"] * 26))[-1] == "Z"
    assert key_at([1, "3"], 1) == ["A", "C"] and key_at(["b"], 0) == ["B"] and key_at([""], 0) is None
    assert key_at([0], 1).reason == "key is not among the options"


def test_rows_of_unexpected_form_are_counted_after_the_first(tmp_path):
    good = {"id": "f1", "question": "Q", "answers": {"a": "x", "b": "y"}, "correct_answers": ["a"]}
    path = put(tmp_path / "train.json", [good, {**good, "answers": "text"}, {"id": "z"}])
    records, run = convert("frenchmedmcqa", path)
    assert len(records) == 1
    assert sorted(run.report.dropped) == [
        "malformed row (a field of unexpected form)",
        "malformed row (field 'question' is missing)",
    ]
    with pytest.raises(UserError, match=r"bad.json:1: a field of unexpected form.*frenchmedmcqa expects train.json"):
        convert("frenchmedmcqa", put(tmp_path / "bad.json", [{**good, "answers": "text"}]))


def test_ids_shared_by_different_rows_are_numbered(tmp_path):
    row = {"id": "same", "question": "Q", "answers": {"a": "x", "b": "y"}, "correct_answers": ["a"]}
    records, run = convert("frenchmedmcqa", put(tmp_path / "dev.json", [row, {**row, "question": "R"}]))
    assert [r["id"] for r in records] == ["frenchmedmcqa-validation-same", "frenchmedmcqa-validation-same-2"]
    assert run.report.renamed == 1


def test_splits_are_kept_apart_and_named(tmp_path):
    row = {"id": "1", "question": "Q", "answers": {"a": "x", "b": "y"}, "correct_answers": ["a"]}
    put(tmp_path / "train.json", [row])
    put(tmp_path / "dev.json", [{**row, "question": "R"}])
    for asked in ("dev", "validation"):
        records, run = convert("frenchmedmcqa", tmp_path, split=asked)
        assert [r["question"] for r in records] == ["R"] and run.report.dropped == {"another split": 1}
    more = put(tmp_path / "more.json", [{**row, "question": "S"}])
    with pytest.raises(
        UserError, match="more.json: names no split, and 1 rows of such files stand in none of the files"
    ):
        convert("frenchmedmcqa", tmp_path, split="dev")
    assert [r["provenance"]["split"] for r in convert("frenchmedmcqa", more, split="test")[0]] == ["test"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", b"[{", "x.json:1: broken JSON"),
        ("x.json", b"[1]", "x.json:1: expected an object, got int"),
        ("x.json", b"\xff\xff", "x.json: not UTF-8 (byte 0xff at position 0, line 1); save the file as UTF-8 or add "),
        ("x.json.gz", b"no gzip", "x.json.gz: damaged"),
        ("x.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:-9], "x.json.gz: damaged"),
        ("x.zip", b"no zip", "x.zip: damaged zip file"),
        ("x.json", b"[]", "x.json: holds no rows (frenchmedmcqa expects"),
        ("x.txt", b"hi", "x.txt: is no .json or .jsonl or .parquet file (frenchmedmcqa expects"),
        ("x.parquet", b"PAR1", "x.parquet: not a readable parquet file"),
    ],
)
def test_unreadable_input_is_one_clear_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        convert("frenchmedmcqa", tmp_path / name)
    assert says in str(caught.value)


def test_a_row_tells_where_it_stands(tmp_path):
    put(tmp_path / "test.jsonl", [medmcqa(4), medmcqa(1)])
    rows: list[Row] = list(get_source("medmcqa").rows(tmp_path))
    assert [(r.where, r.file, r.split, r.number) for r in rows] == [
        (f"{tmp_path}/test.jsonl:{n}", "test.jsonl", "test", n) for n in (1, 2)
    ]


# set, folder, kind, rows read, records kept
REAL = [
    ("medqa_us", "medqa_us", "mcq", 2074, 2074),
    ("medqa_zh", "medqa_zh", "mcq", 4000, 3991),
    ("medmcqa", "medmcqa_dev_en", "mcq", 4183, 4183),
    ("medmcqa", "medmcqa_dev_en", "instruction", 4183, 2183),
    ("pubmedqa", "pubmedqa_en", "mcq", 500, 500),
    ("pubmedqa", "pubmedqa_en", "instruction", 500, 500),
    ("mmlu_medical", "mmlu_medical_en", "mcq", 242, 240),
    ("jmmlu_medical", "jmmlu_medical_ja", "mcq", 776, 774),
    ("frenchmedmcqa", "frenchmedmcqa_fr", "mcq", 2483, 2480),
    ("rumeddanet", "rumeddanet_ru", "mcq", 1308, 1308),
    ("headqa", "headqa_es_en", "mcq", 4023, 4021),
    ("casimedicos", "casimedicos_en_es_fr", "mcq", 1308, 1308),
    ("casimedicos", "casimedicos_en_es_fr", "instruction", 1308, 1308),
    ("medquad", "medquad_en", "instruction", 3000, 2997),
    ("xlinghealth", "xlinghealth_en_zh_es", "instruction", 14040, 2759),
    ("toyhom", "toyhom_zh", "instruction", 7644, 7266),
    ("cmb_clin", "cmb_clin_zh", "instruction", 208, 208),
    ("mfds_edrug", "mfds_edrug_ko", "instruction", 32984, 10268),
    ("covid_faq", "covid_faq_multilingual", "instruction", 385, 308),
]


@pytest.fixture(scope="module")
def real(shared_dir) -> Iterator[Callable[[str, str, str], tuple[list[dict], Conversion]]]:
    """All records of a set in the shared folder by name, folder and kind; several tests look at the same ones."""
    found = cache(lambda name, folder, kind: convert(name, shared_dir / "data" / folder, kind))
    yield found
    found.cache_clear()


@pytest.mark.parametrize(("name", "folder", "kind", "read", "kept"), REAL, ids=[f"{r[0]}-{r[2]}" for r in REAL])
def test_the_real_files(real, name, folder, kind, read, kept):
    """Counts of the sets as published; `convert` checks ids, schema, languages and that no row is lost."""
    records, run = real(name, folder, kind)
    assert (run.report.read, len(records)) == (read, kept)
    assert not any("\ufffd" in json.dumps(r, ensure_ascii=False) for r in records)
    assert run.report.renamed == 0
    assert not any("nan" in r.get("options", {}).values() for r in records)
    if name == "mfds_edrug":  # every question stands alone, and names its product in plain Korean
        assert len({say(r)[0] for r in records}) == kept and not any("(는)" in say(r)[0] for r in records)


def test_real_answers_are_the_published_ones(real, shared_dir):
    """Letter and option against the raw files, by another way than the adapters take."""
    data = shared_dir / "data"
    key = {}
    for line in (data / "medmcqa_dev_en" / "dev.jsonl").read_text(encoding="utf-8").splitlines():
        raw = json.loads(line)
        key[raw["id"]] = [None, raw["opa"], raw["opb"], raw["opc"], raw["opd"]][raw["cop"]].strip()
    records, _ = real("medmcqa", "medmcqa_dev_en", "mcq")
    assert all(chosen(r) == [key[r["provenance"]["original_id"]]] for r in records)
    key = {}
    for split in ("train", "dev"):
        for exam in json.loads((data / "headqa_es_en" / f"{split}_HEAD.json").read_text(encoding="utf-8"))[
            "exams"
        ].values():
            for raw in exam["data"]:
                key[exam["name"], raw["qid"]] = next(a["atext"] for a in raw["answers"] if str(a["aid"]) == raw["ra"])
    records, run = real("headqa", "headqa_es_en", "mcq")
    assert all(chosen(r)[0] == key[r["provenance"]["exam"], r["provenance"]["original_id"]].strip() for r in records)
    assert run.report.needs_image == 98
    for line in (data / "medqa_us" / "dev_mediq.jsonl").read_text(encoding="utf-8").splitlines():
        raw = json.loads(line)
        key[raw["id"]] = (raw["answer"].strip(), raw["question"].strip())
    records, _ = convert("medqa_us", data / "medqa_us", split="validation")
    for r in records:
        answer, question = key[int(r["provenance"]["original_id"])]
        assert chosen(r) == [answer] and r["question"].endswith(question)


def test_real_translations_stay_together(real):
    for name, folder, languages in (
        ("casimedicos", "casimedicos_en_es_fr", 3),
        ("covid_faq", "covid_faq_multilingual", 4),
    ):
        records, _ = real(name, folder, "instruction")
        sizes = Counter(r["provenance"]["group"] for r in records)
        assert set(sizes.values()) == {languages}
