"""The base of an adapter is written down, found again where it was moved to, and never taken for another model."""

import json
import re
import shutil

import jax.numpy as jnp
import pytest

from mmed_jax.checkpoints.checkpointer import Checkpointer
from mmed_jax.common.errors import UserError
from mmed_jax.hf.base_model import hub_name, open_base, record_base
from mmed_jax.hf.open_model import identity, open_model
from mmed_jax.hf.save import save_pretrained, write_assets
from mmed_jax.model.config import LlamaConfig
from tests.support.hf_folders import random_params, tiny_tokenizer

CFG = LlamaConfig(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tok"))


@pytest.fixture
def folder(tmp_path, tokenizer):
    return save_pretrained(tmp_path / "base", random_params(CFG), CFG, tokenizer, dtype="float32")


@pytest.fixture
def run_dir(tmp_path, tokenizer):
    path = tmp_path / "run"
    with Checkpointer(path, every_steps=1, every_minutes=0, keep_last=5, keep_best=0, async_=False) as checkpointer:
        for step in (3, 7):
            state = {"params": random_params(CFG, step), "opt_state": {}, "step": jnp.int32(step)}
            checkpointer.maybe_save(step, state, data_state={}, config={"name": "stage1"}, metrics={})
    write_assets(path / "hf_assets", CFG, tokenizer, dtype="float32")
    return path


def test_a_folder_moves_and_another_is_refused(folder, tmp_path, tokenizer):
    record = json.loads(json.dumps(record_base(open_model(folder), "nf4", jnp.bfloat16)))
    assert (record["kind"], record["step"], record["quantization"]) == ("hf", None, "nf4")
    assert (record["path"], record["dtype"], record["hub_name"]) == (str(folder), "bfloat16", "")
    assert open_base(record).path == folder
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    with pytest.raises(UserError, match=f"{folder}, which is not there any more; .*--base=DIR"):
        open_base(record)
    opened = open_base(record, str(moved))
    assert identity(opened)["fingerprint"] == record["fingerprint"]
    other = save_pretrained(tmp_path / "other", random_params(CFG, 1), CFG, tokenizer, dtype="float32")
    with pytest.raises(UserError, match=rf"{other} holds other weights .* \({re.escape(str(folder))}\)"):
        open_base(record, str(other))
    with pytest.raises(UserError, match="'/nowhere' does not exist"):
        open_base(record, "/nowhere")
    with pytest.raises(UserError, match="record of it is damaged"):
        open_base({"path": str(moved)})


def test_a_run_is_known_by_its_step(run_dir, folder):
    record = record_base(open_model(run_dir, 3), "compute", "float32")
    assert record["kind"] == "run" and record["step"] == 3
    opened = open_base(record)  # though a newer checkpoint is there
    assert opened.step == 3
    with pytest.raises(UserError, match="is no run directory"):
        open_base(record, str(folder))
    shutil.rmtree(run_dir / "checkpoints" / "3")
    with pytest.raises(UserError, match="no checkpoint of step 3; there are 7"):
        open_base(record)


def test_changed_bytes_are_another_base(folder):
    record = record_base(open_model(folder), "compute", "float32")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="other weights than those the adapter was trained on; .*--base=DIR"):
        open_base(record)


def test_an_ignored_key_needs_no_second_word(folder):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "unheard_of": 3}))
    with pytest.raises(UserError, match="unheard_of"):
        open_model(folder)
    record = record_base(open_model(folder, ignore_keys=("unheard_of",)), "compute", "float32")
    assert open_base(record).path == folder


@pytest.mark.parametrize(
    "where, said, name",
    [
        ("models--org--Llama-3.1-8B/snapshots/0a1b", None, "org/Llama-3.1-8B"),
        ("Llama", "org/Llama-3.1-8B", "org/Llama-3.1-8B"),
        ("Llama", "/scratch/llama", ""),
        ("Llama", "../llama", ""),
        ("Llama", None, ""),
    ],
)
def test_the_name_on_the_hub(folder, tmp_path, where, said, name):
    place = tmp_path / where
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, place)
    if said:
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "_name_or_path": said}))
    assert hub_name(open_model(place)) == name
