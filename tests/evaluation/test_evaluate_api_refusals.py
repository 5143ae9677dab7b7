"""Models behind an endpoint: refusals, mistakes, and what reads their runs and the ledger."""
# ruff: noqa: F811

import sqlite3
import subprocess
import sys
from collections import Counter

import pytest

from mmed_jax import compare, evaluate, rate
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.records.schema import write_records
from mmed_jax.evaluation import arguments
from mmed_jax.evaluation.models import local as local_model
from mmed_jax.hf.open_model import open_model
from mmed_jax.llm_api.ledger.ledger import Answer, Ledger
from mmed_jax.llm_api.types import Request
from tests.support.api_evaluations import ask, model, predictions, question, quiz, server  # noqa: F401
from tests.support.inference import TableEngine
from tests.support.openai_server import Faults

# ---- Answers that are none ------------------------------------------------------------------------------------------


def test_refusals_are_wrong_and_counted(ask, server, tmp_path, capsys):
    """Also where the letter that came with it is the right one; a cut answer is read as far as it goes."""
    reasons = ("refusal", "content_filter", "filter_400", "empty", "length", "")

    def change(body, reply):
        n = sum(map(ord, body["messages"][-1]["content"])) % len(reasons)
        message, choice = reply["choices"][0]["message"], reply["choices"][0]
        choice["finish_reason"] = reasons[n] if reasons[n] in ("content_filter", "length") else "stop"
        if reasons[n] == "refusal":
            message |= {"content": "Answer: B", "refusal": "Answer: B"}
        if reasons[n] == "empty":
            message["content"] = ""
        if reasons[n] == "filter_400":
            return {"error": {"code": 400, "message": "no", "innererror": {"code": "content_filter"}}}
        return reply

    server.change = change
    write_records(tmp_path / "many.jsonl", [question(n, "en", answer_idx="B") for n in range(40)])
    found = ask(data=tmp_path / "many.jsonl")
    lines = predictions(tmp_path)
    by = Counter(p["finish_reason"] for p in lines)
    assert set(by) == {"stop", "length", "refusal", "content_filter", "empty"} and len(lines) == 40
    for p in lines:
        assert p["correct"] == (p["finish_reason"] in ("stop", "length"))
        assert (p["extracted"] is None) == (not p["correct"])
    gone = 40 - by["stop"] - by["length"]
    assert found["overall"]["correct"] == 40 - gone and found["overall"]["cut"] == by["length"]
    assert found["rules"]["content_filter"] == by["content_filter"]
    assert f"{gone} items got no answer and count as wrong: " in capsys.readouterr().out


def test_reasoning_that_takes_all_the_room_is_told(ask, server, capsys):
    def change(body, reply):
        reply["choices"][0] |= {"finish_reason": "length", "message": {"role": "assistant", "content": ""}}
        return reply

    server.change = change
    assert ask()["overall"]["cut"] == 12
    assert "12 answers were cut before their first word: the reasoning" in capsys.readouterr().out


def malformed(body, reply):
    return {"error": {"code": 400, "message": "this is too long"}}


def test_a_question_that_is_refused_as_malformed_is_wrong(ask, server, tmp_path):
    """It is asked for again with --retry_failed only."""
    server.change = lambda body, reply: malformed(body, reply) if "Question 2" in str(body) else reply
    found = ask("--languages=en")
    [line] = [p for p in predictions(tmp_path) if p["finish_reason"] == "bad_request"]
    assert line["id"] == "en2" and not line["correct"] and "too long" in line["error"]
    assert found["overall"]["count"] == 4 and found["rules"]["bad_request"] == 1
    server.change = None
    assert ask("--languages=en") == found and sum(server.asked.values()) == 4
    again = ask("--languages=en", "--retry_failed")
    assert sum(server.asked.values()) == 5 and len(predictions(tmp_path)) == 4 and "bad_request" not in again["rules"]


def test_an_endpoint_that_refuses_everything_is_a_mistake_in_the_parameters(ask, server, tmp_path):
    """No 0 % is written; without the parameter the same folder goes on."""
    server.change = lambda body, reply: malformed(body, reply) if "temperature" in body else reply
    with pytest.raises(UserError, match=r"refused every request as malformed .*too long.*\"temperature\": null") as e:
        ask()
    assert "\n" not in str(e.value) and predictions(tmp_path) == []
    assert ask('--params={"temperature": null}')["overall"]["count"] == 12


def test_questions_that_could_not_be_answered_are_asked_again(ask, server, tmp_path, monkeypatch):
    monkeypatch.setattr("mmed_jax.llm_api.sender.ATTEMPTS", 1)
    server.faults = Faults({"500": 0.4}, seed=1)
    said = r"\d rows failed \(quiz \w\w\d: 500: .*\); the same command asks for them again"
    with pytest.raises(WorkError, match=said):
        ask()
    kept = len(predictions(tmp_path))
    assert 0 < kept < 12
    server.faults = Faults()
    assert ask()["overall"]["count"] == 12 and sum(server.billed.values()) == 12


def test_no_credit_stops_with_what_came(ask, server, tmp_path):
    with pytest.raises(WorkError):
        ask("--max_requests=4")
    server.faults = Faults(stop="quota")
    with pytest.raises(UserError, match="no credit or quota left"):
        ask()
    assert len(predictions(tmp_path)) == 4


ERRORS = [
    ({"error": {"code": "rate_limit_exceeded", "message": "later"}}, "answered nothing for .*429: later"),
    ({"error": "oops"}, r"12 rows failed \(quiz en0: an error in place of an answer: oops\); the same command"),
    ({"choices": []}, "12 rows failed"),
    ({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}, r"0 answers of 12 \(empty 12: .*no resul"),
]


@pytest.mark.parametrize(("reply", "said"), ERRORS)
@pytest.mark.parametrize("batch", [False, True])
def test_an_evaluation_of_nothing_but_errors_has_no_results(ask, server, tmp_path, monkeypatch, reply, said, batch):
    """No 0 % is written of an endpoint that answers every question with an error in a reply of status 200."""
    monkeypatch.setattr("mmed_jax.llm_api.sender._QUIET", 0.2)
    server.change = lambda body, _: reply
    flags = ["--batch", "--poll_s=0.001"] if batch else []
    with pytest.raises(WorkError, match=said if not batch or "0 answers" in said else "12 rows failed"):
        ask(*flags)
    assert not (tmp_path / "out" / "results.json").exists()
    server.change = None
    if "0 answers" not in said:
        assert ask(*flags)["overall"]["count"] == 12


def test_endings_are_told_as_they_are(ask, server, tmp_path, capsys):
    """Half a sentence is no whole answer, whatever its ending is called; one that the endpoint broke off is asked for
    again."""
    endings = ["stop", "eos_token", "MAX_TOKENS", "model_length", None, "finito", "SAFETY", "error", "tool_calls"]
    came = Counter()

    def change(body, reply):
        n = int(body["messages"][-1]["content"].split("Question ")[1].split("?")[0]) % len(endings)
        came[n] += 1
        broken = endings[n] == "error" and came[n] > 1
        reply["choices"][0]["finish_reason"] = "stop" if broken else endings[n]
        return reply

    server.change = change
    write_records(tmp_path / "many.jsonl", [question(n, "en") for n in range(len(endings))])
    found = ask(data=tmp_path / "many.jsonl")
    got = {p["id"]: (p["finish_reason"], p["cut"]) for p in predictions(tmp_path)}
    assert list(got.values()) == [
        ("stop", False),
        ("eos_token", False),
        ("MAX_TOKENS", True),
        ("model_length", True),
        ("null", True),
        ("finito", True),
        ("content_filter", False),
        ("stop", False),
        ("tool_calls", False),
    ]
    assert found["overall"]["cut"] == 4 and came[7] == 2
    shown = capsys.readouterr()
    assert "2 answers ended for a reason that is not known and count as cut: " in shown.out
    assert "null 1" in shown.out and shown.err.count("warning:") == 1


def test_a_judge_that_answers_errors_gives_no_grades(ask, server, tmp_path):
    ask("--mode=rationale", "--languages=en")
    came = Counter()

    def change(body, reply):
        came[str(body)] += 1
        return {"error": {"type": "overloaded_error"}} if came[str(body)] == 1 else {"error": "oops"}

    server.change = change
    with pytest.raises(WorkError, match="4 explanations got no grade, the first .*failed api_error; the same command"):
        rate.main(
            [
                "judge",
                f"--runs=a={tmp_path / 'out'}",
                f"--output={tmp_path / 'grades.jsonl'}",
                "--model=m",
                f"--base_url={server.base_url}",
                f"--ledger={tmp_path / 'j.sqlite'}",
            ]
        )
    assert set(came.values()) == {2}


# ---- Mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = [
    (["--model=x"], "name one of --model and --api_model"),
    (["--api_model="], "--api_model is missing"),
    (["--mode=loglikelihood"], "--mode=loglikelihood: endpoints give no log-probabilities of given texts"),
    (["--score=letter"], "goes with --mode=loglikelihood"),
    (["--step=3"], "--step: goes with --model=DIR; leave it out"),
    (["--dtype=float32"], "--dtype: goes with --model=DIR"),
    (["--batchsize=3"], "did you mean '--batch_size'"),
    (["--max_usdd=3"], "did you mean '--max_usd'"),
    (["--max_new_tokens=0"], "--max_new_tokens=0: must be at least 1"),
    (["--max_new_tokens=9", "--max_tokens=9"], "--max_tokens: says the same as --max_new_tokens"),
    (["--max_new_tokens=9", '--params={"max_tokens": 9}'], "--params: max_tokens: says the same"),
    (["--params={"], "--params"),
    (['--params={"messages": []}'], "messages is set by the command"),
    (["--concurrency=0"], "--concurrency=0: must be 1 or more"),
    (["--price=cheap"], "--price=cheap: two numbers"),
    (["--max_usd=1", '--params={"max_tokens": null}'], "an answer without a limit may cost anything"),
    (["--base_url=localhost:8000/v1"], "must start with http:// or https://"),
    (["--base_url=https://api.openai.com/v1"], "OPENAI_API_KEY is not set"),
    (["--few_shot=6"], "--few_shot=6: must be 0 to 5"),
    (["--ledger={quiz}"], "cannot be used as a ledger"),
    (["--output={quiz}"], "is a file; name a folder"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(f) for f, _ in MISTAKES])
def test_mistakes_are_one_line_before_anything_is_sent(ask, server, quiz, tmp_path, monkeypatch, flags, message):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=message) as e:
        ask(*(f.replace("{quiz}", str(quiz)) for f in flags))
    assert "\n" not in str(e.value) and not server.asked and not (tmp_path / "out").exists()


def test_no_known_price_and_a_limit_in_money(server, quiz, tmp_path):
    with pytest.raises(UserError, match="no price is known for model 'm'"):
        evaluate.main(["--api_model=m", "--max_usd=1", f"--data={quiz}", f"--output={tmp_path / 'out'}"])


def test_flags_of_an_endpoint_with_a_local_model(quiz, tmp_path, model):
    with pytest.raises(UserError, match="--ledger: goes with --api_model=NAME; leave it out"):
        evaluate.main([f"--model={model}", "--ledger=x", f"--data={quiz}", f"--output={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="name what to evaluate: --model=DIR, or --api_model=NAME"):
        evaluate.main([f"--data={quiz}", f"--output={tmp_path / 'out'}"])


def test_a_missing_package_is_named(ask, monkeypatch, capsys):
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--api_model: needs the package openai, which is not installed"):
        ask()
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "--mesh_tensor" in capsys.readouterr().out


def test_help_shows_both_kinds_of_flags(capsys):
    with pytest.raises(SystemExit) as e:
        evaluate.main(["--help"])
    shown = capsys.readouterr().out
    assert e.value.code == 0
    assert all(flag in shown for flag in ("--model", "--api_model", "--mesh_tensor", "--max_usd", "--dry_run"))
    assert "sampling temperature (default: 0)" in shown and "room for an answer" not in shown


def test_each_way_imports_only_its_own(server, quiz, tmp_path, repo):
    """A local model needs no data_gen and no openai, an endpoint no jax."""
    told = """
import sys
from mmed_jax import evaluate
from mmed_jax.common.errors import UserError
try:
    evaluate.main(sys.argv[2:])
except UserError as e:
    print(e)
there = [m for m in sys.argv[1].split(",") if m in sys.modules]
sys.exit(f"imported {there}" if there else 0)
"""
    common = [f"--data={quiz}", f"--output={tmp_path / 'out'}"]
    here = [f"--base_url={server.base_url}", f"--ledger={tmp_path / 'l.sqlite'}"]
    for modules, flags in (("data_gen,openai", ["--model=nothing"]), ("jax,torch", ["--api_model=m", *here])):
        command = [sys.executable, "-c", told, modules, *flags, *common]
        done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert sum(server.asked.values()) == 12


# ---- What reads the runs --------------------------------------------------------------------------------------------


def test_runs_are_compared_with_local_ones_and_rated(ask, server, model, quiz, tmp_path, monkeypatch, capsys):
    ask("--mode=rationale", "--rationale_metrics=bleu-1", output="theirs")
    engine = TableEngine(open_model(model).tokenizer, lambda prompt: "It is so.\n\nAnswer: C")
    monkeypatch.setattr(local_model, "load_engine", lambda *_: engine)
    local = [f"--model={model}", f"--data={quiz}", f"--output={tmp_path / 'ours'}", "--mode=rationale"]
    evaluate.main(local)
    capsys.readouterr()
    compare.main([str(tmp_path / "ours"), str(tmp_path / "theirs"), f"--output={tmp_path / 'table'}"])
    shown = capsys.readouterr().out
    assert shown.count("accuracy: rationale, prompt family llama3, no examples") == 1 and "theirs" in shown
    runs = f"--runs=ours={tmp_path / 'ours'},theirs={tmp_path / 'theirs'}"
    rate.main(["sheet", runs, f"--output={tmp_path / 'sheet.csv'}"])
    sheet = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig")
    assert sheet.count("It thins the blood.") == 12 == sheet.count("It is so.")


# ---- The ledger -----------------------------------------------------------------------------------------------------


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path):
    """Without the column of the served model: what it holds stays, what comes gets it."""
    request = Request("m", ({"role": "user", "content": "x"},), {}, None, "v/1")
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.add([(request, "")]).result()
    with sqlite3.connect(tmp_path / "l.sqlite") as c:
        c.execute("ALTER TABLE requests DROP COLUMN served")
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.claim(request.key, 0.0).result() == "go"
        ledger.finish(request.key, Answer("done", response="y", cost=0.1, served="m-2")).result()
        assert ledger.query("SELECT response, served FROM requests") == [("y", "m-2")]
