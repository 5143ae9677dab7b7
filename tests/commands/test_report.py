"""The report is made from whatever a run left behind."""

import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from mmed_jax.checkpoints.metrics_file import metrics_version
from mmed_jax.common.errors import UserError
from mmed_jax.common.page_server import PageServer
from mmed_jax.report import main
from mmed_jax.training.metric_log import MetricsLogger
from mmed_jax.training.run_files import named_places, read_run
from mmed_jax.training.run_page import make_page, make_report, try_report
from tests.support.html_outline import Outline

CONFIG = {"name": "stage1", "variant": "demo", "optim": {"lr": 1e-3}, "data": {"train": ["<b>.jsonl"]}}


def write_run(run_dir, points=0, evals=0, nan_at=(), resume_at=None):
    (run_dir / "config.json").write_text(json.dumps(CONFIG))
    with MetricsLogger(run_dir, tensorboard=False) as log:
        log.start(0, steps=points, mfu_formula="MFU = a / b", peak_device="8 x chip", peak_flops_per_device=1e12)
        for step in range(1, points + 1):
            if step - 1 == resume_at:
                log.start(resume_at, steps=points)
            loss = math.nan if step in nan_at else 3 / step + 0.5
            log.train(
                step,
                {
                    "loss": loss,
                    "loss/en": loss,
                    "loss/zh": loss + 1,
                    "lr": 1e-3 / step,
                    "grad_norm": 1.25,
                    "tokens_per_second": 1e4,
                    "supervised_tokens_per_second": 4e3,
                    "mfu": 0.415,
                },
            )
        log.event("compiled", 1, compile_count=1, compile_seconds=2.5)
        for i in range(1, evals + 1):
            values = {"validation/loss": 2.0 + (i - 2) ** 2, "validation/loss/en": 1.5, "validation/loss/ko": 2.5}
            bits = {"validation/bits_per_byte": 0.5 + i / 10, "validation/bits_per_byte/en": 1 / i}
            values |= {**bits, "validation/perplexity": 20.0 - i} if evals > 1 else {}
            log.evaluation(i * 10, values)


def page_of(run_dir):
    """The page about a run."""
    return make_page([read_run(run_dir)])


def check_page(page):
    """(text, plots): well-formed, nothing fetched, no script but ours, for a phone and for paper."""
    text = page if isinstance(page, str) else page.read_text()
    attributes = Outline(text).attributes
    assert all(name not in ("src", "href") and not name.startswith("on") for name, _ in attributes)
    assert not re.search(r"https?:|url\(|@import", text)
    assert text.count("<script>") == text.count("</script>") and "default-src &#39;none&#39;" in text
    assert 'name="viewport"' in text and "@media print" in text and "prefers-color-scheme: dark" in text
    return text, text.count('<figure class="curves"')


@pytest.mark.parametrize(
    "run, count",
    [
        ({"points": 0}, 0),
        ({"points": 1}, 5),
        ({"points": 1, "evals": 1}, 5),
        ({"points": 0, "evals": 1}, 2),
        ({"points": 3, "nan_at": (1, 2, 3)}, 5),
        ({"points": 300, "evals": 3, "nan_at": (5,), "resume_at": 120}, 6),
    ],
)
def test_any_number_of_points(tmp_path, run, count):
    write_run(tmp_path, **run)
    text, plots = check_page(page_of(tmp_path))
    assert plots == count
    assert ("NaN or infinite" in text) == bool(run.get("nan_at"))
    assert ("resumed after step" in text) == ("resume_at" in run)
    assert "optim.lr" in text and "&lt;b&gt;.jsonl" in text  # the whole config, escaped


def test_numbers_and_languages(tmp_path):
    write_run(tmp_path, points=40, evals=4)
    text, _ = check_page(page_of(tmp_path))
    for cell in (
        "<td>40 of 40</td>",
        "<td>41.5%</td>",
        "<td>10,000</td>",
        "<td>6 at step 40</td>",  # validation loss, last
        "<td>2 at step 20</td>",  # and best
        "<td>English</td><td>0.575</td><td>1.5</td><td>1.5</td><td>0.25</td><td>0.25</td>",
        "<td>Korean</td><td></td><td>2.5</td><td>2.5</td><td></td><td></td>",
        "<td>validation bits per byte, best</td><td>0.6 at step 10</td>",
        "<td>validation perplexity, last</td><td>16 at step 40</td>",
        "MFU = a / b; 8 x chip",
        "<td>compilations of the step</td><td>1</td>",
    ):
        assert cell in text, cell


def test_curves_show_the_points_and_the_resume(tmp_path):
    """They hold every finite point, and NaN points are marked instead of silently missing."""
    write_run(tmp_path, points=4, evals=2, nan_at=(2,), resume_at=3)
    make_report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "metrics.jsonl", "report.html"]
    text, plots = check_page(tmp_path / "report.html")
    assert plots == 6 and 'data-x="1 3 4" data-y="3.5 1.5 1.25" data-bad="2"' in text
    assert 'data-name="validation" data-x="10 20" data-y="3 2"' in text and "<title>resumed (step 3)</title>" in text


def test_damaged_files_are_said(tmp_path):
    write_run(tmp_path, points=2)
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"kind": "train", "step": 3, "loss": 1')
    (tmp_path / "config.json").write_text("{")
    text, plots = check_page(page_of(tmp_path))
    assert plots == 5 and "torn by an interruption" in text and "config.json: not readable" in text


def test_not_a_run_is_a_user_error(tmp_path):
    for path, message in [(tmp_path / "no", "no such folder"), (tmp_path, "neither metrics nor a run.s config.json")]:
        with pytest.raises(UserError, match=message):
            make_report(path)
    with pytest.raises(UserError, match="--run"):
        main([])
    write_run(tmp_path, points=1)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        make_report(tmp_path)


def test_command_needs_no_jax(tmp_path, repo):
    write_run(tmp_path, points=2, evals=1)
    code = "import sys; sys.modules['jax'] = None; from mmed_jax.report import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, f"--run={tmp_path}"]
    out = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    goodput, *files = out.stdout.splitlines()
    assert goodput.startswith("goodput    ") and files == [f"{tmp_path}/report.html"]


def test_a_model_folder_is_no_run(tmp_path):
    """Its config.json is a model's: a page written into it would pass for a part of the model."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(UserError, match="is it a run directory"):
        make_report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_what_no_page_can_hold_is_left_out(tmp_path):
    """Halves of surrogate pairs, numbers without room between them, a file that is none, an event without a time."""
    write_run(tmp_path, points=1)
    half = "\ud800"
    lines = [
        {"kind": "train", "step": 2**62, "loss": 5e-324, f"loss/{half}": 1.0, "lr": 1e-5},
        {"kind": "train", "step": 2**62 + 1, "loss": 0.0, "lr": 1.0000000000000002e-05},
        {
            "kind": "event",
            "step": 1,
            "event": "answers",
            "answers": [{"language": "en", "question": "q", "answer": half}],
        },
        {"kind": "event", "step": 1, "event": "saved"},
    ]
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write("".join(json.dumps(line) + "\n" for line in lines) + "x\n" * 500)
    make_report(tmp_path)
    text, plots = check_page(tmp_path / "report.html")
    assert plots == 5 and '<div class="answer" dir="auto">?</div>' in text
    assert text.count("not a record") == 20 and "<li>and 480 more</li>" in text and "1970" not in text


# What one looks for first

EVIL = "</script><script>alert('x')</script>\u202e\"'&<img src=x onerror=alert(1)>"


def write_evaluated(run_dir, name="stage1", metric="validation/accuracy", answer="Aspirin.", shift=0.0, steps=40):
    """A run of 30 of 40 steps, with evaluations at 0, 10, 20 and 30 of which accuracy is best at 10."""
    run_dir.mkdir(parents=True, exist_ok=True)
    config = {"name": name, "variant": "8b", "init_from": "models/base", "batch_size": 8, "epochs": 4}
    config |= {"data": {"train": ["records.jsonl"], "seq_len": 128}, "lora": {"rank": 0 if shift == 0 else 16}}
    (run_dir / "config.json").write_text(json.dumps({**config, "checkpoint": {"best_metric": metric}}))
    with MetricsLogger(run_dir, tensorboard=False) as log:
        log.start(0, steps=steps, rows=8, rows_per_epoch=80, peak_device="4 x TPU v5p", peak_flops_per_device=1e12)
        for step in range(31):
            if step:
                numbers = {"loss": 3 / step + shift, "lr": 1e-5, "tokens_per_second": 1e4, "data_wait_share": 0.25}
                memory = {
                    "device_memory_peak_gib": 40.0 + step,
                    "device_memory_gib": 39.0,
                    "host_memory_peak_gib": 12.5,
                }
                log.train(step, {**numbers, **memory})
            if step % 10 == 0:
                right = 0.5 - abs(step - 10) / 100 - shift / 10
                by = {"validation/accuracy/en": right, "validation/accuracy/zh": right - 0.1}
                loss = {"validation/loss": 2.0 - step / 100 + shift, "validation/accuracy_questions": 200}
                log.evaluation(step, {"validation/accuracy": right, **by, **loss})
                said = [("zh", "发烧怎么办？", f"{answer} {step}"), ("en", f"Fever? {EVIL}", f"{answer} {step}")]
                keys = ("language", "question", "answer")
                log.event("answers", step, answers=[dict(zip(keys, a, strict=True)) for a in said])
    return run_dir


def test_the_page_begins_with_what_one_looks_for(tmp_path):
    run = write_evaluated(tmp_path / "run", answer=EVIL)
    text, plots = check_page(page_of(run))
    assert plots == 6  # loss, accuracy, learning rate, speed, waiting for data, memory
    first = re.sub(r"<[^>]+>", " ", text[text.index("<h1") : text.index('<div class="plots">')])
    first = " ".join(first.split())
    for part in (
        "stage1:8b",
        "step 30 of 40 75%, epoch 3 of 4",
        "time left about 0:0",
        "best accuracy on validation questions 50.0% step 10 (epoch 1), last 30.0%",
        "lies before the last evaluation: at step 10 (epoch 1), 50.0%; at step 30 (epoch 3) it is 30.0%",
        "tokens a second 10,000 25.0% waiting for data",
        "device memory, peak 70 GiB host 12.5 GiB",
        "all weights, from models/base",
        "on 4 x TPU v5p",
        "data records.jsonl",
        "8 rows of 128 tokens; 240 rows read",
    ):
        assert part in first, part
    assert "alert('x')" not in text and text.count("<script>") == 1
    # Language by language, the newest answer first and what was said before below it.
    answers = text[text.index("Answers to fixed prompts") : text.index("<h2>Numbers")]
    assert answers.index("<h3>English") < answers.index("<h3>Chinese") and "发烧怎么办？" in answers
    assert re.findall(r"(step \d+ \([^)]+\))</p>", answers)[:4] == [
        "step 30 (epoch 3)",
        "step 0 (before training)",
        "step 10 (epoch 1)",
        "step 20 (epoch 2)",
    ]
    assert "--best takes its checkpoint" not in first  # it has none
    (run / "checkpoints/10").mkdir(parents=True)
    assert f"python -m mmed_jax.export --model={run} --best takes its checkpoint." in page_of(run)
    assert "<td>answers</td>" not in text and "<td>English</td><td>30.0%</td><td>50.0%</td>" in text


def test_by_loss_the_last_is_the_best_and_nothing_is_warned_of(tmp_path):
    text, _ = check_page(page_of(write_evaluated(tmp_path, metric="validation/loss")))
    assert "best validation loss" in text and "1.7" in text and "lies before the last" not in text
    assert 'data-epochs="0.1"' in text and text.count('data-name="waiting for data"') == 1


def test_states_of_a_run(tmp_path):
    run = write_evaluated(tmp_path / "a")
    assert read_run(run).state[0] == "running"
    quiet = read_run(run)
    object.__setattr__(quiet, "now", time.time() + 3700)
    assert quiet.state[0] == "silent" and "1:01:" in quiet.state[1]
    with MetricsLogger(run, tensorboard=False) as log:
        log.event("stopped", 30, signal="SIGTERM")
        log.event("end", 30)
    assert read_run(run).state == ("stopped", "stopped by SIGTERM; the same command goes on")
    with MetricsLogger(run, tensorboard=False) as log:
        log.start(20, steps=40, rows=8, rows_per_epoch=80)
        log.event("answers", 30, answers=[{"language": "en", "question": 5}, "no", {"language": "en"}])
    again = read_run(run)
    assert again.state[0] == "running" and again.step == 20 and again.resumes == [20]
    assert [s for s, _ in again.answers[0].given] == [0, 10, 20]  # what was answered beyond the resume is gone
    with MetricsLogger(run, tensorboard=False) as log:
        log.event("stopped_early", 20, reason="no better for 2 evaluations")
    assert read_run(run).state == ("finished", "ended early: no better for 2 evaluations")
    whole = write_evaluated(tmp_path / "b", steps=30)
    assert read_run(whole).state == ("finished", "finished")
    assert re.search(r"<b>finished</b><small>[\d:]+ in all</small>", page_of(whole))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/config.json").write_text('{"epochs": "many", "checkpoint": 3, "lora": [], "data": {"train": 5}}')
    text, plots = check_page(page_of(tmp_path / "c"))
    assert plots == 0 and "not begun" in text


def test_several_runs_over_each_other(tmp_path, capsys):
    write_evaluated(tmp_path / "x/run")
    write_evaluated(tmp_path / "y/run", name="stage2", shift=0.5)
    main([f"--run={tmp_path}/x/run,{tmp_path}/y/run"])
    page = tmp_path / "x/run/report_runs.html"
    assert capsys.readouterr().out == f"{page}\n"
    text, plots = check_page(page)
    assert plots == 6 and "x/run · y/run" in text
    assert 'data-name="x/run: training"' in text and 'data-name="y/run: validation"' in text
    assert "<td>lora.rank</td><td>0</td><td>16</td>" in text and "<td>name</td><td>stage1</td><td>stage2</td>" in text
    assert "a LoRA adapter of rank 16" in text and "<td>batch_size</td>" not in text
    assert "x/run, step 30 (epoch 3)" in text and "y/run, step 30 (epoch 3)" in text
    # Named, elsewhere, one of them without a config.
    (tmp_path / "y/run/config.json").unlink()
    evil = EVIL.replace("/", "").replace("=", "")
    main([f"--run=small={tmp_path}/x/run,{evil}={tmp_path}/y/run", f"--output={tmp_path}/o.html"])
    text, _ = check_page(tmp_path / "o.html")
    assert 'data-name="small: training"' in text and "Settings that differ" not in text
    # What is not known of a run is not said of it.
    assert re.search(r"<td>trained</td><td>[^<]+</td><td></td>.*<td>from</td><td>[^<]+</td><td></td>", text, re.S)
    assert "<script>alert" not in text


def test_which_runs_are_named(tmp_path):
    odd = tmp_path / "a,b=c"
    for folder in (odd, tmp_path / "p/r", tmp_path / "q/r"):
        folder.mkdir(parents=True)
    assert named_places(str(odd)) == [("a,b=c", odd)]
    assert named_places(f"{tmp_path}/p/r, {tmp_path}/q/r") == [("p/r", tmp_path / "p/r"), ("q/r", tmp_path / "q/r")]
    assert named_places(f"one={tmp_path}/p/r,{tmp_path}/q/r")[0] == ("one", tmp_path / "p/r")
    for text, problem in [
        (f"{tmp_path}/p/r,{tmp_path}/q/../p/r", "is named twice"),
        (f"n={tmp_path}/p/r,n={tmp_path}/q/r", "two runs are called 'n'"),
        (" , ", "names no run"),
    ]:
        with pytest.raises(UserError, match=problem):
            named_places(text)


@pytest.mark.parametrize(
    "more, problem",
    [
        (["--watch", "--output=x.html"], "--watch writes nothing"),
        (["--port=80"], "goes with --watch"),
        (["--watch", "--port=70000"], "must be 0 to 65535"),
        (["--watch", "--profile"], "leave --watch out"),
        (["--output=x.html"], "is for several runs"),
        (["--profile", "--output=x.html"], "--profile prints"),
        (["--output=metrics.jsonl"], "ends in .html"),
        (["--wach"], "--watch"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, more, problem):
    write_run(tmp_path, points=1)
    with pytest.raises(UserError, match=problem):
        main([f"--run={tmp_path}", *more])


def test_a_page_that_cannot_be_made_ends_no_run(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, points=1)
    monkeypatch.setattr("mmed_jax.training.run_page.make_page", lambda runs: 1 / 0)
    try_report(tmp_path)
    assert "no report: " in capsys.readouterr().err


# --watch


def fetched(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_a_served_page_follows_the_run_on_this_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mmed_jax.common.page_server._PAUSE_S", 0.0)
    run, made = write_evaluated(tmp_path / "run"), []

    def make(version):
        made.append(version)
        return make_page([read_run(run)], version)

    server = PageServer(lambda: metrics_version(run), make)
    server._wait_after = lambda begun: None  # every request looks
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{12}/", server.address)
        status, page = fetched(server.address)
        text, plots = check_page(page)
        assert status == 200 and plots == 6 and text.count("<script>") == 2
        assert "connect-src &#39;self&#39;" in text and '<noscript><meta http-equiv="refresh"' in text
        version = re.search(r'data-version="([^"]+)"', page)[1]
        assert fetched(server.address + "version") == (200, version) and fetched(server.address)[1] == page
        assert made == [version]  # made once for one version
        with MetricsLogger(run, tensorboard=False) as log:
            log.train(31, {"loss": 0.123})
        assert fetched(server.address + "version")[1] != version
        assert "31 of 40" in fetched(server.address)[1] and len(made) == 2
        assert fetched(server.address, Host="evil.example:80")[0] == 403
        assert fetched(server.address.rsplit("/", 2)[0] + "/")[0] == 404
        (run / "metrics.jsonl").rename(tmp_path / "away")
        (run / "config.json").rename(tmp_path / "away.json")
        status, text = fetched(server.address)
        assert status == 503 and "holds neither metrics" in text
        port = server.address.split(":")[2].partition("/")[0]
        with pytest.raises(UserError, match=f"--port={port}: can't be listened on"):
            PageServer(str, str, int(port))
    finally:
        server.close()
        thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_fault_of_a_served_page_is_said_and_tried_again(capsys):
    server = PageServer(lambda: "1", lambda version: 1 / 0)
    try:
        path = "/" + server.address.split("/", 3)[3]
        status, _, body = server.answer(path, "localhost:80")
        assert (status, body) == (500, b"division by zero")
        assert capsys.readouterr().err == "warning: no page: division by zero\n"
        server._make_page = lambda version: "\ud800 whole".encode(errors="replace").decode()
        assert server.answer(path, "127.0.0.1:80")[::2] == (200, b"? whole")
    finally:
        server._server.server_close()


def test_watch_says_where_and_ends_by_ctrl_c(tmp_path, repo):
    write_evaluated(tmp_path / "run")
    code = "import sys; sys.modules['jax'] = None; from mmed_jax.report import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, f"--run=a={tmp_path}/run", "--watch"]
    with subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[1]
            assert fetched(address)[0] == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "ended\n", "")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json",
        "metrics.jsonl",
    ]  # nothing is written
