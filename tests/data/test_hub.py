"""Sets from the hub: the published tables through a stand-in for datasets.load_dataset; no network is used."""

import json
import zipfile

import datasets
import huggingface_hub
import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.sources import SOURCES, Conversion, get_source
from mmed_jax.data.sources.hub import parse_input
from tests.support.sources import chosen, convert, medmcqa, say


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds what the test puts in: {(repo, config or data_dir): {split: Dataset}}; remembers the calls."""
    tables: dict[tuple, dict[str, datasets.Dataset]] = {}
    calls: list[dict] = []

    def load_dataset(repo, name=None, *, data_dir=None, revision=None):
        calls.append({"repo": repo, "name": name, "data_dir": data_dir, "revision": revision})
        if (repo, name or data_dir) not in tables:
            raise ConnectionError(f"Couldn't reach '{repo}'\non the Hub")
        return datasets.DatasetDict(tables[repo, name or data_dir])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return tables, calls


def rows(*values: dict, **features) -> datasets.Dataset:
    table = datasets.Dataset.from_list(list(values))
    return table.cast(datasets.Features({**table.features, **features})) if features else table


def test_medmcqa_counts_from_0_and_hides_the_test_key(hub):
    tables, calls = hub
    cop = datasets.ClassLabel(names=["a", "b", "c", "d"])
    tables["openlifescienceai/medmcqa", None] = {
        "train": rows(*(medmcqa(v) for v in (0, 3)), cop=cop),
        "test": rows(medmcqa(-1)),
        "validation": rows(medmcqa(2), medmcqa(0, id="x", question="other")),
    }
    records, run = convert("medmcqa", "hub")
    assert [(r["provenance"]["split"], chosen(r)[0]) for r in records] == [
        ("train", "a"),
        ("train", "d"),
        ("validation", "c"),
        ("validation", "a"),
    ]
    assert run.report.dropped == {"no key": 1}
    assert calls == [{"repo": "openlifescienceai/medmcqa", "name": None, "data_dir": None, "revision": None}]


def test_headqa_language_is_the_configuration_and_images_are_not_decoded(hub):
    tables, calls = hub
    answers = [{"aid": 1, "atext": "uno"}, {"aid": 2, "atext": "dos"}]
    row = {"name": "E", "year": "2013", "category": "biology", "qid": 4, "qtext": "¿?", "ra": 2, "answers": answers}
    seen = {**row, "qid": 5, "qtext": "¿Imagen?", "image": {"bytes": b"not an image", "path": None}}
    for config in ("es", "en"):
        tables["EleutherAI/headqa", config] = {"train": rows({**row, "image": None}, seen, image=datasets.Image())}
    records, run = convert("headqa", "hub", languages=("en",))
    assert [(r["language"], chosen(r), r.get("needs_image", False)) for r in records] == [
        ("en", ["dos"], False),
        ("en", ["dos"], True),
    ]
    assert [c["name"] for c in calls] == ["en"]  # the other language is not even fetched
    assert records[0]["id"] == "headqa-train-en-E-4"
    assert {r["language"] for r in convert("headqa", "hub")[0]} == {"en", "es"}


def test_pubmedqa_says_no_split(hub):
    tables, _ = hub
    row = {
        "pubid": 9,
        "question": "Is it?",
        "context": {"contexts": ["One.", "Two."]},
        "long_answer": "No.",
        "final_decision": "no",
    }
    tables["qiaojin/PubMedQA", "pqa_labeled"] = {"train": rows(row)}
    [record], _ = convert("pubmedqa", "hub")
    assert record["id"] == "pubmedqa-all-9" and chosen(record) == ["no"] and record["context"] == "One.\nTwo."


def test_mmlu_keeps_dev_beside_validation(hub):
    tables, _ = hub
    answer = datasets.ClassLabel(names=["A", "B", "C", "D"])
    for n, subject in enumerate(SOURCES["mmlu_medical"].hub.configs):
        row = {"subject": subject, "choices": list("wxyz"), "answer": n % 4}
        tables["cais/mmlu", subject] = {
            s: rows({**row, "question": f"{s} {n}"}, answer=answer) for s in ("dev", "validation", "test")
        }
    records, run = convert("mmlu_medical", "hub")
    assert run.report.by_split == {"dev": 9, "validation": 9, "test": 9}
    assert all(chosen(r) == ["wxyz"[int(r["question"].split()[1]) % 4]] for r in records)


def test_kormedmcqa_and_casimedicos_configurations(hub):
    tables, _ = hub
    exam = {
        "year": 2022,
        "period": 1,
        "q_number": 1,
        "question": "?",
        **dict.fromkeys("ABCD", "x"),
        "E": "마",
        "answer": 5,
        "cot": "",
    }
    for subject in ("doctor", "nurse", "pharm", "dentist"):
        tables["sean0042/KorMedMCQA", subject] = {"dev": rows({"subject": subject, **exam, "question": subject})}
    records, _ = convert("kormedmcqa", "hub", split="validation")
    assert len(records) == 4 and all(chosen(r) == ["마"] for r in records)
    for language in ("en", "es", "fr"):
        case = {"id": 1, "year": 2016, "question_id_specific": 2, "lang": language, "full_question": f"{language}?"}
        case |= {"options": {"1": "a", "2": "b", "5": None}, "correct_option": 2, "full_answer": "Why.", "type": "X"}
        tables["HiTZ/casimedicos-exp", language] = {"validation": rows(case)}
    records, _ = convert("casimedicos", "hub", "instruction")
    assert [say(r) for r in records] == [(f"{c}?\n1. a\n2. b", "Why.") for c in ("en", "es", "fr")]


def test_the_other_tables(hub):
    tables, calls = hub
    official = {
        "question": "Q",
        "answer": "b",
        "options": {"A": "a", "B": "b"},
        "answer_idx": "B",
        "meta_info": "step1",
    }
    tables["GBaker/MedQA-USMLE-4-options", None] = {"test": rows(official)}
    assert chosen(convert("medqa_us", "hub")[0][0]) == ["b"]
    pairs = {**official, "options": [{"key": "A", "value": "甲"}, {"key": "B", "value": "乙"}], "answer": "乙"}
    tables["bigbio/med_qa", "med_qa_zh_source"] = {"train": rows(pairs)}
    assert chosen(convert("medqa_zh", "hub")[0][0]) == ["乙"]
    assert calls[-1] == {
        "repo": "bigbio/med_qa",
        "name": None,
        "data_dir": "med_qa_zh_source",
        "revision": "refs/convert/parquet",
    }
    quad = {
        "question_id": "1-1",
        "question_type": "x",
        "question_focus": "Gout",
        "document_source": "NIH",
        "document_url": "u",
    }
    tables["lavita/MedQuAD", None] = {
        "train": rows({**quad, "question": "What ?", "answer": "This."}, {**quad, "question": "?", "answer": None})
    }
    [record], run = convert("medquad", "hub")
    assert say(record) == ("What?", "This.") and run.report.dropped == {"no answer": 1}
    clin = {
        "id": "3",
        "title": "t",
        "description": "病。",
        "QA_pairs": [{"question": "一？", "answer": "1"}, {"question": "二？", "answer": "2"}],
    }
    tables["FreedomIntelligence/CMB", "CMB-Clin"] = {"test": rows(clin)}
    assert [say(r)[1] for r in convert("cmb_clin", "hub")[0]] == ["1", "2"]
    sheet = {
        "id": 1,
        "label": 1,
        **{f"{p}_{n}": f"{p}{n}" for n in ("English", "Chinese", "Spanish") for p in ("question", "answer")},
    }
    tables["claws-lab/XLingHealth", None] = {"train": rows(sheet)}
    assert [r["language"] for r in convert("xlinghealth", "hub")[0]] == ["en", "zh", "es"]
    dialogue = {"instruction": "头痛？", "input": "", "output": "休息。", "history": None}
    tables["ticoAg/Chinese-medical-dialogue", None] = {"train": rows(dialogue)}
    assert say(convert("toyhom", "hub")[0][0]) == ("头痛？", "休息。")


def test_zipped_sets_are_fetched_as_files(monkeypatch, tmp_path):
    fetched = []

    def download(repo, name, *, revision, repo_type):
        fetched.append((repo, name, revision, repo_type))
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            row = {"id": "1", "question": "Q ?", "answers": {"a": "x", "b": "y"}, "correct_answers": ["b"]}
            archive.writestr("train.json", json.dumps([row]))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    [record], _ = convert("frenchmedmcqa", "hub:Dr-BERT/FrenchMedMCQA@abc123")
    assert chosen(record) == ["y"] and record["id"] == "frenchmedmcqa-train-1"
    assert fetched == [("Dr-BERT/FrenchMedMCQA", "data.zip", "abc123", "dataset")]


def test_another_repository_revision_and_configuration(hub):
    tables, calls = hub
    row = {
        "id": "1",
        "question": "Q ?",
        "answer_a": "x",
        "answer_b": "y",
        "answer_c": None,
        "answer_d": None,
        "answer_e": None,
    }
    labels = datasets.Sequence(datasets.ClassLabel(names=list("abcde")))
    tables["someone/copy", "small"] = {"train": rows({**row, "correct_answers": [1]}, correct_answers=labels)}
    [record], _ = convert("frenchmedmcqa", "hub:someone/copy@v2", hub_config="small")
    assert chosen(record) == ["y"] and calls[-1]["revision"] == "v2" and calls[-1]["name"] == "small"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("headqa", "hub", ("EleutherAI/headqa", None)),
        ("medqa_zh", "hub", ("bigbio/med_qa", "refs/convert/parquet")),
        ("medqa_zh", "hub:bigbio/med_qa@main", ("bigbio/med_qa", "main")),
        ("medqa_zh", "hub:me/mine", ("me/mine", None)),
    ],
)
def test_names_and_revisions(name, value, expected):
    assert parse_input(get_source(name), value) == expected


def test_what_goes_wrong_is_one_line_with_the_way_out(hub, monkeypatch):
    for name in ("headqa", "medquad"):
        with pytest.raises(
            WorkError, match=r"can't be fetched \(ConnectionError: .*\); download it from https://.*github"
        ) as caught:
            list(Conversion(get_source(name), "hub"))
        assert "\n" not in str(caught.value)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(WorkError, match="hub:Henrychur/MMedBench/MMedBench.zip: can't be fetched .OSError: no network"):
        list(Conversion(get_source("mmedbench"), "hub"))
    for name in ("rumeddanet", "mfds_edrug", "covid_faq", "igakuqa"):
        with pytest.raises(UserError, match=f"no hub copy of {name} is known; name one as hub:REPO_ID, or download"):
            list(Conversion(get_source(name), "hub"))
    with pytest.raises(UserError, match="'a/b/c' is no hub name"):
        list(Conversion(get_source("headqa"), "hub:a/b/c"))

    def unknown_config(*args, **kwargs):
        raise ValueError("BuilderConfig 'x' not found. Available: ['es', 'en']")

    monkeypatch.setattr(datasets, "load_dataset", unknown_config)
    with pytest.raises(UserError, match=r"EleutherAI/headqa \[x\]: BuilderConfig 'x' not found. Available"):
        list(Conversion(get_source("headqa"), "hub", hub_config="x"))


def test_offline_library_raises_what_is_caught():
    """The real load_dataset, told to stay offline (conftest), ends in our one line."""
    with pytest.raises(WorkError, match=r"hub:EleutherAI/headqa \[es\]: can't be fetched"):
        list(Conversion(get_source("headqa"), "hub"))
