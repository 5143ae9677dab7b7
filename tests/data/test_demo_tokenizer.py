"""The embedded demo tokenizer: reproducible, Llama-3-like, lossless, small enough in tokens for the demo's rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.multiple_choice import mcq_messages
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenizers import tokenizer as llama3
from tests.support.tokenizer import meta_tokenizer

ASSETS = Path(__file__).resolve().parents[2] / "mmed_jax/assets/demo"
VOCAB_SIZE, NUM_SPECIAL = 4096, 16


@pytest.fixture(scope="module")
def tok():
    return llama3.load_tokenizer(ASSETS)


@pytest.fixture(scope="module")
def conversations(repo) -> list[tuple[dict, list[dict]]]:
    """(record, messages) of everything the demo trains on."""
    folder = repo / "data_gen/handcrafted"
    pairs = [(r, r["messages"]) for r in read_records(folder / "instructions.jsonl", "instruction")]
    for r in read_records(folder / "mcq.jsonl", "mcq"):
        pairs += [(r, mcq_messages(r, mode)) for mode in ("rationale", "direct")]
    return pairs


def test_committed_files_are_what_the_script_makes(repo, tmp_path):
    """Fails after a change of records, prompts or template: run `python -m scripts.make_tokenizer` again."""
    command = [sys.executable, "-m", "scripts.make_tokenizer", f"--output={tmp_path}"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "RAYON_NUM_THREADS": "3"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (ASSETS / name).read_bytes(), name


def test_script_reports_missing_records(monkeypatch, repo, tmp_path):
    monkeypatch.syspath_prepend(repo)
    from scripts import make_tokenizer

    monkeypatch.setattr(make_tokenizer, "RECORDS", (tmp_path / "gone.jsonl",))
    with pytest.raises(UserError, match="gone.jsonl"):
        make_tokenizer.main([f"--output={tmp_path}"])


def test_too_little_text_is_refused(monkeypatch, repo):
    monkeypatch.syspath_prepend(repo)
    from scripts.make_tokenizer import train

    with pytest.raises(WorkError, match="lower --vocab_size"):
        train(["one short line"], VOCAB_SIZE)


def test_ids(tok):
    vocab = tok.get_vocab()
    assert sorted(vocab.values()) == list(range(VOCAB_SIZE))
    names = sorted(vocab, key=vocab.__getitem__)
    assert names[-NUM_SPECIAL:] == llama3.special_token_names()[:NUM_SPECIAL]
    assert llama3.control_ids(tok) == frozenset(range(VOCAB_SIZE - NUM_SPECIAL, VOCAB_SIZE))
    assert set(llama3.byte_chars().values()) == set(names[:256])
    assert (tok.bos_token, tok.eos_token, tok.pad_token) == (llama3.BOS, llama3.EOT, llama3.PAD)
    assert tok.pad_token_id not in llama3.stop_ids(tok)
    assert [tok.convert_ids_to_tokens(i) for i in llama3.stop_ids(tok)] == [llama3.EOS, llama3.EOM, llama3.EOT]
    assert tok.model_max_length == 2048


def test_auto_tokenizer_reads_the_folder_alike(tok, capsys):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    auto = AutoTokenizer.from_pretrained(str(ASSETS), local_files_only=True)
    assert isinstance(auto, PreTrainedTokenizerFast)
    assert llama3.tokenizer_hash(auto) == llama3.tokenizer_hash(tok)
    assert (auto.model_max_length, auto.clean_up_tokenization_spaces) == (2048, False)
    llama3.load_tokenizer(ASSETS)
    assert "warning" not in capsys.readouterr().err


def test_splits_and_adds_bos_as_the_real_vocabulary(tok, llama3_tokenizer_model):
    ours = llama3.backend_json(tok)
    real = llama3.backend_json(meta_tokenizer(llama3_tokenizer_model))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        assert ours[part] == real[part]
    for state in (ours, real):  # the id of the BOS is the one thing that differs
        state["post_processor"]["processors"][1]["special_tokens"][llama3.BOS]["ids"] = []
    assert ours["post_processor"] == real["post_processor"]
    switches = ("byte_fallback", "dropout", "ignore_merges", "unk_token")
    assert [ours["model"][k] for k in switches] == [real["model"][k] for k in switches]


def test_every_handcrafted_text_round_trips(tok, conversations):
    for record, messages in conversations:
        for text in (m["content"] for m in messages):
            ids = llama3.encode_text(tok, text)
            assert tok.decode(ids) == text, record["id"]
            assert max(ids) < VOCAB_SIZE - NUM_SPECIAL


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_round_trips(tok, text):
    assert tok.decode(llama3.encode_text(tok, text)) == text


def test_control_strings_in_text_stay_text(tok):
    text = "".join(llama3.special_token_names()[:NUM_SPECIAL])
    ids = llama3.encode_text(tok, text)
    assert max(ids) < VOCAB_SIZE - NUM_SPECIAL and tok.decode(ids) == text


def test_chat_template_is_plain_llama3(tok):
    start, end, eot = tok.convert_tokens_to_ids([llama3.START_HEADER, llama3.END_HEADER, llama3.EOT])

    def header(role: str) -> list[int]:
        return [start, *llama3.encode_text(tok, role), end, *llama3.encode_text(tok, "\n\n")]

    expected = [tok.bos_token_id]
    messages = [{"role": "user", "content": "¿Qué es?"}, {"role": "assistant", "content": "はい。"}]
    for m in messages:
        expected += [*header(m["role"]), *llama3.encode_text(tok, m["content"]), eot]
    ids = tok.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=True)
    assert ids == expected + header("assistant")


def test_short_enough_for_the_demo(tok, conversations):
    """The demo memorises everything within minutes on a CPU: tokens are its cost. Rows of 512 must hold any sample."""
    lengths = {code: [] for code in LANGUAGES}
    for record, messages in conversations:
        length = len(tok.apply_chat_template(messages, tokenize=True, return_dict=False))
        assert length <= 320, (record["id"], length)
        if "messages" in record:
            lengths[record["language"]].append(length)
    for code, values in lengths.items():
        assert len(values) >= 20 and sum(values) / len(values) <= 100, code
