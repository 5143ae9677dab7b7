"""Tables of documents in a run: found whole, refused when they are not the run's, several read as one."""

import json

import numpy as np
import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.hashes import json_hash
from mmed_jax.config.overrides import parse_args
from mmed_jax.data import corpus_table as module
from mmed_jax.data.corpus_table import CorpusTable
from mmed_jax.data.loader import BatchStream, eval_batches
from mmed_jax.data.packed_table import TABLE, make_part, table_info, write_shard
from mmed_jax.data.prepare import prepare
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.samples import Samples
from mmed_jax.data.token_report import print_report
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash
from tests.support.tokenizer import tiny_tokenizer

SEQ_LEN = 16


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tok")))


def shard(folder, path, language, rows, first):
    """A shard of rows that hold one document each, whose ids say which: language, then its number."""
    ids = np.array([[LANGUAGES.index(language) + 1, *[first + r] * SEQ_LEN] for r in range(rows)], np.int32)
    samples = Samples(
        ids=ids.ravel(),
        trained=None,
        offsets=np.arange(rows + 1) * (SEQ_LEN + 1),
        record=np.arange(rows),
        language=np.full(rows, LANGUAGES.index(language) + 1, np.uint8),
        names=[f"{language}-{first + r}" for r in range(rows)],
        sources=["web"] * rows,
        kinds=["document"] * rows,
        text_bytes=np.full(rows, 40),
    )
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    return {"path": path, **write_shard(folder / path, samples, [[r] for r in range(rows)])}


def write_table(folder, tok, groups, *, seq_len=SEQ_LEN, kind="document", held_out=1):
    """A table as a corpus makes it; groups: {"fr/web": rows of each shard}."""
    parts = {}
    for split, scale in (("train", 1), ("validation", 0)):
        listed = []
        for name, sizes in groups.items():
            language, _, source = name.partition("/")
            sizes = sizes if scale else [held_out]
            firsts = np.cumsum([0, *sizes])
            paths = [f"{split}/{name}/{i:05d}.array_record" for i in range(len(sizes))]
            shards = [shard(folder, p, language, n, int(f)) for p, n, f in zip(paths, sizes, firsts)]
            listed.append((name, language, source, shards))
        part = make_part(listed)
        rows = part["rows"]
        tokens = rows * SEQ_LEN
        empty = {"languages": {}, "sources": {}, "kinds": {}, "lengths": {str(SEQ_LEN): rows}}
        counts = {"rows": rows, "samples": rows, "tokens": tokens, "supervised": tokens, "efficiency": 1.0}
        parts[split] = {**part, "report": {**counts, "shortened": 0, "left_out": {}, **empty}}
    inputs = {"tokenizer": tokenizer_hash(tok)}
    info = table_info(seq_len, kind, inputs, {k: p for k, p in parts.items() if k == "train" or held_out})
    (folder / TABLE).write_text(json.dumps({**info, "key": json_hash(inputs, 20)}))
    return folder


@pytest.fixture
def medical(tmp_path, tok):
    return write_table(tmp_path / "medical", tok, {"en/books": [5], "en/web": [7, 6], "zh/web": [4]})


def config_of(*folders, **more):
    given = {"data.train": ",".join(map(str, folders)), "data.seq_len": SEQ_LEN, "batch_size": 4, **more}
    return parse_args(["--config=pretrain", *(f"--config.{k}={v}" for k, v in given.items())])[0]


def described(table, rows):
    return [name for row in rows for name in table.describe_row(int(row))]


def test_a_run_reads_each_document_once_an_epoch_and_validates_what_was_held_out(medical, tok, capsys):
    prepared = prepare(config_of(medical), tok)
    print_report(prepared.report)
    assert "reads: en 81.8%, zh 18.2%" in capsys.readouterr().out
    stream = BatchStream(prepared.train, 11, seed=0, mixture=prepared.mixture)
    seen = [described(prepared.train, stream.row_ids(step)) for step in (0, 1)]
    assert sorted(seen[0] + seen[1]) == sorted(described(prepared.train, range(22)))
    rows = np.concatenate([b["row_ids"] for b in eval_batches(prepared.validation["validation"], 2)])
    assert sorted(rows.tolist()) == [-1, 0, 1, 2]
    batch = prepared.train.batch([0, 21])
    assert batch["targets"][1].tolist() == [3] * SEQ_LEN and batch["language"][1, 0] == LANGUAGES.index("zh") + 1
    assert prepared.train.text_bytes([0, 21, -1]).sum() == 80


def test_several_tables_are_one_and_replay_has_its_share(medical, tmp_path, tok):
    general = write_table(tmp_path / "general", tok, {"en/web": [9], "fr/web": [3]}, held_out=0)
    more = {"data.replay": general, "data.replay_share": 0.25, "data.max_repeats": 100}
    prepared = prepare(config_of(medical, **more), tok)
    names = [g.name for g in prepared.train.groups]
    assert names == ["en/books", "en/web", "zh/web", "general:en/web", "fr/web"]
    assert [g.start for g in prepared.train.groups] == [0, 5, 18, 22, 31] and len(prepared.train) == 34
    assert described(prepared.train, [0, 5, 12, 17, 18, 22, 33]) == [
        *("en-0", "en-0", "en-7", "en-12", "zh-0", "en-0", "fr-2")
    ]
    shares = dict(zip(names, prepared.mixture.shares))
    assert shares["general:en/web"] + shares["fr/web"] == pytest.approx(0.25, abs=1e-3)
    alone = prepare(config_of(medical), tok)
    assert alone.train.fingerprint == CorpusTable([(medical, "train")]).fingerprint != prepared.train.fingerprint
    with pytest.raises(WorkError, match="row 34 of train cannot be read: it has 34"):
        prepared.train.record(34)
    for table, key, words in (
        (medical, "replay", "medical is named twice in train and replay"),
        (general, "validation", "general has held out nothing and is trained on"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(config_of(table, **{f"data.{key}": table}), tok)


def test_weights_change_what_is_read_and_no_table(medical, tok):
    before = sorted(p.stat().st_mtime_ns for p in medical.rglob("*"))
    only = prepare(config_of(medical, **{"data.languages": "zh", "data.max_repeats": 100}), tok)
    assert set(described(only.train, only.mixture.rows(np.arange(8)))) == {f"zh-{i}" for i in range(4)}
    assert [g.language for g in only.validation["validation"].groups] == ["zh"]
    even = prepare(config_of(medical, **{"data.temperature": 1e6, "data.max_repeats": 100}), tok)
    assert even.mixture.shares[2] == pytest.approx(0.5, abs=1e-3)
    assert sorted(p.stat().st_mtime_ns for p in medical.rglob("*")) == before


def test_rows_that_are_read_often_are_warned_about(medical, tok, capsys):
    prepare(config_of(medical, **{"data.language_weights": "zh=20", "epochs": 4, "data.max_repeats": 6}), tok)
    assert "warning: config.data.max_repeats=6" in (err := capsys.readouterr().err) and "zh/web 18.0 times" in err


def test_few_files_are_open_at_a_time(medical, tok, monkeypatch):
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    table = prepare(config_of(medical), tok).train
    for _ in range(2):
        assert described(table, [0, 6, 13, 20]) == ["en-0", "en-1", "en-8", "zh-2"]
        assert len(table._open) == 2


WRONG = {
    "another tokenizer": ({}, lambda info: info["inputs"].update(tokenizer="x"), UserError, "another tokenizer"),
    "another length": ({"data.seq_len": 32}, None, UserError, "rows of 16, the run of 32; --config.data.seq_len=16"),
    "one segment a row": (
        {"data.packing": False},
        None,
        UserError,
        "for false, tokenize with --att",
    ),
    "records": ({}, lambda info: info.update(kind="mcq"), UserError, "table of kind mcq"),
    "unknown language": ({"data.language_weights": "zn=2"}, None, UserError, "'zn' is unknown; valid: en, zh, ja"),
    "no such language": ({"data.languages": "ko"}, None, UserError, "no row is in 'ko'; the tables have en, zh"),
    "unknown source": ({"data.source_weights": "boks=2"}, None, UserError, "'boks', did you mean 'books'?"),
    "nothing there": ({"data.replay": "tables/nowhere"}, None, UserError, "data.replay: tables/nowhere: nothing is th"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_the_runs_is_one_line(medical, tok, name):
    settings, change, kind, words = WRONG[name]
    if change:
        info = json.loads((medical / TABLE).read_text())
        change(info)
        (medical / TABLE).write_text(json.dumps(info))
    with pytest.raises(kind) as e:
        prepare(config_of(medical, **settings), tok)
    assert words in str(e.value)


def test_a_table_of_documents_is_none_of_records(medical, tok):
    config = parse_args(["--config=stage1", f"--config.data.train={medical}"])[0]
    with pytest.raises(UserError, match="is a packed table, and data.kind=instruction reads record files"):
        prepare(config, tok)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, change_a_byte, lambda path: path.unlink()])
def test_damage_is_seen_before_the_first_step(medical, tok, damage):
    damage(medical / "train/en/web/00001.array_record")
    with pytest.raises(WorkError, match="00001.array_record"):
        prepare(config_of(medical), tok)
