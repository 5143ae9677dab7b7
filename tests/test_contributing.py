"""CONTRIBUTING.md's examples are enough: its text is run as it stands."""

import json
import re

import pytest

from data_gen.commands import convert
from mmed_jax.data import chat_formats, sources
from mmed_jax.data.chat import encode_chat
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, save_tokenizer, stop_ids
from mmed_jax.evaluation.metrics import text_similarity
from tests.support.foreign_models import gpt2_like, save


@pytest.fixture
def code(repo):
    """The first block of Python under a heading that begins so."""
    text = (repo / "CONTRIBUTING.md").read_text(encoding="utf-8")

    def find(heading: str) -> str:
        section = re.search(rf"^### {heading}.*?(?=^###? |\Z)", text, re.DOTALL | re.MULTILINE)
        return re.search(r"```python\n(.*?)```", section[0], re.DOTALL)[1]

    return find


def test_a_source_is_one_file_and_one_line(code, monkeypatch, tmp_path, capsys):
    module: dict = {}
    exec(code("A data source"), module)
    monkeypatch.setitem(sources.SOURCES, "city_clinic", module["CITY_CLINIC"])
    rows = [{"q": "Qu'est-ce que le scorbut ?", "a": "Une carence en vitamine C."}, {"q": "Et la grippe ?", "a": ""}]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "records.jsonl"
    convert.main(["--source=city_clinic", f"--input={tmp_path / 'faq.jsonl'}", f"--output={out}"])
    [record] = read_records(out)
    assert record["language"] == "fr" and record["license"] == "CC-BY-4.0" and record["source"] == "city_clinic"
    assert record["messages"][1] == {"role": "assistant", "content": "Une carence en vitamine C."}
    assert "no answer" in capsys.readouterr().out
    convert.main(["--list"])
    assert "city_clinic" in capsys.readouterr().out


def test_a_chat_format_is_one_declaration(code, monkeypatch, tmp_path):
    module = {"ChatSyntax": chat_formats.ChatSyntax}
    exec(code("A chat format"), module)
    syntax = module["ZEPHYR"]
    monkeypatch.setattr(chat_formats, "SYNTAXES", (*chat_formats.SYNTAXES, syntax))
    tok = load_tokenizer(save(tmp_path / "in", gpt2_like(added=(*syntax.controls, "<|endoftext|>"))))
    messages = [{"role": "user", "content": "Which vitamin?"}, {"role": "assistant", "content": "C."}]
    sample = encode_chat(tok, messages)
    assert tok.decode(sample.ids) == "<|user|>\nWhich vitamin?<|end|>\n<|assistant|>\nC.<|end|>\n"
    save_tokenizer(tok, tmp_path / "out")
    exported = load_tokenizer(tmp_path / "out")
    assert list(sample.ids) == exported.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert exported.convert_tokens_to_ids("<|end|>") in stop_ids(exported)


def test_a_metric_is_one_function(code, monkeypatch):
    monkeypatch.setattr(text_similarity, "METRICS", dict(text_similarity.METRICS))
    exec(code("A metric"), vars(text_similarity).copy())
    assert text_similarity.default_metrics()[-1] == "jaccard"
    assert text_similarity.METRICS["jaccard"]("a b c", "b c d", "en") == {"jaccard": 0.5}
