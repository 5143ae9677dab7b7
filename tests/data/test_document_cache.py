"""Files of documents become a table of the cache: every document once, groups by language and source."""

import gzip
import json

import numpy as np
import pytest
import zstandard

from mmed_jax.common.errors import UserError
from mmed_jax.config.overrides import parse_args
from mmed_jax.data import document_cache
from mmed_jax.data.prepare import prepare
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from tests.support.tokenizer import tiny_tokenizer

FEVER = "Fever is a rise of the body's temperature, and the patient often feels cold and tired with it."


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tok")))


def lines(documents):
    return "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents).encode()


def config_of(folder, *paths, **more):
    given = {"data.train": ",".join(map(str, paths)), "data.cache_dir": folder / "cache", "data.seq_len": 32, **more}
    return parse_args(["--config=pretrain", *(f"--config.{k}={v}" for k, v in given.items())])[0]


@pytest.fixture
def folder(tmp_path):
    files = tmp_path / "texts"
    files.mkdir()
    english = [{"id": f"en{i}", "text": f"{FEVER} {i}", "language": "en", "source": "leaflets"} for i in range(40)]
    (files / "a.jsonl").write_bytes(lines(english))
    (files / "b.jsonl.gz").write_bytes(gzip.compress(lines([{"text": "发热是体温升高，病人常常感到寒冷和疲劳。"}])))
    packed = zstandard.ZstdCompressor().compress(lines([{"text": "Le foie.", "language": "fr"}]))
    (files / "c.jsonl.zst").write_bytes(packed)
    return files


def names(table):
    return sorted({n.partition("#")[0] for row in range(len(table)) for n in table.describe_row(row)})


def test_each_document_stands_once_on_one_side(folder, tmp_path, tok):
    prepared = prepare(config_of(tmp_path, folder, **{"data.validation_fraction": 0.2}), tok)
    groups = {g.name: (g.language, g.source) for g in prepared.train.groups}
    assert groups == {"en/leaflets": ("en", "leaflets"), "zh/b": ("zh", "b"), "fr/c": ("fr", "c")}
    train, held_out = names(prepared.train), names(prepared.validation["validation"])
    assert sorted(train + held_out) == sorted([*(f"en{i}" for i in range(40)), "b-1", "c-1"])
    assert 2 <= len(held_out) <= 16
    batch = prepared.train.batch([0])
    assert (batch["loss_mask"][0] > 0).sum() == (batch["segment_ids"][0] > 0).sum()
    again = prepare(config_of(tmp_path, folder, **{"data.validation_fraction": 0.2, "data.temperature": 5.0}), tok)
    assert again.report["folder"] == prepared.report["folder"]
    assert np.abs(again.mixture.shares - prepared.mixture.shares).max() > 0.1


def test_files_are_replayed_and_validated_on_too(folder, tmp_path, tok):
    more = {"data.replay": folder / "c.jsonl.zst", "data.replay_share": 0.5, "data.max_repeats": 1000}
    more["data.validation"] = folder / "b.jsonl.gz"
    prepared = prepare(config_of(tmp_path, folder / "a.jsonl", **more), tok)
    assert [g.name for g in prepared.train.groups] == ["en/leaflets", "fr/c"]
    assert prepared.mixture.shares.tolist() == [0.5, 0.5]
    assert names(prepared.validation["validation"]) == ["b-1"] and len(names(prepared.train)) == 41


def test_rows_of_one_segment_when_not_packed(folder, tmp_path, tok):
    table = prepare(config_of(tmp_path, folder, **{"data.packing": False}), tok).train
    assert table.batch(range(len(table)))["segment_ids"].max() == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"messages": []}, ["x.jsonl:1", "text: missing", "this is a record", "data.kind=instruction"]),
        ({"question": "?", "options": {}}, ["data.kind=mcq"]),
        ({"text": 5}, ["x.jsonl:1", "text"]),
        ({"text": "a", "language": "french"}, ["language", "did you mean 'fr'"]),
        (rb'{"text": "a \ud800", "id": 0}', ["x.jsonl:1: text: character 3", "half of a pair"]),
        (rb'{"text": "a", "source": "\udc00"}', ["x.jsonl:1: source: character 1"]),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path, tok, line, words):
    (tmp_path / "x.jsonl").write_bytes(line if isinstance(line, bytes) else lines([line]))
    with pytest.raises(UserError) as e:
        prepare(config_of(tmp_path, tmp_path / "x.jsonl"), tok)
    assert all(word in str(e.value) for word in words), str(e.value)


def test_of_a_corpus_its_documents_are_read_and_of_a_folder_files_of_one_name(tmp_path, tok):
    """What a corpus has dropped lies below it in files of documents as well."""
    corpus = tmp_path / "corpus"
    for place, text in (("documents/en/web", FEVER), ("documents/fr/web", "Le foie."), ("work/near-1/0", "dropped")):
        (corpus / place).mkdir(parents=True)
        (corpus / place / "000.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines([{"text": text}])))
    (corpus / "rejects.jsonl").write_bytes(lines([{"reason": "not_utf8", "text": "dropped"}]))
    (corpus / "work" / "lock").touch()
    with pytest.raises(UserError, match="corpus: is not finished"):
        prepare(config_of(tmp_path, corpus), tok)
    (corpus / "corpus.json").write_text("{}")
    assert names(prepare(config_of(tmp_path, corpus), tok).train) == [
        f"documents/{code}/web/000-1" for code in ("en", "fr")
    ]


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_cut_or_damaged_zstd_file_is_one_line(tmp_path, tok, is_cut):
    """Also one that is cut behind a whole line, where nothing but the missing end tells."""
    packer = zstandard.ZstdCompressor().compressobj()
    packed = packer.compress(lines([{"text": FEVER}])) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    packed = packed if is_cut else b"no zstd"
    (tmp_path / "x.jsonl.zst").write_bytes(packed)
    with pytest.raises(UserError, match="x.jsonl.zst: damaged zstd file"):
        prepare(config_of(tmp_path, tmp_path / "x.jsonl.zst"), tok)


def test_too_much_no_file_no_text_and_ids_twice_are_one_line(folder, tmp_path, tok, monkeypatch):
    def problem(*paths):
        with pytest.raises(UserError) as e:
            prepare(config_of(tmp_path, *paths), tok)
        return str(e.value)

    assert "id 'en0' was already used in" in problem(folder, folder / "a.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(lines([{"text": "", "language": "en"}]))
    assert "no document with text" in problem(tmp_path / "empty.jsonl")
    (tmp_path / "plain.txt").write_text("text")
    assert "no file of documents; they end in .jsonl" in problem(tmp_path / "plain.txt")
    monkeypatch.setattr(document_cache, "MOST_BYTES", 100)
    assert "python -m data_gen corpus tokenize" in problem(folder)
