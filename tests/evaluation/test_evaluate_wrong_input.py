"""Wrong input of the evaluation's three commands as a shell sees it: one line, exit code 2, and no device touched."""

import csv
import json

import jax
import pytest

from mmed_jax import compare, evaluate, rate
from mmed_jax.common.errors import run_command
from mmed_jax.data.records.schema import write_records
from mmed_jax.evaluation.models import local
from tests.support.hf_folders import hf_folder
from tests.support.results import evaluated, items_of, record

OPTIONS = {"A": "aspirin", "B": "warfarin", "C": "heparin", "D": "clopidogrel"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("wrong") / "model", max_position_embeddings=512)


@pytest.fixture
def refused(capsys):
    """Runs main(argv); returns the one line of the failure."""

    def go(main, argv):
        with pytest.raises(SystemExit) as e:
            run_command(lambda: main([str(a) for a in argv]))
        told = capsys.readouterr()
        assert e.value.code == 2 and told.out == ""
        assert told.err.startswith("error: ") and told.err.endswith("\n") and told.err.count("\n") == 1, told.err
        return told.err.removeprefix("error: ").strip()

    return go


# ---- evaluate -------------------------------------------------------------------------------------------------------

LINES = {
    "good": [record(0, "en"), record(1, "en")],
    "columns": [{"frage": "Was?", "choices": ["a", "b"], "gold": 1}],
    "key_empty": [record(0, "en"), record(1, "en") | {"answer_idx": ""}],
    "key_foreign": [record(0, "en") | {"answer_idx": "Z"}],
    "language": [record(0, "en") | {"language": "de"}],
    "long": [record(0, "en"), record(1, "en") | {"question": "fever " * 200}],
    "empty": [],
}
WRONG = [
    (["--data={dir}/none.jsonl"], "none.jsonl: no such file or folder"),
    (["--data={dir}/columns.jsonl"], "columns.jsonl:1: field 'messages': missing; instruction records have"),
    (["--data={dir}/columns.jsonl", "--kind=mcq"], "columns.jsonl:1: field '"),
    (["--data={dir}/key_empty.jsonl"], "key_empty.jsonl:2: field 'answer_idx': '' is not among the options"),
    (["--data={dir}/key_foreign.jsonl"], "key_foreign.jsonl:1: field 'answer_idx': 'Z' is not among the options"),
    (["--data={dir}/language.jsonl"], "language.jsonl:1: field 'language': 'de' is not supported; valid: en, zh"),
    (["--data={dir}/empty.jsonl"], "empty.jsonl: holds no records"),
    (["--data={dir}/long.jsonl"], "long en1: has "),
    (["--data={dir}/long.jsonl", "--mode=loglikelihood"], "long en1: has "),
    (["--data={dir}/good.jsonl", "--languages=xx"], "language 'xx' is not supported"),
    (["--data={dir}/good.jsonl", "--languages=fr"], "no record in the languages fr; the files hold en"),
    (["--data={dir}/good.jsonl", "--few_shot=1"], "--few_shot=1: no other split is there that has examples"),
    (["--benchmark=medqa_us", "--data_dir={dir}"], "has 2 questions of the test set, 1,273 were published"),
    (["--benchmark=rumeddanet", "--data_dir={dir}"], "field "),
    (["--benchmark=medqaus", "--data_dir={dir}"], "--benchmark=medqaus: not in {dir}, did you mean 'medqa_us'?"),
    (["--benchmark=mmedbnch", "--data_dir=hub"], "no registered benchmark, did you mean 'mmedbench'?"),
    (["--benchmark=kormedmcqa/docter", "--data_dir=hub"], "no such part, did you mean 'doctor'?"),
    (["--benchmark=medqa_us", "--data_dir={dir}/none"], "none: no such folder"),
    (["--model={dir}/none", "--data={dir}/good.jsonl"], "does not exist"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG, ids=[" ".join(f) for f, _ in WRONG])
def test_evaluate(refused, model, tmp_path, monkeypatch, flags, message):
    for name, rows in LINES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, rows in (
        (
            "medqa_us/US",
            [{"question": f"Q{n}?", "options": OPTIONS, "answer": "aspirin", "answer_idx": "A"} for n in range(2)],
        ),
        ("rumeddanet", [{"frage": "Was?"}]),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in ("devices", "local_devices", "device_put"):
        monkeypatch.setattr(jax, name, lambda *a, **k: pytest.fail("a device was touched"))
    monkeypatch.setattr(local, "load_engine", lambda *_: pytest.fail("a device was touched"))
    out = tmp_path / "out"
    line = refused(evaluate.main, [f"--model={model}", f"--output={out}", *(f.format(dir=tmp_path) for f in flags)])
    assert message.format(dir=tmp_path) in line and not out.exists()


# ---- compare --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Evaluations of the same items in two modes, a run of something else, a file."""
    items = items_of([record(n, "en") for n in range(4)], "quiz")
    evaluated(tmp_path / "direct", items, lambda i: "Answer: A")
    said = {"mode": "rationale", "metrics": ["chrf"]}
    evaluated(tmp_path / "rationale", items, lambda i: "Because of it.\n\nAnswer: A", **said)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "metrics.jsonl").write_text("{}\n")
    write_records(tmp_path / "records.jsonl", [record(0, "en")])
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{dir}/none"], "none: no such folder"),
        (["{dir}/training"], "training: holds no results.json, which `python -m mmed_jax.evaluate` writes"),
        (["{dir}/direct", "{dir}/records.jsonl"], "records.jsonl: no such folder"),
        ([], "the following arguments are required: RUN"),
        (["{dir}/direct", "--published=GTP"], "--published=GTP: no published row has it in its name"),
        (["{dir}/direct", "--publishd=none"], "did you mean '--published'?"),
        (["{dir}/rationale", "--submission={dir}/s"], "is of mode rationale; RUN_DIRECT"),
        (["{dir}/direct", "--output={dir}/records.jsonl"], "is a file; name a folder"),
    ],
)
def test_compare(refused, folders, argv, message):
    assert message in refused(compare.main, [a.format(dir=folders) for a in argv])


def test_runs_of_two_modes_are_never_in_one_table(folders, capsys):
    compare.main([str(folders / "direct"), str(folders / "rationale"), "--published=none"])
    shown = capsys.readouterr().out.split("\n\n")
    tables = [t.splitlines() for t in shown if t.startswith("quiz")]
    assert [t[0].split(":")[1].split(",")[0] for t in tables] == [" direct", " rationale", " rationale"]
    assert [sum(line.startswith("  direct ") for line in t) for t in tables] == [1, 0, 0]
    assert [sum(line.startswith("  rationale ") for line in t) for t in tables] == [0, 1, 1]
    assert not any("second - first" in t for t in shown)


# ---- rate -----------------------------------------------------------------------------------------------------------


def sheet_of(folders, change):
    """A filled-in sheet with one thing wrong."""
    path = folders / "rater.csv"
    rate.main(["sheet", f"--runs=a={folders / 'rationale'}", f"--output={path}"])
    rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    names = rows[0]
    at = names.index("reasoning")
    for row in rows[1:]:
        row[names.index("correctness") : names.index("comment")] = ["3"] * 4
    if change == "column":
        rows = [[c for k, c in enumerate(row) if k != at] for row in rows]
    elif change == "file":
        path.unlink()
        return path
    else:
        rows[2][at] = change
    csv.writer(path.open("w", encoding="utf-8-sig", newline="")).writerows(rows)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("file", "rater.csv: no such file"),
        ("column", "rater.csv: row 1: column 'reasoning' is missing"),
        ("6", "rater.csv: row 3, column 'reasoning': '6' is not a number from 1 to 5"),
        ("0", "rater.csv: row 3, column 'reasoning': '0' is not a number from 1 to 5"),
        ("good", "rater.csv: row 3, column 'reasoning': 'good' is not a number from 1 to 5"),
        ("", "rater.csv: row 3, column 'reasoning': empty"),
    ],
)
def test_rate_sheets(refused, folders, capsys, change, message):
    path = sheet_of(folders, change)
    capsys.readouterr()
    argv = ["correlate", f"--ratings=human={path}", f"--runs=a={folders / 'rationale'}", f"--output={folders / 'o'}"]
    assert message in refused(rate.main, argv) and not (folders / "o").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sheet", "--runs={dir}/none", "--output={dir}/s.csv"], "none: no predictions.jsonl there"),
        (["sheet", "--runs={dir}/training", "--output={dir}/s.csv"], "training: no predictions.jsonl there"),
        (["sheet", "--runs={dir}/direct", "--output={dir}/s.csv"], "no item of direct has a generated rationale"),
        (["sheet", "--runs={dir}/rationale", "--output={dir}/records.jsonl/s.csv"], "is a file; name a folder"),
        (["judge", "--runs={dir}/rationale", "--model=m", "--output=/proc/none/j.jsonl"], "can't be written"),
    ],
)
def test_rate(refused, folders, argv, message):
    assert message in refused(rate.main, [a.format(dir=folders) for a in argv])
    assert not (folders / "s.csv").exists()
