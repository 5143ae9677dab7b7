"""A benchmark that was built, as it lies: stage 2 trains on it, evaluate asks it, people check it."""

import json
import shutil
from pathlib import Path

import pytest

from data_gen.commands import check, compare_mmedbench
from data_gen.sets.mmedbench_format import read_built
from mmed_jax import evaluate
from mmed_jax.common.errors import UserError, WorkError
from tests.data_gen.test_mmedbench import ALSO, NAMES, build, lines
from tests.support.fake_gcs import fake_cloud
from tests.support.mmedbench import raw_sources
from tests.support.sheets import fill_in
from tests.support.tokenizer import tiny_tokenizer
from tests.support.training import MODEL, RUN, losses, train_here


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("used")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "none")
        build(raw_sources(folder / "raw"), folder / "mmedbench", ALSO, "--extra=topic,id")
    return folder / "mmedbench"


@pytest.fixture
def copy(built, tmp_path):
    """A copy of the benchmark that a test may change."""
    return shutil.copytree(built, tmp_path / "mmedbench")


def test_stage_2_learns_from_train_and_evaluate_asks_test(built, tmp_path):
    keys = MODEL | RUN | {"tokenizer": tiny_tokenizer(tmp_path), "init_from": "", "data.train": built}
    keys |= {"model.max_position_embeddings": 1024, "data.seq_len": 1024, "steps": 2, "batch_size": 1}
    keys |= {"run_dir": tmp_path / "run", "data.cache_dir": tmp_path / "packed"}
    outcome = train_here("--config=stage2", *(f"--config.{k}={v}" for k, v in keys.items()))
    assert outcome.code == 0 and len(losses(tmp_path / "run")) == 2, outcome.err
    flags = (f"--data_dir={built.parent}", "--allow_count_mismatch", "--max_new_tokens=4", "--languages=ja,fr,ru")
    evaluate.main([f"--model={tmp_path / 'run'}", "--benchmark=mmedbench", f"--output={tmp_path / 'out'}", *flags])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = results["benchmarks"]["mmedbench"]
    assert found["overall"]["count"] == 4 and set(found["languages"]) == {"ja", "fr", "ru"}


def test_two_raters_check_rationales(copy, tmp_path, capsys):
    """The first says no to one, the second to another and leaves a third out."""
    sheets = tmp_path / "sheets"
    check.main(["sheet", f"--input={copy}", "--items=3", "--seed=4", f"--output={sheets}", "--suffix=.csv"])
    drawn = json.loads((sheets / "draw.json").read_text())["items"]
    by_language = {code: sum(i["language"] == code for i in drawn) for code in ("en", "zh", "ja", "fr", "ru", "es")}
    assert by_language == {"en": 3, "zh": 3, "ja": 3, "fr": 2, "ru": 2, "es": 1}
    first, second, third = (item["id"] for item in drawn[:3])
    fill_in(sheets / "rater1.csv", lambda ident, criterion: "no" if ident == first else "yes")
    fill_in(
        sheets / "rater2.csv",
        lambda ident, criterion: (
            "" if ident == third else "0" if ident == second and criterion == "sound reasoning" else "Yes"
        ),
    )
    check.main(["read", f"--input={copy}", f"--sheets={sheets}"])
    said = capsys.readouterr().out
    state = {r["id"]: (r["human_checked"], r["human_check_passed"]) for r in read_built(copy, "train")}
    assert state[first] == state[second] == (True, False) and state[third] == (False, False)
    assert sum(s == (True, True) for s in state.values()) == len(drawn) - 3
    inside = {x["id"]: (x["human_checked"], x["human_check_passed"]) for n in NAMES for x in lines(copy, "Train", n)}
    assert inside == state and set(lines(copy, "Train", "French")[0]) >= {"topic", "id"}
    summary = json.loads((copy / "check.json").read_text())
    total = summary["languages"][-1]
    assert (total["drawn"], total["checked"], total["passed"]) == (14, 13, 11)
    agree = {row["criterion"]: row["share"] for row in summary["agreement"]}
    assert agree["factual accuracy"] == pytest.approx(12 / 13) and agree["passed"] == pytest.approx(11 / 13)
    assert "all  drawn     14  checked     13  passed 84.6%" in said


def test_a_benchmark_in_a_bucket_is_checked_as_one_on_a_disk(copy, tmp_path, monkeypatch, capsys):
    """Sheets are written into the bucket, filled in, and read into the benchmark there: in spite of faults, and again
    after an upload that was refused in its midst."""
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    here, there = (
        {"in": str(copy), "out": str(tmp_path / "sheets")},
        {"in": "gs://bucket/bench", "out": "gs://bucket/s"},
    )
    with fake_cloud() as cloud:

        def objects(folder):
            return {
                name.removeprefix(f"{folder}/"): cloud.read("bucket", name) for name in cloud.names("bucket", folder)
            }

        for file in filter(Path.is_file, copy.rglob("*")):
            cloud.write("bucket", f"bench/{file.relative_to(copy).as_posix()}", file.read_bytes())
        for place in (here, there):
            check.main(["sheet", f"--input={place['in']}", "--suffix=.csv", f"--output={place['out']}"])
        assert objects("s") == {p.name: p.read_bytes() for p in (tmp_path / "sheets").iterdir()}
        with pytest.raises(UserError, match="^--output=gs://bucket/s: holds files already"):
            check.main(["sheet", f"--input={there['in']}", "--suffix=.csv", f"--output={there['out']}"])
        for number in (1, 2):
            name = f"rater{number}.csv"
            fill_in(tmp_path / "sheets" / name, lambda ident, criterion: "no" if ident[-1] in "0123" else "yes")
            cloud.write("bucket", f"s/{name}", (tmp_path / "sheets" / name).read_bytes())
        check.main(["read", f"--input={copy}", f"--sheets={tmp_path / 'sheets'}"])
        before = objects("bench")
        refused = cloud.fault("POST .*(Train|records)", status=403, times=1)
        with pytest.raises(WorkError, match="^gs://bucket/bench: could not be uploaded .*refused"):
            check.main(["read", f"--input={there['in']}", f"--sheets={there['out']}"])
        assert refused.seen and before.keys() <= objects("bench").keys()
        capsys.readouterr()
        for fault in ({"status": 503}, {"drop": "before"}, {"drop": "after"}):
            cloud.fault("POST", probability=0.1, **fault)
        check.main(["read", f"--input={there['in']}", f"--sheets={there['out']}"])
        assert "written: gs://bucket/bench (Train/" in capsys.readouterr().out
        cloud.heal()
        assert objects("bench") == {
            p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()
        }
    assert not (tmp_path / "gs:").exists()


def test_building_again_keeps_the_checks_of_equal_rationales(copy, built, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    check.main(["sheet", f"--input={copy}", "--languages=fr", f"--output={tmp_path / 's'}", "--suffix=.csv"])
    for name in ("rater1.csv", "rater2.csv"):
        fill_in(tmp_path / "s" / name, lambda ident, criterion: "yes")
    check.main(["read", f"--input={copy}", f"--sheets={tmp_path / 's'}"])
    build(built.parent / "raw", copy, ALSO)
    assert all(x["human_check_passed"] for x in lines(copy, "Train", "French"))
    assert not any(x["human_checked"] for x in lines(copy, "Train", "Russian"))
    build(built.parent / "raw", copy, ALSO, "--recipe.step.rationale.options=language=en")
    assert not any(x["human_checked"] for x in lines(copy, "Train", "French")), "another text than people saw"


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda sheets: fill_in(sheets / "rater1.csv", lambda i, c: "maybe"), r"row 2, .*neither yes nor no"),
        (lambda sheets: fill_in(sheets / "rater1.csv", lambda i, c: ""), "rater1.csv: nothing is rated"),
        (lambda sheets: (sheets / "rater1.csv").unlink(), "rater1.csv: no such file"),
        (lambda sheets: (sheets / "draw.json").write_text("{}"), "draw.json: not what .* writes"),
        (lambda sheets: (sheets / "draw.json").unlink(), "no folder of .*check sheet"),
    ],
)
def test_sheets_that_are_wrong(copy, tmp_path, change, problem):
    check.main(["sheet", f"--input={copy}", "--languages=fr", f"--output={tmp_path / 's'}", "--suffix=.csv"])
    fill_in(tmp_path / "s" / "rater2.csv", lambda ident, criterion: "yes")
    change(tmp_path / "s")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=problem):
        check.main(["read", f"--input={copy}", f"--sheets={tmp_path / 's'}"])
    assert before == {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}


def test_sheets_of_nothing(copy, tmp_path):
    for flags, problem in (
        ((f"--input={tmp_path}",), "records/train.ndjson is missing"),
        ((f"--input={copy}", "--splits=test"), "no question of test has a rationale"),
        ((f"--input={copy}", "--languages=frr"), "--languages=frr: unknown"),
        ((f"--input={copy}", "--suffix=.ods"), "must end in .csv or .xlsx"),
    ):
        with pytest.raises(UserError, match=problem):
            check.main(["sheet", *flags, f"--output={tmp_path / 'none'}"])


def test_two_copies_beside_each_other(copy, built, tmp_path, capsys):
    """One answer changed, one question gone, one moved to the other split, one retyped, one with its options moved."""
    french, russian, chinese = (copy / "Train" / f"{n}.jsonl" for n in ("French", "Russian", "Chinese"))
    rows = [json.loads(line) for line in french.read_text().splitlines()]
    rows[0]["answer_idx"], rows[1]["question"] = "B", rows[1]["question"].upper().replace(" ", "  ")
    french.write_text("".join(json.dumps(r) + "\n" for r in rows))
    gone, moved = russian.read_text().splitlines(keepends=True)
    russian.write_text("")
    with (copy / "Test" / "Russian.jsonl").open("a") as out:
        out.write(moved)
    rows = [json.loads(line) for line in chinese.read_text().splitlines()]
    rows[0]["options"], rows[0]["answer_idx"] = dict(zip("ABCD", reversed(rows[0]["options"].values()))), "C"
    chinese.write_text("".join(json.dumps(r) + "\n" for r in rows))
    packed = shutil.make_archive(str(tmp_path / "MMedBench"), "zip", built.parent, "mmedbench")
    compare_mmedbench.main([f"--ours={copy}", f"--theirs={packed}", f"--output={tmp_path / 'd.json'}"])
    found = json.loads((tmp_path / "d.json").read_text())
    rows = {(r["language"], r["split"]): r for r in found["counts"]}
    assert rows["fr", "train"]["other answer"] == 1 and rows["fr", "train"]["matched"] == 1
    assert rows["ru", "train"]["missing"] == 1 and rows["ru", "train"]["in the other split"] == 1
    assert rows["zh", "train"]["matched"] == 3 and rows["zh", "train"]["other options"] == 0
    for row in rows.values():
        of = ("matched", "other answer", "in the other split", "missing")
        assert row["theirs"] == sum(row[name] for name in of)
    [example] = found["examples"]["other answer"]
    assert example["ours"]["answer"] != example["theirs"]["answer"]
    assert "in the other split" in capsys.readouterr().out
    same = compare_mmedbench.compare_questions(*[compare_mmedbench.read_copy(built, "--ours")[0]] * 2)
    assert all(r["matched"] == r["theirs"] == r["ours"] for r in same["counts"]) and not same["examples"]
    with pytest.raises(UserError, match="--theirs=.*nowhere: no such file or folder"):
        compare_mmedbench.main([f"--ours={copy}", f"--theirs={tmp_path / 'nowhere'}"])
