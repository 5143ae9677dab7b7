"""BERTScore with a tiny model made here."""

import sys

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from mmed_jax.common.errors import UserError
from mmed_jax.evaluation.metrics.bertscore import BertScore
from mmed_jax.evaluation.metrics.text_similarity import score_rationales

TEXTS = ["the heart beats", "the lung", "heart the the lung beats", "beats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heart", "lung", "beats"]
    (path / "vocab.txt").write_text("\n".join(vocab))
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocab),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
        )
    )
    model.save_pretrained(path)
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    return path


def by_hand(folder, a: str, b: str, layer: int) -> float:
    """Equations 1 to 3 of the paper, one pair, loops; [CLS] and [SEP] may be matched and are not averaged."""
    tok, model = BertTokenizerFast.from_pretrained(folder), BertModel.from_pretrained(folder).eval()

    def vectors(text):
        with torch.no_grad():
            out = model(**tok(text, return_tensors="pt"), output_hidden_states=True)
        return torch.nn.functional.normalize(out.hidden_states[layer][0], dim=-1)

    x, y = vectors(a), vectors(b)
    precision = sum(max(float(u @ v) for v in y) for u in x[1:-1]) / (len(x) - 2)
    recall = sum(max(float(u @ v) for v in x) for u in y[1:-1]) / (len(y) - 2)
    return 2 * precision * recall / (precision + recall)


def test_scores_are_those_by_hand_for_any_padding(folder):
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    found = BertScore(folder, layer=2).scores([a for a, _ in pairs], [b for _, b in pairs])
    for (a, b), score in zip(pairs, found):
        assert score == pytest.approx(by_hand(folder, a, b, 2), abs=1e-5)
        assert score == pytest.approx(1, abs=1e-5) if a == b else score < 1 - 1e-4


def test_as_a_metric(folder, monkeypatch):
    monkeypatch.setattr("mmed_jax.evaluation.metrics.bertscore.BertScore.__init__.__defaults__", (3,))
    pairs = [("en", "the heart", "the lung"), ("en", "the lung", "the lung"), ("en", "", "the lung"), ("en", "x", "")]
    rows = score_rationales(pairs, ["chrf", "bertscore"], bertscore_model=str(folder))
    assert [row["bertscore"] for row in rows[1:]] == [1.0, 0.0, None]
    assert rows[0]["bertscore"] == pytest.approx(by_hand(folder, "the heart", "the lung", 3), abs=1e-5)


def test_long_texts_are_cut(folder):
    assert BertScore(folder, layer=1).scores(["the heart " * 50], ["the heart " * 90]) == [pytest.approx(1, abs=1e-5)]


def test_mistakes_are_one_line(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no model there"):
        BertScore(tmp_path)
    with pytest.raises(UserError, match="layer 9: .* has layers 1 to 3"):
        BertScore(folder)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="BERTScore") as e:
        BertScore(tmp_path)
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="BERTScore needs torch, which is not installed"):
        BertScore(folder)
