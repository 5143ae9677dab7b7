"""A whole set from a recipe: what goes in comes out or is accounted for, in every format, twice the same."""

import filecmp
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data_gen.commands.build import Build
from data_gen.sets.contamination import Benchmarks
from data_gen.sets.recipes import base, load_recipe, source, step
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.records.reading import load_files, read_records
from mmed_jax.data.records.schema import write_records
from mmed_jax.llm_api.types import Outcome, Reject
from tests.support.fake_model import answer


@dataclass(frozen=True)
class Settings:
    """What a build asks of mmed_jax.llm_api.run_settings.RunSettings."""

    model: str = "fake"
    params: dict = field(default_factory=dict)
    run: str = ""
    total: int | None = None
    dry_run: bool = False
    ledger_file: Path = Path("none.sqlite")


def runner(wrong=lambda job: "", limit=None):
    """A function like mmed_jax.llm_api.runner.run over the stand-in model, without HTTP or ledger."""
    asked = []

    def run(method, inputs, settings, gates):
        for job in method.jobs(inputs, settings):
            if limit is not None and len(asked) >= limit:
                yield Outcome(job, "pending")
                continue
            asked.append(job.request.key)
            try:
                records = method.parse(job, answer(list(job.request.messages), wrong(job)))
                flags = [gate(job, record) for record in records for gate in gates]
                yield Outcome(job, "accepted", records=tuple(records), flags=tuple(f for f in flags if f))
            except Reject as e:
                yield Outcome(job, "rejected", e.reason, e.detail)

    run.asked = asked
    return run


def build(recipe, output, data_dir=".", run=None, **options):
    options = {"run": run or runner(), "settings": Settings(), "say": lambda text: None, **options}
    made = Build(recipe, str(data_dir), str(output), **options)
    return made, made()


def demo(name="mmed_ift:demo", **overrides):
    return load_recipe(name, {"languages": "en,ko,fr", **overrides})


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    output = tmp_path_factory.mktemp("set")
    made, facts = build(demo(), output)
    return output, made, facts


def test_every_format_holds_the_same_rows(built):
    import pyarrow.parquet as pq

    output, made, facts = built
    for split in ("train", "validation"):
        lines = {r["id"]: r for r in read_records(f"{output}/jsonl:{split}")}
        stored = {r["id"]: r for r in read_records(f"{output}/tfds/mmed_ift:{split}")}
        table = pq.read_table(output / f"parquet/{split}-00000-of-00001.parquet").to_pylist()
        assert lines == stored and lines
        assert {r["id"]: r["messages"] for r in table} == {i: r["messages"] for i, r in lines.items()}
        assert all(json.loads(r["provenance"]) == lines[r["id"]]["provenance"] for r in table)
    both = load_files([f"{output}/jsonl:train", f"{output}/jsonl:validation"], "instruction")
    assert len(both) == facts.total == sum(json.loads((output / "build.json").read_text())["rows"].values())
    assert {r["method"] for r in both} == {"handcrafted", "answer_expanding", "qa_generation", "translation"}
    assert not [p for p in output.iterdir() if p.name.startswith(".")]


def test_the_hub_reads_the_parquet_files(built, tmp_path):
    from datasets import load_dataset

    found = load_dataset("parquet", data_dir=str(built[0] / "parquet"), cache_dir=str(tmp_path))
    assert found["train"].num_rows + found["validation"].num_rows == built[2].total
    assert set(found["train"].features["messages"].feature) == {"role", "content"}


def test_same_recipe_same_bytes_and_rebuilding_replaces(built, tmp_path):
    for _ in range(2):
        build(demo(), tmp_path)
        assert files(tmp_path) == files(built[0])
        assert filecmp.cmpfiles(tmp_path, built[0], files(tmp_path), shallow=False)[1:] == ([], [])


_OF_EQUAL_SIZE = """
import sys
from pathlib import Path
from data_gen.sets import writers
from data_gen.sets.recipes import source, step
from tests.data_gen.test_build import QUESTIONS, build, mcq, own_recipe
for name in ("tfds_set", "parquet"):  # take seconds, and have tests of their own
    setattr(writers, f"write_{name}", lambda folder, *rest, name=name: (folder / name.partition("_")[0]).mkdir())
here = Path(sys.argv[1])
recipe = own_recipe(here, [])
for i, q in enumerate(QUESTIONS):
    own_recipe(here / str(i), [mcq(f"q{i}", "en", q, source=f"set {i}", license=f"MIT {i}")])
    recipe.source[f"s{i}"] = source(path=f"{i}/mine.jsonl", split="")
recipe.sources, recipe.steps = tuple(f"s{i}" for i in range(len(QUESTIONS))), ("ko", "why")
recipe.step.ko = step("translation", recipe.sources, languages=("ko",))
recipe.step.why = step("rationale", recipe.sources)
build(recipe, here / "out", here)
"""


def test_nothing_depends_on_the_order_of_sets(tmp_path):
    running = []
    for seed in "12":
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", _OF_EQUAL_SIZE, str(tmp_path / seed)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        running.append(subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2]))
    assert [p.wait() for p in running] == [0, 0]
    made = files(tmp_path / "1/out")
    assert "report.html" in made and made == files(tmp_path / "2/out")
    assert filecmp.cmpfiles(tmp_path / "1/out", tmp_path / "2/out", made, shallow=False)[1:] == ([], [])


def test_families_are_on_one_side_and_every_language_is_held_out(built):
    def families(split: str) -> set[str]:
        found = read_records(f"{built[0]}/jsonl:{split}")
        return {r["provenance"].get("group") or r["id"] for r in found}

    assert not families("train") & families("validation")
    assert {r["language"] for r in read_records(f"{built[0]}/jsonl:validation")} == {"en", "ko", "fr"}


def test_card_and_report(built):
    output, made, facts = built
    card, page = (output / "README.md").read_text(), (output / "report.html").read_text()
    assert card.startswith("---\npretty_name:") and f"| **all** | {facts.rows['train', 'en'] + 0:,}" not in card
    for text in ("answer_expanding/1", "Apache-2.0", "another_language", "No benchmark was given", "@article"):
        assert text in card, text
    assert f"{facts.total:,} rows" in page and page.count("<svg") == 3 and page.count("<article") == 12
    # Nothing is fetched: no link, script, font or image from elsewhere.
    assert not re.search(r"(?:src|href)=|url\(|<script|@import|https?://(?!arxiv)", page)
    assert str(Path.home()) not in card + page


def test_rejected_rows_are_counted_and_listed(tmp_path):
    run = runner(lambda job: "refusal" if job.row_id.endswith("1-en+full") else "short" if "@ko" in job.row_id else "")
    made, facts = build(demo(), tmp_path, run=run)
    summary = json.loads((tmp_path / "build.json").read_text())
    assert summary["steps"]["translate"] == {"accepted": 2, "rejected/too_short": 2}
    jobs = sum(n for counts in summary["steps"].values() for n in counts.values())
    assert jobs == len(run.asked)
    listed = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert sum(r["reason"] == "too_short" for r in listed) >= 2
    assert summary["candidates"] == facts.total + sum(n for c in summary["removed"].values() for n in c.values())


def test_what_a_killed_build_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getppid()):
        (tmp_path / f".build-{pid}-x").mkdir()
    build(demo(steps=""), tmp_path)
    assert [p.name for p in tmp_path.glob(".build-*")] == [f".build-{os.getppid()}-x"]


def test_pending_requests_stop_the_build_unless_a_part_is_wanted(tmp_path):
    with pytest.raises(WorkError, match="requests are pending; the same command goes on"):
        build(demo(), tmp_path, run=runner(limit=5))
    assert files(tmp_path) == []
    _, facts = build(demo(), tmp_path, run=runner(limit=5), partial=True)
    assert facts.methods["en", "handcrafted"] == 20
    assert 5 <= sum(n for (_, how), n in facts.methods.items() if how != "handcrafted") <= 10


def mcq(ident: str, language: str, question: str, **more) -> dict:
    options = more.pop("options", {"A": f"first {ident}", "B": f"second {ident}", "C": f"third {ident}"})
    about = {"group": more.pop("group", ident)}
    return {
        "id": ident,
        "language": language,
        "question": question,
        "options": options,
        "answer_idx": "B",
        "license": "MIT",
        "source": "mine",
        "provenance": about,
        **more,
    }


QUESTIONS = (
    "Which hormone is released by the beta cells of the pancreas after a meal?",
    "Which vitamin is needed for the carboxylation of clotting factors in the liver?",
    "Which valve lies between the left atrium and the left ventricle of the heart?",
    "Which nerve is compressed in the carpal tunnel at the level of the wrist?",
    "Which organism causes most cases of pneumonia acquired in the community?",
    "Which electrolyte disturbance is typical of primary hyperaldosteronism in adults?",
)


def own_recipe(folder: Path, rows: list[dict], **changes):
    write_records(folder / "mine.jsonl", rows)
    c = base()
    c.name, c.kind, c.validation_fraction, c.languages = "own", "mcq", 0.0, ("en", "fr", "ko")
    c.source.mine = source(path="mine.jsonl", split="")
    c.sources = ("mine",)
    for key, value in changes.items():
        c[key] = value
    return c


def test_contaminated_families_are_out_with_their_translations_and_listed(tmp_path):
    rows = [mcq(f"q{i}", "en", q) for i, q in enumerate(QUESTIONS)]
    rows.append(mcq("q0-fr", "fr", "Quelle hormone est libérée par le pancréas après un repas ?", group="q0"))
    recipe = own_recipe(tmp_path, rows, steps=("translate",))
    recipe.step.translate = step("translation", ("mine",), languages=("ko",))
    bench = tmp_path / "bench"
    write_records(
        bench / "board.jsonl",
        [
            mcq("t1", "en", QUESTIONS[0].upper(), group="t1", source="board"),
            mcq("t2", "en", "Unrelated question about the spleen?", source="board"),
        ],
    )
    run = runner()
    made, facts = build(recipe, tmp_path / "out", tmp_path, run=run, benchmarks=str(bench))
    ids = {r["id"] for r in read_records(f"{tmp_path}/out/jsonl")}
    assert ids == {f"q{i}{s}" for i in range(1, 6) for s in ("", "@ko")}
    assert len(run.asked) == 5  # nothing was paid for what is not used
    listed = [json.loads(line) for line in (tmp_path / "out/contaminated.jsonl").read_text().splitlines()]
    assert [(r["id"], r["how"], r["detail"]) for r in listed] == [
        ("q0", "text", "board: t1"),
        ("q0-fr", "family", "board: t1"),
    ]
    assert made.benchmarks == {"board": 2} and made.hits_by_benchmark() == {"board": 1}


def test_a_translation_that_lands_on_a_test_item_takes_its_family_with_it(tmp_path):
    rows = [mcq("a", "en", QUESTIONS[0]), mcq("b", "en", QUESTIONS[1])]
    recipe = own_recipe(tmp_path, rows, steps=("translate",))
    recipe.step.translate = step("translation", ("mine",), languages=("fr",))
    _, _ = build(recipe, tmp_path / "first", tmp_path)
    made = next(r for r in read_records(f"{tmp_path}/first/jsonl") if r["id"] == "a@fr")
    test = {**made, "id": "t", "source": "board", "provenance": {}}
    write_records(tmp_path / "bench" / "board.jsonl", [test])
    build(recipe, tmp_path / "out", tmp_path, benchmarks=str(tmp_path / "bench"))
    assert {r["id"] for r in read_records(f"{tmp_path}/out/jsonl")} == {"b", "b@fr"}


def test_duplicates_licences_images_and_languages(tmp_path):
    rows = [mcq(f"q{i}", "en", q) for i, q in enumerate(QUESTIONS[:4])]
    rows += [
        {**rows[0], "id": "copy", "provenance": {}},
        mcq("nc", "en", QUESTIONS[4], license="CC BY-NC 4.0"),
        mcq("img", "en", QUESTIONS[5], needs_image=True),
        mcq("ru", "ru", "Какой гормон выделяется?"),
        mcq("wrong", "fr", "Which hormone is released by the beta cells of the pancreas after meals of bread?"),
    ]
    made, facts = build(own_recipe(tmp_path, rows), tmp_path / "out", tmp_path)
    assert {r["id"] for r in read_records(f"{tmp_path}/out/jsonl")} == {"q0", "q1", "q2", "q3"}
    assert made.inputs.dropped["mine"] == {"license": 1, "needs_image": 1, "another_language": 1, "language": 1}
    assert made.selection.removed["mine"] == {"duplicate": 1}
    _, facts = build(own_recipe(tmp_path, rows), tmp_path / "out", tmp_path, licenses="research")
    assert "non-commercial" in (tmp_path / "out/README.md").read_text() and facts.total == 5


def test_ids_that_stand_twice_in_a_source_lose_nothing(tmp_path):
    rows = [mcq("q", "en", QUESTIONS[0]), mcq("q-2", "en", QUESTIONS[1]), mcq("a", "en", QUESTIONS[2])]
    recipe = own_recipe(tmp_path, rows, steps=("rationale",))
    twice = {**mcq("q", "en", QUESTIONS[3]), "options": {"A": "radial", "B": "median", "C": "ulnar"}}
    with (tmp_path / "mine.jsonl").open("a") as out:
        out.write(json.dumps(twice) + "\n")
    recipe.step.rationale = step("rationale", ("mine",))
    run = runner()
    build(recipe, tmp_path / "out", tmp_path, run=run)
    found = list(read_records(f"{tmp_path}/out/jsonl"))
    assert sorted(r["id"] for r in found) == ["a", "q", "q-2", "q-3"]
    assert len(run.asked) == 4 and all(r["rationale"] for r in found)


def test_a_dry_run_leaves_nothing_behind(tmp_path):
    def run(method, inputs, settings, gates):
        raise AssertionError("nothing is run")

    made = Build(demo(steps=""), ".", str(tmp_path / "out"), run=run, settings=Settings(dry_run=True), say=str)
    assert made() is None and not list(tmp_path.iterdir())


def test_rationales_complete_the_rows_and_several_answers_stay(tmp_path):
    rows = [
        mcq("one", "en", QUESTIONS[0]),
        {**mcq("two", "en", QUESTIONS[1]), "answer_idx": "A,C"},
        mcq("own", "en", QUESTIONS[2], rationale="The mitral valve lies there, therefore B."),
    ]
    recipe = own_recipe(tmp_path, rows, steps=("rationale",))
    recipe.step.rationale = step("rationale", ("mine",))
    run = runner(lambda job: "")
    _, facts = build(recipe, tmp_path / "out", tmp_path, run=run)
    found = {r["id"]: r for r in read_records(f"{tmp_path}/out/jsonl")}
    assert set(found) == {"one", "two", "own"} and all(r["rationale"] for r in found.values())
    assert found["two"]["answer_idx"] == "A,C" and found["own"]["rationale"] == rows[2]["rationale"]
    assert len(run.asked) == 2 and facts.several == 1
    # Where none could be made: kept without, or left out.
    bad = runner(lambda job: "short")
    _, facts = build(recipe, tmp_path / "out", tmp_path, run=bad)
    assert facts.total == 3 and facts.rationales == 1
    recipe.without_rationale = "drop"
    _, facts = build(recipe, tmp_path / "out", tmp_path, run=bad)
    assert facts.total == 1


def test_rows_that_are_enriched_several_times_stand_once(tmp_path):
    rows = [mcq("one", "en", QUESTIONS[0]), mcq("two", "en", QUESTIONS[1])]
    recipe = own_recipe(tmp_path, rows, steps=("rationale", "translate", "topics", "again"))
    recipe.step.rationale = step("rationale", ("mine",))
    recipe.step.translate = step("translation", ("mine",), languages=("ko",))
    recipe.step.topics = step("topics", ("mine", "translate"))
    recipe.step.again = step("reanswer", ("mine", "translate"))
    _, facts = build(recipe, tmp_path / "out", tmp_path)
    found = {r["id"]: r for r in read_records(f"{tmp_path}/out/jsonl")}
    assert set(found) == {"one", "two", "one@ko", "two@ko"} and facts.total == 4
    for record in found.values():
        assert record["rationale"] and record["provenance"]["topic"] and record["provenance"]["reanswer"]
    assert sum(facts.topics.values()) == 4 and facts.methods["en", "original + rationale"] == 2


def test_targets_are_filled_and_not_exceeded(tmp_path):
    rows = [mcq(f"q{i}", "en", q) for i, q in enumerate(QUESTIONS)]
    recipe = own_recipe(tmp_path, rows, steps=("translate",), languages=("en", "fr", "ko"))
    recipe.targets = {"en": 4, "fr": 3, "ko": 9}
    recipe.step.translate = step("translation", ("mine",), fill=True)
    run = runner(lambda job: "short" if job.row_id == "q1@fr" else "")
    made, facts = build(recipe, tmp_path / "out", tmp_path, run=run)
    count = {c: sum(n for (_, code), n in facts.rows.items() if code == c) for c in ("en", "fr", "ko")}
    assert count == {"en": 4, "fr": 3, "ko": 6}
    assert made.short_of_target(facts) == [("ko", 6)]
    assert "ko: 6 of 9 rows wanted" in (tmp_path / "out/README.md").read_text()


def test_expansions_and_pairs_stop_where_a_language_has_enough(tmp_path):
    rows = [
        mcq(f"q{i}", "en", q, context=f"Passage {i} of this test: {q} It was asked before.")
        for i, q in enumerate(QUESTIONS)
    ]
    recipe = own_recipe(tmp_path, rows, kind="instruction", steps=("expand", "qa"))
    recipe.source.mine.keep = False
    recipe.source.mine.kind = "mcq"
    recipe.step.expand = step("answer_expanding", ("mine",), fill=True)
    recipe.step.qa = step("qa_generation", ("mine",), fill=True, options={"pairs": 2, "min_chars": 20})
    recipe.targets = {"en": 4}
    run = runner(lambda job: "short" if job.row_id.startswith(("q1", "q2")) else "")
    made, facts = build(recipe, tmp_path / "out", tmp_path, run=run)
    assert facts.total == 4 and facts.methods["en", "answer_expanding"] == 4
    assert 4 <= len(run.asked) <= 6 and not made.selection.removed["expand"]
    recipe.targets = {"en": 7}
    made, facts = build(recipe, tmp_path / "out", tmp_path)
    assert facts.total == 7 and made.rows.outcomes["expand"].total() == 6
    assert made.rows.outcomes["qa"].total() == 1  # two pairs
    recipe.targets = {}
    assert build(recipe, tmp_path / "out", tmp_path)[0].rows.outcomes["qa"].total() == 6


def test_missing_sources_are_an_error_or_said(tmp_path):
    recipe = own_recipe(tmp_path, [mcq("a", "en", QUESTIONS[0]), mcq("b", "en", QUESTIONS[1])])
    recipe.source.medquad = source("medquad")
    recipe.source.toyhom = source("toyhom")
    recipe.sources = ("mine", "medquad", "toyhom")
    with pytest.raises(UserError, match=r"nothing here is named 'medquad\*'; or set its path to hub.*nor are toyhom"):
        build(recipe, tmp_path / "out", tmp_path)
    recipe.missing = "skip"
    build(recipe, tmp_path / "out", tmp_path)
    card = (tmp_path / "out/README.md").read_text()
    assert "`medquad`: data_dir: nothing here is named 'medquad*'" in card
    written = (card, *((tmp_path / "out" / n).read_text() for n in ("build.json", "report.html", "recipe.json")))
    assert not any(str(tmp_path) in text for text in written)
    with pytest.raises(UserError, match="no such folder"):
        build(own_recipe(tmp_path, [mcq("a", "en", QUESTIONS[0])]), tmp_path / "out", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name, overrides, problem",
    [
        ("mmed_if", {}, "did you mean 'mmed_ift'"),
        ("mmed_ift:demoo", {}, "did you mean 'demo'"),
        ("mmed_ift", {"sourc": "1"}, "no such key"),
        ("mmed_ift", {"languages": "en,kr"}, "language 'kr'"),
        ("mmed_ift", {"gates": "key_state=1"}, "did you mean 'key_stated'"),
        ("mmed_ift", {"steps": "expand,traslate"}, "did you mean 'translate'"),
        ("mmed_ift", {"validation_fraction": "1.5"}, "must be 0 or more and below 1"),
        ("mmed_ift", {"missing": "skp"}, "did you mean 'skip'"),
        ("mmed_ift", {"targets": "ko=many"}, "must be a whole number"),
        ("mmed_ift", {"name": "../mine"}, "use lower-case letters"),
        ("mmed_ift", {"version": "1.0"}, "use three numbers"),
        ("mmed_ift", {"near_duplicates": "1.5"}, "near_duplicates=1.5: must be a number from 0 to 1"),
        ("mmed_ift", {"without_rationale": "dorp"}, "did you mean 'drop'"),
        ("mmed_ift", {"samples": "-1"}, "samples=-1: must be a whole number"),
        ("mmed_ift", {"redraws": "-1"}, "redraws=-1: must be a whole number"),
        ("mmed_ift", {"languages": "en,ko,en"}, "languages names 'en' twice"),
        ("mmed_ift", {"sources": "medquad,medquad", "steps": ""}, "sources names 'medquad' twice"),
        ("mmed_ift", {"source.medquad.limit": "-5"}, "source.medquad.limit=-5"),
        ("mmed_ift", {"gates": "key_stated=high"}, "gates.key_stated=high: must be a number from 0 to 1"),
        ("mmed_ift", {"gates": "length_ratio=3"}, "must be two numbers"),
        ("mmed_ift", {"gates": "shortest=3"}, "must be numbers by method"),
        ("mmed_ift", {"gates": "key_required=2"}, "must be true or false"),
    ],
)
def test_mistakes_in_recipes(name, overrides, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        load_recipe(name, overrides)


def test_recipes_of_this_repository_hold_together():
    for name in ("mmed_ift", "mmed_ift:demo", "mmed_ift_mc", "mmed_ift_mc:open", "mmed_ift_mc:demo"):
        recipe = load_recipe(name, {"seed": "3"})
        assert recipe.seed == 3 and recipe.name in name and recipe.citation
    assert load_recipe("mmed_ift", {}).languages == ("en", "zh", "ja", "ko", "fr", "es")
    assert load_recipe("mmed_ift", {"step.qa.options": "pairs=5"}).step.qa.options.pairs == 5


def test_real_overlap_takes_parallel_languages_with_it(tmp_path, shared_dir):
    """CasiMedicos against HEAD-QA: the Spanish text is found, the English and French versions fall with it."""
    data, bench = shared_dir / "data", tmp_path / "bench"
    bench.mkdir()
    (bench / "headqa_dev.json").symlink_to(data / "headqa_es_en/dev_HEAD.json")
    recipe = load_recipe("mmed_ift_mc:open", {"sources": "casimedicos", "steps": "", "targets": ""})
    made, facts = build(recipe, tmp_path / "out", data, benchmarks=str(bench))
    removed = made.selection.removed["casimedicos"]["contamination"]
    assert 3 * 80 <= removed <= 3 * 92 and removed % 3 == 0
    listed = [json.loads(line) for line in (tmp_path / "out/contaminated.jsonl").read_text().splitlines()]
    assert {r["how"] for r in listed if "-en-" in r["id"] or "-fr-" in r["id"]} == {"family"}
    left = Benchmarks()
    left.add("headqa", read_headqa(data))
    assert not any(left.check(r) for r in read_records(f"{tmp_path}/out/jsonl:train"))


def read_headqa(data: Path) -> list[dict]:
    from mmed_jax.data.sources import Conversion, get_source

    return list(Conversion(get_source("headqa"), data / "headqa_es_en/dev_HEAD.json"))
