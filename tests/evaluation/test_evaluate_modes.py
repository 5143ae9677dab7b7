"""Log-likelihoods against transformers, what modes write down, order bias, rationale metrics, flags that contradict."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from mmed_jax import evaluate
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.languages.identify import language_of
from mmed_jax.data.records.schema import write_records
from mmed_jax.evaluation import scoring
from mmed_jax.evaluation.metrics.order_bias import order_bias
from mmed_jax.evaluation.models import local
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.hf.open_model import open_model
from tests.support.hf_folders import hf_folder
from tests.support.inference import TableEngine

DRUGS = {"A": "aspirin", "B": "warfarin", "C": "heparin", "D": "clopidogrel"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("modes") / "model", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def engine(model):
    from mmed_jax.inference.engine import Engine

    source = open_model(model)
    return Engine(source.load_params(), source.cfg, max_batch=4)


def question(n, language="en", answer="B", **more):
    return {
        "id": f"{language}{n}",
        "language": language,
        "question": f"Question {n}?",
        "options": DRUGS,
        "answer_idx": answer,
        "rationale": "Because it is so.",
        **more,
    }


@pytest.fixture
def quiz(tmp_path):
    made = [question(n, answer="ABCD"[n % 4]) for n in range(8)] + [question(9, "ru", "A,C")]
    write_records(tmp_path / "quiz.jsonl", made)
    write_records(tmp_path / "shown.jsonl", [question(n, lang) for lang in ("en", "ru") for n in range(20, 23)])
    return tmp_path / "quiz.jsonl"


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """Runs the command with answers from a table; returns the engine."""

    def go(answer, *flags, engine=None, output="out"):
        engine = engine or TableEngine(open_model(model).tokenizer, answer)
        monkeypatch.setattr(local, "load_engine", lambda *_: engine)
        evaluate.main([f"--model={model}", f"--output={tmp_path / output}", *flags])
        return engine

    return go


def results(tmp_path, output="out"):
    return json.loads((tmp_path / output / "results.json").read_text())


def predictions(tmp_path, output="out"):
    return [json.loads(x) for x in (tmp_path / output / "predictions.jsonl").read_text().splitlines()]


class ScoringEngine:
    """log-likelihoods from a table: `score(prompt_text, choice_text)`; stops after `stop_after` prompts."""

    dtype = np.dtype("float32")

    def __init__(self, tok, score, stop_after=None):
        self.tok, self.score, self.stop_after, self.asked = tok, score, stop_after, []

    def loglikelihood(self, prompts, choices, *, on_done=None):
        for i in reversed(range(len(prompts))):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            text = self.tok.decode(prompts[i])
            self.asked.append(text)
            on_done(i, [self.score(text, self.tok.decode(c)) for c in choices[i]])


# ---- Log-likelihoods ----------------------------------------------------------------------------------------------


def test_the_pick_under_each_normalisation():
    """-6 for six bytes and three tokens beats -5 for one of each a byte, and loses as it is."""
    item = Item("b", "i", "en", [], "A", {"A": "ab", "B": "éa", "C": "abcdef"}, choices=((1,), (1, 2), (1, 2, 3)))
    values = [-4.0, -5.0, -7.4]
    assert [scoring.pick(item, values, n) for n in scoring.NORMALISE] == ["A", "C", "C", "C"]
    assert scoring.pick(item, [-4.0, -5.0, -15.0], "bytes") == "B"  # three bytes, two characters
    assert scoring.pick(item, [-4.0, -5.0, -15.0], "characters") == "A"
    assert scoring.pick(item, [-1.0, -1.0, -1.0], "none") == "A"
    with pytest.raises(WorkError, match="NaN"):
        scoring.pick(item, [-1.0, math.nan, -1.0], "none")


@pytest.mark.parametrize(
    ("reason", "letters"), [("stop", "C"), ("length", None), ("MAX_TOKENS", None), ("model_length", None), (None, None)]
)
def test_why_an_answer_ended_is_known_to_who_reads_it(reason, letters):
    """A statement in the middle of a text that was cut, by whatever word, is no answer, nor where a rationale ends."""
    item = Item("b", "i", "en", [], "B", {"A": "Aspirin", "B": "Warfarin", "C": "Heparin"})
    text = "He is forty. The answer is C.\n\nLet us see what this case says and"
    ended = SimpleNamespace(finish_reason=reason, ids=(1, 2))
    line = scoring.prediction(item, ended, mode="rationale", prompt="", output=text)
    assert (line["extracted"], line["finish_reason"]) == (letters, reason)
    assert line["rule"] == ("sentence:en" if letters else "cut")
    assert line["generated_rationale"] == ("He is forty." if letters else text)


def test_loglikelihood_run(run, quiz, model, tmp_path, capsys):
    """The letter C is always likeliest: two of eight right, and never the one with two right answers."""
    tok = open_model(model).tokenizer
    engine = ScoringEngine(tok, lambda prompt, choice: -1.0 if choice.strip() == "C" else -2.0)
    run(None, f"--data={quiz}", "--mode=loglikelihood", engine=engine)
    r = results(tmp_path)
    assert (r["overall"]["correct"], r["overall"]["count"], r["mode"]) == (2, 9, "loglikelihood")
    assert r["rules"] == {"loglikelihood": 9} and r["overall"]["cut"] == 0 and r["overall"]["parse_rate"] == 1
    assert r["settings"]["score"] == "letter" and "largest log-likelihood" in r["metric"]
    lines = predictions(tmp_path)
    assert lines[0]["loglikelihoods"] == [-2.0, -2.0, -1.0, -2.0] and lines[0]["finish_reason"] == "scored"
    assert lines[0]["new_tokens"] == 0 and lines[0]["generated_rationale"] is lines[0]["response_language"] is None
    assert "1 of quiz have several right answers" in capsys.readouterr().out
    assert all(text.rstrip().endswith(("Answer:", "Ответ:")) for text in engine.asked)


def test_option_texts_are_compared_a_byte_unless_said(run, quiz, model, tmp_path):
    """The same log-probability for every text: the longest is the best a byte, the first as it is."""
    tok = open_model(model).tokenizer
    for normalise, letter in ((None, "D"), ("none", "A"), ("tokens", "D")):
        flags = [f"--normalise={normalise}"] if normalise else []
        engine = ScoringEngine(tok, lambda prompt, choice: -10.0)
        run(None, f"--data={quiz}", "--mode=loglikelihood", "--score=option", *flags, engine=engine, output=letter)
        assert {p["extracted"] for p in predictions(tmp_path, letter)} == {letter}
        (tmp_path / letter).rename(tmp_path / f"{normalise}")
    r = results(tmp_path, "None")
    assert r["benchmarks"]["quiz"]["normalised"] == pytest.approx(
        {"none": 2 / 9, "tokens": 2 / 9, "bytes": 2 / 9, "characters": 2 / 9}
    )


def test_stopped_scoring_goes_on_where_it_was(run, quiz, model, tmp_path):
    tok = open_model(model).tokenizer
    score = lambda prompt, choice: -float(len(prompt) % 7 + ord(choice.strip()[0]) % 5)  # noqa: E731
    flags = (f"--data={quiz}", "--mode=loglikelihood")
    run(None, *flags, engine=ScoringEngine(tok, score), output="whole")
    with pytest.raises(KeyboardInterrupt):
        run(None, *flags, engine=ScoringEngine(tok, score, 4))
    rest = run(None, *flags, engine=ScoringEngine(tok, score))
    assert len(rest.asked) == 5 and results(tmp_path) == results(tmp_path, "whole")
    files = [(tmp_path / o / "predictions.jsonl").read_bytes() for o in ("out", "whole")]
    assert files[0] == files[1]


def test_real_model_picks_the_same_for_any_batch_size(quiz, model, tmp_path):
    for size in (1, 4):
        evaluate.main(
            [
                f"--model={model}",
                f"--data={quiz}",
                "--mode=loglikelihood",
                "--score=option",
                f"--batch_size={size}",
                "--shuffle_options=5",
                f"--output={tmp_path / str(size)}",
            ]
        )
    one, four = (predictions(tmp_path, str(n)) for n in (1, 4))
    for a, b in zip(one, four):
        assert a.pop("loglikelihoods") == pytest.approx(b.pop("loglikelihoods"), abs=1e-4)
    assert one == four and len(one) == 9


@pytest.mark.parametrize(
    "flags",
    [
        ["--mode=direct"],
        ["--mode=loglikelihood", "--score=option"],
        ["--mode=loglikelihood", "--few_shot=0", "--prompt_family=mmedbench"],
        ["--mode=loglikelihood", "--shuffle_options=1"],
    ],
)
def test_modes_are_never_mixed_in_one_folder(run, quiz, model, tmp_path, flags):
    engine = ScoringEngine(open_model(model).tokenizer, lambda *_: -1.0)
    run(None, f"--data={quiz}", "--mode=loglikelihood", engine=engine)
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    with pytest.raises(UserError, match="results of other settings"):
        run(lambda p: "A", f"--data={quiz}", *flags)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


# ---- What is written down -----------------------------------------------------------------------------------------


def test_few_shot_examples_stand_before_every_question(run, quiz, model, tmp_path):
    engine = TableEngine(open_model(model).tokenizer, lambda p: "Answer: A")
    run(None, f"--data={quiz}", "--few_shot=2", f"--few_shot_data={quiz.parent / 'shown.jsonl'}", engine=engine)
    assert all(len(re.findall(r"Question 2\d\?", text)) == 2 for text in engine.asked)
    r = results(tmp_path)
    assert r["few_shot"] == 2 and list(r["data"]["quiz"]["few_shot"]) == ["en", "ru"]


def test_lines_of_a_rationale_run(run, quiz, tmp_path):
    write_records(
        quiz,
        [
            question(0, human_checked=True, human_check_passed=True),
            question(1, human_checked=True),
            question(2, rationale=""),
        ],
    )
    run(
        lambda p: "Because it is so.\n\nAnswer: B",
        f"--data={quiz}",
        "--mode=rationale",
        "--rationale_metrics",
        "--human_checked",
    )
    lines = predictions(tmp_path)
    assert [p["rationale_checked"] for p in lines] == [True, False, None]
    assert [p["rationale"] for p in lines] == ["Because it is so."] * 2 + [None]
    assert {p["generated_rationale"] for p in lines} == {"Because it is so."}
    assert {p["response_language"] for p in lines} == {"en"} and lines[0]["mode"] == "rationale"
    assert lines[0]["options"] == DRUGS and lines[0]["order"] == ""
    block = results(tmp_path)["benchmarks"]["quiz"]
    assert block["rationale"]["bleu-1"]["en"] == {"mean": 1.0, "count": 1, "interval95": None}
    assert block["overall"]["response_language"] == block["languages"]["en"]["response_language"] == 1.0


def test_results_say_how_they_were_made(run, quiz, tmp_path):
    run(lambda p: "Answer: A", f"--data={quiz}", "--shuffle_options=7")
    r = results(tmp_path)
    assert (r["schema"], r["mode"], r["prompt_family"], r["few_shot"], r["shuffle_seed"], r["book"]) == (
        2,
        "direct",
        "llama3",
        0,
        7,
        "closed",
    )
    block = r["benchmarks"]["quiz"]
    assert block["benchmark_info"]["expected"] is None and len(block["benchmark_info"]["sha256"]) == 64
    assert block["published_average"] == "overall"
    # Always A: right exactly where the right answer was put first.
    letters = block["order_bias"]["letters"]
    assert letters["A"]["answer_share"] == 1 and block["order_bias"]["shuffled"]
    assert all(c["accuracy"] in ((1.0,) if k == "A" else (0.0, None)) for k, c in letters.items())
    for p in predictions(tmp_path):
        assert sorted(p["order"]) == list("ABCD") and list(p["options"].values()) == [DRUGS[k] for k in p["order"]]
        assert p["correct"] == (p["answer"] == "A")


def test_what_a_reader_should_know_is_printed(run, tmp_path, capsys):
    """A sample, questions that are there twice, rationales that are empty, and every file that was written."""
    made = [question(n) for n in range(3)] + [{**question(1), "id": "again"}, question(7)]
    write_records(tmp_path / "quiz.jsonl", made)
    said = lambda p: "Answer: B" if "Question 0" in p else "Because.\n\nAnswer: B"  # noqa: E731
    run(said, f"--data={tmp_path / 'quiz.jsonl'}", "--mode=rationale", "--rationale_metrics=bleu-1", "--limit=4")
    shown = capsys.readouterr().out
    block = results(tmp_path)["benchmarks"]["quiz"]
    assert block["benchmark_info"]["duplicates"] == 1 and block["rationales_empty"] == 1
    assert block["benchmark_info"]["passages"] is None
    for line in (
        "a sample (--limit=4): ",
        "note       1 question of quiz is there twice\n",
        "note       1 rationale of quiz is empty and scores 0\n",
        "results.json, predictions.jsonl, report.html, rationale_scores.jsonl\n",
    ):
        assert line in shown
    assert "a sample (--limit=4)" in (tmp_path / "out" / "report.html").read_text()


def test_order_bias_by_hand():
    """Right letters A A B C D; answers A A A C none: recalls 1 0 1 0, shares 3/4 and 1/4 against 2/5 1/5 1/5 1/5."""
    pairs = []
    for n, (right, said) in enumerate(zip("AABCD", ["A", "A", "A", "C", None])):
        pairs.append((Item("b", str(n), "en", [], right, DRUGS), {"extracted": said, "correct": said == right}))
    pairs.append((Item("b", "x", "en", [], "A,B", DRUGS), {"extracted": "A,B", "correct": True}))
    bias = order_bias(pairs)
    assert [c["accuracy"] for c in bias["letters"].values()] == [1.0, 0.0, 1.0, 0.0]
    assert bias["recall_std"] == 0.5 and bias["count"] == 5 and not bias["shuffled"]
    assert bias["share_distance"] == pytest.approx((0.35 + 0.2 + 0.05 + 0.2) / 2)
    assert order_bias(pairs[-1:]) is None


def test_open_and_closed_book(run, tmp_path):
    yes_no = {"A": "да", "B": "нет"}
    made = [question(n, "ru", "AB"[n], options=yes_no, context="Отрывок о сердце.") for n in range(2)]
    write_records(tmp_path / "net.jsonl", made)
    engine = run(lambda p: "Да.", f"--data={tmp_path / 'net.jsonl'}")
    assert results(tmp_path)["book"] == "open" and all("Отрывок о сердце." in text for text in engine.asked)
    assert [p["correct"] for p in predictions(tmp_path)] == [True, False]  # "да" is read as the option that says so
    engine = run(lambda p: "Да.", f"--data={tmp_path / 'net.jsonl'}", "--book=closed", output="closed")
    assert [results(tmp_path, o)["data"]["net"]["passages"] for o in ("out", "closed")] == ["shown", "hidden"]
    assert results(tmp_path, "closed")["book"] == "closed" and not any("Отрывок" in text for text in engine.asked)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Answer: A", "en"),
        ("答案：A", "zh"),
        ("正解：A", "ja"),
        ("정답: A", "ko"),
        ("Réponse : A", "fr"),
        ("B", None),
        ("Respuesta: A", "es"),
        ("Ответ: A", "ru"),
        ("", None),
        ("A,C", None),
        ("12 mg", None),
        ("患者は発熱しており、CRP が上昇している。", "ja"),
        ("患者发热，使用 amoxicillin 治疗。", "zh"),
        ("El paciente tiene fiebre y tos desde hace tres días.", "es"),
        ("Je ne sais pas.", "fr"),
        ("The patient has fever and a cough.", "en"),
        ("Пациенту назначен amoxicillin.", "ru"),
    ],
)
def test_response_language(text, language):
    assert language_of(text) == language


# ---- Flags --------------------------------------------------------------------------------------------------------

TOLD = {"id": "t", "language": "en", "messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]}
ERRORS = [
    (["--data={quiz}", "--score=option"], "--score=option: goes with --mode=loglikelihood; the mode is direct"),
    (["--data={quiz}", "--mode=rationale", "--normalise=bytes"], "--normalise=bytes: goes with --mode=loglikelihood"),
    (["--data={quiz}", "--mode=loglikelihood", "--normalise=bytes"], "goes with --score=option"),
    (["--data={quiz}", "--mode=loglikelihood", "--max_new_tokens=9"], "writes nothing; leave it out"),
    (["--data={quiz}", "--few_shot=6"], "--few_shot=6: must be 0 to 5"),
    (["--data={quiz}", "--few_shot=-1"], "--few_shot=-1"),
    (["--data={quiz}", "--few_shot=2"], "--few_shot=2: no other split is there that has examples for quiz in English"),
    (["--data={quiz}", "--few_shot_data={quiz}"], "--few_shot_data: goes with --few_shot=N"),
    (["--data={quiz}", "--few_shot=2", "--few_shot_data={quiz}"], "has 0 examples for quiz in English"),
    (["--data={quiz}", "--few_shot=2", "--few_shot_data={tmp}/no.jsonl"], "no.jsonl: no such file"),
    (["--data={quiz}", "--book=open"], "--book=open: no question of quiz has a passage"),
    (["--data={quiz}", "--book=closed"], "--book=closed: no question of quiz has a passage"),
    (["--data={quiz}", "--split=dev"], "--split=dev: goes with --benchmark=NAME; write --data=PATH:dev"),
    (["--data={quiz}", "--data_dir={tmp}"], "--data_dir: goes with --benchmark=NAME"),
    (["--data={quiz}", "--allow_count_mismatch"], "--allow_count_mismatch: goes with --benchmark=NAME"),
    (["--benchmark=quiz", "--data_dir={tmp}", "--split=dev"], "--split=dev: is for registered benchmarks"),
    (["--data={quiz}", "--rationale_metrics"], "--rationale_metrics: goes with --mode=rationale; the mode is direct"),
    (["--data={quiz}", "--mode=rationale", "--rationale_metrics=bleu"], "did you mean 'bleu-"),
    (["--data={quiz}", "--mode=rationale", "--rationale_metrics=bertscore"], "bertscore: needs the folder"),
    (["--data={quiz}", "--mode=rationale", "--human_checked"], "--human_checked: goes with --rationale_metrics"),
    (["--data={tmp}/told.jsonl", "--few_shot=1"], "--few_shot=1: is for multiple choice"),
    (["--data={tmp}/told.jsonl", "--shuffle_options=0"], "--shuffle_options=0: is for multiple choice"),
    (["--data={tmp}/told.jsonl", "--book=open"], "--book=open: is for multiple choice"),
    (["--data={quiz}", "--mode=loglikelihod"], "invalid choice: 'loglikelihod'"),
    (["--data={tmp}/wide.jsonl", "--mode=loglikelihood", "--score=option"], r"wide en0: has \d+ tokens"),
    (["--benchmark=medqa_us", "--data_dir={tmp}"], "neither a folder or zip 'medqa_us' of the published files"),
]


@pytest.mark.parametrize(("flags", "message"), ERRORS, ids=[" ".join(f) for f, _ in ERRORS])
def test_contradictions_are_one_line_before_any_device(quiz, model, tmp_path, monkeypatch, flags, message):
    write_records(tmp_path / "told.jsonl", [TOLD])
    # The prompt fits, prompt and option together do not.
    write_records(tmp_path / "wide.jsonl", [question(0, options={"A": "x " * 1100, "B": "y"}, answer="A")])
    monkeypatch.setattr(local, "load_engine", lambda *_: pytest.fail("a device was touched"))
    flags = [f.format(tmp=tmp_path, quiz=quiz) for f in flags]
    with pytest.raises(UserError, match=message) as caught:
        evaluate.main([f"--model={model}", f"--output={tmp_path / 'out'}", *flags])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
