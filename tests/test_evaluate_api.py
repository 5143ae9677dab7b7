"""Models behind an endpoint: the words they are asked, what is paid and kept, refusals, limits, readers of the runs.

A local server speaks the protocol; everything goes through the command line.
"""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers_inference import TableEngine
from hf_helpers import hf_folder

from data_gen.accounting import books
from data_gen.ledger import Answer, Ledger
from data_gen.types import Request
from mmed_jax import compare, evaluate, rate
from mmed_jax.data.prompts import prompt_text
from mmed_jax.data.schema import read_records, write_records
from mmed_jax.errors import UserError, WorkError
from mmed_jax.evaluation import arguments, local_model
from mmed_jax.hf.source import open_model
from tests.openai_server import Faults, OpenAIServer

KEY = "sk-local-0123456789abcdef"
LANGUAGES = ("en", "fr", "ko")
DRUGS = {"A": "aspirin", "B": "warfarin", "C": "heparin", "D": "clopidogrel"}


def question(n, language, **more):
    return {"id": f"{language}{n}", "language": language, "question": f"Question {n}?", "options": DRUGS,
            "answer_idx": "ABCD"[n % 4], "rationale": f"Because of reason {n}.", **more}  # fmt: skip


@pytest.fixture
def quiz(tmp_path):
    write_records(tmp_path / "quiz.jsonl", [question(n, lang) for lang in LANGUAGES for n in range(4)])
    write_records(tmp_path / "shown.jsonl", [question(n, lang) for lang in LANGUAGES for n in range(20, 24)])
    return tmp_path / "quiz.jsonl"


def always_b(body):
    return "It thins the blood.\n\nAnswer: B"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with OpenAIServer(always_b, key=KEY) as s:
        s.bodies = []
        s.model = lambda body: s.bodies.append(body) or always_b(body)
        yield s


@pytest.fixture
def ask(server, quiz, tmp_path):
    """Runs the command against the server."""

    def go(*flags, output="out", url=None, data=quiz):
        evaluate.main([
            "--api_model=m", f"--base_url={url or server.base_url}", f"--ledger={tmp_path / 'ledger.sqlite'}",
            "--price=1,10", f"--output={tmp_path / output}", *([f"--data={data}"] if data else []), *flags,
        ])  # fmt: skip
        return results(tmp_path, output)

    return go


def results(tmp_path, output="out"):
    return json.loads((tmp_path / output / "results.json").read_text())


def predictions(tmp_path, output="out"):
    return [json.loads(x) for x in (tmp_path / output / "predictions.jsonl").read_text().splitlines()]


# ---- What is asked --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("api") / "model", max_position_embeddings=8192)


WAYS = [
    (),
    ("--mode=rationale", "--system= Be brief. ", "--shuffle_options=3"),
    ("--few_shot=2", "--few_shot_data={shown}", "--system=Be brief."),
    ("--mode=rationale", "--few_shot=5", "--few_shot_data={shown5}", "--languages=en,ko", "--limit=2"),
    ("--prompt_family=mmedbench",),
    ("--prompt_family=mmedbench", "--mode=rationale", "--few_shot=3", "--few_shot_data={shown}"),
]


@pytest.mark.parametrize("flags", WAYS, ids=[" ".join(f) or "nothing" for f in WAYS])
def test_an_endpoint_is_asked_the_words_of_a_local_model(ask, server, model, quiz, tmp_path, monkeypatch, flags):
    """Its messages under the chat template are the very prompts of the local model, item by item."""
    write_records(tmp_path / "shown5.jsonl", [question(n, lang) for lang in LANGUAGES for n in range(20, 26)])
    flags = [f.format(shown=tmp_path / "shown.jsonl", shown5=tmp_path / "shown5.jsonl") for f in flags]
    ask(*flags)
    tok = open_model(model).tokenizer
    engine = TableEngine(tok, lambda prompt: "B")
    monkeypatch.setattr(local_model, "load_engine", lambda *_: engine)
    evaluate.main([f"--model={model}", f"--data={quiz}", f"--output={tmp_path / 'local'}", *flags])
    if "--prompt_family=mmedbench" in flags:
        assert all(len(b["messages"]) == 1 for b in server.bodies)
        sent = ["<|begin_of_text|>" + b["messages"][0]["content"] for b in server.bodies]
    else:
        sent = [
            tok.apply_chat_template(b["messages"], tokenize=False, add_generation_prompt=True) for b in server.bodies
        ]
    assert sorted(sent) == sorted(engine.asked) and len(sent) in (12, 4)
    theirs, ours = predictions(tmp_path), predictions(tmp_path, "local")
    for a, b in zip(theirs, ours):
        assert [a[k] for k in ("id", "answer", "options", "order", "mode")] == [
            b[k] for k in ("id", "answer", "options", "order", "mode")
        ]
    assert set(ours[0]) | {"request", "cost_usd", "served"} == set(theirs[0])


def test_passages_and_images(ask, server, tmp_path):
    made = [question(0, "en", context="The passage."), question(1, "en", needs_image=True)]
    write_records(tmp_path / "more.jsonl", made)
    assert ask(data=tmp_path / "more.jsonl")["book"] == "open"
    ask("--book=closed", "--images=ask", data=tmp_path / "more.jsonl", output="closed")
    texts = [b["messages"][-1]["content"] for b in server.bodies]
    assert ["The passage." in t for t in texts] == [True, False, False]
    # What stands for itself in predictions.jsonl is the question as asked.
    assert predictions(tmp_path)[0]["prompt"] == texts[0] == prompt_text(made[0], "direct")


def test_instruction_records(ask, server, tmp_path):
    said = [{"role": "user", "content": "Say B."}, {"role": "assistant", "content": "it  THINS the blood. Answer: B"}]
    write_records(tmp_path / "told.jsonl", [{"id": "t", "language": "en", "messages": said}])
    found = ask("--system=Be kind.", data=tmp_path / "told.jsonl")
    assert found["overall"]["correct"] == 1 and found["settings"]["max_new_tokens"] == 512
    assert server.bodies[0]["messages"] == [{"role": "system", "content": "Be kind."}, said[0]]


def test_parameters_are_greedy_by_default_and_settable(ask, server, tmp_path):
    ask("--limit=1", "--languages=en")
    ask("--limit=1", "--languages=en", "--mode=rationale", output="two")
    ask("--limit=1", "--languages=en", '--params={"temperature": null, "reasoning_effort": "low"}', "--max_tokens=900",
        output="three")  # fmt: skip
    ask("--limit=1", "--languages=en", '--params={"max_tokens": 7, "seed": null}', "--temperature=0.5", output="four")
    sent = [{k: v for k, v in b.items() if k not in ("messages", "model")} for b in server.bodies]
    assert sent == [
        {"temperature": 0, "seed": 0, "max_completion_tokens": 64},
        {"temperature": 0, "seed": 0, "max_completion_tokens": 1024},
        {"seed": 0, "reasoning_effort": "low", "max_completion_tokens": 900},
        {"temperature": 0.5, "max_tokens": 7},
    ]
    rooms = [results(tmp_path, name)["settings"]["max_new_tokens"] for name in ("out", "two", "three", "four")]
    assert rooms == [64, 1024, 900, 7]
    with pytest.raises(UserError, match="holds 1 results of other settings .params"):
        ask("--limit=1", "--languages=en", "--temperature=1")


# ---- What comes out -------------------------------------------------------------------------------------------------


def test_results_hold_model_cost_and_no_secret(ask, server, tmp_path, capsys):
    server.change = lambda body, reply: reply | {"model": "m-2026-01", "system_fingerprint": "fp_1"}
    server.key = None
    found = ask(url=server.base_url.replace("http://", "http://user:hidden@"))
    assert found["overall"]["count"] == 12 and found["overall"]["correct"] == 3 and found["mode"] == "direct"
    about = found["model"]
    assert about["path"] == about["api_model"] == "m" and about["base_url"] == server.base_url
    assert about["served"] == {"m-2026-01 fp_1": 12} and about["kind"] == "api"
    billed = server.billed_usage
    expected = {"requests": 12, "prompt_tokens": billed["prompt_tokens"], "new_tokens": billed["completion_tokens"],
                "cost_usd": pytest.approx((billed["prompt_tokens"] + 10 * billed["completion_tokens"]) / 1e6),
                "uncounted": 0}  # fmt: skip
    assert found["usage"] == expected
    [line, *_] = predictions(tmp_path)
    assert line["served"] == "m-2026-01 fp_1" and line["finish_reason"] == "stop" and line["new_tokens"] > 0
    assert f"paid       12 requests, {billed['prompt_tokens']:,} prompt" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"m (at {server.base_url}, served as m-2026-01 fp_1)" in page and "temperature 0, seed 0, at most 64" in page
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes() and b"hidden" not in file.read_bytes()


def test_what_was_paid_is_never_asked_again(ask, server, quiz, tmp_path):
    """Neither by the same command, nor for another folder; the questions' hash is the same, and so is every byte."""
    first = ask()
    lines = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    assert ask() == first and ask(output="other") == first
    assert (tmp_path / "other" / "predictions.jsonl").read_bytes() == lines and len(server.bodies) == 12
    assert ask("--mode=rationale", output="rationale")["prompts_sha256"] != first["prompts_sha256"]
    write_records(tmp_path / "twin" / "quiz.jsonl", [r | {"question": "Question 0?"} for r in read_records(quiz)])
    twin = ask(data=tmp_path / "twin" / "quiz.jsonl", output="twin")  # equal questions are one request
    assert twin["overall"]["count"] == 12 and twin["usage"]["requests"] == 3 and len(server.bodies) == 24


def test_the_same_name_elsewhere_is_another_model(ask, server, tmp_path):
    ask()
    with OpenAIServer(lambda body: "Answer: A", key=KEY) as other:
        found = ask(url=other.base_url, output="other")
        assert sum(other.asked.values()) == 12 and found["overall"]["correct"] == 3
        assert {p["extracted"] for p in predictions(tmp_path, "other")} == {"A"}
        with pytest.raises(UserError, match="of other settings .model_fingerprint"):
            ask(url=other.base_url)


def test_a_killed_evaluation_goes_on_and_pays_for_nothing_twice(server, tmp_path, repo):
    """Killed twice in the middle: what had come is kept, and only what was under way is asked again."""
    count, concurrency = 60, 3
    write_records(tmp_path / "long.jsonl", [question(n, "en") for n in range(count)])
    server.delay_s = 0.05
    command = [
        sys.executable, "-m", "mmed_jax.evaluate", "--api_model=m", f"--base_url={server.base_url}",
        f"--ledger={tmp_path / 'l.sqlite'}", f"--concurrency={concurrency}", f"--data={tmp_path / 'long.jsonl'}",
        f"--output={tmp_path / 'out'}",
    ]  # fmt: skip
    for killed_at in (15, 35):
        process = subprocess.Popen(command, cwd=repo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while server.served < killed_at and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert killed_at <= server.served < count and not (tmp_path / "out" / "results.json").exists()
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "already done" in done.stderr
    found = results(tmp_path)
    assert found["overall"]["count"] == count == len(predictions(tmp_path)) == len(server.asked)
    twice = sum(n - 1 for n in server.asked.values())
    assert twice <= 2 * concurrency and max(server.asked.values()) <= 2
    assert found["usage"]["requests"] == count
    with Ledger(tmp_path / "l.sqlite") as ledger:
        book = books(ledger)
    assert book.rows == {("m evaluate_direct", "accepted", ""): count} and not book.problems


def test_a_limit_leaves_the_evaluation_unfinished(ask, server, tmp_path):
    with pytest.raises(WorkError, match="7 rows pending; the same command goes on where this one stopped"):
        ask("--max_requests=5")
    assert len(predictions(tmp_path)) == 5 and not (tmp_path / "out" / "results.json").exists()
    with pytest.raises(WorkError, match="rows pending"):
        ask("--max_usd=0.0001")
    assert len(server.bodies) == 5
    assert ask("--max_usd=1")["overall"]["count"] == 12 and len(server.bodies) == 12


def test_a_dry_run_sends_nothing_and_makes_nothing(ask, server, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SystemExit) as e:
        ask("--dry_run")
    shown = capsys.readouterr().out
    assert e.value.code == 0 and "requests to send" in shown and "upper bound of the cost   $0.0" in shown
    assert not server.asked and not (tmp_path / "out").exists() and not (tmp_path / "ledger.sqlite").exists()


def test_by_batches(ask, server, tmp_path):
    found = ask("--batch", "--poll_s=0.05")
    assert found["overall"]["correct"] == 3 and len(server.batches) == 1
    assert sum(server.billed.values()) == 12 and ask() == found and len(server.bodies) == 12


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
    monkeypatch.setattr("data_gen.sender.ATTEMPTS", 1)
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
    with pytest.raises(UserError, match="--api_model: needs the package data_gen, which is not installed"):
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


def test_each_way_imports_only_its_own(server, quiz, tmp_path, repo):
    """A local model needs no data_gen and no openai, an endpoint no jax."""
    told = """
import sys
from mmed_jax import evaluate
from mmed_jax.errors import UserError
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
    assert Path(tmp_path / "l.sqlite").stat().st_size
