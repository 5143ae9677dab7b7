"""Llama folders whose tokenizer is not Llama-3's: plain text with any, conversations where a chat format is known."""

import json
import re

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mmed_jax import evaluate, export, generate, inspect, train
from mmed_jax.common.errors import UserError
from mmed_jax.data import chat_formats
from mmed_jax.data.chat import chat_format, chat_prompt_ids, encode_chat
from mmed_jax.data.multiple_choice import encode_mcq, mcq_messages
from mmed_jax.data.plain_text import text_start
from mmed_jax.data.tokenizers.tokenizer import encode_text, load_tokenizer, save_tokenizer, tokenizer_hash
from mmed_jax.hf.open_model import open_model
from mmed_jax.inference.prompt_files import PromptFormat, prompt_ids
from mmed_jax.inference.text_stream import TextStream
from tests.support.foreign_models import (
    CHATML,
    PIECES,
    chatml_tokenizer,
    foreign_model,
    gpt2_like,
    llama2c_folder,
    save,
    sentencepiece_like,
    sentencepiece_model,
)
from tests.support.hf_folders import raw_tensors
from tests.support.tokenizer import tiny_fast_tokenizer
from tests.support.training import MODEL, Bench, bench, call, cut_back, metrics, questions, reproduced, write_jsonl  # noqa: F401

LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEXTS = ["The fever  and the cough.", "é 患者\n\n <s>the</s> [INST] <|im_end|>", " the fever", "a"]


def unbyted() -> Tokenizer:
    """Words only; everything else is unknown."""
    words = {w: i for i, w in enumerate(["[UNK]", "fever", "and", "the", "cough", "a"])}
    tok = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.add_special_tokens(["[UNK]"])
    return tok


def unprocessed() -> Tokenizer:
    """Llama-2's kind, and nothing in it says that <s> goes in front."""
    state = json.loads(sentencepiece_like(PIECES).to_str())
    return Tokenizer.from_str(json.dumps({**state, "post_processor": None}))


def beyond() -> Tokenizer:
    """As many ids as the model has rows, and a token for padding behind them."""
    tok = sentencepiece_like(PIECES)
    filler = [f"filler{i}" for i in range(512 - tok.get_vocab_size())]
    tok.add_tokens(filler)
    tok.add_special_tokens([AddedToken("[PAD]", special=True)])
    return tok


# name -> (tokenizer, tokenizer_config.json, changes of config.json, ids in front of a text)
FOREIGN = {
    "no begin, no pad": (gpt2_like, {}, {}, ()),
    "begin is end": (gpt2_like, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, {}, ()),
    "begin not wanted": (unprocessed, {**LLAMA2, "add_bos_token": False}, {}, ()),
    "sentencepiece": (sentencepiece_like, LLAMA2, {}, (1,)),
    "space in front at the beginning only": (lambda: sentencepiece_like(PIECES, first=True), LLAMA2, {}, (1,)),
    "roles in tokenizer_config.json only": (unprocessed, LLAMA2, {}, (1,)),
    "roles in config.json only": (unprocessed, {}, {"bos_token_id": 1, "eos_token_id": 2}, (1,)),
    "a token behind the model's rows": (beyond, {**LLAMA2, "pad_token": "[PAD]"}, {}, (1,)),
    "words only": (unbyted, {}, {"bos_token_id": 1, "eos_token_id": 2}, ()),
}


def foreign(name):
    make, config, changes, start = FOREIGN[name]
    return (make(PIECES) if make is sentencepiece_like else make()), config, changes, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a foreign model, made once a name."""
    base, made = tmp_path_factory.mktemp("foreign"), {}

    def get(name):
        if name not in made:
            tok, config, changes, _ = foreign(name)
            made[name] = foreign_model(base / re.sub(r"\W", "-", name), tok, config, **changes)
        return made[name]

    return get


@pytest.mark.parametrize("name", FOREIGN)
def test_plain_text_and_export_with_any_tokenizer(folder, tmp_path, name):
    from transformers import AutoTokenizer

    source = open_model(folder(name))
    start = FOREIGN[name][3]
    prompts = [prompt_ids(source.tokenizer, {"prompt": t}, "f:1", PromptFormat(raw=True)) for t in TEXTS]
    outcome = call(export.main, f"--model={folder(name)}", f"--output={tmp_path / 'out'}")
    assert outcome.code == 0 and "chat format none" in outcome.out
    assert raw_tensors(tmp_path / "out") == raw_tensors(folder(name))
    again, auto = open_model(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    own = Tokenizer.from_file(str(folder(name) / "tokenizer.json"))
    own.encode_special_tokens = True  # text stays text
    for text, ids in zip(TEXTS, prompts):
        assert tuple(ids) == (*start, *own.encode(text, add_special_tokens=False).ids)
        assert prompt_ids(again.tokenizer, {"prompt": text}, "f:1", PromptFormat(raw=True)) == ids
        assert auto(text)["input_ids"] == source.tokenizer(text)["input_ids"]
    assert again.stop_ids == source.stop_ids and tokenizer_hash(again.tokenizer) == tokenizer_hash(source.tokenizer)
    assert source.stop_ids == ((2,) if start == (1,) or name == "begin not wanted" else source.stop_ids)


@pytest.mark.parametrize("name", ["no begin, no pad", "sentencepiece"])
def test_generate_raw_and_log_likelihoods_equal_transformers(folder, tmp_path, name):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder(name)).eval()
    auto = AutoTokenizer.from_pretrained(folder(name))
    prompts = ["The fever and the", "a cough"]
    write_jsonl(tmp_path / "p.jsonl", [{"id": p, "prompt": p} for p in prompts])
    common = [f"--model={folder(name)}", "--dtype=float32", "--batch_size=2"]
    files = [f"--input={tmp_path / 'p.jsonl'}", f"--output={tmp_path / 'a.jsonl'}"]
    assert call(generate.main, *common, "--raw", "--max_new_tokens=12", *files).code == 0
    for line in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines()):
        ids = auto(line["id"], return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        whole, head = (auto.decode(x, skip_special_tokens=True) for x in (made, ids[0]))
        assert line["output"] == whole[len(head) :] and line["prompt_tokens"] == ids.shape[1]

    data = write_jsonl(tmp_path / "q.jsonl", questions()[:2])
    shown = call(evaluate.main, *common, f"--data={data}", "--mode=loglikelihood", f"--output={tmp_path / 'e'}")
    assert shown.code == 0 and "prompt family mmedbench" in shown.err, shown.err
    for line in map(json.loads, (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()):
        scores = line["loglikelihoods"]
        text = auto(line["prompt"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert len(scores) == 2 and all(v < 0 for v in scores)
        if name == "no begin, no pad":  # byte-level: the shown prompt reads back to its ids
            with torch.no_grad():
                logs = model(text).logits[0, -1].log_softmax(-1)
            for letter, value in zip("AB", scores):
                (token,) = auto(letter)["input_ids"]
                assert abs(float(logs[token]) - value) < 1e-3


def test_the_small_trained_model_gives_its_documented_text(shared_dir, tmp_path):
    files = shared_dir / "artifacts"
    model = llama2c_folder(tmp_path / "model", files / "stories260K.bin", files / "tok512.bin")
    shown = re.search(r"-t 0\.0\n(Once upon a time.*?)\n```", (files / "stories260K.md").read_text(), re.DOTALL)[1]
    asked = ["--raw", "--prompt=Once upon a time", "--max_new_tokens=260"]
    outcome = call(generate.main, f"--model={model}", *asked)
    assert outcome.code == 0 and ("Once upon a time" + outcome.out.rstrip("\n"))[: len(shown)] == shown
    assert call(export.main, f"--model={model}", f"--output={tmp_path / 'out'}").code == 0
    assert raw_tensors(tmp_path / "out") == raw_tensors(model)
    assert call(generate.main, f"--model={tmp_path / 'out'}", *asked).out == outcome.out
    data = write_jsonl(tmp_path / "q.jsonl", questions()[:2])
    scored = ["--mode=loglikelihood", "--score=option", f"--data={data}", f"--output={tmp_path / 'e'}"]
    assert call(evaluate.main, f"--model={model}", *scored).code == 0


def test_a_sentencepiece_file_is_the_tokenizer_that_it_converts_to(tmp_path):
    tok = load_tokenizer(sentencepiece_model(tmp_path / "in", PIECES))
    other = load_tokenizer(save(tmp_path / "other", sentencepiece_like(PIECES), **LLAMA2))
    for text in (*TEXTS, "", "😀  <0x41> ▁the", "cough" * 50):
        assert encode_text(tok, text) == encode_text(other, text)
        assert tok.decode(encode_text(tok, text)) == other.decode(encode_text(other, text))
    assert text_start(tok) == text_start(other) == (1,)
    assert [tok.bos_token, tok.eos_token, tok.unk_token] == ["<s>", "</s>", "<unk>"]
    save_tokenizer(tok, tmp_path / "out")
    assert tokenizer_hash(load_tokenizer(tmp_path / "out")) == tokenizer_hash(tok)
    # What lies beside it counts.
    added = {"added_tokens_decoder": {str(len(tok)): {"content": "<|im_end|>", "special": True}}}
    tok = load_tokenizer(sentencepiece_model(tmp_path / "in", PIECES, eos_token="<|im_end|>", **added))
    assert tok.eos_token_id == len(other) and tok.name_or_path == str(tmp_path / "in")
    whole = (tmp_path / "in" / "tokenizer.model").read_bytes()
    for damaged in (whole[:-7], b"\n\x00", b"\n"):
        (tmp_path / "in" / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer.model (looks like|is) a sentencepiece model"):
            load_tokenizer(tmp_path / "in")


@pytest.mark.parametrize("first", [False, True])
def test_streamed_text_keeps_the_spaces_between_pieces(tmp_path, first):
    tok = load_tokenizer(save(tmp_path, sentencepiece_like(PIECES, first=first), **LLAMA2))
    for text in ("The fever and the cough", "the 患者 é 😀 and", "a"):
        ids = encode_text(tok, text)
        for at in range(len(ids) + 1):
            stream, head = TextStream(tok, ids[:at]), tok.decode(ids[:at])
            if "\ufffd" not in head:  # not inside a character
                shown = [stream.push(i) for i in ids[at:]]
                assert head + "".join(shown) + stream.flush() == text and "\ufffd" not in "".join(shown)


def test_unknown_characters_are_told_once(folder, capsys):
    tok = load_tokenizer(folder("words only"))
    assert encode_text(tok, "fever and 患者") == [1, 2, 0] and encode_text(tok, "x") == [0]
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "characters that its vocabulary lacks; all such become [UNK]" in err


# ---- Without a chat format ----------------------------------------------------------------------------------------


def test_commands_that_need_a_chat_format_say_what_would_do(folder, tmp_path, monkeypatch):
    import jax

    model = folder("sentencepiece")
    records = write_jsonl(tmp_path / "r.jsonl", questions()[:2])
    chat = write_jsonl(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    run = [f"--config.init_from={model}", "--config.tokenizer=", f"--config.run_dir={tmp_path / 'run'}"]
    ask = [f"--model={model}", f"--output={tmp_path / 'out.jsonl'}"]
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("a device was touched"))
    for main, argv in [
        (train.main, ["--config=stage1", *run]),
        (inspect.main, ["--config=stage1", *run]),
        (generate.main, [f"--model={model}", "--prompt=the fever"]),
        (generate.main, [*ask, f"--input={chat}"]),
        (evaluate.main, [*ask, f"--data={records}"]),
        (evaluate.main, [*ask, f"--data={records}", "--mode=loglikelihood", "--prompt_family=llama3"]),
    ]:
        outcome = call(main, *argv)
        assert outcome.code == 2
        for part in ("no chat format", "chatml needs <|im_start|> <|im_end|>", "llama3 needs", "--raw", str(model)):
            assert part in outcome.error
    assert not (tmp_path / "run").exists()


def test_text_joined_with_its_header_is_refused_in_conversations_only(tmp_path):
    """A sentencepiece tokenizer puts a space in front of every text: its template's ids are not those of the parts."""
    tok = sentencepiece_like(PIECES)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CHATML[:2]])
    tok = load_tokenizer(save(tmp_path, tok, **LLAMA2))
    assert prompt_ids(tok, {"prompt": "the"}, "f:1", PromptFormat(raw=True))[0] == 1
    with pytest.raises(UserError, match="does not give plain ChatML ids .* serves without a chat format only"):
        chat_prompt_ids(tok, [{"role": "user", "content": "the"}])


# ---- Which format -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template, end, expected",
    [
        ("<|im_start|>{{ role }}<|im_end|>", "<|eot_id|>", "chatml"),
        ("<|start_header_id|><|end_header_id|><|eot_id|>", "<|im_end|>", "llama3"),
        (None, "<|im_end|>", "chatml"),
        (None, "<|eot_id|>", "llama3"),
        ("{{ messages }}", "<|end_of_text|>", "llama3"),
        ({"default": "<|im_start|><|im_end|>"}, "<|eot_id|>", "chatml"),
    ],
)
def test_of_two_formats_the_template_decides_then_the_end_token(tmp_path, template, end, expected):
    tok = tiny_fast_tokenizer()
    tok.add_tokens(list(CHATML[:2]), special_tokens=True)
    tok.eos_token, tok.chat_template = end, template
    tok.save_pretrained(tmp_path / "in")
    loaded = load_tokenizer(tmp_path / "in")
    assert chat_format(loaded).name == expected
    save_tokenizer(loaded, tmp_path / "out")
    assert chat_format(load_tokenizer(tmp_path / "out")).name == expected


def test_a_third_format_is_one_row(tmp_path, monkeypatch):
    tokens = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    row = chat_formats.ChatSyntax("third", "Third", tokens, "", "<|", "|>\n", "<|end|>", "\n", ("<|endoftext|>",))
    folder = save(tmp_path / "in", gpt2_like(added=tokens))
    assert chat_formats.syntax_of(load_tokenizer(folder)) is None
    monkeypatch.setattr(chat_formats, "SYNTAXES", (*chat_formats.SYNTAXES, row))
    tok = load_tokenizer(folder)
    messages = [{"role": r, "content": f" {r} <|end|>"} for r in ("system", "user", "assistant")]
    sample = encode_chat(tok, messages)
    assert tok.decode(sample.ids) == "".join(f"<|{r}|>\n{r} <|end|><|end|>\n" for r in ("system", "user", "assistant"))
    assert sum(i == tok.eos_token_id for i in sample.ids) == 3  # none of them from text


# ---- A ChatML model from training to export -----------------------------------------------------------------------


def test_chatml_from_training_to_export(bench: Bench, tmp_path):  # noqa: F811
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = chatml_tokenizer(tmp_path / "tok")
    changes = {"tokenizer": tokenizer, "steps": 6, "checkpoint__every_steps": 3}
    outcome = bench.train(tmp_path / "run1", **changes)
    assert outcome.code == 0 and "format chatml" in outcome.out, outcome.err
    started = next(e for e in metrics(tmp_path / "run1").events if e["event"] == "start")
    assert started["chat_format"] == "chatml"
    again = cut_back(tmp_path / "run1", tmp_path / "run1b", 3)
    assert bench.train(again, **changes).code == 0
    assert reproduced(again) == reproduced(tmp_path / "run1")
    stage2 = bench.argv(tmp_path / "run2", "stage2", init_from=tmp_path / "run1", data__seq_len=256)
    shown = call(inspect.main, *stage2, "--rows=1")
    assert shown.code == 0 and re.search(r"<\|im_start\|>assistant\n *⟦[^⟧]*<\|im_end\|>⟧", shown.out), shown.err

    data = write_jsonl(tmp_path / "q.jsonl", questions()[:2])
    ask = [f"--model={tmp_path / 'run1'}", "--dtype=float32"]
    evaluated = call(evaluate.main, *ask, f"--data={data}", "--max_new_tokens=4", f"--output={tmp_path / 'e'}")
    assert evaluated.code == 0, evaluated.err
    asked = json.loads((tmp_path / "e" / "predictions.jsonl").read_text().splitlines()[0])["prompt"]
    assert asked.startswith("<|im_start|>user\n") and asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    answer = call(generate.main, *ask, "--prompt=fever?", "--max_new_tokens=12").out.rstrip("\n")

    assert call(export.main, ask[0], f"--output={tmp_path / 'out'}", "--dtype=float32").code == 0
    auto = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tok, messages = open_model(tmp_path / "out").tokenizer, [{"role": "user", "content": "fever?"}]
    prompt = auto.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert prompt == chat_prompt_ids(tok, messages) and text_start(tok) == ()
    made = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert auto.decode(made, skip_special_tokens=True).rstrip("\n") == answer
    trained = encode_mcq(tok, questions()[0], "rationale")
    talk = mcq_messages(questions()[0], "rationale")
    assert trained.ids == auto.apply_chat_template(talk, tokenize=True, return_dict=False)
    assert trained == encode_chat(tok, talk)
    ends = {auto.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert set(model.generation_config.eos_token_id) == ends and auto.eos_token == "<|im_end|>"
    assert auto.chat_template == chat_formats.CHATML.template


def test_packed_tables_of_two_formats_are_two(tmp_path):
    """One vocabulary, two templates: nothing of the one is found for the other."""
    from mmed_jax.config.overrides import parse_args
    from mmed_jax.data.prepare import prepare

    data = write_jsonl(tmp_path / "r.jsonl", questions())
    keys = {"data.train": data, "data.cache_dir": tmp_path / "packed", "data.seq_len": 512}
    config = parse_args(["--config=stage2", *(f"--config.{k}={v}" for k, v in keys.items())])[0]
    folders = set()
    for template in ("<|im_start|><|im_end|>", "<|start_header_id|><|end_header_id|><|eot_id|>"):
        tok = tiny_fast_tokenizer()
        tok.add_tokens(list(CHATML[:2]), special_tokens=True)
        tok.chat_template = template
        tok.save_pretrained(tmp_path / "tok")
        folders.add(prepare(config, load_tokenizer(tmp_path / "tok"), say=lambda _: None).report["folder"])
    assert len(folders) == 2
