"""Benchmarks by name: what the registry says, published files read and counted, the hub, lists, refusals."""

import argparse
import dataclasses
import json
import zipfile

import datasets
import huggingface_hub
import pytest

from mmed_jax import evaluate
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.records.schema import LANGUAGES, write_records
from mmed_jax.data.sources import SOURCES
from mmed_jax.evaluation.benchmarks import registry
from mmed_jax.evaluation.benchmarks.locate import locate_benchmarks, locate_entry, locate_files
from mmed_jax.evaluation.benchmarks.registry import ENTRIES, Entry
from mmed_jax.evaluation.benchmarks.select import check_disjoint, load_benchmark
from mmed_jax.evaluation.comparison.published_tables import place
from mmed_jax.evaluation.prompts.items import PromptSettings
from tests.support.sources import medmcqa, put, table


@pytest.fixture
def count(monkeypatch):
    """Sets the published counts of a benchmark for a test."""

    def go(name, **counts):
        monkeypatch.setitem(ENTRIES, name, dataclasses.replace(ENTRIES[name], counts=counts))

    return go


def load(name, folder, **options):
    [found] = locate_benchmarks([name], str(folder))
    return load_benchmark(found, **options)


def medqa(n, answer="A", **more):
    options = {"A": "one", "B": "two", "C": "three", "D": "four"}
    return {
        "question": f"Question {n}?",
        "options": options,
        "answer": options.get(answer),
        "answer_idx": answer,
        **more,
    }


@pytest.fixture
def medqa_dir(tmp_path, count):
    """Three test questions and two to learn from, counted so."""
    count("medqa_us", test={"en": 3}, train={"en": 2})
    put(tmp_path / "medqa_us" / "test.jsonl", [medqa(n, "ABC"[n]) for n in range(3)])
    put(tmp_path / "medqa_us" / "train.jsonl", [medqa(n) for n in (7, 8)])
    return tmp_path


def test_a_benchmark_is_one_declaration(tmp_path, monkeypatch, capsys):
    """One more entry of a source that is read already is listed, found by name, counted and compared under its name."""
    entry = Entry(
        "national_exam",
        SOURCES["medqa_us"],
        "test",
        ("en",),
        counts={"test": {"en": 2}},
        published_average="mean_over_languages",
        note="declared by a test",
    )
    monkeypatch.setitem(ENTRIES, entry.name, entry)
    put(tmp_path / "national_exam" / "test.jsonl", [medqa(n) for n in range(2)])
    put(tmp_path / "national_exam" / "train.jsonl", [medqa(n) for n in (7, 8)])
    selection = load("national_exam", tmp_path, pools=True)
    assert [r["question"] for r in selection.records] == ["Question 0?", "Question 1?"]
    assert selection.info["counted"] == selection.info["expected"] == 2 and len(selection.pools["train"]) == 2
    evaluate.main(["list", f"--data_dir={tmp_path}"])
    shown = capsys.readouterr().out
    assert "national_exam: declared by a test" in shown and "test 2 <- reported" in shown
    board, column = place("national_exam", selection.info, "en", None)
    assert (board.name, column, board.averaged, board.sizes) == ("national_exam", "en", True, {"en": 2})
    args = argparse.Namespace(
        few_shot_data=None, few_shot=1, split="", languages="", limit=0, images="", allow_count_mismatch=False, book=""
    )
    [benchmark] = locate_benchmarks(["national_exam"], str(tmp_path))
    items, data = evaluate.load_items(args, [benchmark], "mcq", PromptSettings())
    assert [i.answer for i in items] == ["A", "A"] and data["national_exam"]["few_shot"]
    put(tmp_path / "national_exam" / "test.jsonl", [medqa(n) for n in range(3)])
    with pytest.raises(UserError, match="3 questions of the test set, 2 were published"):
        load("national_exam", tmp_path)


# ---- The registry -------------------------------------------------------------------------------------------------


def test_published_totals():
    """The totals that the papers print, from the counts by language and exam."""
    total = lambda name, split: sum(ENTRIES[name].counts[split].values())  # noqa: E731
    assert (total("mmedbench", "train"), total("mmedbench", "test")) == (45048, 8518)
    assert sum(total("kormedmcqa", s) for s in ("train", "validation", "test")) == 7469
    six = ENTRIES["mmlu_medical"].asked_parts
    assert sum(ENTRIES["mmlu_medical"].expected("test", six).values()) == 1089
    assert total("jmmlu_medical", "") == 1273 and total("igakuqa", "") == 2000


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_every_entry_is_whole(entry):
    assert set(entry.languages) <= set(entry.source.languages) <= set(LANGUAGES)
    assert set(entry.asked_parts) <= set(entry.parts) and bool(entry.parts) == bool(entry.part_field)
    assert entry.split not in entry.examples and entry.source.license
    for counts in entry.counts.values():
        assert set(counts) == set(entry.parts or entry.languages)


def test_papers_names_what_both_papers_report():
    six = ("mmedbench", "kormedmcqa", "medqa_us", "medmcqa", "pubmedqa", "mmlu_medical")
    assert registry.expand(("papers",)) == six
    assert sorted(registry.expand(("MedQA_US", "Papers"))) == sorted(six)


# ---- Published files ----------------------------------------------------------------------------------------------


def test_the_reported_split_is_asked_and_the_others_are_for_examples(medqa_dir):
    loaded = load("medqa_us", medqa_dir)
    assert [r["answer_idx"] for r in loaded.records] == ["A", "B", "C"]
    assert [len(p) for p in loaded.pools.values()] == [2] and list(loaded.pools) == ["train"]
    info = loaded.info
    assert (info["split"], info["expected"], info["counted"], info["licence"]) == ("test", 3, 3, "MIT")
    assert info["count_mismatch"] is None and len(info["sha256"]) == 64
    other = load("medqa_us:train", medqa_dir)
    assert len(other.records) == 2 and "train" not in other.pools


def test_a_count_that_is_off_is_an_error_unless_allowed(medqa_dir, count):
    count("medqa_us", test={"en": 1273})
    with pytest.raises(UserError, match=r"medqa_us: .* has 3 questions of the test set, 1,273 were published") as e:
        load("medqa_us", medqa_dir)
    assert "--allow_count_mismatch" in str(e.value) and "\n" not in str(e.value)
    assert "3 instead of 1,273" in load("medqa_us", medqa_dir, count_mismatch=True).info["count_mismatch"]


def test_duplicates_count_as_the_published_number_counts_them(medqa_dir):
    put(medqa_dir / "medqa_us" / "test.jsonl", [medqa(0), medqa(0), medqa(1)])
    loaded = load("medqa_us", medqa_dir)
    assert len({r["id"] for r in loaded.records}) == 3 and loaded.info["duplicates"] == 1
    put(medqa_dir / "medqa_us" / "test.jsonl", [medqa(0), medqa(2), medqa(1)])
    assert load("medqa_us", medqa_dir).info["duplicates"] == 0


@pytest.mark.parametrize("key", ["", "Z", None])
def test_a_row_without_a_usable_key_is_an_error_with_its_place(medqa_dir, key):
    rows = [medqa(0), {**medqa(1), "answer_idx": key}, medqa(2)]
    put(medqa_dir / "medqa_us" / "test.jsonl", rows)
    with pytest.raises(UserError, match=r"1 of 3 rows are no usable question \(1 x .*test.jsonl:2\)"):
        load("medqa_us", medqa_dir)
    loaded = load("medqa_us", medqa_dir, count_mismatch=True)
    assert len(loaded.records) == 2 and sum(loaded.info["dropped"].values()) == 1


def test_all_reasons_of_unusable_rows_are_told(medqa_dir, count):
    count("medqa_us", test={"en": 4})
    rows = [{**medqa(0), "answer_idx": ""}, {**medqa(1), "question": " "}, {**medqa(2), "answer_idx": ""}, medqa(3)]
    put(medqa_dir / "medqa_us" / "test.jsonl", rows)
    with pytest.raises(UserError, match=r"3 of 4 rows .*\(2 x .*, first .*jsonl:1; 1 x .*, first .*jsonl:2\)"):
        load("medqa_us", medqa_dir)


def test_wrong_columns_say_which_and_what_was_expected(medqa_dir):
    put(medqa_dir / "medqa_us" / "test.jsonl", [{"frage": "Was?", "options": {}}])
    with pytest.raises(UserError, match=r"test.jsonl:1: field 'question' is missing; found: frage.*expects JSON lines"):
        load("medqa_us", medqa_dir)


def test_another_split_is_never_asked_in_silence(medqa_dir):
    (medqa_dir / "medqa_us" / "test.jsonl").unlink()
    with pytest.raises(UserError, match="the reported split is test, and .* holds train; --split=train asks"):
        load("medqa_us", medqa_dir)
    with pytest.raises(UserError, match="--split=dev, and .* holds train"):
        load("medqa_us", medqa_dir, split="dev")


def kormedmcqa(folder, split, *subjects):
    header = ["subject", "year", "period", "q_number", "question", *"ABCDE", "answer", "cot"]
    for subject in subjects:
        rows = [[subject, 2024, 1, n, f"{subject} {split} 질문 {n}", *"가나다라마", 1 + n, "이유"] for n in range(2)]
        table(folder / "KorMedMCQA" / subject / f"{split}-00000-of-00001.parquet", header, *rows)


def test_exams_are_parts(tmp_path, count):
    """One benchmark, four exams: NAME asks all, NAME/PART one; a missing exam is a count that is off."""
    subjects = ENTRIES["kormedmcqa"].parts
    count("kormedmcqa", test=dict.fromkeys(subjects, 2))
    kormedmcqa(tmp_path, "test", *subjects)
    kormedmcqa(tmp_path, "fewshot", *subjects)
    loaded = load("kormedmcqa", tmp_path)
    assert len(loaded.records) == 8 and loaded.info["by_cell"] == dict.fromkeys(subjects, 2)
    assert {r["provenance"]["subject"] for r in load("kormedmcqa/nurse", tmp_path).records} == {"nurse"}
    assert len(loaded.pools["fewshot"]) == 8 and loaded.pools["fewshot"][0]["rationale"] == "이유"
    assert len(load("kormedmcqa", tmp_path, limit=1).records) == 4
    for file in (tmp_path / "KorMedMCQA" / "dentist").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="dentist 0 instead of 2"):
        load("kormedmcqa", tmp_path)


def test_pubmedqa_asks_the_official_half(tmp_path, count):
    count("pubmedqa", test={"en": 2}, train={"en": 1})
    row = {"CONTEXTS": ["Fever.", "Cough."], "LONG_ANSWER": "It depends.", "YEAR": "2001"}
    rows = {
        str(n): {**row, "QUESTION": f"Question {n}?", "final_decision": d} for n, d in enumerate(("yes", "no", "maybe"))
    }
    put(tmp_path / "pubmedqa" / "ori_pqal.json", rows)
    put(tmp_path / "pubmedqa" / "test_ground_truth.json", {"1": "no", "2": "maybe"})
    records = load("pubmedqa", tmp_path).records
    assert [r["answer_idx"] for r in records] == ["B", "C"] and records[0]["context"] == "Fever.\nCough."
    assert records[0]["options"] == {"A": "yes", "B": "no", "C": "maybe"}


def test_rumeddanet_answers_are_options(tmp_path, count):
    count("rumeddanet", test={"ru": 2})
    row = {"context": "Боль.", "question": "Вопрос?"}
    rows = [{**row, "pairID": n, "answer": answer} for n, answer in enumerate(("да", "нет"))]
    put(tmp_path / "rumeddanet" / "test_v1.jsonl", rows)
    records = load("rumeddanet", tmp_path).records
    assert [r["answer_idx"] for r in records] == ["A", "B"] and records[0]["options"] == {"A": "да", "B": "нет"}


def test_medqa_with_four_options_is_taken_where_both_forms_lie(tmp_path, count):
    count("medqa_us", test={"en": 1})
    put(tmp_path / "medqa" / "US" / "test.jsonl", [medqa(1, options={**medqa(0)["options"], "E": "five"})])
    put(tmp_path / "medqa" / "US" / "4_options" / "phrases_no_exclude_test.jsonl", [medqa(1)])
    assert len(load("medqa_us", tmp_path).records[0]["options"]) == 4


def test_questions_with_images_are_asked_where_the_papers_count_them(medqa_dir):
    """In registered benchmarks; files of one's own leave them out, as training does."""
    rows = [medqa(0), medqa(1, question="The x-ray is shown below. What is it?"), medqa(2)]
    put(medqa_dir / "medqa_us" / "test.jsonl", rows)
    loaded = load("medqa_us", medqa_dir)
    assert len(loaded.records) == 3 and loaded.info["needs_image_asked"] == 1
    assert load("medqa_us", medqa_dir, images="skip").info["needs_image"] == 1
    made = [{**r, "needs_image": n == 1} for n, r in enumerate(loaded.records)]
    write_records(medqa_dir / "mine.jsonl", made)
    [mine] = locate_files([str(medqa_dir / "mine.jsonl")])
    assert len(load_benchmark(mine).records) == 2 and len(load_benchmark(mine, images="ask").records) == 3


def test_record_files_are_split_by_their_provenance(medqa_dir):
    """Converted files hold splits as well; they are counted like published ones."""
    loaded = load("medqa_us", medqa_dir)
    write_records(medqa_dir / "records" / "medqa_us.jsonl", [*loaded.pools["train"], *loaded.records])
    again = load("medqa_us", medqa_dir / "records")
    assert again.records == loaded.records and again.pools == loaded.pools and again.info["counted"] == 3


def test_folders_of_records_hold_splits_too(medqa_dir):
    """As `data_gen build` writes them: the test split is asked, not the one that training would read."""
    loaded = load("medqa_us", medqa_dir)
    for split, records in (("test", loaded.records), ("train", loaded.pools["train"])):
        plain = [{**r, "provenance": {}} for r in records]
        write_records(medqa_dir / "sets" / "medqa_us" / split / "part.jsonl", plain)
    again = load("medqa_us", medqa_dir / "sets")
    assert [r["id"] for r in again.records] == [r["id"] for r in loaded.records] and len(again.pools["train"]) == 2


def test_mmedbench_zip_by_language(tmp_path, count):
    files = {"English": "en", "French": "fr"}
    count("mmedbench", test={"en": 2, "zh": 0, "ja": 0, "fr": 2, "ru": 0, "es": 0})
    with zipfile.ZipFile(tmp_path / "MMedBench.zip", "w") as archive:
        for split in ("Train", "Test"):
            for name in files:
                rows = [{**medqa(f"{name} {split} {n}"), "rationale": "So."} for n in range(2)]
                archive.writestr(f"MMedBench/{split}/{name}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    loaded = load("mmedbench", tmp_path)
    assert [r["language"] for r in loaded.records] == ["en", "en", "fr", "fr"] and len(loaded.pools["train"]) == 4
    assert [r["language"] for r in load("mmedbench/fr", tmp_path).records] == ["fr", "fr"]
    assert load("mmedbench", tmp_path, languages=("en",)).info["expected"] == 2
    with pytest.raises(UserError, match="--languages=ko: mmedbench is in en, zh, ja, fr, ru, es"):
        load("mmedbench", tmp_path, languages=("ko",))
    with pytest.raises(UserError, match="'jp' is not supported, did you mean 'ja'"):
        load("mmedbench", tmp_path, languages=("jp",))


# ---- The hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub with the tables a test puts in; remembers the revisions it was asked for."""
    tables, revisions = {}, []

    def load_dataset(repo, name=None, *, data_dir=None, revision=None):
        revisions.append(revision)
        if (repo, name or data_dir) not in tables:
            raise ConnectionError(f"Couldn't reach '{repo}'\non the Hub")
        held = tables[repo, name or data_dir]
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in held.items()})

    class Api:
        def dataset_info(self, repo, revision=None):
            return type("Info", (), {"sha": "c0ffee" * 6 + "1234"})()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return tables, revisions


def test_hub_copy_is_pinned_to_the_commit_that_is_named(hub, count):
    tables, revisions = hub
    count("medmcqa", validation={"en": 2})
    tables["openlifescienceai/medmcqa", None] = {
        "train": [medmcqa(1)],
        "validation": [medmcqa(0), medmcqa(3)],
        "test": [medmcqa(-1)],
    }
    loaded = load("medmcqa", "hub")
    assert [r["answer_idx"] for r in loaded.records] == ["A", "D"] and list(loaded.pools) == ["train"]
    assert loaded.info["revision"] == revisions[0] == "c0ffee" * 6 + "1234" and len(loaded.info["sha256"]) == 64
    assert loaded.info["hub"] == "openlifescienceai/medmcqa"


def test_pubmedqa_of_the_hub_has_the_official_test_half(hub, count):
    tables, _ = hub
    count("pubmedqa", test={"en": 1})
    row = {"QUESTION": "Does it?", "CONTEXTS": ["Fever."], "final_decision": "maybe", "LONG_ANSWER": "So."}
    tables["bigbio/pubmed_qa", "pubmed_qa_labeled_fold0_source"] = {"train": [{**row, "QUESTION": "x?"}], "test": [row]}
    [record] = load("pubmedqa", "hub").records
    assert record["answer_idx"] == "C" and record["context"] == "Fever."


def test_hub_refusals(hub, monkeypatch):
    with pytest.raises(WorkError, match="GBaker/MedQA-USMLE-4-options: can't be fetched.*with --data_dir=DIR"):
        load("medqa_us", "hub")
    with pytest.raises(UserError, match="--benchmark=igakuqa: no hub copy of it is known; download it from https"):
        load("igakuqa", "hub")
    with pytest.raises(UserError, match="no registered benchmark, did you mean 'medqa_us'"):
        load("medqa_uk", "hub")


# ---- Names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["medqa_uk"], "not in .*, did you mean 'medqa_us'"),
        (["medqa"], "--benchmark=medqa: not in .*, did you mean 'medqa_us'"),
        (["medqa:dev"], "--benchmark=medqa:dev: not in .*, did you mean 'medqa_us:dev'"),
        (["kormedmcqa/doktor"], "no such part, did you mean 'doctor'"),
        (["medqa_us/test"], "medqa_us has no parts"),
        (["medqa_us", "MedQA_US"], "'medqa_us' is named twice"),
        (["headqa"], "--benchmark=headqa: not in .*neither a folder or zip 'headqa'.*nor headqa.jsonl"),
        (["papers"], "--benchmark=papers: mmedbench, kormedmcqa, medmcqa, pubmedqa, mmlu_medical not found in"),
    ],
)
def test_names_that_cannot_be(medqa_dir, names, message):
    with pytest.raises(UserError, match=message) as e:
        locate_benchmarks(names, str(medqa_dir))
    assert "\n" not in str(e.value)


def test_a_part_beside_its_whole_is_named_twice(tmp_path):
    kormedmcqa(tmp_path, "test", "doctor")
    with pytest.raises(UserError, match="'kormedmcqa/doctor' is a part of 'kormedmcqa'"):
        locate_benchmarks(["kormedmcqa", "kormedmcqa/doctor"], str(tmp_path))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["medqa_us", "medqa_us:test"], ""),
        (["medqa_us:dev", "medqa_us:validation"], ""),
        (["medqa_us:Valid", "medqa_us"], "validation"),
        (["headqa/es:dev", "headqa:validation"], ""),
        (["headqa:validation", "headqa/en:dev"], ""),
        (["mmlu_medical/anatomy", "mmlu_medical:test"], ""),
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_the_same_questions_are_not_asked_under_two_names(names, split, turn, medqa_dir):
    for name in ("headqa", "mmlu_medical"):
        put(medqa_dir / name / "test.jsonl", [medqa(0)])
    with pytest.raises(UserError, match=r"the same questions: named twice") as e:
        locate_benchmarks(names[::turn], str(medqa_dir), split)
    assert "\n" not in str(e.value)


def test_what_only_looks_like_the_same_is_asked(medqa_dir):
    put(medqa_dir / "mmlu_medical" / "test.jsonl", [medqa(0)])
    put(medqa_dir / "mmedbench" / "Test" / "English.jsonl", [medqa(0)])
    for names in (
        ["mmlu_medical", "mmlu_medical/virology"],
        ["mmlu_medical:dev", "mmlu_medical:val"],
        ["mmedbench/en", "mmedbench/fr"],
        ["medqa_us:train", "medqa_us"],
    ):
        assert len(locate_benchmarks(names, str(medqa_dir))) == 2


def test_questions_named_twice_by_files(medqa_dir):
    loaded = load("medqa_us", medqa_dir)
    for split in ("validation", "test"):
        write_records(medqa_dir / "sets" / "mine" / split / "part.jsonl", [{**loaded.records[0], "provenance": {}}])
    mine = str(medqa_dir / "sets" / "mine")
    with pytest.raises(UserError, match="--data: .* are the same questions: named twice"):
        locate_files([f"{mine}:dev", f"{mine}:validation"])
    [own] = locate_files([f"{mine}:test"])
    other = dataclasses.replace(own, name="other")
    with pytest.raises(UserError, match="--data: 'mine' and 'other' are the same questions: named twice"):
        check_disjoint([(own, load_benchmark(own)), (other, load_benchmark(other))])


def test_folders_that_only_begin_alike_are_not_mixed_up(tmp_path):
    """medqa_zh is another set than medqa_us; medqa_us_2024 is a copy of medqa_us."""
    put(tmp_path / "medqa_zh" / "x.jsonl", [medqa(0)])
    assert locate_entry(ENTRIES["medqa_us"], tmp_path) is None
    put(tmp_path / "medqa_us_2024" / "test.jsonl", [medqa(0)])
    assert locate_entry(ENTRIES["medqa_us"], tmp_path).path.endswith("medqa_us_2024")
    put(tmp_path / "medqa_us_old" / "test.jsonl", [medqa(0)])
    with pytest.raises(UserError, match=r"several folders of that name \(medqa_us_2024, medqa_us_old\)"):
        locate_entry(ENTRIES["medqa_us"], tmp_path)


def test_list(medqa_dir, capsys):
    evaluate.main(["list"])
    text = capsys.readouterr().out
    assert all(name in text for name in ENTRIES) and "8,518" in text and "CC BY-NC 2.0" in text and "papers =" in text
    row = {"pairID": 1, "context": "Боль.", "question": "Да?", "answer": "да"}
    put(medqa_dir / "rumeddanet_ru" / "dev_v1.jsonl", [row])
    put(medqa_dir / "broken.jsonl", ["not an object"])
    evaluate.main(["list", f"--data_dir={medqa_dir}"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "medqa_us medqa_us test 3 <- reported" in lines and "medqa_us medqa_us train 2" in lines
    assert "rumeddanet rumeddanet_ru validation 1 of 256" in lines and "headqa - not here" in lines
    assert any(line.startswith("broken.jsonl - ") and "expected a JSON object" in line for line in lines)
    with pytest.raises(UserError, match="no such folder"):
        evaluate.main(["list", "--data_dir=nowhere"])
    with pytest.raises(UserError, match="did you mean '--data_dir'"):
        evaluate.main(["list", "--data_dri=x"])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("medmcqa", 4183),
        ("medqa_us:dev", 1272),
        ("pubmedqa:train", 500),
        ("mmlu_medical:val", 123),
        ("mmlu_medical/virology:val", 18),
        ("frenchmedmcqa:dev", 312),
        ("rumeddanet:dev", 256),
        ("headqa:dev", 1366),
        ("casimedicos:dev", 165),
    ],
)
def test_real_files_have_the_published_size(shared_dir, name, size):
    loaded = load(name, shared_dir / "data")
    assert len(loaded.records) == size and loaded.info["expected"] == (None if "casi" in name else size)


def test_info_is_json(medqa_dir):
    info = load("medqa_us", medqa_dir).info
    assert json.loads(json.dumps(info)) == info
