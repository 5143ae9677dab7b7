"""The demo with an adapter, by its recipe on a part of its records: trained, exported for PEFT, asked through peft and
transformers."""

import unicodedata
from collections import Counter

import pytest

from mmed_jax import export
from mmed_jax.data.records.reading import read_records
from tests.support.training import RUN, call, metrics, train_here, write_jsonl
from tests.support.transformers_answers import greedy_answers

# Records of a language. The adapter knows their answers after as many epochs as with all 20, a twentieth of the steps.
EACH = 1


@pytest.fixture(scope="module")
def records(repo) -> list[dict]:
    """The first EACH of the hand-written records in every language."""
    seen: Counter[str] = Counter()
    kept = []
    for record in read_records(repo / "data_gen/handcrafted/instructions.jsonl"):
        seen[record["language"]] += 1
        if seen[record["language"]] <= EACH:
            kept.append(record)
    assert len(kept) == 7 * EACH
    return kept


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, records):
    """(run, PEFT folder) of `stage1:demo-lora` on these records."""
    out = tmp_path_factory.mktemp("demo")
    trained = train_here(
        "--config=stage1:demo-lora",
        f"--config.data.train={write_jsonl(out / 'records.jsonl', records)}",
        f"--config.run_dir={out / 'run'}",
        f"--config.data.cache_dir={out / 'packed'}",
        f"--config.xla_flags={RUN['xla_flags']}",
        "--config.tensorboard=false",
    )
    assert trained.code == 0, trained.err
    exported = call(export.main, f"--model={out / 'run'}", "--adapter", f"--output={out / 'peft'}")
    assert exported.code == 0, exported.err
    return out / "run", out / "peft"


def test_peft_and_transformers_give_the_trained_answers(adapter, records):
    """At least 95 % of them word for word, from the adapter's folder and the random weights beneath it alone."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, folder = adapter
    base = AutoModelForCausalLM.from_pretrained(run / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
    tok = AutoTokenizer.from_pretrained(run / "base")
    answers = greedy_answers(model, tok, [r["messages"][:-1] for r in records], 128)
    wanted = [_plain(r["messages"][-1]["content"]) for r in records]
    right = sum(_plain(text) == want for want, (_, text) in zip(wanted, answers, strict=True))
    assert right >= 0.95 * len(records), f"{right} of {len(records)}"


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def test_it_trained_the_adapter_alone(adapter):
    run, _ = adapter
    steps = metrics(run).train
    assert steps[0]["loss"] > 8 and steps[-1]["loss"] < 0.8
    # Adapters start at B = 0: the norm is that of A, and not of the weights beneath.
    assert steps[0]["param_norm"] > steps[0]["update_norm"] > 0
