"""README.md that export writes, and the upload of the folder: what stands in it, and each refusal in one line."""

import json

import jax.numpy as jnp
import pytest
import yaml

from mmed_jax import export
from mmed_jax.checkpoints.checkpointer import Checkpointer
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.licences import licence_of, name_problem
from mmed_jax.hf.open_model import identity, open_model
from mmed_jax.hf.save import save_pretrained, write_assets
from mmed_jax.model.lora import LoraSpec
from tests.commands.test_export import CFG
from tests.support.fake_hub import GOOD_TOKEN, fake_hub
from tests.support.hf_folders import random_params, tiny_tokenizer
from tests.support.peft_folders import lora_run, random_adapter
from tests.support.results import evaluated, items_of, record

CONTENTS = [
    {"source": "medquad", "license": "CC BY 4.0", "language": "en", "records": 1200},
    {"source": "covid_faq", "license": "CC BY-NC-SA 3.0 IGO", "language": "fr", "records": 30},
    {"source": "a|b", "license": "mine", "language": "fr", "records": 4},
]


def write_run(folder, tokenizer, name, start, contents, seed=1):
    config = {"name": name, "init_from": str(start), "optim": {"lr": 2e-5, "name": "adamw"}, "batch_size": 128}
    state = {"params": random_params(CFG, seed), "opt_state": {}, "step": jnp.int32(7)}
    with Checkpointer(folder, every_steps=1, every_minutes=0, keep_last=5, keep_best=0, async_=False) as checkpointer:
        data = {"tokens_seen": 5000, **({"contents": contents} if contents else {})}
        checkpointer.maybe_save(7, state, data_state=data, config=config, metrics={"validation/loss": 1.25})
    (folder / "config.json").write_text(json.dumps({**config, "run_dir": str(folder)}))
    write_assets(folder / "hf_assets", CFG, tokenizer, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tok"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """A folder that is called as `hf download meta-llama/Meta-Llama-3-8B --local-dir` calls it."""
    folder = tmp_path_factory.mktemp("models") / "Meta-Llama-3-8B"
    save_pretrained(folder, random_params(CFG), CFG, tokenizer, dtype="float32")
    (folder / MARKER).unlink()
    return folder


@pytest.fixture(scope="module")
def stage2(tmp_path_factory, tokenizer, base):
    """Two stages of training, one behind the other."""
    place = tmp_path_factory.mktemp("runs")
    write_run(place / "one", tokenizer, "stage1", base, CONTENTS)
    return write_run(place / "two", tokenizer, "stage2", place / "one", CONTENTS[:1], seed=2)


@pytest.fixture(scope="module")
def exported(stage2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "Llama-3-Tiny-Med"
    export.main([f"--model={stage2}", f"--output={folder}"])
    return folder


def parts_of(folder):
    """(YAML head, text) of a card."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_card_says_base_data_settings_and_licences(exported, stage2):
    head, text = parts_of(exported)
    assert head["base_model"] == "meta-llama/Meta-Llama-3-8B" and head["license"] == "llama3"
    assert (head["base_model_relation"], head["library_name"]) == ("finetune", "transformers")
    assert head["language"] == ["en", "fr"]
    assert {"medical", "multilingual", "llama"} <= set(head["tags"])
    assert text.startswith("\n# Llama-3-Tiny-Med\n\n**Built with Meta Llama 3**\n")
    for line in (
        "**For research. Not for clinical use.**",
        "`meta-llama/Meta-Llama-3-8B`: stage1 (all weights), then stage2 (all weights).",
        "| source | licence | en | fr | all |",
        "| medquad | CC BY 4.0 | 1,200 | 0 | 1,200 |",
        "| a\\|b | mine | 0 | 4 | 4 |",
        "| **all** |  | 1,200 | 34 | 1,234 |",
        "| `optim.lr` | 2e-05 | 2e-05 |",
        "| `batch_size` | 128 | 128 |",
        "| steps | 7 | 7 |",
        "| tokens seen | 5,000 | 5,000 |",
        "| validation/loss | 1.25 | 1.25 |",
        "No evaluation of this model was given",
        "**Not for commercial use, by the licence of some of the data:** CC BY-NC-SA 3.0 IGO.",
        "eprint = {2409.05732}",
        "eprint = {2402.13963}",
    ):
        assert line in text, line
    assert "The name of this folder does not" not in text and "not at hand" not in text
    assert str(stage2.parent) not in (exported / "README.md").read_text()  # no path of this machine
    marker = json.loads((exported / MARKER).read_text())
    assert marker["files"]["README.md"] == (exported / "README.md").stat().st_size


def test_an_export_of_an_export_keeps_what_is_known(exported, tmp_path):
    export.main([f"--model={exported}", f"--output={tmp_path / 'copy'}"])
    head, text = parts_of(tmp_path / "copy")
    assert head == parts_of(exported)[0] and "# copy\n" in text and "| medquad | CC BY 4.0 | 1,200" in text
    assert "**The name of this folder does not: the Meta Llama 3 Community License wants" in text
    # Its author writes on; that is not replaced.
    with (tmp_path / "copy" / "README.md").open("a") as f:
        f.write("More.\n")
    with pytest.raises(UserError, match="README.md was changed since; move it away first"):
        export.main([f"--model={exported}", f"--output={tmp_path / 'copy'}", "--overwrite"])


def test_what_is_not_known_is_said(base, tokenizer, tmp_path):
    run = write_run(tmp_path / "run", tokenizer, "stage1", tmp_path / "gone" / "mine", None)
    export.main([f"--model={run}", f"--output={tmp_path / 'a'}"])
    head, text = parts_of(tmp_path / "a")
    assert "base_model" not in head and "license" not in head and "language" not in head
    for words in ("is not recorded in its checkpoint", "licence of the base is not known", "was not at hand"):
        assert words in text
    export.main([f"--model={run}", f"--output={tmp_path / 'b'}", "--base_name=meta-llama/Llama-3.1-8B"])
    head, text = parts_of(tmp_path / "b")
    assert (head["base_model"], head["license"]) == ("meta-llama/Llama-3.1-8B", "llama3.1")
    assert "**Built with Llama**" in text and 'begins with "Llama"' in text
    export.main(
        [f"--model={write_run(tmp_path / 'r', tokenizer, 'stage1', '', CONTENTS)}", f"--output={tmp_path / 'c'}"]
    )
    head, text = parts_of(tmp_path / "c")
    assert "license" not in head and "trained from random weights" in text and "Built with" not in text


def test_results_stand_in_the_card_with_intervals(stage2, exported, tmp_path):
    items = items_of([record(n, language) for language in ("en", "zh") for n in range(8)], "headqa")
    known = identity(open_model(stage2))
    results = evaluated(tmp_path / "r", items, lambda item: f"The answer is {item.answer}.", model=str(stage2))
    file = tmp_path / "r" / "results.json"
    file.write_text(json.dumps({**results, "model": {**results["model"], **known}}))
    export.main([f"--model={stage2}", f"--output={tmp_path / 'out'}", f"--results={tmp_path / 'r'}"])
    text = parts_of(tmp_path / "out")[1]
    cell = results["benchmarks"]["headqa"]["languages"]["zh"]
    low, high = (f"{100 * x:.1f}" for x in cell["interval95"])
    assert f"| headqa | Chinese | 8 | 100.0 | {low} to {high} |" in text and "No evaluation" not in text
    with pytest.raises(UserError, match="is of other weights .* than those of --model"):
        export.main([f"--model={exported}", f"--output={tmp_path / 'no'}", f"--results={tmp_path / 'r'}"])
    with pytest.raises(UserError, match="has no results.json"):
        export.main([f"--model={stage2}", f"--output={tmp_path / 'no'}", f"--results={tmp_path}"])
    assert not (tmp_path / "no").exists()


def test_an_adapters_card_is_the_same_card(base, tokenizer, tmp_path):
    spec = LoraSpec(2, 8.0, (("q", (2, 2), (8.0, 8.0)),))
    run = lora_run(tmp_path / "lora", spec, random_adapter(spec, CFG), open_model(base), tokenizer)
    export.main([f"--model={run}", "--adapter", f"--output={tmp_path / 'Llama-3-a'}"])
    head, text = parts_of(tmp_path / "Llama-3-a")
    assert head["base_model"] == "meta-llama/Meta-Llama-3-8B" and head["library_name"] == "peft"
    assert (head["base_model_relation"], head["license"]) == ("adapter", "llama3")
    assert (tmp_path / "Llama-3-a" / "NOTICE").read_text().startswith("Meta Llama 3 is licensed under")
    assert "A LoRA adapter of `meta-llama/Meta-Llama-3-8B`: rank 2, alpha 8" in text
    assert "**Built with Meta Llama 3**" in text and "PeftModel.from_pretrained" in text


def test_licences_by_card_and_by_name(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama3.2\n---\n# x\nlicense: mit\n")
    assert licence_of("mine", tmp_path) == ("llama3.2", "its model card")
    named = {"Meta-Llama-3-8B": "llama3", "org/MMed-Llama-3-8B": "llama3", "a/Llama-3.3-70B": "llama3.3", "a/b": ""}
    named |= {"a/open_llama_3b": "", "a/LLaMA-3B-x": "", "a/Llama-3Base": "llama3", "a/Llama-3.2-3B": "llama3.2"}
    assert {name: licence_of(name)[0] for name in named} == named
    assert not name_problem("llama3", "Llama-3-Med") and not name_problem("llama3.1", "Llama-Med")
    assert "'Llama-3'" in name_problem("llama3", "Llama-Med") and name_problem("llama3.1", "Med-Llama")
    assert not name_problem("apache-2.0", "Med")


# ---- The upload --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        # What the library asks beside the upload goes nowhere else either.
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"), raising=False)
        yield server


def test_a_folder_is_written_and_pushed(stage2, hub, tmp_path, capsys):
    hub.repos["org/Llama-3-x"] = {
        "private": True,
        "files": {"model-00001-of-00002.safetensors": b"old", "mine.txt": b"m"},
    }
    out = tmp_path / "out"
    export.main([f"--model={stage2}", f"--output={out}", "--push=org/Llama-3-x", "--private"])
    pushed = hub.files("org/Llama-3-x")
    record = {MARKER: pushed[MARKER]}
    assert pushed == {"mine.txt": b"m"} | {p.name: p.read_bytes() for p in out.iterdir()} | record
    # The record that stays here has the places that an audit looks at, the one that went up their names.
    stages = [json.loads(data)["provenance"]["stages"] for data in ((out / MARKER).read_bytes(), pushed[MARKER])]
    assert [s[1]["run"]["path"] for s in stages] == [str(stage2), stage2.name]
    for place in (str(stage2.parent), str(tmp_path)):
        assert not [name for name, data in pushed.items() if place.encode() in data]
    assert pushed["NOTICE"].decode() == (
        "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.\n"
    )
    printed = capsys.readouterr()
    assert f"pushed   {hub.address}/org/Llama-3-x" in printed.out and "# Llama-3-x\n" in (out / "README.md").read_text()
    assert GOOD_TOKEN not in printed.out + printed.err


def test_an_upload_that_broke_off_goes_on(exported, hub):
    push = [f"--model={exported}", "--push=org/Llama-3-y"]
    hub.refusals[r"/commit/main"] = 403
    with pytest.raises(
        UserError, match=r"may not write there.*\(HTTP 403\); .* is whole: python .* --push=org/Llama-3-y"
    ):
        export.main(push)
    sent = list(hub.uploaded)
    assert sent and not hub.files("org/Llama-3-y")
    hub.refusals.clear()
    export.main(push)
    assert hub.uploaded == sent  # nothing large went twice
    assert hub.files("org/Llama-3-y").keys() == {p.name for p in exported.iterdir()}


def test_an_adapter_of_a_base_that_only_this_machine_has(tokenizer, hub, tmp_path):
    mine = tmp_path / "mine"
    save_pretrained(mine, random_params(CFG), CFG, tokenizer, dtype="float32")
    spec = LoraSpec(2, 8.0, (("q", (2, 2), (8.0, 8.0)),))
    run = lora_run(tmp_path / "lora", spec, random_adapter(spec, CFG), open_model(mine), tokenizer)
    out = tmp_path / "a"
    with pytest.raises(UserError, match="known by a path of this machine alone .*--base_name=ORG/MODEL"):
        export.main([f"--model={run}", "--adapter", f"--output={out}", "--push=org/a"])
    assert not out.exists()
    export.main([f"--model={run}", "--adapter", f"--output={out}"])
    with pytest.raises(UserError, match="known by a path of this machine alone"):
        export.main([f"--model={out}", "--push=org/a"])
    assert not hub.log


def test_refusals_of_the_hub_are_a_line_each(exported, hub, monkeypatch):
    push = [f"--model={exported}", "--push=org/Llama-3-z"]
    for pattern, status, words in (
        ("repos/create", 403, "needs write permission"),
        ("/preupload/", 404, "not there, or not for the token"),
        ("/commit/main", 409, "another upload is changing it"),
    ):
        hub.refusals = {pattern: status}
        with pytest.raises(UserError, match=rf"{words}.*HTTP {status}") as e:
            export.main(push)
        assert "\n" not in str(e.value) and GOOD_TOKEN not in str(e.value)
    hub.refusals = {}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token")
    with pytest.raises(UserError, match=r"does not know the token of HF_TOKEN.*\(HTTP 401\)") as e:
        export.main(push)
    assert "hf_wrong" not in str(e.value)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    hub.repos["org/Llama-3-p"] = {"private": False, "files": {}}
    with pytest.raises(UserError, match="--private: org/Llama-3-p is there and public"):
        export.main([f"--model={exported}", "--push=org/Llama-3-p", "--private"])
    hub.refusals = {"repos/create": 400}
    with pytest.raises(WorkError, match="could not be uploaded .*400.* is whole"):
        export.main(push)


def test_mistakes_are_said_before_anything_is_made(exported, stage2, hub, tmp_path, monkeypatch):
    out = f"--output={tmp_path / 'out'}"
    for name, words in (
        ("mine", "give ORG/NAME"),
        ("org/a/b", "give ORG/NAME"),
        ("org/Llama-3--x", "give ORG/NAME"),
        ("org/Med-Llama-3", "name of a derived model to begin with 'Llama-3'"),
    ):
        with pytest.raises(UserError, match=words):
            export.main([f"--model={stage2}", out, f"--push={name}"])
    with pytest.raises(UserError, match="--private: goes with --push"):
        export.main([f"--model={stage2}", out, "--private"])
    with pytest.raises(UserError, match="--dtype: goes with --output"):
        export.main([f"--model={exported}", "--push=org/Llama-3-x", "--dtype=float32"])
    with pytest.raises(UserError, match="is no export of this program"):
        export.main([f"--model={stage2}", "--push=org/Llama-3-x"])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no token; set the environment variable HF_TOKEN"):
        export.main([f"--model={stage2}", out, "--push=org/Llama-3-x"])
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode; unset HF_HUB_OFFLINE"):
        export.main([f"--model={stage2}", out, "--push=org/Llama-3-x"])
    assert not hub.log and not (tmp_path / "out").exists()


def test_a_folder_that_lost_a_file_is_not_pushed(exported, hub, tmp_path):
    import shutil

    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    push = [f"--model={broken}", "--push=org/Llama-3-x"]
    with pytest.raises(UserError, match="is not as it was exported: tokenizer.json"):
        export.main(push)
    shutil.copy(exported / "tokenizer.json", broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-9] ^= 1  # of the same size
    (broken / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="is not as it was exported: model.safetensors; export"):
        export.main(push)
    shutil.copy(exported / "model.safetensors", broken)
    marker = json.loads((broken / MARKER).read_text())
    for change, words in (
        ({"files": ["x"]}, "is no export of this program"),
        ({"provenance": {"base": 1}}, "is damaged"),
    ):
        (broken / MARKER).write_text(json.dumps({**marker, **change}))
        with pytest.raises(UserError, match=words):
            export.main(push)
    # Parents under another licence each: what either asks of the name holds.
    parents = [{"base": {"licence": x}} for x in ("llama3.1", "mit")]
    mean = {**marker["provenance"], "base": {"licence": ""}, "merged": parents}
    (broken / MARKER).write_text(json.dumps({**marker, "provenance": mean}))
    with pytest.raises(UserError, match="the Llama 3.1 Community License wants the name .* 'Llama'"):
        export.main([push[0], "--push=org/Med"])
    assert not hub.log


def test_a_token_is_in_no_message(exported, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_one\nhf_two")
    with pytest.raises(UserError, match="HF_TOKEN holds spaces, line breaks") as e:
        export.main([f"--model={exported}", "--push=org/Llama-3-x"])
    assert "hf_one" not in str(e.value) and "hf_two" not in str(e.value) and not hub.log
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)

    def fail(*_, **__):
        raise OSError(f"500 for url: https://store.example/a?X-Amz-Signature=s1 by Bearer {GOOD_TOKEN}")

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", fail)
    with pytest.raises(WorkError, match=r"https://store.example/a\?\*\*\* by") as failed:
        export.main([f"--model={exported}", "--push=org/Llama-3-x"])
    assert "s1" not in str(failed.value) and GOOD_TOKEN not in str(failed.value)


def test_hostile_names_leave_the_card_readable():
    from mmed_jax.hf.model_card import model_card

    base = {
        "name": "a`b\n---\nlicense: mit",
        "hub": False,
        "random": False,
        "licence": "no",
        "licence_from": "its card",
    }
    card = model_card("x\n<script>\n---", {"base": base, "stages": [], "complete": True}, CFG)
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["license_name"] == "no" and "# x &lt;script> ---\n" in text
    assert "`a'b --- license: mit`" in text
