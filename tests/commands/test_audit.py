"""The audit command: from an export through two stages to records, a set, its sources and the ledger; each link cut."""

import contextlib
import json
import shutil
import sqlite3

import pytest

from data_gen.commands.build import main as build
from mmed_jax import audit, export, merge
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.records.schema import write_records
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.open_model import identity, open_model
from mmed_jax.model.lora import LoraSpec
from tests.support.fake_model import FakeModel
from tests.support.hf_folders import hf_folder
from tests.support.openai_server import OpenAIServer
from tests.support.peft_folders import lora_run, random_adapter
from tests.support.results import evaluated, items_of, record
from tests.support.training import Bench, instructions

RECIPE = """
from data_gen.recipes import base, source, step


def get_config(variant=""):
    c = base()
    c.name, c.kind, c.languages = "clinic", "instruction", ("en", "fr")
    c.source.clinic = source(path="clinic.jsonl", kind="instruction", split="")
    c.sources = ("clinic",)
    c.step.expand = step("answer_expanding", ("clinic",), limit=3)
    c.steps = ("expand",)
    return c
"""


class Chain:
    """Where everything of the chain lies."""

    def __init__(self, place):
        self.place, self.raw, self.set = place, place / "raw", place / "set"
        self.ledger, self.one, self.two, self.out = (
            place / "books.sqlite",
            place / "one",
            place / "two",
            place / "Llama-x",
        )
        self.base = place / "Llama-3-8B"

    def audit(self, *flags):
        audit.main([f"--model={self.out}", f"--ledger={self.ledger}", f"--look_in={self.raw}", *flags])


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A set by a model behind a server, stage 1 on it, stage 2 on questions, an export: through the command lines."""
    made = Chain(tmp_path_factory.mktemp("chain"))
    rows = instructions(("en", "fr"))
    for row in rows:
        row["license"] = "CC BY 4.0"
    rows[0]["messages"][0]["content"] = (
        "My neighbour has been shivering since Tuesday evening; what could be done for her?"
    )
    write_records(made.raw / "clinic.jsonl", rows)
    write_records(made.place / "tests" / "board.jsonl", [{**rows[0], "id": "t1", "source": "board"}])
    (made.place / "clinic.py").write_text(RECIPE)
    with OpenAIServer(FakeModel()) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-x")
        flags = [f"--recipe={made.place / 'clinic.py'}", f"--data_dir={made.raw}", f"--output={made.set}"]
        flags += [f"--benchmarks={made.place / 'tests'}", f"--ledger={made.ledger}", f"--base_url={server.base_url}"]
        build([*flags, "--model=local", "--price=0.1,0.4"])
    bench = Bench(made.place)
    hf_folder(made.base, num_hidden_layers=1, vocab_size=400, tokenizer=False, max_position_embeddings=1024)
    shutil.copytree(bench.tokenizer, made.base, dirs_exist_ok=True)
    short = {"steps": 1, "checkpoint__every_steps": 0, "eval_every": 0}
    sizes = {f"model__{name}": None for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")}
    sizes |= {f"model__{n}": None for n in ("intermediate_size", "vocab_size", "max_position_embeddings")}
    first = {"init_from": made.base, "data__train": made.set / "jsonl/train", "data__seq_len": 512}
    for run, stage, more in (
        (made.one, "stage1", first | sizes),
        (made.two, "stage2", {"init_from": made.one, "data__seq_len": 256}),
    ):
        outcome = bench.train(run, stage, **short, **more)
        assert outcome.code == 0, outcome.err
    made.questions = bench.questions
    file = evaluated_as(made.two, made.place / "results")
    export.main([f"--model={made.two}", f"--output={made.out}", f"--results={file}"])
    return made


def evaluated_as(run, folder):
    """Results of evaluate, as if they were of a run."""
    items = items_of([record(n, "fr") for n in range(8)], "headqa")
    results = evaluated(folder, items, lambda item: f"The answer is {item.answer}.", model=str(run))
    model = {**results["model"], **identity(open_model(run))}
    (folder / "results.json").write_text(json.dumps({**results, "model": model}))
    return folder


def test_a_whole_chain_holds_and_its_page_says_what_a_reviewer_asks(chain, capsys, tmp_path):
    chain.audit()
    page = capsys.readouterr().out
    for words in (
        "Audit of Llama-x\n================",
        " links hold: what is at hand is what was written down.",
        "llama3 (by its name)",
        "Stage stage2",
        "Stage stage1",
        "Data set set",
        "rows             ",
        "CC BY 4.0",
        "0.00 US dollars for 6 answered requests",
        "local (6 requests)",
        "answer_expanding/",
        "board          1",
        "headqa     French            8  100.0        67.6 to 100.0",
        "hits by benchmark, counted in its list",
        "6 requests and answers in the ledger",
        "source clinic (clinic.jsonl)",
        f"began with {chain.base}: fingerprint",
        f"began with {chain.one}, step 1",
        "Not for clinical use.",
        "Signature:    ____",
    ):
        assert words in page, (words, page)
    assert "MISSING" not in page and "BROKEN" not in page
    for form, words in ((".html", "<dt>Signature</dt>"), (".md", "| Signature |"), (".txt", "Signature:    ____")):
        chain.audit(f"--output={tmp_path / f'page{form}'}")
        text = (tmp_path / f"page{form}").read_text()
        assert words in text and "CC BY 4.0" in text and "hold" in text
    with pytest.raises(UserError, match="name a file that ends in .html, .md, .txt"):
        chain.audit("--output=page.pdf")


def edit_json(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def answer_otherwise(file):
    with contextlib.closing(sqlite3.connect(file)) as c, c:
        c.execute("UPDATE requests SET response = '{}' WHERE key = (SELECT min(key) FROM requests)")


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def step(run):
    return run / "checkpoints" / "1"


TAMPERED = {
    "weights of the export": (lambda c: c.out / "model.safetensors", flip, "BROKEN   model.safetensors: expected"),
    "its config": (
        lambda c: c.out / "config.json",
        lambda f: edit_json(f, lambda v: v.update(rope_theta=1.0)),
        "BROKEN   config.json",
    ),
    "its tokenizer is gone": (lambda c: c.out / "tokenizer.json", None, "MISSING  tokenizer.json"),
    "the marker": (
        lambda c: c.out / MARKER,
        lambda f: edit_json(f, lambda v: v["provenance"]["stages"][0]["start"].update(fingerprint="0" * 16)),
        "BROKEN   record of the checkpoint",
    ),
    "a setting in the marker": (
        lambda c: c.out / MARKER,
        lambda f: edit_json(f, lambda v: v["provenance"]["stages"][0]["settings"].update({"optim.lr": 0.5})),
        "expected as in the export, found it says otherwise than the export: optim.lr",
    ),
    "validation in the marker": (
        lambda c: c.out / MARKER,
        lambda f: edit_json(f, lambda v: v["provenance"]["stages"][1].update(validation={"validation/loss": 0.1})),
        "it says otherwise than the export: validation",
    ),
    "the licence in the marker": (
        lambda c: c.out / MARKER,
        lambda f: edit_json(f, lambda v: v["provenance"]["base"].update(licence="mit")),
        "BROKEN   licence of the base by its name: expected mit, found llama3",
    ),
    "the marker's form": (
        lambda c: c.out / MARKER,
        lambda f: edit_json(f, lambda v: v["provenance"].update(stages=["x"])),
        "BROKEN   mmed_jax_export.json: expected as it was written, found another form (TypeError",
    ),
    "the summary's form": (
        lambda c: c.set / "build.json",
        lambda f: edit_json(f, lambda v: v.update(rows=[1])),
        "BROKEN   build.json of set: expected as it was written, found another form",
    ),
    "hashes of the marker": (
        lambda c: c.out / MARKER,
        lambda f: edit_json(f, lambda v: v.pop("sha256")),
        "MISSING  hashes of the model's files",
    ),
    "weights of stage 2": (lambda c: largest(step(c.two)), flip, "BROKEN   files of the checkpoint"),
    "record of stage 2": (lambda c: step(c.two) / "meta/meta.json", flip, "BROKEN   files of the checkpoint"),
    "manifest of stage 2": (
        lambda c: step(c.two) / "manifest.json",
        lambda f: edit_json(f, lambda v: v["files"].popitem()),
        "BROKEN   checkpoint",
    ),
    "stage 1 was trained again": (
        lambda c: step(c.one) / "manifest.json",
        lambda f: edit_json(f, lambda v: v["files"].popitem()),
        "BROKEN   began with",
    ),
    "stage 1 is gone": (lambda c: c.one, None, "MISSING  began with"),
    "the base is gone": (lambda c: c.base, None, "MISSING  began with"),
    "the base's weights": (lambda c: c.base / "model.safetensors", flip, "BROKEN   began with"),
    "questions of stage 2": (lambda c: c.questions, flip, "BROKEN   records (train)"),
    "rows of the set": (lambda c: c.set / "jsonl/train/en.jsonl", flip, "BROKEN   set/jsonl/train/en.jsonl"),
    "another form of the set": (lambda c: largest(c.set / "parquet"), flip, "BROKEN   set/parquet/train"),
    "summary of the set": (
        lambda c: c.set / "build.json",
        lambda f: edit_json(f, lambda v: v.update(models={"human": 3})),
        "BROKEN   build.json of the data set set",
    ),
    "the summary is gone": (lambda c: c.set / "build.json", None, "MISSING  build.json of the data set of"),
    "list of contaminated rows": (
        lambda c: c.set / "contaminated.jsonl",
        lambda f: f.write_text(""),
        'BROKEN   hits by benchmark, counted in its list: expected {"board": 1}, found {}',
    ),
    "the source": (lambda c: c.raw / "clinic.jsonl", flip, "BROKEN   source clinic"),
    "the source is gone": (lambda c: c.raw / "clinic.jsonl", None, "MISSING  source clinic"),
    "an answer in the ledger": (lambda c: c.ledger, answer_otherwise, "BROKEN   6 requests and answers"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_each_link_that_is_cut_is_named(chain, name, capsys):
    """Changed or taken away, then put back."""
    place, change, words = TAMPERED[name]
    path = place(chain)
    aside = path.with_name(f"{path.name}.aside")
    if change is None:
        path.rename(aside)
    else:
        data = path.read_bytes()
        change(path)
    try:
        with pytest.raises(WorkError, match=r"of \d+ links are broken or missing\. (BROKEN|MISSING) ") as e:
            chain.audit()
        assert "\n" not in str(e.value)
    finally:
        aside.rename(path) if change is None else path.write_bytes(data)
    page = capsys.readouterr().out
    assert words in page, page


def test_an_added_file_a_moved_run_and_no_ledger(chain, tmp_path, capsys):
    (chain.out / "more.bin").write_bytes(b"x")
    try:
        with pytest.raises(WorkError, match="BROKEN more.bin: expected not there, found a file that the export"):
            chain.audit()
    finally:
        (chain.out / "more.bin").unlink()
    # The card is its author's.
    card = chain.out / "README.md"
    before = card.read_text()
    card.write_text(before + "More.\n")
    chain.audit()
    card.write_text(before)
    with pytest.raises(WorkError, match="MISSING 6 requests and answers in the ledger"):
        audit.main([f"--model={chain.out}", f"--look_in={chain.raw}"])
    archive = tmp_path / "archive"
    archive.mkdir()
    chain.one.rename(archive / "one")
    capsys.readouterr()
    try:
        audit.main([f"--model={chain.out}", f"--ledger={chain.ledger}", f"--look_in={chain.raw},{archive}"])
    finally:
        (archive / "one").rename(chain.one)
    assert "hold: what is at hand" in capsys.readouterr().out


def test_a_run_a_mean_and_a_gguf_are_followed_too(chain, tmp_path, capsys):
    audit.main([f"--model={chain.two}", f"--ledger={chain.ledger}", f"--look_in={chain.raw}"])
    assert "Audit of two" in capsys.readouterr().out
    merge.main([f"--models={chain.out},{chain.base}", f"--output={tmp_path / 'Llama-mean'}"])
    flags = [f"--ledger={chain.ledger}", f"--look_in={chain.raw}"]
    capsys.readouterr()
    audit.main([f"--model={tmp_path / 'Llama-mean'}", *flags])
    page = capsys.readouterr().out
    assert "parent Llama-x (weight 0.5)" in page and "Model Llama-x" in page and "Stage stage1" in page
    export.main([f"--model={chain.two}", "--gguf=f16", f"--output={tmp_path / 'Llama-x-GGUF'}"])
    audit.main([f"--model={tmp_path / 'Llama-x-GGUF'}", *flags])
    assert "GGUF f16" in capsys.readouterr().out
    flip(chain.out / "model.safetensors")
    try:
        with pytest.raises(WorkError, match="BROKEN parent Llama-x"):
            audit.main([f"--model={tmp_path / 'Llama-mean'}", *flags])
    finally:
        flip(chain.out / "model.safetensors")
    # Without the parent's record its stages would not be walked.
    (chain.out / MARKER).rename(tmp_path / "aside")
    try:
        with pytest.raises(WorkError, match=f"MISSING {MARKER} of parent Llama-x"):
            audit.main([f"--model={tmp_path / 'Llama-mean'}", *flags])
    finally:
        (tmp_path / "aside").rename(chain.out / MARKER)


def test_weights_beneath_an_adapter(tmp_path, capsys):
    """Of checkpoints of earlier versions, which have no hashes of their data, that is said."""
    base = hf_folder(tmp_path / "Llama-3-8B", num_hidden_layers=2)
    model = open_model(base)
    spec = LoraSpec(2, 8.0, (("q", (2, 2), (8.0, 8.0)),))
    run = lora_run(tmp_path / "lora", spec, random_adapter(spec, model.cfg), model, model.tokenizer)
    export.main([f"--model={run}", f"--output={tmp_path / 'Llama-m'}"])
    with pytest.raises(WorkError):
        audit.main([f"--model={tmp_path / 'Llama-m'}"])
    page = capsys.readouterr().out
    assert f"holds    weights beneath the adapter, {base}" in page
    assert "MISSING  record files: expected their hashes in the checkpoint" in page
    flip(base / "model.safetensors")
    with pytest.raises(WorkError):
        audit.main([f"--model={tmp_path / 'Llama-m'}"])
    assert f"BROKEN   weights beneath the adapter, {base}" in capsys.readouterr().out


def test_what_has_no_record_is_refused(tmp_path):
    hf_folder(tmp_path / "foreign", num_hidden_layers=1)
    with pytest.raises(UserError, match="is no export of this program .* and no run"):
        audit.main([f"--model={tmp_path / 'foreign'}"])
    for flags, words in (
        ([f"--model={tmp_path / 'gone'}"], "no such folder"),
        ([f"--model={tmp_path}", "--ledger=gone.sqlite"], "--ledger: .*gone.sqlite does not exist"),
        ([f"--model={tmp_path}", "--look_in=nowhere"], "--look_in: .*nowhere does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            audit.main(flags)
