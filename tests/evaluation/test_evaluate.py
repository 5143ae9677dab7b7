"""Evaluation: what is counted, resuming, refusals, the page; with a table in place of the model, and once for real."""

import json
import math
import subprocess
import sys

import pytest

from mmed_jax import evaluate
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES, write_records
from mmed_jax.evaluation.metrics.accuracy import chance, wilson
from mmed_jax.evaluation.models import local
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.scoring import fold_text
from mmed_jax.hf.open_model import open_model
from tests.support.hf_folders import hf_folder
from tests.support.html_outline import Outline
from tests.support.inference import TableEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Hugging Face folder with byte tokenizer and room for a question."""
    return hf_folder(tmp_path_factory.mktemp("evaluate") / "model", max_position_embeddings=2048)


def question(n: int, language: str, answer: str, **more) -> dict:
    options = {"A": "aspirin", "B": "warfarin", "C": "heparin", "D": "clopidogrel"}
    return {
        "id": f"{language}{n}",
        "language": language,
        "question": f"Question {n}?",
        "options": options,
        "answer_idx": answer,
        "rationale": "Because.",
        **more,
    }


@pytest.fixture
def records(tmp_path):
    """Two questions a language; the second of each asks for two letters; one more needs an image."""
    made = [question(n, lang, ("B", "A,C")[n]) for lang in LANGUAGES for n in (0, 1)]
    made.append(question(9, "en", "A", needs_image=True))
    write_records(tmp_path / "quiz.jsonl", made)
    return tmp_path / "quiz.jsonl"


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """Runs the command with answers from a table; returns the engine."""

    def go(answer, *flags, stop_after=None, output="out"):
        engine = TableEngine(open_model(model).tokenizer, answer, stop_after)
        monkeypatch.setattr(local, "load_engine", lambda *_: engine)
        evaluate.main([f"--model={model}", f"--output={tmp_path / output}", *flags])
        return engine

    return go


def say(letters):
    """Answers every question with the same letters."""
    return lambda prompt: f"Answer: {letters}"


def read(folder, name="results.json"):
    text = (folder / name).read_text(encoding="utf-8")
    return json.loads(text) if name == "results.json" else [json.loads(line) for line in text.splitlines()]


def test_results_count_letters_sets_and_unparsed(run, records, tmp_path, capsys):
    """B everywhere but in French (nothing readable) and Russian (both letters of the second question)."""

    def answer(prompt):
        if "Répondez" in prompt:
            return "Je ne sais pas."
        if "Ответьте" in prompt:
            return "Ответ: А, С"  # Cyrillic lookalikes
        return "The answer is B"

    run(answer, f"--data={records}")
    results = read(tmp_path / "out")
    assert results["overall"]["count"] == 14 and results["overall"]["correct"] == 6
    assert results["overall"]["parsed"] == 12 and results["overall"]["parse_rate"] == pytest.approx(12 / 14)
    cells = results["benchmarks"]["quiz"]["languages"]
    assert list(cells) == list(LANGUAGES)
    assert [c["correct"] for c in cells.values()] == [1, 1, 1, 1, 0, 1, 1]
    assert cells["fr"]["parsed"] == 0 and cells["ru"]["parse_rate"] == 1
    assert cells["en"]["interval95"] == pytest.approx(list(wilson(1, 2))) and cells["en"]["chance"] == 0.125
    assert results["mean_over_languages"] == pytest.approx(3 / 7)
    assert results["data"]["quiz"]["needs_image"] == 1
    assert results["rules"] == {"sentence:en": 10, "none": 2, "mark:ru": 2}
    assert results["settings"]["mode"] == "direct" and len(results["prompts_sha256"]) == 64
    predictions = read(tmp_path / "out", "predictions.jsonl")
    assert [p["id"] for p in predictions] == [f"{lang}{n}" for lang in LANGUAGES for n in (0, 1)]
    ru = predictions[-1]
    assert (ru["extracted"], ru["answer"], ru["correct"], ru["rule"]) == ("A,C", "A,C", True, "mark:ru")
    assert ru["prompt"].startswith("<|begin_of_text|><|start_header_id|>user") and ru["finish_reason"] == "stop"
    shown = capsys.readouterr().out
    assert "quiz       fr            2      0.0%" in shown and "left out   1 of quiz: they need an image" in shown


def test_stopped_evaluation_goes_on_where_it_was(run, records, tmp_path):
    """Stopped after five answers, with a torn sixth line: only the rest is asked, and the result is the same."""
    answer = lambda prompt: f"Answer: {'ABCD'[len(prompt) % 4]}"  # noqa: E731
    whole = run(answer, f"--data={records}", output="whole")
    with pytest.raises(KeyboardInterrupt):
        run(answer, f"--data={records}", stop_after=5)
    path = tmp_path / "out" / "predictions.jsonl"
    assert len(read(tmp_path / "out", "predictions.jsonl")) == 5 and not (tmp_path / "out" / "results.json").exists()
    with path.open("a") as f:
        f.write('{"benchmark": "quiz", "id": "en')
    rest = run(answer, f"--data={records}")
    assert len(whole.asked) == 14 and len(rest.asked) == 9
    assert path.read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    again = run(answer, f"--data={records}")  # finished: nothing is asked
    assert again.asked == [] and read(tmp_path / "out") == read(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--mode=rationale"], "mode"),
        (["--max_new_tokens=9"], "max_new_tokens: 64 there, 9 now"),
        (["--system=Be brief."], "system_prompt"),
        (["--limit=1"], "limit"),
        (["--dtype=bfloat16"], 'dtype: "float32" there, "bfloat16" now'),
        (["--prompt_family=mmedbench"], "prompt_family"),
    ],
)
def test_results_of_other_settings_are_refused(run, records, tmp_path, changed, message):
    run(say("A"), f"--data={records}")
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    with pytest.raises(UserError, match=message):
        run(say("A"), f"--data={records}", *changed)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


def test_other_weights_and_other_questions_are_refused(run, records, model, tmp_path, monkeypatch):
    run(say("A"), f"--data={records}")
    write_records(records, [question(0, "en", "C")])
    with pytest.raises(UserError, match="prompts_sha256"):
        run(say("A"), f"--data={records}")
    other = hf_folder(tmp_path / "other", max_position_embeddings=2048, initializer_range=0.2)
    with pytest.raises(UserError, match="model_fingerprint"):
        run(say("A"), f"--data={records}", f"--model={other}")


def test_rationale_mode_reads_the_last_line(run, records, tmp_path):
    answer = "A is wrong. The answer is C in children.\n\nAnswer: B"
    engine = run(lambda p: answer, f"--data={records}", "--mode=rationale")
    results = read(tmp_path / "out")
    assert results["overall"]["correct"] == 7 and results["settings"]["max_new_tokens"] == 1024
    assert any("reasoning step by step" in text for text in engine.asked)


def test_mmedbench_prompts(run, records, tmp_path):
    engine = run(lambda p: "###Answer: OPTION A,C IS CORRECT.", f"--data={records}", "--prompt_family=mmedbench")
    assert read(tmp_path / "out")["overall"]["correct"] == 7
    assert all(text.endswith("### Response:") for text in engine.asked)


def test_languages_and_limit(run, records, tmp_path):
    run(say("B"), f"--data={records}", "--languages=en,ko", "--limit=1")
    assert [p["id"] for p in read(tmp_path / "out", "predictions.jsonl")] == ["en0", "ko0"]


def test_cut_answers_are_counted(run, records, tmp_path):
    run(lambda p: "Answer: B" + " because" * 50, f"--data={records}", "--max_new_tokens=20")
    assert read(tmp_path / "out")["overall"]["cut"] == 14


def test_instruction_records_by_exact_match(run, tmp_path, capsys):
    made = [
        {
            "id": f"i{n}",
            "language": "en",
            "messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"The Word {n}."}],
        }
        for n in range(4)
    ]
    write_records(tmp_path / "told.jsonl", made)
    run(lambda p: f"the  word {1 if 'Say 1' in p else 2}.\n", f"--data={tmp_path / 'told.jsonl'}")
    results = read(tmp_path / "out")
    assert results["overall"]["correct"] == 2 and results["metric"].startswith("Exact match")
    assert "parse_rate" not in results["overall"] and results["settings"]["mode"] == "exact_match"
    assert "Exact match" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The Word 3." in page and "blind choice" not in page


def test_several_benchmarks_by_name(run, records, tmp_path):
    """By file, by the source that a file's records name, and MMedBench's test split; ids may repeat across them."""
    folder = tmp_path / "sets"
    write_records(folder / "medqa_us.jsonl", [question(0, "en", "B"), question(0, "fr", "B")])
    write_records(folder / "other.jsonl.gz", [question(0, "en", "A", source="headqa")])
    for split, answer in (("Train", "C"), ("Test", "B")):
        (folder / "MMedBench" / split).mkdir(parents=True)
        raw = {k: v for k, v in question(0, "ja", answer).items() if k not in ("id", "language")}
        (folder / "MMedBench" / split / "Japanese.jsonl").write_text(json.dumps(raw) + "\n")
    run(say("B"), "--benchmark=medqa_us,headqa,mmedbench", f"--data_dir={folder}", "--allow_count_mismatch")
    results = read(tmp_path / "out")
    counts = {n: (b["overall"]["correct"], b["overall"]["count"]) for n, b in results["benchmarks"].items()}
    assert counts == {"medqa_us": (1, 1), "headqa": (0, 1), "mmedbench": (1, 1)}  # medqa_us is English
    assert results["overall"]["count"] == 3
    assert results["benchmarks"]["mmedbench"]["benchmark_info"]["counted"] == 1
    assert "en 0 instead of 1,273" in results["benchmarks"]["mmedbench"]["benchmark_info"]["count_mismatch"]


ERRORS = [
    (["--data={quiz}", "--model={tmp}/none"], r"'.*none' does not exist"),
    (["--data={quiz}", "--model=meta-llama/Llama-3.1-8B"], "hf download meta-llama/Llama-3.1-8B"),
    (["--data={quiz}", "--step=3"], "--step=3"),
    (["--data={tmp}/quizz.jsonl"], r"quizz.jsonl: no such file.*did you mean 'quiz.jsonl'"),
    (["--data={tmp}/empty.jsonl"], "empty.jsonl: holds no records"),
    (["--data={tmp}/broken.jsonl"], r"broken.jsonl:1: broken JSON"),
    (["--data={tmp}/nokey.jsonl"], r"nokey.jsonl:1: field 'answer_idx'"),
    (["--data={tmp}/images.jsonl"], "every record needs an image"),
    (["--data={tmp}/long.jsonl"], r"long en0: has 3\d\d\d tokens.*max_position_embeddings is 2048"),
    (["--data={tmp}/double.jsonl"], r"double.jsonl:2: field 'id': 'en0' was already used"),
    (["--data={quiz},{tmp}/told.jsonl"], "not mixed in one evaluation"),
    (["--data={quiz},{quiz}"], "'quiz' is named twice"),
    (["--data={quiz}", "--languages=en,jp"], "'jp' is not supported, did you mean 'ja'"),
    (["--data={tmp}/english.jsonl", "--languages=ko"], "no record in the languages ko"),
    (["--data={quiz}", "--kind=mqc"], "did you mean 'mcq'"),
    (["--data={quiz}", "--kind=instruction"], "mcq where instruction"),
    (["--data={tmp}/told.jsonl", "--mode=direct"], "--mode=direct: is for multiple choice"),
    (["--data={quiz}", "--mode=loud"], "--mode"),
    (["--data={quiz}", "--max_new_tokens=0"], "max_new_tokens=0"),
    (["--data={quiz}", "--limit=-1"], "--limit=-1"),
    (["--data={quiz}", "--prompt_family=mmedbench", "--system=Hi"], "no place for a system message"),
    (["--benchmark=quizz", "--data_dir={tmp}"], r"--benchmark=quizz: not in .*did you mean 'quiz'"),
    (["--benchmark=quiz", "--data_dir={tmp}/nowhere"], "--data_dir=.*no such folder"),
    (["--benchmark=quiz"], "--benchmark: needs --data_dir"),
    (["--benchmark=twice", "--data_dir={tmp}"], "several files of that source"),
    ([], "name what to evaluate on"),
    (["--data={quiz}", "--outptu=x"], "did you mean '--output'"),
    (["--data={quiz}", "--output={quiz}"], "is a file; name a folder"),
    (["--data={quiz}", "--output={tmp}/foreign"], "nobody knows what it holds"),
]


@pytest.mark.parametrize(("flags", "message"), ERRORS, ids=[" ".join(f) or "nothing" for f, _ in ERRORS])
def test_mistakes_are_one_line_before_any_device(records, model, tmp_path, monkeypatch, flags, message):
    told = {"id": "t", "language": "en", "messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]}
    write_records(tmp_path / "told.jsonl", [told])
    write_records(tmp_path / "english.jsonl", [question(0, "en", "A")])
    write_records(tmp_path / "images.jsonl", [question(0, "en", "A", needs_image=True)])
    write_records(tmp_path / "long.jsonl", [question(0, "en", "A", context="fever " * 500)])
    for name in ("one", "two"):
        write_records(tmp_path / f"{name}.jsonl", [question(0, "en", "A", source="twice")])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"id": "en0", \n')
    (tmp_path / "double.jsonl").write_text((json.dumps(question(0, "en", "A")) + "\n") * 2)
    (tmp_path / "nokey.jsonl").write_text(json.dumps(question(0, "en", "")) + "\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "predictions.jsonl").write_text('{"benchmark": "b", "id": "x"}\n')
    monkeypatch.setattr(local, "load_engine", lambda *_: pytest.fail("a device was touched"))
    flags = [f.format(tmp=tmp_path, quiz=records) for f in flags]
    defaults = [f"--model={model}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=message) as caught:
        evaluate.main([*defaults, *flags])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_exit_code_and_line(repo, records):
    command = [sys.executable, "-m", "mmed_jax.evaluate", "--model=nothing", f"--data={records}", "--output=x"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == ["error: model: 'nothing' does not exist"]


def test_read_only_output(run, records, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(say("A"), f"--data={records}", output="file/below")


def test_a_second_process_is_refused(run, records, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / "predictions.jsonl", "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing"):
            run(say("A"), f"--data={records}")


def test_an_earlier_evaluation_goes_into_the_page(run, records, tmp_path):
    run(say("A"), f"--data={records}", output="base")
    run(say("B"), f"--data={records}")
    assert "now right" not in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    # The same command with the flag: nothing is asked again, and the page has both.
    engine = run(say("C"), f"--data={records}", f"--baseline=untrained={tmp_path}/base")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert engine.asked == [] and page.count('data-change="now right"') == 7 and "untrained: A, wrong" in page
    for given, problem in [("out", "is the folder of --output"), ("nowhere", "no such folder")]:
        with pytest.raises(UserError, match=problem):
            run(say("C"), f"--data={records}", f"--baseline={tmp_path / given}")


def test_page_is_self_contained_and_escaped(run, records, tmp_path):
    run(lambda p: "<script>alert(1)</script> & none", f"--data={records}")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "") and page.count("<svg") == 1
    assert page.count("<details class=") == 14 and "(14 of 14)" in page

    Outline(page)  # well-formed


def test_real_model_scores_the_same_for_any_batch_size(records, model, tmp_path):
    """The whole way once: a random model answers nonsense, the same nonsense alone and in company."""
    for size in (1, 4):
        evaluate.main(
            [
                f"--model={model}",
                f"--data={records}",
                "--max_new_tokens=8",
                f"--batch_size={size}",
                f"--output={tmp_path / str(size)}",
            ]
        )
    one, four = (read(tmp_path / str(n), "predictions.jsonl") for n in (1, 4))
    assert one == four and len(one) == 14 and len({p["output"] for p in one}) > 1
    assert read(tmp_path / "1") == read(tmp_path / "4")


# ---- Numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe 1998 (Stat. Med. 17:857), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_against_published_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_edges():
    assert wilson(0, 0) == (0.0, 1.0) and wilson(7, 7)[1] == 1.0 and wilson(0, 7)[0] == 0.0
    for n in (1, 5, 100):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1 and not math.isnan(low)


def test_chance_and_fold():
    item = Item("b", "i", "en", [], "A", dict.fromkeys("ABCDE", "x"))
    assert chance(item) == 0.2 and chance(Item("b", "i", "en", [], "A,B", item.options)) == 0
    assert fold_text("  Ｔhe\n answer ") == fold_text("the ANSWER") != fold_text("the answer.")


@pytest.fixture
def mmedbench(tmp_path):
    """A folder as MMedBench's, three questions to learn from and one to be asked."""
    for split, numbers in (("Train", (0, 1, 2)), ("Test", (3,))):
        made = [{k: v for k, v in question(n, "en", "B").items() if k not in ("id", "language")} for n in numbers]
        folder = tmp_path / "data" / "MMedBench" / split
        folder.mkdir(parents=True)
        (folder / "English.jsonl").write_text("".join(json.dumps(q) + "\n" for q in made))
    return tmp_path / "data"


@pytest.mark.parametrize("flags", [["--data={0}/MMedBench"], ["--benchmark=other", "--data_dir={0}"]])
def test_training_data_is_never_asked_unless_said(run, mmedbench, flags):
    """A folder of several splits is read as its training split elsewhere; here it must be named."""
    (mmedbench / "other").symlink_to(mmedbench / "MMedBench")
    with pytest.raises(UserError, match=r"holds several splits \(test, train\); say which.*:test"):
        run(say("B"), *(f.format(mmedbench) for f in flags))


@pytest.mark.parametrize("name", ["mmedbench", "MMedBench"])
def test_mmedbench_is_its_test_split_in_any_spelling(run, mmedbench, name):
    asked = run(say("B"), f"--benchmark={name}", f"--data_dir={mmedbench}", "--allow_count_mismatch").asked
    assert len(asked) == 1 and "Question 3?" in asked[0]


def test_splits_of_one_folder_are_told_apart(run, mmedbench, tmp_path):
    folder = mmedbench / "MMedBench"
    run(say("B"), f"--data={folder}:test,{folder}:train")
    counts = {name: b["overall"]["count"] for name, b in read(tmp_path / "out")["benchmarks"].items()}
    assert counts == {"MMedBench:test": 1, "MMedBench:train": 3}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--benchmark=quiz,quiz", "--data_dir={0}"], "--benchmark: 'quiz' is named twice"),
        (["--benchmark=,", "--data_dir={0}"], "--benchmark=,: names nothing"),
        (["--data=, ,"], "--data=, ,: names nothing"),
        (["--data={0}/quiz.jsonl", "--languages=,"], "--languages=,: names nothing"),
    ],
)
def test_names_given_twice_or_not_at_all(run, records, flags, message):
    with pytest.raises(UserError, match=message):
        run(say("B"), *(f.format(records.parent) for f in flags))
