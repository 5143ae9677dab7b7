"""From config to tables: nothing lost uncounted, no stale or damaged cache used, validation apart from training."""

import json
import shutil
import threading

import numpy as np
import pytest

from mmed_jax.common.code_hash import ROOT, code_hash
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.config.overrides import parse_args
from mmed_jax.data import packed_cache
from mmed_jax.data.prepare import prepare
from mmed_jax.data.records.schema import write_records
from mmed_jax.data.sources import Conversion, get_source
from mmed_jax.data.token_report import print_report
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from tests.support.tokenizer import meta_tokenizer, tiny_tokenizer


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tok")))


def talks(n, start=0, languages=("en", "zh", "ja"), **more):
    for i in range(start, start + n):
        for code in languages:
            messages = [
                {"role": "user", "content": f"{code} question {i}?"},
                {"role": "assistant", "content": f"answer {i} " * (i % 7 + 1)},
            ]
            yield {
                "id": f"{code}-{i}",
                "language": code,
                "messages": messages,
                "source": f"src{i % 3}",
                "provenance": {"group": f"g{i}"},
                **more,
            }


@pytest.fixture
def files(tmp_path):
    write_records(tmp_path / "train.jsonl", talks(30))
    return tmp_path


def config_of(folder, **overrides):
    given = {"data.train": folder / "train.jsonl", "data.cache_dir": folder / "cache", "data.seq_len": 128, **overrides}
    return parse_args(["--config=stage1", *(f"--config.{k}={v}" for k, v in given.items())])[0]


def names(table):
    return [name for row in range(len(table)) for name in table.describe_row(row)]


def test_tables_hold_every_record_once_and_questions_stay_together(files, tok, capsys):
    prepared = prepare(config_of(files, **{"data.validation_fraction": 0.1}), tok)
    train, held_out = names(prepared.train), names(prepared.validation["validation"])
    assert sorted(train + held_out) == sorted(r["id"] for r in talks(30))
    assert {n.split("-")[1] for n in train}.isdisjoint(n.split("-")[1] for n in held_out)
    assert len(held_out) == 9
    report = prepared.report
    assert report["records"] == {"read": 90, "overlap": 0, "weight_zero": 0, "train": 81, "validation": 9}
    # Counted once each, those held out left out; cached like the table.
    assert sum(row["records"] for row in report["contents"]) == 81
    assert {row["license"] for row in report["contents"]} == {"unspecified"}
    assert {row["language"] for row in report["contents"]} == set(report["tables"]["train"]["languages"])
    assert prepare(config_of(files, **{"data.validation_fraction": 0.1}), tok).report["contents"] == report["contents"]
    table = report["tables"]["train"]
    batch = prepared.train.batch(range(len(prepared.train)))
    assert table["tokens"] == (batch["segment_ids"] > 0).sum() == sum(c["tokens"] for c in table["languages"].values())
    assert table["supervised"] == batch["loss_mask"].sum() == sum(c["supervised"] for c in table["sources"].values())
    assert table["samples"] == sum(table["lengths"].values()) == sum(c["samples"] for c in table["kinds"].values())
    for code, slot in (("en", 1), ("zh", 2), ("ja", 3)):
        assert table["languages"][code]["tokens"] == (batch["language"] == slot).sum()
    assert table["efficiency"] == table["tokens"] / batch["tokens"].size
    spelt = {code: 0 for code in ("en", "zh", "ja")}
    for record in talks(30):
        if record["id"] in train:
            spelt[record["language"]] += len(record["messages"][-1]["content"].strip().encode())
    (group,) = prepared.train.groups
    assert prepared.train.text_bytes(range(group.rows)).tolist() == [0, *spelt.values(), 0, 0, 0, 0]
    assert (group.name, group.start, group.bytes) == ("records", 0, sum(spelt.values()))
    print_report(report)
    said = capsys.readouterr().out
    assert "90 records" in said and f"{table['tokens']:,} tokens" in said and "validation: 9 samples" in said
    assert "en 27, ja 27, zh 27" in said


def test_a_fraction_that_holds_nothing_out_is_said(files, tok, capsys):
    write_records(files / "train.jsonl", talks(1))
    prepared = prepare(config_of(files, **{"data.validation_fraction": 0.5}), tok)
    assert not prepared.validation and len(prepared.train)
    assert "validation_fraction=0.5: no question of the 3 records can be spared" in capsys.readouterr().err


def test_cache_is_used_only_when_nothing_changed(files, tok, monkeypatch):
    base = prepare(config_of(files), tok)
    assert not base.report["cached"]
    again = prepare(config_of(files), tok)
    assert again.report["cached"] and again.train.key == base.train.key
    assert again.report | {"cached": False} == base.report
    # Things that do not change a table.
    assert prepare(config_of(files, **{"optim.lr": 1.0, "run_dir": "elsewhere"}), tok).report["cached"]
    # Things that do.
    changed = {
        "data.seq_len": 256,
        "data.overlong": "drop",
        "data.packing": False,
        "data.system_prompt": "x",
        "seed": 1,
        "data.source_weights": "src1=2",
        "data.language_weights": "zh=0.5",
        "data.languages": "en,zh",
        "data.validation_fraction": 0.3,
    }
    keys = {base.train.key}
    for name, value in changed.items():
        prepared = prepare(config_of(files, **{name: value}), tok)
        assert not prepared.report["cached"] and prepared.train.key not in keys, name
        keys.add(prepared.train.key)
    other_template = load_tokenizer(tiny_tokenizer(files / "other", vocab_size=420))
    assert not prepare(config_of(files), other_template).report["cached"]
    write_records(files / "train.jsonl", talks(30, license="other"))
    assert not prepare(config_of(files), tok).report["cached"]
    monkeypatch.setattr(packed_cache, "table_code", lambda: "other code")
    assert not prepare(config_of(files), tok).report["cached"]


def test_the_key_covers_the_rendering_and_no_printer(tmp_path):
    shutil.copytree(ROOT / "mmed_jax", tmp_path / "mmed_jax", ignore=shutil.ignore_patterns("__pycache__", "assets"))

    def code() -> str:
        return code_hash(packed_cache.ENTRIES, leave_out=packed_cache.LEAVE_OUT, root=tmp_path)

    before = code()
    assert before == packed_cache.table_code()
    printer = tmp_path / "mmed_jax" / "data" / "token_report.py"
    printer.write_text(printer.read_text().replace("records, left out", "records; left out"))
    assert code() == before
    prompts = tmp_path / "mmed_jax" / "data" / "multiple_choice.py"
    prompts.write_text(prompts.read_text().replace("Answer this medical", "Answer the medical"))
    assert code() != before


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "report", "manifest", "other key"])
def test_a_damaged_table_is_made_anew(files, tok, damage, capsys):
    good = prepare(config_of(files), tok)
    expected = good.train.batch(range(len(good.train)))
    folder = good.train.folder
    data = folder / "train" / "00000.array_record"
    if damage == "flip":
        raw = bytearray(data.read_bytes())
        raw[len(raw) // 2] ^= 1
        data.write_bytes(raw)
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-100])
    elif damage == "gone":
        data.unlink()
    elif damage == "report":
        (folder / "table.json").write_text("{}")
    elif damage == "manifest":
        (folder / "manifest.json").unlink()
    else:
        info = json.loads((folder / "table.json").read_text())
        (folder / "table.json").write_text(json.dumps({**info, "key": "0" * 20}))
        packed_cache.write_manifest(folder)
    again = prepare(config_of(files), tok)
    assert not again.report["cached"] and "made anew" in capsys.readouterr().err
    batch = again.train.batch(range(len(again.train)))
    assert all(np.array_equal(batch[k], expected[k]) for k in batch)
    assert prepare(config_of(files), tok).report["cached"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_an_interrupted_build_leaves_nothing_that_is_used(files, tok, monkeypatch):
    from mmed_jax.data import prepare as module

    def stop(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    real = module.write_rows
    monkeypatch.setattr(module, "write_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(config_of(files), tok)
    assert not list((files / "cache").iterdir())
    monkeypatch.setattr(module, "write_rows", real)
    assert not prepare(config_of(files), tok).report["cached"]


def test_others_wait_for_the_writer_and_not_for_ever(files, tok):
    with pytest.raises(WorkError, match="does not exist, after 0 s of waiting"):
        prepare(config_of(files), tok, is_writer=False, timeout_s=0.2, say=lambda _: None)
    said, got = [], []
    config = config_of(files)
    options = {"is_writer": False, "timeout_s": 30, "say": said.append}
    waiting = threading.Thread(target=lambda: got.append(prepare(config, tok, **options)))
    waiting.start()
    made = prepare(config_of(files), tok)
    waiting.join(30)
    assert got and got[0].train.fingerprint == made.train.fingerprint


def test_two_writers_at_once_agree(files, tok):
    config, got = config_of(files), []
    threads = [threading.Thread(target=lambda: got.append(prepare(config, tok))) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 2 and got[0].train.fingerprint == got[1].train.fingerprint
    assert len(list((files / "cache").iterdir())) == 1


def test_named_validation_files_and_overlap(files, tok, capsys):
    write_records(files / "dev.jsonl", [*talks(2, 28, ("en",)), *talks(5, 100)])
    config = config_of(files, **{"data.validation": files / "dev.jsonl", "data.validation_fraction": 0.5})
    prepared = prepare(config, tok)
    # Questions 28 and 29 are asked in validation in English: gone from training in every language.
    assert {n.split("-")[1] for n in names(prepared.train)} == {str(i) for i in range(28)}
    assert len(names(prepared.validation["validation"])) == 17
    assert prepared.report["records"]["overlap"] == 6
    assert "6 of 90 training records ask the same question" in capsys.readouterr().err
    print_report(prepared.report)
    assert "left out: 6 because validation asks the same question" in capsys.readouterr().out
    with pytest.raises(UserError, match="no record is left to train on"):
        prepare(config_of(files, **{"data.validation": files / "train.jsonl"}), tok)


def test_chats_that_open_alike_are_many_questions(files, tok):
    """The case is told in the system message: all are kept beside a validation file, and a share can be held out."""

    def notes(*numbers):
        for i in numbers:
            turns = {"system": f"Note {i}: fever.", "user": "Sum up the note.", "assistant": f"Fever, {i}."}
            messages = [{"role": role, "content": text} for role, text in turns.items()]
            yield {"id": f"n{i}", "language": "en", "messages": messages}

    write_records(files / "train.jsonl", notes(*range(40)))
    write_records(files / "dev.jsonl", notes(40))
    assert prepare(config_of(files, **{"data.validation": files / "dev.jsonl"}), tok).report["records"]["train"] == 40
    records = prepare(config_of(files, **{"data.validation_fraction": 0.1}), tok).report["records"]
    assert (records["train"], records["validation"]) == (36, 4)


def test_weights_repeat_training_only(files, tok):
    weights = {"data.source_weights": "src0=3,src1=0", "data.validation_fraction": 0.2}
    prepared = prepare(config_of(files, **weights), tok)
    plain = prepare(config_of(files, **{"data.validation_fraction": 0.2}), tok)
    expected = []
    for name in names(plain.train):
        expected += [name] * {0: 3, 1: 0, 2: 1}[int(name.split("-")[1]) % 3]
    assert sorted(names(prepared.train)) == sorted(expected)
    held_out = [sorted(names(p.validation["validation"])) for p in (prepared, plain)]
    assert held_out[0] == held_out[1]
    records = prepared.report["records"]
    assert records["weight_zero"] + records["train"] + records["validation"] == records["read"] == 90


def test_records_of_both_kinds_are_mixed_where_it_is_asked_for(files, tok):
    question = {"question": "Which?", "options": {"A": "one", "B": "two"}, "answer_idx": "A", "rationale": "Because."}
    write_records(files / "mcq.jsonl", [{"id": "q1", "language": "en", "source": "src9", **question}])
    both = {
        "data.train": f"{files}/train.jsonl,{files}/mcq.jsonl",
        "data.validation_fraction": 0.0,
        "data.seq_len": 512,
    }
    prepared = prepare(config_of(files, **both, **{"data.kind": "mixed"}), tok)
    assert sorted(names(prepared.train))[-2:] == ["zh-8", "zh-9"] and len(names(prepared.train)) == 92
    assert {"q1:direct", "q1:rationale"} < set(names(prepared.train))
    with pytest.raises(UserError, match="mcq.jsonl:1: a record of kind mcq where instruction"):
        prepare(config_of(files, **both), tok)


def test_folders_and_splits_are_hashed_by_content_and_name(files, tok):
    for split in ("Train", "Test"):
        for name in ("French", "Russian"):
            (files / "bench" / split).mkdir(parents=True, exist_ok=True)
            row = {"options": {"A": "a", "B": "b"}, "answer_idx": "A"}
            text = "".join(json.dumps({"question": f"{split} {name} {i}?", **row}) + "\n" for i in range(9))
            (files / "bench" / split / f"{name}.jsonl").write_text(text)
    options = {"data.kind": "mcq", "data.validation_fraction": 0.0, "data.seq_len": 512}
    train = config_of(files, **options, **{"data.train": files / "bench"})
    first = prepare(train, tok)
    # Without rationale only the direct samples; French and Russian have their language from the file name.
    assert first.report["tables"]["train"]["left_out"] == {"no_rationale": 18}
    assert {k: c["samples"] for k, c in first.report["tables"]["train"]["languages"].items()} == {"fr": 9, "ru": 9}
    other = config_of(files, **options, **{"data.train": f"{files / 'bench'}:test"})
    assert all("test" in n for n in names(prepare(other, tok).train))
    (files / "bench" / "Train" / "French.jsonl").rename(files / "bench" / "Train" / "Spanish.jsonl")
    renamed = prepare(train, tok)
    assert set(renamed.report["tables"]["train"]["languages"]) == {"es", "ru"}


def test_unpacked_rows_hold_one_sample(files, tok):
    prepared = prepare(config_of(files, **{"data.packing": False, "data.validation_fraction": 0}), tok)
    assert [len(prepared.train.describe_row(i)) for i in range(len(prepared.train))] == [1] * 90
    assert not prepared.validation


@pytest.mark.parametrize(
    "stage, source, folder",
    [
        ("stage1", "medquad", "medquad_en"),
        ("stage2", "casimedicos", "casimedicos_en_es_fr"),
    ],
)
def test_real_data_is_packed_to_97_percent(tmp_path, shared_dir, llama3_tokenizer_model, stage, source, folder):
    kind = "mcq" if stage == "stage2" else "instruction"
    write_records(tmp_path / "train.jsonl", Conversion(get_source(source), shared_dir / "data" / folder, kind=kind))
    options = {"data.train": tmp_path / "train.jsonl", "data.cache_dir": tmp_path / "cache", "data.seq_len": 2048}
    args = [f"--config={stage}", *(f"--config.{k}={v}" for k, v in options.items())]
    prepared = prepare(parse_args(args)[0], meta_tokenizer(llama3_tokenizer_model))
    report = prepared.report["tables"]["train"]
    assert report["efficiency"] >= 0.97 and report["samples"] > 1500
    records = prepared.report["records"]
    per_record = 2 if kind == "mcq" else 1
    assert report["samples"] + sum(report["left_out"].values()) == per_record * records["train"]
    for row in range(0, len(prepared.train), 50):
        batch = prepared.train.batch([row])
        assert (batch["tokens"] == 128000).sum() == batch["segment_ids"].max()  # one begin of text a segment
        assert not (batch["targets"] == 128000).any()
        ends = (batch["targets"] == 128009) & (batch["loss_mask"] > 0)
        assert ends.sum() == batch["segment_ids"].max()  # every answer learns to stop


def test_what_is_wrong_with_the_data_is_said(files, tok):
    with pytest.raises(UserError, match="did you mean 'train.jsonl'"):
        prepare(config_of(files, **{"data.train": files / "trian.jsonl"}), tok)
    with pytest.raises(UserError, match="did you mean 'src1'"):
        prepare(config_of(files, **{"data.source_weights": "scr1=2"}), tok)
    with pytest.raises(UserError, match="src1=1e\\+09 .*at most 1000"):
        prepare(config_of(files, **{"data.source_weights": "src1=1e9"}), tok)
    with pytest.raises(UserError, match="90 records give no sample at data.seq_len=8: 90 too long"):
        prepare(config_of(files, **{"data.seq_len": 8, "data.validation_fraction": 0}), tok)
    (files / "file").write_text("")
    with pytest.raises(UserError, match="config.data.cache_dir: .*file.* cannot be written: Not a directory"):
        prepare(config_of(files, **{"data.cache_dir": files / "file" / "cache"}), tok)
    write_records(files / "twice.jsonl", list(talks(2)))
    both = f"{files / 'train.jsonl'},{files / 'twice.jsonl'}"
    with pytest.raises(UserError, match="twice.jsonl:1: .*already used at"):
        prepare(config_of(files, **{"data.train": both}), tok)
    config = config_of(files, **{"data.kind": "mcq", "data.prompt_family": "mmedbench", "data.system_prompt": "x"})
    with pytest.raises(UserError, match="mmedbench has no place"):
        prepare(config, tok)
