"""MMedBench from its sources: published counts and keys, splits, what a model sees, and the files read back."""

import json
import shutil
from pathlib import Path

import pytest

from data_gen.commands.build import main
from data_gen.sets.make_splits import divided
from data_gen.sets.mmedbench_format import PUBLISHED, read_built
from data_gen.sets.recipes import as_dict, load_recipe
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.reading import read_records
from mmed_jax.evaluation.benchmarks.locate import locate_benchmarks
from mmed_jax.evaluation.benchmarks.select import load_benchmark
from mmed_jax.llm_api.prompt_guard import inside
from tests.support.fake_model import FakeModel
from tests.support.mmedbench import raw_sources
from tests.support.openai_server import OpenAIServer

ALSO = "--recipe.licenses_also=none stated"
NAMES = ("English", "Chinese", "Japanese", "French", "Russian", "Spanish")


class Watched:
    """The fake model, with the data of every prompt it was shown."""

    def __init__(self):
        self.model, self.shown = FakeModel(), []

    def __call__(self, body: dict) -> str:
        self.shown += [json.loads(text) for text in inside(body["messages"][-1]["content"])]
        return self.model(body)


def build(raw: Path, output: Path, *flags: str, recipe: str = "mmedbench", model=None) -> None:
    with OpenAIServer(model or FakeModel()) as server:
        main(
            [
                f"--recipe={recipe}",
                f"--data_dir={raw}",
                f"--output={output}",
                "--model=local",
                f"--base_url={server.base_url}",
                f"--ledger={output.parent / 'ledger.sqlite'}",
                "--price=0.1,0.4",
                *flags,
            ]
        )


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmedbench")
    model = Watched()
    raw = raw_sources(folder / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "none")
        build(raw, folder / "mmedbench", ALSO, "--extra=id,topic,license,needs_image,provenance", model=model)
    return folder / "mmedbench", model.shown


def lines(folder: Path, split: str, language: str) -> list[dict]:
    return [json.loads(line) for line in (folder / split / f"{language}.jsonl").read_text().splitlines()]


def test_every_published_question_is_there_in_its_split(built):
    """Development splits, English copies and translations are not; duplicates and questions with images are."""
    folder, _ = built
    counts = {(s, n): len(lines(folder, s, n)) for s in ("Train", "Test") for n in NAMES}
    assert counts == {
        ("Train", "English"): 3,
        ("Test", "English"): 2,
        ("Train", "Chinese"): 3,
        ("Test", "Chinese"): 1,
        ("Train", "Japanese"): 8,
        ("Test", "Japanese"): 1,
        ("Train", "French"): 2,
        ("Test", "French"): 1,
        ("Train", "Russian"): 2,
        ("Test", "Russian"): 2,
        ("Train", "Spanish"): 2,
        ("Test", "Spanish"): 1,
    }
    summary = json.loads((folder / "build.json").read_text())
    assert summary["published"]["train/zh"] == 27_400 and summary["needs_image"] == {"train/es": 1}
    assert summary["near_duplicates"] == {"en": 1}
    [repeat] = map(json.loads, (folder / "near_duplicates.ndjson").read_text().splitlines())
    assert repeat["similarity"] == 1.0 and "test" in repeat["test"] and "train" in repeat["train"]
    assert not list(folder.rglob("*.jsonl*")) == [] and {p.parts[-2] for p in folder.rglob("*.jsonl*")} == {
        "Train",
        "Test",
    }


def test_lines_have_the_published_keys_and_those_asked_for(built, tmp_path):
    folder, _ = built
    extra = ("id", "topic", "license", "needs_image", "provenance")
    for split in ("Train", "Test"):
        for name in NAMES:
            assert {tuple(line) for line in lines(folder, split, name)} == {(*PUBLISHED, *extra)}
    [french] = [x for x in lines(folder, "Train", "French") if "," in x["answer_idx"]]
    assert french["answer_idx"] == "A,C" and french["license"] == "Apache-2.0" and french["topic"]
    russian = lines(folder, "Train", "Russian")[0]
    assert russian["options"] == {"A": "да", "B": "нет"}
    assert not any("context" in r for s in ("train", "test") for r in read_built(folder, s))


def test_a_test_answer_reaches_no_model_unless_asked_for(built, tmp_path):
    """Its question does, for the topics; with the step of that name its key does as well."""
    folder, shown = built
    tests = {r["question"] for r in read_built(folder, "test")} - {r["question"] for r in read_built(folder, "train")}
    keyed = {data["question"] for data in shown if "right_options" in data}
    assert tests and not tests & keyed and tests <= {data["question"] for data in shown}
    assert all(bool(r["rationale"]) != r.get("needs_image", False) for r in read_built(folder, "train"))
    assert not any(r["rationale"] for r in read_built(folder, "test"))
    model = Watched()
    flags = ("--recipe.steps=rationale_test", "--recipe.languages=fr")
    build(folder.parent / "raw", tmp_path / "out", *flags, model=model)
    assert {data["question"] for data in model.shown} == {r["question"] for r in read_built(tmp_path / "out", "test")}
    assert all(r["rationale"] for r in read_built(tmp_path / "out", "test"))
    with pytest.raises(UserError, match=r"step.rationale: .*the answers of headqa_test, .*test_answers=true"):
        load_recipe("mmedbench", {"step.rationale.sources": "headqa,headqa_test"})


def test_a_shuffle_moves_keys_and_what_is_generated_follows(built, tmp_path):
    folder, _ = built
    build(folder.parent / "raw", tmp_path / "out", ALSO, "--recipe.shuffle_options=true", "--recipe.seed=3")
    plain = {r["id"]: r for s in ("train", "test") for r in read_built(folder, s)}
    moved = 0
    for split in ("train", "test"):
        for record in read_built(tmp_path / "out", split):
            texts = {record["options"][letter] for letter in record["answer_idx"].split(",")}
            if record["language"] == "ja" and record["id"] not in plain:
                continue  # another seed divides the Japanese questions otherwise
            old = plain[record["id"]]
            assert texts == {old["options"][letter] for letter in old["answer_idx"].split(",")}
            order = record["provenance"].get("option_order", "".join(old["options"]))
            assert list(record["options"].values()) == [old["options"][letter] for letter in order]
            moved += order != "".join(old["options"])
    assert moved > 5
    assert not (tmp_path / "out" / "Train" / "Korean.jsonl").exists()


def test_unknown_licences_are_left_out_and_said(built, tmp_path, capsys):
    folder, _ = built
    build(folder.parent / "raw", tmp_path / "out", "--recipe.steps=", recipe="mmedbench:ko")
    said = capsys.readouterr().out
    assert "9 questions left out for their licence 'none stated'" in said
    assert 'licenses_also="none stated"' in said and "train/ja: 0 questions, 1,590 published" in said
    assert not (tmp_path / "out" / "Train" / "Japanese.jsonl").exists()
    build(folder.parent / "raw", tmp_path / "out", "--recipe.steps=", "--licenses=research", recipe="mmedbench:ko")
    assert len(lines(tmp_path / "out", "Train", "Korean")) == 2 and len(lines(tmp_path / "out", "Test", "Korean")) == 1
    assert {tuple(x) for x in lines(tmp_path / "out", "Test", "Korean")} == {PUBLISHED}


def test_building_again_pays_nothing_and_gives_the_same_bytes(built, tmp_path):
    folder, shown = built
    (tmp_path / "raw").symlink_to(folder.parent / "raw")
    for suffix in ("", "-wal", "-shm"):
        if (ledger := folder.parent / f"ledger.sqlite{suffix}").exists():
            shutil.copy(ledger, tmp_path / ledger.name)
    model = Watched()
    build(tmp_path / "raw", tmp_path / "again", ALSO, "--extra=id,topic,license,needs_image,provenance", model=model)
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*.*")}
    assert shown and not model.shown
    with pytest.raises(UserError, match=r"holds what another format wrote \(Train/\)"):
        main(["--recipe=mmed_ift:demo", f"--output={tmp_path / 'again'}", "--model=x", "--price=1,1"])


def test_recipes_that_ask_for_none_of_it_keep_their_hash():
    """Cards name it: keys that came with this format are no part of another recipe's."""
    plain = as_dict(load_recipe("mmed_ift", {}))
    assert not {"format", "extra", "shuffle_options"} & set(plain)
    assert not {"prefer", "skip", "divide", "closed_book"} & set(plain["source"]["medquad"])
    assert "test_answers" not in plain["step"]["qa"]
    asked = as_dict(load_recipe("mmedbench", {"extra": "id"}))
    assert asked["format"] == "mmedbench" and asked["source"]["igakuqa"]["divide"] == [8, 1, 1]


def test_it_is_read_as_mmedbench(built):
    folder, _ = built
    [found] = locate_benchmarks(["mmedbench"], str(folder.parent))
    with pytest.raises(UserError, match="11 questions|8 questions"):
        load_benchmark(found)
    loaded = load_benchmark(found, count_mismatch=True)
    assert len(loaded.records) == 8 and {r["language"] for r in loaded.records} == {"en", "zh", "ja", "fr", "ru", "es"}
    train = list(read_records(folder))
    assert len(train) == 20 and sum(bool(r["rationale"]) for r in train) == 19
    french = next(r for r in train if r["language"] == "fr")
    assert french["license"] == "Apache-2.0" and french["provenance"]["original_id"].startswith("frenchmedmcqa-train")


def test_a_division_is_stable_and_keeps_families_together():
    rows = [
        {"question": f"q{i}", "options": {"A": "1", "B": "2"}, "provenance": {"group": f"g{i // 2}"}, "n": i}
        for i in range(40)
    ]
    parts = {p: [r["n"] for r in divided(rows, (8, 1, 1), p, 0)] for p in ("train", "validation", "test")}
    assert {p: len(n) for p, n in parts.items()} == {"train": 32, "validation": 4, "test": 4}
    assert sorted(sum(parts.values(), [])) == list(range(40))
    again = {p: sorted(r["n"] for r in divided(rows[::-1], (8, 1, 1), p, 0)) for p in parts}
    assert again == {p: sorted(n) for p, n in parts.items()}
    assert all(len({n // 2 for n in numbers}) * 2 == len(numbers) for numbers in parts.values())
    assert parts["test"] != [r["n"] for r in divided(rows, (8, 1, 1), "test", 1)]


@pytest.mark.parametrize(
    "overrides, problem",
    [
        ({"extra": "licence"}, "extra 'licence', did you mean 'license'"),
        ({"format": "mmedbnch"}, "did you mean 'mmedbench'"),
        ({"source.igakuqa.divide": "8,1"}, "divide=8,1: must be three whole numbers"),
        ({"source.headqa.split": "validation"}, "split 'validation': must be train or test"),
        ({"targets": "fr=10"}, "keeps all rows of its sources"),
        ({"validation_fraction": "0.1"}, "validation_fraction=0.1: a recipe of format mmedbench has 0"),
        ({"step.topics.method": "translation"}, "makes new questions"),
    ],
)
def test_mistakes(overrides, problem):
    with pytest.raises(UserError, match=problem):
        load_recipe("mmedbench", overrides)


def test_recipes_hold_together_and_keep_apart(tmp_path):
    for name in ("mmedbench", "mmedbench:ko", "mmedbench:demo"):
        assert load_recipe(name, {}).format == "mmedbench"
    with pytest.raises(UserError, match="extra is for format mmedbench"):
        load_recipe("mmed_ift", {"extra": "id"})
    with pytest.raises(UserError, match="its test questions are meant to stay"):
        main(["--recipe=mmedbench:demo", f"--output={tmp_path}", "--benchmarks=x", "--model=x", "--price=1,1"])
