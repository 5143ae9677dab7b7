"""Documents as rows: nothing of a text is lost, doubled or taken for a control token, however long it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.common.errors import UserError
from mmed_jax.data.documents import RowSettings, bytes_of_ids, join, pack_documents
from mmed_jax.data.plain_text import text_end, text_start
from mmed_jax.data.tokenizers.tokenizer import control_ids, encode_text, load_tokenizer
from tests.support.tokenizer import tiny_tokenizer

STRETCHES = ("fever", " 患者", "é", " ", "\n\n", "<|end_of_text|>", "🩺", "Жар", " 5 mg", "ん")
TEXT = st.lists(st.sampled_from(STRETCHES), max_size=60).map("".join).filter(str.strip)
TEXTS = st.lists(TEXT, max_size=12)


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tok")))


@pytest.fixture(scope="module")
def pieces_tok(tmp_path_factory):
    """A vocabulary of pieces, with a space in front of a text, bytes for what it lacks, and no begin token."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁", "f", "e", "v", "r", "é", "患", "者", "▁fe", "ver", "m", "g", "5", "<|end_of_text|>"]
    pieces = [("<unk>", 0.0), *((w, -1.0 - i / 9) for i, w in enumerate(words))]
    pieces += [(f"<0x{b:02X}>", -9.0) for b in range(256)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    folder = tmp_path_factory.mktemp("pieces")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return load_tokenizer(folder)


def by_document(packed):
    """{id: its pieces in order}."""
    pieces = {}
    for i, name in enumerate(packed.samples.names):
        span = slice(packed.samples.offsets[i], packed.samples.offsets[i + 1])
        pieces.setdefault(name.partition("#")[0], []).append(packed.samples.ids[span])
    return pieces


@settings(max_examples=30, deadline=None)
@given(texts=TEXTS, seq_len=st.integers(16, 70), overlap=st.sampled_from([0, 0.25, 0.5]))
def test_pieces_give_the_documents_back(tok, texts, seq_len, overlap):
    rows = RowSettings(seq_len, overlap)
    documents = [(f"d{i}", text) for i, text in enumerate(texts)]
    packed = pack_documents(tok, documents, rows, language="fr", source="web")
    pieces, samples = by_document(packed), packed.samples
    assert list(pieces) == [name for name, _ in documents] and packed.documents == len(texts)
    for name, text in documents:
        content = encode_text(tok, text)
        assert join(pieces[name], rows).tolist() == [*text_start(tok), *content, text_end(tok)]
        assert not control_ids(tok).intersection(content)
    assert sorted(packed.rows.items.tolist()) == list(range(len(samples)))
    assert all(samples.slots[row].sum() <= seq_len for row in packed.rows)
    if not overlap:
        assert samples.slots.sum() == sum(len(encode_text(tok, t)) + 1 for t in texts) == samples.supervised.sum()
        assert samples.text_bytes.sum() == sum(len(t.encode()) for t in texts)
    again = pack_documents(tok, iter(documents), rows, language="fr", source="web")
    assert np.array_equal(again.samples.ids, samples.ids) and np.array_equal(again.rows.items, packed.rows.items)


@settings(max_examples=20, deadline=None)
@given(texts=TEXTS, seq_len=st.integers(16, 70))
def test_across_documents_rows_are_one_running_text(tok, texts, seq_len):
    rows = RowSettings(seq_len, attend_across=True)
    packed = pack_documents(tok, [(f"d{i}", t) for i, t in enumerate(texts)], rows)
    running = [i for t in texts for i in (*text_start(tok), *encode_text(tok, t), text_end(tok))]
    samples = packed.samples
    pieces = [samples.ids[a:b] for a, b in zip(samples.offsets, samples.offsets[1:])]
    assert not texts or join(pieces, rows).tolist() == running
    assert all(len(row) == 1 for row in packed.rows) and len(packed.rows) == len(pieces)
    assert packed.documents == len(texts) and samples.text_bytes.sum() == sum(len(t.encode()) for t in texts)
    assert (samples.slots[:-1] == seq_len).all()
    if len(pieces) == 1 < len(texts):
        assert samples.names == [f"d0..d{len(texts) - 1}"]


@settings(max_examples=30, deadline=None)
@given(texts=TEXTS)
def test_bytes_of_any_vocabulary_are_those_of_the_text(tok, pieces_tok, texts):
    for each in (tok, pieces_tok):
        for text in texts:
            sizes = bytes_of_ids(each, text, np.array(encode_text(each, text)))
            assert (sizes >= 0).all() and sizes.sum() == len(text.encode())


def test_the_bytes_of_a_piece_are_those_that_it_spells(tok):
    """Where no character is divided between pieces, to the byte."""
    text = "fever and cough " * 30
    samples = pack_documents(tok, [("d", text)], RowSettings(20)).samples
    assert len(samples) > 5
    for i, size in enumerate(samples.text_bytes):
        targets = samples.ids[samples.offsets[i] + 1 : samples.offsets[i + 1]]
        assert size == len(tok.decode(targets, skip_special_tokens=True).encode())


def test_without_a_begin_token_the_first_id_is_no_target(pieces_tok):
    pieces_tok.eos_token = "</s>"
    packed = pack_documents(pieces_tok, [("d", "fever"), ("e", "é")], RowSettings(16))
    assert text_start(pieces_tok) == () and packed.samples.ids[packed.samples.offsets[1] - 1] == text_end(pieces_tok)
    first = bytes_of_ids(pieces_tok, "fever", np.array(encode_text(pieces_tok, "fever")))[0]
    assert packed.samples.text_bytes[0] == len("fever") - first


def test_settings_that_make_no_sense_are_one_line():
    for values, problem in (
        ((8,), "--seq_len=8: must be 16 to 1,048,576"),
        ((64, 1.0), "--overlap=1: must be 0 to 0.9"),
        ((64, -0.1), "--overlap=-0.1: must be"),
        ((64, float("nan")), "--overlap=nan: must be"),
    ):
        with pytest.raises(UserError, match=problem):
            RowSettings(*values).check()
