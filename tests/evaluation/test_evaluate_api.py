"""Models behind an endpoint: the words they are asked, what comes out, what is paid and kept.

A local server speaks the protocol; everything goes through the command line.
"""
# ruff: noqa: F811

import re
import signal
import subprocess
import sys
import time

import pytest

from mmed_jax import evaluate
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.multiple_choice import prompt_text
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import write_records
from mmed_jax.evaluation.models import local
from mmed_jax.hf.open_model import open_model
from mmed_jax.llm_api.ledger.balance import books
from mmed_jax.llm_api.ledger.ledger import Ledger
from tests.support.api_evaluations import KEY, LANGUAGES, ask, model, predictions, question, quiz, results, server  # noqa: F401
from tests.support.inference import TableEngine
from tests.support.openai_server import OpenAIServer

# ---- What is asked --------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(local, "load_engine", lambda *_: engine)
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
    ask(
        "--limit=1",
        "--languages=en",
        '--params={"temperature": null, "reasoning_effort": "low"}',
        "--max_tokens=900",
        output="three",
    )
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


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (9, r"\$0\.001\d and what 3 of them cost, whose tokens were not counted"),
        (0, r"cost not known \(no tokens were counted\)"),
    ],
)
def test_answers_whose_tokens_nobody_counted_are_told_apart_from_a_missing_price(ask, server, capsys, counted, said):
    server.change = lambda body, reply: reply if len(server.bodies) <= counted else {**reply, "usage": None}
    found = ask("--concurrency=1")
    assert found["usage"]["cost_usd"] is None and found["usage"]["uncounted"] == 12 - counted
    assert re.search(said, capsys.readouterr().out)


def test_results_hold_model_cost_and_no_secret(ask, server, tmp_path, capsys):
    server.change = lambda body, reply: reply | {"model": "m-2026-01", "system_fingerprint": "fp_1"}
    server.key = None
    found = ask(url=server.base_url.replace("http://", "http://user:pa55w0rd@"))
    assert found["overall"]["count"] == 12 and found["overall"]["correct"] == 3 and found["mode"] == "direct"
    about = found["model"]
    assert about["path"] == about["api_model"] == "m" and about["base_url"] == server.base_url
    assert about["served"] == {"m-2026-01 fp_1": 12} and about["kind"] == "api"
    billed = server.billed_usage
    expected = {
        "requests": 12,
        "prompt_tokens": billed["prompt_tokens"],
        "new_tokens": billed["completion_tokens"],
        "cost_usd": pytest.approx((billed["prompt_tokens"] + 10 * billed["completion_tokens"]) / 1e6),
        "uncounted": 0,
    }
    assert found["usage"] == expected
    [line, *_] = predictions(tmp_path)
    assert line["served"] == "m-2026-01 fp_1" and line["finish_reason"] == "stop" and line["new_tokens"] > 0
    assert f"paid       12 requests, {billed['prompt_tokens']:,} prompt" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"m (at {server.base_url}, served as m-2026-01 fp_1)" in page and "temperature 0, seed 0, at most 64" in page
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes() and b"pa55w0rd" not in file.read_bytes()


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
        sys.executable,
        "-m",
        "mmed_jax.evaluate",
        "--api_model=m",
        f"--base_url={server.base_url}",
        f"--ledger={tmp_path / 'l.sqlite'}",
        f"--concurrency={concurrency}",
        f"--data={tmp_path / 'long.jsonl'}",
        f"--output={tmp_path / 'out'}",
    ]
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
    sent = r"7 rows pending; limit --max_requests=5 is reached \(the ledger has sent 5\): raise it, and the same"
    for _ in range(2):  # the ledger's total counts, not that of a call
        with pytest.raises(WorkError, match=sent):
            ask("--max_requests=5")
    assert len(predictions(tmp_path)) == 5 and not (tmp_path / "out" / "results.json").exists()
    with pytest.raises(WorkError, match=r"limit --max_usd=0.0001 is reached \(the ledger has spent \$0\.0"):
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
