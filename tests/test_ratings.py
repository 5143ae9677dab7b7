"""Rating sheets, the judge, Kendall's tau and the rate command."""

import csv
import json
import random

import numpy as np
import openpyxl
import pytest
from scipy import stats

from mmed_jax import rate
from mmed_jax.errors import UserError, WorkError
from mmed_jax.evaluation.correlation import _weighted, correlate, interval, kendall
from mmed_jax.evaluation.rated import explanations, load_runs, named_paths
from mmed_jax.evaluation.ratings import CRITERIA, read_ratings, read_sheet, write_sheet
from tests.openai_server import Faults, OpenAIServer

QUALITY = {"good": 4, "fair": 3, "poor": 1}  # of the runs below; also how much of the reference they repeat
LANGUAGES = ("en", "zh", "ko")


@pytest.fixture
def runs(tmp_path):
    """Folders of three evaluations over 12 items in three languages: {"good": folder, ...}."""
    rng = random.Random(0)
    folders = {}
    for name, quality in QUALITY.items():
        folder = folders[name] = tmp_path / name
        folder.mkdir()
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as f:
            for i in range(12):
                words = [f"w{i}x{k}" for k in range(10)]
                text = " ".join(w if rng.random() < quality / 5 else "other" for w in words)
                row = {
                    "benchmark": "b", "id": f"q{i}", "language": LANGUAGES[i % 3], "options": {"A": "x", "B": "y"},
                    "answer": "A", "question": f"Question {i}?", "rationale": " ".join(words),
                    "rationale_checked": i % 2 == 0, "generated_rationale": "=" + text if i == 4 else text,
                }  # fmt: skip
                f.write(json.dumps(row) + "\n")
    return folders


@pytest.fixture
def found(runs):
    return explanations(load_runs({k: str(v) for k, v in runs.items()}))


def names(runs):
    return ",".join(f"{k}={v}" for k, v in runs.items())


def fill(path, number):
    """Fills in a sheet: number(row as dict, criterion) for every cell to fill."""
    if path.suffix == ".csv":
        rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
        for row in rows[1:]:
            for c, name in enumerate(rows[0]):
                row[c] = str(number(dict(zip(rows[0], row)), name)) if name in (*CRITERIA, "overall") else row[c]
        csv.writer(path.open("w", encoding="utf-8-sig", newline="")).writerows(rows)
        return
    book = openpyxl.load_workbook(path)
    sheet = book["ratings"]
    head = [c.value for c in sheet[1]]
    for row in sheet.iter_rows(min_row=2):
        values = dict(zip(head, (c.value for c in row)))
        for c, name in zip(row, head):
            if name in (*CRITERIA, "overall"):
                c.value = number(values, name)
    book.save(path)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_sheet_comes_back_as_it_was_filled_in(tmp_path, found, suffix):
    path = tmp_path / f"sheet{suffix}"
    key = json.loads(write_sheet(path, found, seed=3).read_text())
    rated = {}

    def number(row, criterion):
        where = key["rows"][row["code"]]
        value = rng.choice([1, 2.5, 5])
        rated.setdefault((where["run"], where["benchmark"], where["id"]), {})[criterion] = value
        return value

    rng = random.Random(1)
    fill(path, number)
    read = read_sheet(path)
    assert read.scores == rated and read.unrated == 0 and len(rated) == 36
    assert read_ratings(path) == read


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_sheet_is_blind_and_its_order_drawn(tmp_path, found, suffix):
    texts, orders = [], []
    for n, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"sheet{n}{suffix}"
        key = json.loads(write_sheet(path, found, seed=seed).read_text())
        if suffix == ".csv":
            rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
        else:
            rows = [[str(c or "") for c in row] for row in openpyxl.load_workbook(path)["ratings"].values]
        texts.append(rows)
        orders.append([key["rows"][row[0]]["run"] for row in rows[1:]])
        assert not any(name in cell for row in rows for cell in row for name in QUALITY)
        assert rows[0][:7] == ["code", "in", "question", "options", "right answer", "reference", "explanation"]
        assert rows[0][7:] == [*CRITERIA, "comment"]
    assert texts[0] == texts[1] != texts[2] and orders[0] != orders[2]
    # No run stands at the same place of every item, and items are not in the order of the files.
    assert len({tuple(orders[0][i : i + 3]) for i in range(0, 36, 3)}) > 2
    assert [row[2] for row in texts[0][1:]][::3] != sorted(row[2] for row in texts[0][1:])[::3]


def test_no_text_becomes_a_formula(tmp_path, found):
    write_sheet(tmp_path / "s.xlsx", found)
    cells = [c for row in openpyxl.load_workbook(tmp_path / "s.xlsx")["ratings"] for c in row]
    assert any(c.value and str(c.value).startswith("=") for c in cells) and all(c.data_type != "f" for c in cells)
    write_sheet(tmp_path / "s.csv", found)
    cells = [c for r in csv.reader((tmp_path / "s.csv").open(encoding="utf-8-sig", newline="")) for c in r if c]
    assert sum(c.startswith("'=") for c in cells) == 3 and not any(c[0] in "=+-@" for c in cells)


def test_what_spreadsheets_refuse_is_left_out(tmp_path, found):
    from dataclasses import replace

    odd = [replace(found[0], text="a\x00b\x0bc " + "x" * 40_000, question="=1+1")]
    for suffix in (".csv", ".xlsx"):
        write_sheet(tmp_path / f"odd{suffix}", odd)
        fill(tmp_path / f"odd{suffix}", lambda row, criterion: 2)
        assert list(read_sheet(tmp_path / f"odd{suffix}").scores.values()) == [dict.fromkeys(CRITERIA, 2.0)]


def test_sheets_as_people_leave_them(tmp_path, found):
    """Semicolons and decimal commas, moved, missing and empty rows, spaces around, an empty line."""
    path = tmp_path / "s.csv"
    write_sheet(path, found, criteria=["overall"])
    fill(path, lambda row, criterion: 3)
    rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    head, body = rows[0], rows[1:]
    at = head.index("overall")
    body[0][at], body[1][at], body[2][at] = "3,5", "", " 4 "
    body = [body[2], [""] * len(head), *body[:2], *body[4:]]
    with path.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f, delimiter=";").writerows([[h.upper() for h in head], *body])
    read = read_sheet(path)
    assert read.unrated == 2 and sorted(v["overall"] for v in read.scores.values())[-2:] == [3.5, 4.0]


def spoil(path, change):
    rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    change(rows)
    with path.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows(rows)


def put(row, column, value):
    def change(rows):
        rows[row - 1][rows[0].index(column)] = value

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(5, "reasoning", "6"), "row 5, column 'reasoning': '6' is not a number from 1 to 5"),
        (put(5, "reasoning", "0"), "row 5, column 'reasoning': '0' is not a number from 1 to 5"),
        (put(6, "language", "good"), "row 6, column 'language': 'good' is not a number from 1 to 5"),
        (put(6, "language", "nan"), "row 6, column 'language': 'nan' is not"),
        (put(7, "correctness", ""), "row 7, column 'correctness': empty, while other columns"),
        (put(8, "code", "r123"), "row 8, column 'code': 'r123' is no code of this sheet"),
        (put(8, "code", ""), "row 8, column 'code': '' is no code of this sheet"),
        (lambda rows: rows.append(rows[2]), "row 38, column 'code': 'r.*' stands already in row 3"),
        (put(1, "reasoning", "resoning"), "row 1: column 'reasoning' is missing"),
        (put(1, "comment", "reasoning"), "row 1: column 'reasoning' stands twice"),
        (lambda rows: rows.__delitem__(slice(1, None)), "nothing is rated in it"),
        (lambda rows: rows.clear(), "row 1: column 'code' is missing"),
    ],
)
def test_what_is_wrong_in_a_sheet_is_one_line(tmp_path, found, change, line):
    path = tmp_path / "sheet.csv"
    write_sheet(path, found)
    fill(path, lambda row, criterion: 3)
    spoil(path, change)
    with pytest.raises(UserError, match=rf"sheet\.csv: {line}") as e:
        read_sheet(path)
    assert "\n" not in str(e.value)


def test_files_that_are_no_sheets(tmp_path, found):
    path = tmp_path / "s.xlsx"
    key = write_sheet(path, found)
    with pytest.raises(UserError, match="nothing is rated"):
        read_sheet(path)
    path.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(UserError, match=r"s\.xlsx: not an XLSX workbook"):
        read_sheet(path)
    key.unlink()
    with pytest.raises(UserError, match=r"its key .*s\.xlsx\.key\.json is not there"):
        read_sheet(path)
    (tmp_path / "s.csv").write_bytes("code;correctness\nrätsel".encode("latin-1"))
    (tmp_path / "s.csv.key.json").write_text('{"scale": 5, "criteria": ["correctness"], "rows": {}}')
    with pytest.raises(UserError, match=r"s\.csv: not UTF-8"):
        read_sheet(tmp_path / "s.csv")
    for name, said in (("no.csv", "no such file"), ("no.ods", "ends in .csv or .xlsx"), ("no.jsonl", "no such file")):
        with pytest.raises(UserError, match=said):
            read_ratings(tmp_path / name)
    with pytest.raises(UserError, match="not a criterion, did you mean 'language'"):
        write_sheet(tmp_path / "t.csv", found, criteria=["langage"])


# ---- Which explanations ---------------------------------------------------------------------------------------------


def test_items_are_those_that_all_runs_explained(runs, tmp_path):
    rows = (runs["fair"] / "predictions.jsonl").read_text().splitlines()
    short = [r.replace('"rationale": "w0', '"rationale": null, "x": "w0') for r in rows[:9]]
    (runs["fair"] / "predictions.jsonl").write_text("\n".join(reversed(short)) + "\n")
    loaded = load_runs({k: str(v) for k, v in runs.items()})
    assert {e.id for e in explanations(loaded)} == {f"q{i}" for i in range(1, 9)}
    assert {e.id for e in explanations(loaded, checked=True)} == {"q2", "q4", "q6", "q8"}
    assert {e.language for e in explanations(loaded, languages=["ko"])} == {"ko"}
    drawn = [[e.key for e in explanations(loaded, items=2, seed=s)] for s in (0, 0, 1)]
    assert len(drawn[0]) == 18 and drawn[0] == drawn[1] != drawn[2]
    del loaded["fair"]
    assert {e.id for e in explanations(loaded)} == {f"q{i}" for i in range(12)}


def test_mistakes_with_runs(runs, tmp_path):
    assert named_paths(f"a=x/y, {runs['good']}", "--runs") == {"a": "x/y", "good": str(runs["good"])}
    with pytest.raises(UserError, match="'good' stands for two paths"):
        named_paths(f"good=x,{runs['good']}", "--runs")
    with pytest.raises(UserError, match="no predictions.jsonl there"):
        load_runs({"a": str(tmp_path)})
    file = runs["good"] / "predictions.jsonl"
    lines = file.read_text().splitlines()
    for text, said in (
        (lines[0] + "\n" + lines[0], ":2: item b q0 stands twice"),
        (lines[0].replace('"answer"', '"ans"'), ":1: field 'answer' is missing"),
        (lines[0].replace('"language": "en"', '"language": "eng"'), ":1: language 'eng', did you mean 'en'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            load_runs({"good": str(runs["good"])})
    file.write_text(lines[0].replace('"generated_rationale"', '"x"'))
    with pytest.raises(UserError, match="no item of good has a generated rationale"):
        explanations(load_runs({"good": str(runs["good"])}))


# ---- Kendall's tau --------------------------------------------------------------------------------------------------


def by_counting(a, b):
    """tau-b by its definition, pair by pair."""
    score = x = y = 0
    for i in range(len(a)):
        for j in range(i):
            p, q = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
            score, x, y = score + p * q, x + p * p, y + q * q
    return score / np.sqrt(x * y)


def test_tau_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    for n in (2, 5, 40):
        a, b = rng.permutation(n), rng.integers(1, 6, n)
        if len(set(b)) > 1:
            assert kendall(a, b) == pytest.approx(by_counting(a, b))
            assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall([1, 2, 3], [1, 2, 3]) == pytest.approx(1) and kendall([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert kendall([1, 1], [1, 2]) is None is kendall([1], [1]) and kendall([], []) is None


def test_intervals_hold_the_truth_and_respect_groups():
    """Of 40 samples of a correlated pair the 95 % interval holds the population's tau nearly always; doubling every
    explanation inside its question does not narrow it."""
    rng = np.random.default_rng(1)
    rho, held = 0.6, 0
    for trial in range(40):
        x, y = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 60).T
        low, high = interval(x, y, range(60), resamples=200, seed=trial)
        held += low <= 2 / np.pi * np.arcsin(rho) <= high
    assert held >= 35
    once = interval(x, y, range(60), resamples=400)
    twice = interval(np.tile(x, 2), np.tile(y, 2), [*range(60)] * 2, resamples=400)
    assert twice[1] - twice[0] == pytest.approx(once[1] - once[0], rel=0.15)
    assert interval(x, y, range(60), resamples=200) == interval(x, y, range(60), resamples=200)
    assert interval([1, 2], [1, 2], [0, 0]) is None and interval([1, 1, 1], [1, 2, 3], [0, 1, 2], resamples=100) is None


def test_a_draw_is_the_tau_of_the_drawn_explanations():
    rng = np.random.default_rng(2)
    for n in (3, 20, 300):
        a, b = rng.integers(0, 4, n), rng.normal(size=n)
        weights = rng.integers(0, 3, (4, n))
        for w, tau in zip(weights, _weighted(a, b, weights.astype(float))):
            expected = kendall(np.repeat(a, w), np.repeat(b, w))
            assert np.isnan(tau) if expected is None else tau == pytest.approx(expected)


def test_only_what_both_rated_counts():
    a = {("r", "b", str(i)): float(i) for i in range(6)}
    b = {("r", "b", str(i)): float(-i) for i in range(3, 9)}
    (row,) = correlate({"a": a, "b": b}, resamples=100)
    assert (row["count"], row["items"], row["tau"]) == (3, 3, pytest.approx(-1))
    (row,) = correlate({"a": a, "c": {("x", "b", "1"): 1.0}}, resamples=100)
    assert (row["count"], row["tau"], row["interval95"]) == (0, None, None)


# ---- The judge and the command --------------------------------------------------------------------------------------


def grades(body):
    """The server's model: the share of the reference's words that the explanation has."""
    text = body["messages"][1]["content"]
    data = json.loads(text[text.index("{") : text.rindex("}") + 1])
    words, said = data["reference"].split(), data["explanation"].split()
    grade = str(1 + round(4 * sum(w in said for w in words) / len(words)))
    return json.dumps(dict.fromkeys(CRITERIA, grade))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with OpenAIServer(grades) as s:
        yield s


def test_sheet_judge_and_correlate(runs, tmp_path, server, capsys):
    """The whole way: two raters, a judge, metrics; all agree that good is better than fair and poor."""
    sheets = []
    for n in range(2):
        path = tmp_path / f"rater{n}.{('csv', 'xlsx')[n]}"
        sheets.append(path)
        rate.main(["sheet", f"--runs={names(runs)}", f"--output={path}", f"--seed={n}"])
        key = json.loads((tmp_path / f"{path.name}.key.json").read_text())["rows"]
        fill(path, lambda row, criterion: QUALITY[key[row["code"]]["run"]] + (row["code"] > "r7"))  # noqa: B023
    common = [f"--runs={names(runs)}", "--model=gpt-4o-mini", f"--base_url={server.base_url}"]
    common += [f"--ledger={tmp_path / 'ledger.sqlite'}", f"--output={tmp_path / 'gpt.jsonl'}"]
    rate.main(["judge", *common])
    paid = sum(server.billed.values())
    assert paid == 36
    judged = [json.loads(line) for line in (tmp_path / "gpt.jsonl").open()]
    assert len(judged) == 36 and {r["prompt"] for r in judged} == {"rationale_judge/1"}
    first = (tmp_path / "gpt.jsonl").read_bytes()
    rate.main(["judge", *common])  # from the ledger
    assert sum(server.billed.values()) == paid and (tmp_path / "gpt.jsonl").read_bytes() == first
    capsys.readouterr()
    rate.main([
        "correlate", f"--ratings=human={sheets[0]}+{sheets[1]},gpt={tmp_path / 'gpt.jsonl'}", f"--runs={names(runs)}",
        f"--output={tmp_path / 'out'}", "--resamples=100", "--metrics=bleu-1,rouge-1,chrf",
    ])  # fmt: skip
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "correlation.json").read_text())
    assert len(result["pairs"]) == 10 and "tau-b" in shown and "mean of" in shown
    for row in result["pairs"]:
        assert row["count"] == 36 and row["items"] == 12
        assert 0.2 < row["interval95"][0] <= row["tau"] <= row["interval95"][1] <= 1
    for name in ("human", "gpt", "bleu-1", "rouge-1", "chrf"):
        means = [result["means"][run][name] for run in QUALITY]
        assert means == sorted(means, reverse=True)
    lines = (tmp_path / "out" / "correlation.csv").read_text().splitlines()
    assert lines[0] == "rating,with,explanations,questions,tau_b,low95,high95" and len(lines) == 11


def test_the_judge_sees_no_names_and_fences_what_it_reads(runs, tmp_path, server):
    seen = []
    server.model = lambda body: seen.append(json.dumps(body, ensure_ascii=False)) or grades(body)
    rate.main(["judge", f"--runs={names(runs)}", "--items=1", "--model=gpt-4o-mini", f"--base_url={server.base_url}",
               f"--ledger={tmp_path / 'l.sqlite'}", f"--output={tmp_path / 'g.jsonl'}"])  # fmt: skip
    assert len(seen) == 9
    for body in seen:
        assert not any(f'"{name}"' in body or f"/{name}" in body for name in QUALITY) and "<<<DATA" in body


def test_empty_explanations_and_answers_that_cannot_be_used(runs, tmp_path, server, capsys):
    file = runs["good"] / "predictions.jsonl"
    rows = [json.loads(line) for line in file.open()]
    rows[0]["generated_rationale"] = "  "
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    server.faults = Faults({"refusal": 0.3})
    args = ["judge", f"--runs=good={runs['good']}", "--model=gpt-4o-mini", f"--base_url={server.base_url}",
            f"--ledger={tmp_path / 'l.sqlite'}", f"--output={tmp_path / 'g.jsonl'}", "--redraws=0"]  # fmt: skip
    with pytest.raises(WorkError, match=r"explanations got no grade, the first good b q\d+: rejected refusal"):
        rate.main(args)
    graded = {r["id"]: r["scores"] for r in map(json.loads, (tmp_path / "g.jsonl").open())}
    assert graded["q0"] == dict.fromkeys(CRITERIA, 1.0) and 1 < len(graded) < 12


def test_a_dry_run_asks_nothing(runs, tmp_path, server, capsys):
    with pytest.raises(SystemExit) as e:
        rate.main(["judge", f"--runs={names(runs)}", "--model=gpt-4o-mini", f"--base_url={server.base_url}",
                   f"--ledger={tmp_path / 'l.sqlite'}", f"--output={tmp_path / 'g.jsonl'}", "--dry_run"])  # fmt: skip
    assert e.value.code == 0 and "36" in capsys.readouterr().out and not server.billed


def test_mistakes_on_the_command_line(runs, tmp_path):
    sheet = tmp_path / "s.csv"
    rate.main(["sheet", f"--runs={names(runs)}", f"--output={sheet}", "--criteria=overall", "--scale=3"])
    fill(sheet, lambda row, criterion: 2)
    out, ours = f"--output={tmp_path / 'o'}", f"--runs={names(runs)}"
    for argv, said in (
        ([], "no command ''; valid: sheet, judge, correlate"),
        (["sheets"], "no command 'sheets', did you mean 'sheet'"),
        (["sheet", ours, f"--output={sheet}"], "is there already, perhaps filled in"),
        (["sheet", ours, "--output=x.txt"], "must end in .csv or .xlsx"),
        (["sheet", ours, "--output=x.csv", "--scale=1"], "must be 2 or more"),
        (["sheet", ours, "--output=x.csv", "--items=-1"], "must be 0 .all. or more"),
        (["sheet", ours, "--output=x.csv", "--languages=de"], "--languages=de: not a language"),
        (["sheet", ours, "--output=x.csv", "--itmes=1"], "did you mean '--items'"),
        (["judge", ours, "--output=x.csv"], "must end in .jsonl"),
        (["correlate", f"--ratings=h={sheet}", out], "names one rating"),
        (["correlate", f"--ratings=h={sheet},chrf={sheet}", ours, out], "'chrf' is the name of a metric"),
        (["correlate", f"--ratings=h={sheet}", ours, out, "--metrics=blue-1"], "not a metric, did you mean 'bleu-1'"),
        (["correlate", f"--ratings=h={sheet}", ours, out, "--criterion=style"], "does not have it; valid: overall"),
        (["correlate", f"--ratings=h={sheet}", f"--runs=godo={runs['good']}", out], "has no run 'fair'"),
        (["correlate", f"--ratings=h={sheet}", ours, out, "--resamples=3"], "must be 100 or more"),
    ):
        with pytest.raises(UserError, match=said) as e:
            rate.main(argv)
        assert "\n" not in str(e.value)
