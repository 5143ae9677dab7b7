"""The proof that everything fits together: the quickstart trains, measures, exports; transformers answers alike."""

import json
import os
import subprocess
import sys

import pytest


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


def test_calling_it_again_repeats_nothing(quickstart, repo):
    out, _ = quickstart
    before = (out / "stage1" / "metrics.jsonl").read_text()
    command = [
        sys.executable, "-m", "mmed_jax.train", "--config=stage1", f"--config.run_dir={out}/stage1",
        f"--config.data.cache_dir={out}/packed",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [x for x in (out / "stage1" / "metrics.jsonl").read_text().splitlines() if '"train"' in x] == [
        x for x in before.splitlines() if '"train"' in x
    ]


def test_transformers_gives_the_trained_answers_from_the_export(quickstart, repo):
    """The exported folder alone, in another implementation: chat template, tokenizer, weights, stop ids."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmed_jax.data.prompts import answer_text, mcq_messages
    from mmed_jax.data.schema import read_records

    out, _ = quickstart
    tok = AutoTokenizer.from_pretrained(out / "export")
    model = AutoModelForCausalLM.from_pretrained(out / "export", dtype=torch.float32).eval()
    records = list(read_records(repo / "data_gen/handcrafted/mcq.jsonl"))
    right = 0
    for record in records:
        prompt = mcq_messages(record, "direct")[:-1]
        ids = tok.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            made = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
        right += tok.decode(made, skip_special_tokens=True).strip() == answer_text(record, "direct").strip()
    assert right >= 0.95 * len(records), f"{right} of {len(records)}"
