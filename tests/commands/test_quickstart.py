"""The proof that everything fits together: the quickstart trains, measures, exports; transformers answers alike."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.transformers_answers import greedy_answers


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, repo):
    """The quickstart's output folder, made by the script itself with this python."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHON_BIN": sys.executable}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", str(out)], cwd=repo, env=env, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out, done.stdout


@pytest.mark.parametrize("name", ["instructions", "direct", "rationale"])
def test_greedy_answers_to_the_trained_questions_are_right(quickstart, name):
    out, _ = quickstart
    results = json.loads((out / "evaluation" / name / "results.json").read_text())
    assert results["overall"]["count"] == 140
    assert results["overall"]["accuracy"] >= 0.95
    for language in ("en", "zh", "ja", "ko", "fr", "es", "ru"):
        assert results["languages"][language]["count"] == 20


def test_the_first_lines_say_where_and_what_and_the_last_ones_what_next(quickstart):
    _, text = quickstart
    for words in ("platform   cpu", "mesh", "parameters", "precision", "float32 compute", "data", "output in"):
        assert words in text
    table = text[text.index("what is asked") :]
    assert "100.0% of 140" in table or "% of 140" in table
    assert "next" in table and "export" in table


def test_the_last_lines_are_a_question_in_two_languages_its_answer_and_the_correct_one(quickstart):
    """The model's answer names the correct letter; the commands that made it stand in front as one would type them."""
    _, text = quickstart
    assert text.count("$ python -m mmed_jax.") == 7
    english, chinese = text[text.index("\nquestion ") :].split("\nquestion ")[1:]
    assert english.isascii() and not chinese.isascii()
    for block in (english, chinese):
        *_, answer, correct = block.strip().splitlines()
        assert answer.startswith("model ") and correct.startswith("correct ")
        assert answer.rstrip(" .。").endswith(correct.split()[1].rstrip("."))


def test_calling_it_again_repeats_nothing(quickstart, repo):
    out, _ = quickstart
    before = (out / "stage1" / "metrics.jsonl").read_text()
    command = [
        sys.executable,
        "-m",
        "mmed_jax.train",
        "--config=stage1",
        f"--config.run_dir={out}/stage1",
        f"--config.data.cache_dir={out}/packed",
    ]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [x for x in (out / "stage1" / "metrics.jsonl").read_text().splitlines() if '"train"' in x] == [
        x for x in before.splitlines() if '"train"' in x
    ]


def test_transformers_gives_the_trained_answers_from_the_export(quickstart, repo):
    """The exported folder alone, in another implementation: chat template, tokenizer, weights, stop ids."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmed_jax.data.multiple_choice import answer_text, mcq_messages
    from mmed_jax.data.records.reading import read_records

    out, _ = quickstart
    tok = AutoTokenizer.from_pretrained(out / "export")
    model = AutoModelForCausalLM.from_pretrained(out / "export", dtype=torch.float32).eval()
    records = list(read_records(repo / "data_gen/handcrafted/mcq.jsonl"))
    answers = greedy_answers(model, tok, [mcq_messages(r, "direct")[:-1] for r in records], 24)
    right = sum(text.strip() == answer_text(r, "direct").strip() for r, (_, text) in zip(records, answers, strict=True))
    assert right >= 0.95 * len(records), f"{right} of {len(records)}"


@pytest.mark.parametrize(("mode", "every"), [("direct", 1), ("rationale", 5)])
def test_the_export_scores_the_same_through_transformers(quickstart, repo, tmp_path, mode, every):
    """Item by item: our engine and transformers' generate write the same texts, from which the same letters are read.
    Options are shuffled, so that not all answers are right."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmed_jax import evaluate
    from mmed_jax.data.records.reading import read_records
    from mmed_jax.evaluation.extraction.extract import extract, is_correct
    from mmed_jax.evaluation.prompts.items import PromptSettings, chat_messages, make_items

    folder, data = quickstart[0] / "export", repo / "data_gen/handcrafted/mcq.jsonl"
    records = list(read_records(data))[::every]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    evaluate.main(
        [
            f"--model={folder}",
            f"--data={asked}",
            f"--mode={mode}",
            "--shuffle_options=3",
            "--dtype=float32",
            "--max_new_tokens=200",
            f"--output={tmp_path / 'out'}",
        ]
    )
    ours = [json.loads(x) for x in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    right = 0
    items = make_items("asked", records, PromptSettings(mode, shuffle_seed=3))
    answers = greedy_answers(model, tok, [chat_messages(item, "llama3") for item in items], 200)
    for item, line, (start, text) in zip(items, ours, answers, strict=True):
        letters, rule = extract(text, item.options, item.language)
        got = (item.id, start, text, letters, rule, is_correct(letters, item.answer))
        assert got == tuple(line[k] for k in ("id", "prompt_tokens", "output", "extracted", "rule", "correct"))
        right += got[-1]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["overall"]["correct"] == right and 0 < right
    assert mode == "rationale" or right < len(items), "shuffled, the trained questions are no longer all right"


def test_the_export_ranks_options_as_transformers_does(quickstart, repo, tmp_path):
    """Log-likelihoods of every option's text, item by item, and the same picks."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmed_jax import evaluate

    folder, data = quickstart[0] / "export", repo / "data_gen/handcrafted/mcq.jsonl"
    evaluate.main(
        [
            f"--model={folder}",
            f"--data={data}",
            "--mode=loglikelihood",
            "--score=option",
            "--normalise=none",
            "--limit=4",
            "--dtype=float32",
            f"--output={tmp_path}",
        ]
    )
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lines = [json.loads(x) for x in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 28
    for line in lines:
        prompt = tok(line["prompt"], add_special_tokens=False)["input_ids"]
        assert len(prompt) == line["prompt_tokens"]
        values = []
        for text in line["options"].values():
            choice = tok(text.strip(), add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logp = model(torch.tensor([[*prompt, *choice]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            values.append(float(logp.gather(1, torch.tensor(choice)[:, None]).sum()))
        assert line["loglikelihoods"] == pytest.approx(values, abs=2e-3)
        assert line["extracted"] == list(line["options"])[values.index(max(values))]
