"""The demo with an adapter as its recipe has it: trained, exported for PEFT, asked through peft and transformers."""

import unicodedata

import pytest

from mmed_jax import export
from mmed_jax.data.records.reading import read_records
from tests.support.training import call, metrics, train_here


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """(run, PEFT folder) of `stage1:demo-lora`."""
    out = tmp_path_factory.mktemp("demo")
    flags = (
        f"--config.run_dir={out / 'run'}",
        f"--config.data.cache_dir={out / 'packed'}",
        "--config.tensorboard=false",
    )
    trained = train_here("--config=stage1:demo-lora", *flags)
    assert trained.code == 0, trained.err
    exported = call(export.main, f"--model={out / 'run'}", "--adapter", f"--output={out / 'peft'}")
    assert exported.code == 0, exported.err
    return out / "run", out / "peft"


def test_peft_and_transformers_give_the_trained_answers(adapter, repo):
    """At least 95 % of them word for word, from the adapter's folder and the random weights beneath it alone."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, folder = adapter
    base = AutoModelForCausalLM.from_pretrained(run / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
    tok = AutoTokenizer.from_pretrained(run / "base", padding_side="left")
    records, right = list(read_records(repo / "data_gen/handcrafted/instructions.jsonl")), 0
    for start in range(0, len(records), 70):
        some = records[start : start + 70]
        asked = [record["messages"][:-1] for record in some]
        options = {"add_generation_prompt": True, "padding": True, "return_tensors": "pt", "return_dict": True}
        ids = tok.apply_chat_template(asked, **options)
        with torch.no_grad():
            made = model.generate(**ids, max_new_tokens=128, do_sample=False)[:, ids["input_ids"].shape[1] :]
        for record, answer in zip(some, tok.batch_decode(made, skip_special_tokens=True), strict=True):
            right += _plain(answer) == _plain(record["messages"][-1]["content"])
    assert right >= 0.95 * len(records), f"{right} of {len(records)}"


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def test_it_trained_the_adapter_alone(adapter):
    run, _ = adapter
    steps = metrics(run).train
    assert steps[0]["loss"] > 8 and steps[-1]["loss"] < 0.8
    # Adapters start at B = 0: the norm is that of A, and not of the weights beneath.
    assert steps[0]["param_norm"] > steps[0]["update_norm"] > 0
