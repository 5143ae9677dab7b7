"""The example of README.md's "From Python" runs, and does what it says."""

import numpy as np
import pytest

from examples import python_api
from mmed_jax import Llama
from tests.support.hf_folders import hf_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("example") / "model")


def test_it_loads_trains_asks_and_saves(folder, tmp_path, capsys):
    python_api.main(str(folder), str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert [line.split("  ")[0] for line in said.splitlines() if line[:1].islower()][:2] == ["first token", "one step"]
    assert "\nanswer       " in said and f"\nsaved        {tmp_path / 'out'}" in said
    before, after = Llama.from_pretrained(folder), Llama.from_pretrained(tmp_path / "out", dtype="source")
    assert after.dtype == "bfloat16"
    tokens = np.arange(8)[None]
    assert not np.allclose(before(tokens), after(tokens, compute_dtype="float32"), atol=1e-3)


def test_only_the_answer_is_trained(folder):
    """What is trained is the answer alone: every trained target is a token of it or ends it."""
    model = Llama.from_pretrained(folder)
    row = python_api.one_row(model.tokenizer, python_api.CONVERSATION, "en")
    trained = np.asarray(row["targets"])[np.asarray(row["loss_mask"]) > 0]
    assert model.tokenizer.decode(trained, skip_special_tokens=True) == "Vitamin C."
    assert {k: v.shape for k, v in row.items()} == {k: row["tokens"].shape for k in row}
