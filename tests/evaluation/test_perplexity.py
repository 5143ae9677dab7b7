"""evaluate --perplexity: equal to transformers, whatever the windows, batches and devices; resuming; wrong input."""

import csv
import gzip
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from mmed_jax import compare, evaluate
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.data import corpus_table
from mmed_jax.data.documents import RowSettings, pack_documents
from mmed_jax.data.packed_table import TABLE, Table, make_part, table_info, write_shard
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenizers.tokenizer import tokenizer_hash
from mmed_jax.evaluation.perplexity.documents import read_documents
from mmed_jax.evaluation.perplexity.open_texts import open_texts
from mmed_jax.evaluation.perplexity.windows import cut_windows
from mmed_jax.hf.open_model import open_model
from mmed_jax.inference import text_scorer
from mmed_jax.inference.text_scorer import TextScorer
from mmed_jax.training.step import StepOptions, make_eval_step
from tests.support.hf_folders import hf_folder
from tests.support.results import evaluated, items_of, read_lines, record, write_lines

TEXTS = {
    "en1": ("en", "wiki", "Aspirin irreversibly inhibits cyclooxygenase in platelets. " * 5),
    "en2": ("en", "web", "Fever."),
    "zh1": ("zh", "wiki", "阿司匹林不可逆地抑制血小板的环氧合酶。"),
    "ru1": ("ru", "web", "Аспирин необратимо ингибирует циклооксигеназу. <|eot_id|> – это текст."),
    "de1": ("de", "web", "Übelkeit und Fieber"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("perplexity") / "model", max_position_embeddings=512)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "held_out.jsonl"
    write_lines(path, [{"id": k, "text": t, "language": la, "source": s} for k, (la, s, t) in TEXTS.items()])
    return path


def run(model, texts, output, *flags):
    evaluate.main([f"--model={model}", f"--perplexity={texts}", f"--output={output}", *flags])
    return json.loads((output / "results.json").read_text()), {
        x["id"]: x for x in read_lines(output / "predictions.jsonl")
    }


def reference_nll(model, text, seq_len=None, stride=None):
    """By transformers: -log p of every token after BOS; with seq_len from windows written out one after another."""
    net = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = [256, *text.encode()]  # the tokenizer's bytes are their own ids
    out = np.full(len(ids) - 1, np.nan)
    ends = [min(len(out), seq_len or len(out))]
    while ends[-1] < len(out):
        ends.append(min(len(out), ends[-1] + stride))
    for end in ends:
        begin = max(0, end - seq_len) if seq_len else 0
        with torch.no_grad():
            logp = torch.log_softmax(net(torch.tensor([ids[begin:end]])).logits[0], -1).numpy()
        values = -logp[np.arange(end - begin), ids[begin + 1 : end + 1]]
        new = np.isnan(out[begin:end])
        out[begin:end][new] = values[new]
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "out"


@pytest.fixture(scope="module")
def whole(model, texts, folder):
    return run(model, texts, folder)


def test_equals_transformers_and_bytes_are_those_of_the_text(model, whole):
    results, lines = whole
    assert list(lines) == list(TEXTS)
    for ident, (language, source, text) in TEXTS.items():
        line, expected = lines[ident], reference_nll(model, text).sum()
        assert (line["language"], line["source"]) == (language, source)
        assert line["tokens"] == line["bytes"] == len(text.encode())
        assert line["nll"] / line["tokens"] == pytest.approx(expected / line["tokens"], abs=1e-5)
    cells = results["languages"]
    assert list(cells) == ["en", "zh", "ru", "de"] and list(cells["en"]["sources"]) == ["web", "wiki"]
    assert sum(c["bytes"] for c in cells.values()) == sum(len(t.encode()) for _, _, t in TEXTS.values())
    en = [lines["en1"], lines["en2"]]
    nll, size = sum(x["nll"] for x in en), sum(x["bytes"] for x in en)
    assert cells["en"]["bits_per_byte"] == pytest.approx(nll / math.log(2) / size)
    assert cells["en"]["perplexity"] == pytest.approx(math.exp(nll / size)) and cells["en"]["documents"] == 2
    assert results["mean_over_languages"] == pytest.approx(np.mean([c["bits_per_byte"] for c in cells.values()]))


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_windows_score_every_token_once_with_the_promised_context(n, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    windows = cut_windows(n, seq_len, stride)
    scored = [t for w in windows for t in range(w.stop - w.scored, w.stop)]
    assert scored == list(range(n))
    for k, w in enumerate(windows):
        assert 0 <= w.start and w.stop - w.start == min(w.stop, seq_len)
        assert k == 0 or w.stop - w.scored - w.start >= seq_len - stride


def test_long_documents_go_through_windows(model, texts, tmp_path):
    seq_len, stride = 64, 24
    results, lines = run(model, texts, tmp_path / "out", f"--seq_len={seq_len}", f"--stride={stride}")
    text = TEXTS["en1"][2]
    assert lines["en1"]["tokens"] == len(text.encode()) > 4 * seq_len
    assert lines["en1"]["nll"] == pytest.approx(reference_nll(model, text, seq_len, stride).sum(), rel=1e-5)
    assert results["settings"]["stride"] == stride


def test_batch_size_order_and_mesh_change_nothing(model, texts, whole, tmp_path):
    turned = tmp_path / "turned.jsonl.gz"
    turned.write_bytes(gzip.compress(b"".join(texts.read_bytes().splitlines(True)[::-1])))
    for flags in (["--batch_size=1"], ["--batch_size=4", "--mesh_data=2", "--mesh_tensor=2"]):
        results, lines = run(model, turned, tmp_path / flags[0], *flags)
        assert set(lines) == set(TEXTS)
        for ident, line in lines.items():
            assert line["nll"] == pytest.approx(whole[1][ident]["nll"], rel=2e-6)
        assert results["overall"]["bits_per_byte"] == pytest.approx(whole[0]["overall"]["bits_per_byte"], rel=2e-6)


class Stopped(TextScorer):
    """A scorer that is killed in its third batch."""

    def score(self, batches):
        for n, out in enumerate(super().score(batches)):
            if n == 2:
                raise KeyboardInterrupt
            yield out


def test_a_stopped_evaluation_goes_on_and_other_settings_are_refused(
    model, texts, whole, tmp_path, monkeypatch, capsys
):
    """Killed in its third batch, with a torn line behind it: the rest is scored, the file is that of a whole run."""
    out, flags = tmp_path / "out", ["--batch_size=1", "--seq_len=256", "--stride=256"]
    monkeypatch.setattr(text_scorer, "TextScorer", Stopped)
    with pytest.raises(KeyboardInterrupt):
        run(model, texts, out, *flags)
    there = read_lines(out / "predictions.jsonl")
    assert 0 < len(there) < len(TEXTS) and not (out / "results.json").exists()
    with (out / "predictions.jsonl").open("a") as f:
        f.write('{"id": "zh')
    monkeypatch.setattr(text_scorer, "TextScorer", TextScorer)
    lines = run(model, texts, out, *flags)[1]
    assert list(lines) == list(TEXTS) and [lines[x["id"]] for x in there] == there
    assert f"5 documents, 500 tokens, {len(there)} already done" in capsys.readouterr().err
    monkeypatch.setattr(text_scorer, "TextScorer", None)  # finished: no model is loaded
    assert run(model, texts, out, *flags)[1] == lines
    for changed, message in (
        (["--seq_len=128", "--stride=128"], "seq_len: 256 there, 128 now"),
        ([*flags[1:], "--limit=1"], "limit: 0 there, 1 now"),
    ):
        with pytest.raises(UserError, match=message):
            run(model, texts, out, *changed)


def test_another_tokenizer_changes_the_loss_and_bits_are_still_of_the_bytes(whole, folder, texts, tmp_path, capsys):
    """The same words with a vocabulary of whole words: fewer tokens, the same bytes; and both beside each other."""
    ids = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 1}
    words = hf_folder(tmp_path / "model", tokenizer=False, max_position_embeddings=512, **ids)
    word_tokenizer([t for _, _, t in TEXTS.values()]).save_pretrained(words)
    results, lines = run(words, texts, tmp_path / "out")
    assert results["overall"]["bytes"] == sum(len(t.encode()) for _, _, t in TEXTS.values())
    for ident, (_, _, text) in TEXTS.items():
        line = lines[ident]
        assert line["bytes"] == len(text.encode()) > 3 * line["tokens"]
        assert line["bits_per_byte"] == pytest.approx(line["nll"] / math.log(2) / len(text.encode()))
    capsys.readouterr()
    compare.main([f"bytes={folder}", f"words={tmp_path / 'out'}", f"--output={tmp_path / 'compared'}"])
    shown = capsys.readouterr().out
    with (tmp_path / "compared" / "differences.csv").open() as f:
        rows = {row["language"]: row for row in csv.DictReader(f)}
    for column in ("en", "all"):
        some = [k for k, (la, _, _) in TEXTS.items() if column in (la, "all")]
        size = math.log(2) * sum(lines[k]["bytes"] for k in some)
        first, second = (sum(of[k]["nll"] for k in some) / size for of in (whole[1], lines))
        assert float(rows[column]["difference"]) == pytest.approx(second - first)
        assert float(rows[column]["low"]) < second - first < float(rows[column]["high"])
        assert rows[column]["documents"] == str(len(some)) and f"{second - first:+.4f}" in shown
    assert list(rows) == ["en", "zh", "ru", "de", "all"] and rows["zh"]["low"] == ""
    page = (tmp_path / "compared" / "compare.html").read_text(encoding="utf-8")
    assert "Bits per byte compared" in page and f"{results['overall']['bits_per_byte']:.4f}" in page


def test_what_cannot_be_compared(whole, folder, tmp_path):
    asked, other = tmp_path / "asked", tmp_path / "other"
    evaluated(asked, items_of([record(0, "en")], "quiz"), lambda item: "Answer: A")
    shutil.copytree(folder, other)
    lines = read_lines(other / "predictions.jsonl")
    lines[1]["bytes"] += 1
    write_lines(other / "predictions.jsonl", lines)
    for argv, message in (
        ([folder, asked], "has scored texts and asked was asked questions; compare runs of one kind"),
        ([folder, other], "document en2 has the bytes 6 in one and 7 in the other; the runs have scored different"),
        ([f"--submission={tmp_path / 's'}", folder], "holds perplexities of texts (--perplexity), and no answers"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            compare.main([str(a) for a in argv])


def word_tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Metaspace()
    words = sorted({w for t in texts for w, _ in split.pre_tokenize_str(t)})
    vocab = {w: i for i, w in enumerate(["<s>", "</s>", "<unk>", *words])}
    plain = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    plain.pre_tokenizer, plain.decoder = split, decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


# ---- Tables ---------------------------------------------------------------------------------------------------------

PIECE = 40  # slots of a row


def document_table(folder, tok, seq_len=PIECE):
    """TEXTS as a table of documents: a begin and an end token each, cut at `seq_len`, a group a language and source."""
    groups = []
    for language, source in sorted({(la, s) for la, s, _ in TEXTS.values()}):
        documents = [(name, text) for name, (la, s, text) in TEXTS.items() if (la, s) == (language, source)]
        known = language if language in LANGUAGES else ""
        packed = pack_documents(tok, documents, RowSettings(seq_len), language=known, source=source)
        path = f"validation/{language}/{source}/00000.array_record"
        (folder / path).parent.mkdir(parents=True)
        shard = {"path": path, **write_shard(folder / path, packed.samples, packed.rows)}
        groups.append((f"{language}/{source}", language, source, [shard]))
    inputs = {"tokenizer": tokenizer_hash(tok)}
    info = table_info(seq_len, "document", inputs, {"validation": {**make_part(groups), "report": {}}}, key="k")
    (folder / TABLE).write_text(json.dumps(info))
    return Table(folder, "validation")


def test_a_table_gives_what_a_validation_of_training_gives(model, tmp_path):
    """Pieces of a document count as one; sums over all are those of the training's evaluation step."""
    source = open_model(model)
    table = document_table(tmp_path / "table", source.tokenizer)
    results, lines = run(model, tmp_path / "table", tmp_path / "out", "--batch_size=4")
    assert set(lines) == set(TEXTS)
    for ident, (language, place, text) in TEXTS.items():
        line = lines[ident]
        assert (line["language"], line["source"]) == (language, place)
        assert line["bytes"] == len(text.encode()) == line["tokens"] - 1  # the end token has no bytes
    sums = jax.jit(make_eval_step(source.cfg, StepOptions()))(source.load_params(), table.batch(range(len(table))))
    assert results["overall"]["nll"] == pytest.approx(float(sums["nll"].sum()), rel=1e-5)
    assert results["overall"]["tokens"] == float(sums["count"].sum())
    zh = 1 + LANGUAGES.index("zh")
    expected = float(sums["nll"][zh]) / math.log(2) / table.text_bytes(range(len(table)))[zh]
    assert results["languages"]["zh"]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert "Aspirin irreversibly" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    some = run(model, tmp_path / "table", tmp_path / "some", "--languages=en,ru", "--limit=1")[1]
    assert some == {
        k: {**lines[k], "nll": pytest.approx(lines[k]["nll"]), "bits_per_byte": some[k]["bits_per_byte"]}
        for k in ("en1", "en2", "ru1")
    }


def test_a_table_that_does_not_fit_is_refused(model, texts, tmp_path, monkeypatch):
    folder, table = tmp_path / "t", f"--perplexity={tmp_path / 't'}"
    document_table(folder, open_model(model).tokenizer)
    info = json.loads((folder / TABLE).read_text())

    def refused(*flags):
        with pytest.raises(UserError) as e:
            evaluate.main([f"--model={model}", f"--output={tmp_path / 'out'}", *flags])
        return str(e.value)

    monkeypatch.setattr(corpus_table, "OPEN_SHARDS", 2)
    opened = open_texts([str(folder)], open_model(model))
    assert len(opened.documents) == len(TEXTS) and len(opened._table._open) <= 2  # more would be refused by the system
    assert "the rows of a table are what they are" in refused(table, "--seq_len=32")
    assert "is a table, which is scored by itself" in refused(f"{table},{texts}")
    assert "no document of fr; it holds de, en, ru, zh" in refused(table, "--languages=fr")
    for changed, message in (
        ({"inputs": {"tokenizer": "0" * 64}}, "the table is of another tokenizer than the model's"),
        ({"seq_len": 1024}, "rows of 1024 tokens, and the model's max_position_embeddings is 512"),
        ({"splits": {"train": info["splits"]["validation"]}}, "the table has no split validation; it has train"),
    ):
        (folder / TABLE).write_text(json.dumps({**info, **changed}))
        assert message in refused(table)


# ---- Input ----------------------------------------------------------------------------------------------------------


def test_files_folders_and_a_corpus_are_read(tmp_path):
    corpus = tmp_path / "corpus" / "documents"
    for language, source in (("fr", "web"), ("ru", "books")):
        folder = corpus / language / source
        folder.mkdir(parents=True)
        lines = [json.dumps({"id": f"{language}{n}", "text": f"Texte {n}"}).encode() + b"\n" for n in range(40)]
        pack = zstandard.ZstdCompressor().compress
        (folder / "00000.jsonl.zst").write_bytes(pack(b"".join(lines[:20])) + pack(b"".join(lines[20:])))
    (tmp_path / "corpus" / "work").mkdir()
    (tmp_path / "corpus" / "work" / "lock").touch()
    write_lines(tmp_path / "corpus" / "work" / "no.jsonl", [{"text": "no"}])
    write_lines(tmp_path / "plain.jsonl", [{"text": "a"}, {"text": "b", "id": 7, "language": "xx"}])
    with pytest.raises(UserError, match="is not finished"):
        read_documents([str(tmp_path / "corpus")])
    (tmp_path / "corpus" / "corpus.json").write_text("{}")
    docs = read_documents([str(tmp_path / "corpus"), str(tmp_path / "plain.jsonl")])
    assert [(d.id, d.language, d.source) for d in docs[-2:]] == [
        ("plain.jsonl:1", "unknown", "plain"),
        ("7", "xx", "plain"),
    ]
    assert len(docs) == 82 and {(d.language, d.source) for d in docs[:-2]} == {("fr", "web"), ("ru", "books")}
    some = read_documents([str(tmp_path / "corpus")], ("ru",), limit=3)
    assert [d.id for d in some] == ["ru0", "ru1", "ru2"]
    for part in ("a", "work"):  # files of one name: an id is the place below the folder that was named
        (tmp_path / "parts" / part).mkdir(parents=True)
        write_lines(tmp_path / "parts" / part / "x.jsonl", [{"text": part}])
    assert [d.id for d in read_documents([str(tmp_path / "parts")])] == ["a/x.jsonl:1", "work/x.jsonl:1"]


GOOD = b'{"id": "a", "text": "fever"}\n'
PACKED = zstandard.ZstdCompressor().compress(GOOD * 3)
WRONG = [
    ({"x.jsonl": b'{"content": "fever"}\n'}, [], "x.jsonl:1: field 'text': missing; a document has 'text', this line"),
    ({"x.jsonl": GOOD + b'{"text": 5}\n'}, [], "x.jsonl:2: field 'text': must be text, is int"),
    ({"x.jsonl": GOOD + b'{"text": ""}\n'}, [], "x.jsonl:2: field 'text': is empty"),
    ({"x.jsonl": b'{"text": "a\\ud800"}\n'}, [], "x.jsonl:1: field 'text': character 2 is \\ud800, half of a pair"),
    ({"x.jsonl": GOOD + b'{"text": "b", "language": 3}\n'}, [], "x.jsonl:2: field 'language': must be text"),
    ({"x.jsonl": GOOD * 2}, [], "x.jsonl:2: id 'a' stands twice, first at"),
    ({"x.jsonl": GOOD + b"{fever\n"}, [], "x.jsonl:2: broken JSON"),
    ({"x.jsonl": GOOD + b'{"text": "f\xe9vre"}\n'}, [], "x.jsonl:2: not UTF-8"),
    ({"x.jsonl": b""}, [], "x.jsonl: holds no documents"),
    ({"x.jsonl.zst": PACKED[:-3]}, ["--perplexity={dir}/x.jsonl.zst"], "damaged zstd file: it ends too early"),
    ({"x.jsonl.zst": b"fever" * 9}, ["--perplexity={dir}/x.jsonl.zst"], "damaged zstd file ("),
    (
        {"x.txt": b"fever"},
        ["--perplexity={dir}/x.txt"],
        "x.txt: is none of .jsonl, .jsonl.gz, .jsonl.zst",
    ),
    ({"y/x.txt": b"fever"}, ["--perplexity={dir}/y"], "y: holds no .jsonl"),
    ({}, [], "x.jsonl: no such file or folder"),
    ({"x.jsonl": GOOD}, ["--languages=fr"], "--languages: no document in fr; the files hold unknown"),
    ({"x.jsonl": GOOD}, ["--seq_len=4096"], "--seq_len=4096: must be 2 to 512"),
    ({"x.jsonl": GOOD}, ["--seq_len=100", "--stride=101"], "--stride=101: must be 1 to 100"),
    ({"x.jsonl": GOOD}, ["--benchmark=mmedbench"], "--benchmark: is for questions, and --perplexity scores texts"),
    ({"x.jsonl": GOOD}, ["--data={dir}/x.jsonl"], "--data: is for questions"),
    ({"x.jsonl": GOOD}, ["--mode=direct"], "--mode: is for questions"),
    ({"x.jsonl": GOOD}, ["--few_shot=2"], "--few_shot: is for questions"),
    ({"x.jsonl": GOOD}, ["--limit=-1"], "--limit=-1: must be 0 (all) or more"),
]


@pytest.mark.parametrize(("files", "flags", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_wrong_input_is_one_line_before_a_device_is_touched(
    model, tmp_path, monkeypatch, capsys, files, flags, message
):
    monkeypatch.setattr(text_scorer, "TextScorer", None)
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    base = [] if any(f.startswith("--perplexity") for f in flags) else [f"--perplexity={tmp_path}/x.jsonl"]
    argv = [f"--model={model}", f"--output={tmp_path}/out", *base, *(f.format(dir=tmp_path) for f in flags)]
    with pytest.raises(SystemExit) as e:
        run_command(lambda: evaluate.main(argv))
    shown = capsys.readouterr()
    assert e.value.code == 2 and shown.out == "" and shown.err.count("\n") == 1 and message in shown.err
    assert not (tmp_path / "out").exists()


def test_flags_of_other_evaluations(model, texts, tmp_path):
    out = f"--output={tmp_path}"
    for argv, message in (
        (["--api_model=gpt", f"--perplexity={texts}", out], "endpoints give no log-probabilities"),
        (
            [f"--model={model}", f"--data={texts}", "--stride=3", out],
            "--stride: goes with --perplexity",
        ),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main(argv)


def test_page(whole, model, texts, tmp_path):
    run(model, texts, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    overall = whole[0]["overall"]["bits_per_byte"]
    for text in (f"{overall:.4f} bits per byte, 5 documents", "<title>Bits per byte by language</title>", "Chinese"):
        assert text in page
    assert "Aspirin irreversibly" in page and "<script" not in page  # a document of over 200 bytes
