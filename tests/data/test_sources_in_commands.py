"""The same mends where published files are read by another command: builds, their test sets, benchmarks by name."""

import dataclasses

import pytest

from data_gen.sets.contamination import Benchmarks
from data_gen.sets.inputs import collect, read_benchmarks
from data_gen.sets.recipes import base, load_recipe, recipe_hash, source
from mmed_jax import evaluate
from mmed_jax.common.errors import UserError
from mmed_jax.evaluation.benchmarks.locate import locate_benchmarks
from mmed_jax.evaluation.benchmarks.registry import ENTRIES
from mmed_jax.evaluation.benchmarks.select import load_benchmark
from tests.support.sources import KORMED, headqa_row, kormed_row, medqa_row, put, table


def inputs(tmp_path, adapter: str, **entry):
    recipe = base()
    recipe.name, recipe.kind, recipe.sources = "own", "mcq", ("s",)
    recipe.source.s = source(adapter, f"{adapter}*", **entry)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return collect(recipe, str(tmp_path), "research", Benchmarks(0.5, 0.9), work, lambda n: None)


def load(name: str, folder, encoding: str = "", **options):
    [found] = locate_benchmarks([name], str(folder))
    return load_benchmark(dataclasses.replace(found, encoding=encoding), count_mismatch=True, **options)


def whole_beside_splits(folder):
    rows = [medqa_row(n) for n in range(4)]
    for name, part in (("US_qbank", rows), ("train", rows[:2]), ("dev", rows[2:3]), ("test", rows[3:])):
        put(folder / f"{name}.jsonl", part)


def test_splits(tmp_path):
    whole_beside_splits(tmp_path / "medqa_us")
    found = inputs(tmp_path, "medqa_us")
    assert sorted(found.buffer[i]["question"][-2] for i in range(len(found.entry))) == ["0", "1"]
    assert found.dropped["s"] == {"also in the file of its split": 2} and found.read["s"] == 4
    tests = Benchmarks(0.5, 0.9)
    (tmp_path / "tests").mkdir()
    whole_beside_splits(tmp_path / "tests" / "medqa_us")
    assert read_benchmarks(str(tmp_path / "tests"), tests) == {"medqa_us": 1}
    loaded = load("medqa_us", tmp_path)
    assert [r["question"][-2] for r in loaded.records] == ["3"] and loaded.info["dropped"] == {}
    (tmp_path / "medqa_us" / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"source.s: .*US_qbank.jsonl: names no split, and 1 rows of such files"):
        inputs(tmp_path, "medqa_us")


def test_encodings(tmp_path):
    folder = tmp_path / "kormedmcqa"
    path = table(folder / "test.csv", KORMED, kormed_row(1, 1), kormed_row(2, 2))
    path.write_bytes(path.read_text(encoding="utf-8").encode("cp949"))
    with pytest.raises(UserError, match="--benchmark=kormedmcqa: .*test.csv: not UTF-8 .*add --encoding=cp949"):
        load("kormedmcqa", tmp_path)
    assert [r["answer_idx"] for r in load("kormedmcqa", tmp_path, "cp949").records] == ["A", "B"]
    with pytest.raises(UserError, match="source.s: .*not UTF-8 .*add --recipe.source.s.encoding=cp949"):
        inputs(tmp_path, "kormedmcqa", split="test")
    assert len(inputs(tmp_path, "kormedmcqa", split="test", encoding="cp949").entry) == 2
    with pytest.raises(UserError, match="medquad.encoding=nonsense: no encoding of text files"):
        load_recipe("mmed_ift", {"source.medquad.encoding": "nonsense"})
    assert recipe_hash(load_recipe("mmed_ift", {"source.medquad.encoding": ""})) == recipe_hash(
        load_recipe("mmed_ift", {})
    )
    flags = ["--api_model=m", "--base_url=http://127.0.0.1:9/v1", f"--output={tmp_path / 'o'}"]
    for more, says in (
        (
            ["--benchmark=kormedmcqa", f"--data_dir={tmp_path}", "--encoding=nonsense"],
            "--encoding=nonsense: no encoding",
        ),
        (["--data=x.jsonl", "--encoding=cp949"], "--encoding=cp949: goes with --benchmark=NAME"),
        (["--benchmark=kormedmcqa", f"--data_dir={tmp_path}"], "add --encoding=cp949"),
        (["--benchmark=kormedmcqa", f"--data_dir={tmp_path}", "--encoding=cp949"], "435|2 questions"),
    ):
        with pytest.raises(UserError, match=says):
            evaluate.main([*flags, *more])


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("medqa_us", {"options": {"A": "x", "C": "y", "D": "z"}, "answer_idx": "C"}, "options not in order"),
        ("medqa_us", {"question": "The patient抯 arm hurts?"}, "text is not in English"),
        ("medqa_us", {"answer_idx": "½"}, "key is neither a letter nor a number"),
    ],
)
def test_rows_that_are_no_questions_are_said_by_a_benchmark(tmp_path, name, row, says):
    put(tmp_path / name / "test.jsonl", [medqa_row(1), {**medqa_row(2), **row}])
    assert load(name, tmp_path).info["dropped"] == {says: 1}
    found = inputs(tmp_path, name, split="test")
    assert found.dropped["s"] == {says: 1}


def test_headqa_of_the_hub_as_a_folder(tmp_path):
    header = ["name", "qid", "qtext", "ra", "answers"]
    for language in ("es", "en"):
        (tmp_path / "headqa" / language).mkdir(parents=True)
        row = headqa_row(1)
        table(tmp_path / "headqa" / language / "test-0.parquet", header, [row[name] for name in header])
    assert sorted(r["language"] for r in load("headqa", tmp_path).records) == ["en", "es"]
    assert [r["language"] for r in load("headqa/en", tmp_path).records] == ["en"]
    assert ENTRIES["headqa"].languages == ("es", "en")
