"""Commands whose inputs, models and outputs lie in a bucket: the same results as with paths of this machine."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_gen.__main__ import main as data_gen
from mmed_jax import compare, evaluate, export, generate, inspect, merge, plan, rate
from mmed_jax.checkpoints.checkpointer import Checkpointer
from mmed_jax.common.buckets import ranged_file
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.output_files import write_text
from mmed_jax.config.overrides import parse_args
from mmed_jax.data.prepare import prepare
from mmed_jax.data.records.schema import write_records
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from mmed_jax.evaluation.models import local
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.save import write_assets
from mmed_jax.model.config import PRESETS
from mmed_jax.training.setup import describe_source
from tests.support.fake_gcs import fake_gcs
from tests.support.hf_folders import hf_folder, random_params, raw_tensors, tiny_tokenizer
from tests.support.inference import TableEngine
from tests.support.ratings import make_runs
from tests.support.training import MODEL, bench, losses, unseen  # noqa: F401

B = "gs://bucket"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("places") / "model", max_position_embeddings=2048, max_shard_size="60KB")


@pytest.fixture(scope="module")
def server(model):
    with fake_gcs() as server:
        for file in model.iterdir():
            server.write("bucket", f"model/{file.name}", file.read_bytes())
        yield server


@pytest.fixture
def cloud(server, tmp_path, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MMED_JAX_BUCKETS", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield server
    server.heal()
    assert not (tmp_path / "gs:").exists()


def put(cloud, folder, name):
    """Uploads a file or folder of this machine by hand."""
    for file in [folder] if folder.is_file() else filter(Path.is_file, folder.rglob("*")):
        key = name if folder.is_file() else f"{name}/{file.relative_to(folder).as_posix()}"
        cloud.write("bucket", key, file.read_bytes())


def objects(cloud, prefix):
    return {n.removeprefix(f"{prefix}/"): cloud.read("bucket", n) for n in cloud.names("bucket", f"{prefix}/")}


@pytest.fixture
def engine(model, monkeypatch):
    def with_answers(answer, stop_after=None):
        made = TableEngine(open_model(model).tokenizer, answer, stop_after)
        monkeypatch.setattr(generate, "load_engine", lambda *_: made)
        monkeypatch.setattr(local, "load_engine", lambda *_: made)
        return made

    return with_answers


def test_export_of_a_model_in_a_bucket_into_a_bucket(cloud, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ranged_file, "LEAST", 1000)
    export.main([f"--model={B}/model", f"--output={B}/out"])
    out = capsys.readouterr().out
    assert f"uploaded   {B}/out" in out and f"--model={B}/out " in out
    put_up = objects(cloud, "out")
    assert {"config.json", "tokenizer.json", "mmed_jax_export.json"} <= put_up.keys()
    for name, data in put_up.items():
        (tmp_path / "back" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(data)
    assert raw_tensors(tmp_path / "back") == raw_tensors(model)
    newest = max((stored.generation, name) for (_, name), stored in cloud._objects.items())
    assert newest[1] == "out/config.json"

    with pytest.raises(UserError, match=f"^--output={B}/out: holds an earlier export; add --overwrite"):
        export.main([f"--model={B}/model", f"--output={B}/out"])
    # An upload that was cut leaves no config.json, and can be begun again.
    cloud.remove("bucket", "out/config.json")
    with pytest.raises(UserError):
        open_model(f"{B}/out")
    export.main([f"--model={B}/model", f"--output={B}/out", "--overwrite", "--dtype=bfloat16"])
    again = objects(cloud, "out")
    assert again.keys() == put_up.keys() and again["config.json"] != put_up["config.json"]
    # The mean of the two; of the large files in the bucket the parents' hashes are those of their bytes.
    merge.main([f"--models={B}/model,{B}/out", f"--output={B}/mean"])
    assert f"uploaded   {B}/mean" in capsys.readouterr().out
    parents = json.loads(cloud.read("bucket", "mean/mmed_jax_export.json"))["provenance"]["merged"]
    digest = hashlib.sha256(again["model.safetensors"]).hexdigest()
    assert parents[1]["path"] == f"{B}/out" and parents[1]["files"]["model.safetensors"] == digest


def test_train_reads_everything_from_a_bucket(cloud, bench, tmp_path, monkeypatch):  # noqa: F811
    """Weights, tokenizer, records and packed tables; the losses are those of a disk."""
    monkeypatch.setattr(ranged_file, "LEAST", 1000)
    held_out = unseen(tmp_path / "held_out.jsonl")
    places = {"init_from": tmp_path / "start", "tokenizer": bench.tokenizer, "data__train": bench.records}
    places |= {"data__validation": held_out, "data__cache_dir": tmp_path / "packed"}
    start = hf_folder(tmp_path / "start", num_hidden_layers=1, vocab_size=400, max_position_embeddings=256)
    for name, path in {"start": start, "tok": bench.tokenizer, "a.jsonl": bench.records, "b.jsonl": held_out}.items():
        put(cloud, Path(path), f"train/{name}")
    names = ("start", "tok", "a.jsonl", "b.jsonl", "packed")
    in_bucket = {key: f"{B}/train/{name}" for key, name in zip(places, names, strict=True)}
    sizes = {f"model__{k.partition('.')[2]}": None for k in MODEL}
    for run, given in {"here": places, "there": in_bucket}.items():
        outcome = bench.train(tmp_path / run, steps=2, checkpoint__every_steps=0, **sizes, **given)
        assert outcome.code == 0, outcome.err
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
    assert any(n.endswith("/manifest.json") for n in cloud.names("bucket", "train/packed/"))
    config = json.loads((tmp_path / "there/config.json").read_text())
    assert config["init_from"] == f"{B}/train/start" and config["data"]["train"] == [f"{B}/train/a.jsonl"]


def test_of_a_run_one_finished_checkpoint_is_fetched(cloud, tmp_path):
    cfg = dataclasses.replace(PRESETS["demo"], vocab_size=512, hidden_size=16, intermediate_size=16, num_layers=1)
    run, every = tmp_path / "run", {"every_steps": 1, "every_minutes": 0, "keep_last": 5, "keep_best": 0}
    with Checkpointer(run, **every, async_=False) as checkpointer:
        for step in (3, 7):
            state = {"params": random_params(cfg, step), "opt_state": {}, "step": jnp.int32(step)}
            checkpointer.maybe_save(step, state, data_state={}, config={"name": "stage1"}, metrics={})
    (run / "config.json").write_text(json.dumps({"name": "stage1", "run_dir": str(run)}))
    write_assets(run / "hf_assets", cfg, tiny_tokenizer(tmp_path / "ranks"), dtype="float32")
    put(cloud, run, "runs/one")
    for step in (3, 7):
        cloud.write("bucket", f"runs/one/checkpoints/{step}/commit_success.txt", b"")
    cloud.write("bucket", "runs/one/checkpoints/9/params/half", b"of a save under way")
    begun = {"kind": "event", "step": 0, "time": 1.0, "event": "start", "steps": 9}
    cloud.write("bucket", "runs/one/metrics/00001-000001.jsonl", json.dumps(begun).encode() + b"\n")
    before = cloud.requests["GET media"]
    assert open_model(f"{B}/runs/one").known_step == 7
    fetched = cloud.requests["GET media"] - before
    assert fetched < len(cloud.names("bucket", "runs/one/")) - len(cloud.names("bucket", "runs/one/checkpoints/3/"))
    folder = open_model(f"{B}/runs/one").path
    cloud.write("bucket", "runs/one/report.html", b"made anew")  # that is no other model
    assert open_model(f"{B}/runs/one").path == folder and not (folder / "report.html").exists()
    assert (folder / "checkpoints/7/params").is_dir() and not (folder / "checkpoints/7/opt_state").exists()
    for source in (open_model(f"{B}/runs/one/checkpoints/3"), open_model(f"{B}/runs/one", step=3)):
        assert source.known_step == 3
        said = describe_source(source)
        assert f"{B}/runs/one, step 3\n" in said and "stopped at step 3 of 9; it is not finished" in said
        got, want = source.load_params(), random_params(cfg, 3)
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)))
    with pytest.raises(UserError, match="has no checkpoint of step 9; there are 3, 7"):
        open_model(f"{B}/runs/one", step=9)
    cloud.write("bucket", "runs/two/huge", b"1")
    put(cloud, source.assets, "runs/two/checkpoints")  # no run: what lies beside is not fetched
    looked = cloud.requests["GET media"]
    with pytest.raises(UserError, match="has no checkpoint yet"):
        open_model(f"{B}/runs/two/checkpoints")
    assert cloud.requests["GET media"] - looked == len(cloud.names("bucket", "runs/two/checkpoints/"))
    for name in cloud.names("bucket", "runs/two/"):
        cloud.remove("bucket", name)
    cloud.write("bucket", "runs/two/checkpoints/9/params/half", b"of a save under way")
    with pytest.raises(UserError, match=f"^{B}/runs/two: has no finished checkpoint"):
        open_model(f"{B}/runs/two")


def test_the_weights_of_a_large_run_are_read_where_they_lie(cloud, tmp_path, monkeypatch):
    """They are those of a disk; nothing of them is fetched, and another checkpoint in their place is an error."""
    monkeypatch.setattr(ranged_file, "LEAST", 1000)
    cfg = dataclasses.replace(PRESETS["demo"], vocab_size=512, hidden_size=16, intermediate_size=16, num_layers=2)
    run, every = tmp_path / "run", {"every_steps": 1, "every_minutes": 0, "keep_last": 5, "keep_best": 0}
    with Checkpointer(run, **every, async_=False) as checkpointer:
        state = {"params": random_params(cfg, 3), "opt_state": {}, "step": jnp.int32(3)}
        checkpointer.maybe_save(3, state, data_state={}, config={"name": "stage1"}, metrics={})
    (run / "config.json").write_text(json.dumps({"name": "stage1", "run_dir": str(run)}))
    write_assets(run / "hf_assets", cfg, tiny_tokenizer(tmp_path / "ranks"), dtype="float32")
    put(cloud, run, "runs/large")
    cloud.write("bucket", "runs/large/checkpoints/3/commit_success.txt", b"")
    source = open_model(f"{B}/runs/large")
    assert not (source.path / "checkpoints/3/params").exists() and (source.path / "checkpoints/3/meta").is_dir()
    cloud.write("bucket", "runs/large/checkpoints/5/commit_success.txt", b"")  # a later one is not taken in its place
    got, want = source.load_params(), random_params(cfg, 3)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)))
    cloud.remove("bucket", "runs/large/checkpoints/5/commit_success.txt")
    export.main([f"--model={B}/runs/large", "--output=there"])
    export.main([f"--model={run}", "--output=here"])
    assert raw_tensors(Path("there")) == raw_tensors(Path("here"))
    cloud.write("bucket", "runs/large/checkpoints/3/manifest.json", b"{}")
    with pytest.raises(WorkError, match=f"^{B}/runs/large/checkpoints/3: was changed or removed while it was read"):
        source.load_params()


def test_generate_is_stopped_and_continued(cloud, engine, model):
    cloud.write("bucket", "prompts.txt", b"one\ntwo\nthree\n")
    flags = [f"--model={B}/model", f"--input={B}/prompts.txt", f"--output={B}/answers.jsonl", "--raw"]
    engine(lambda text: f"{len(text)}", stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        generate.main(flags)
    assert len(cloud.read("bucket", "answers.jsonl").splitlines()) == 1
    second = engine(lambda text: f"{len(text)}")
    generate.main(flags)
    rows = [json.loads(line) for line in cloud.read("bucket", "answers.jsonl").splitlines()]
    assert [r["prompt"].rpartition(">")[2] for r in rows] == ["one", "two", "three"] and len(second.asked) == 2
    assert cloud.names("bucket", "answers.") == ["answers.jsonl", "answers.settings.json"]


def test_evaluations_are_made_compared_and_rated(cloud, engine, tmp_path, capsys):
    options = {"A": "aspirin", "B": "warfarin"}
    made = [
        {"id": f"q{n}", "language": "en", "question": f"{n}?", "options": options, "answer_idx": "A", "rationale": "so"}
        for n in range(3)
    ]
    write_records(tmp_path / "quiz.jsonl", made)
    put(cloud, tmp_path / "quiz.jsonl", "data/quiz.jsonl")
    engine(lambda prompt: "Answer: A")
    flags = [f"--model={B}/model", "--mode=direct"]
    evaluate.main([*flags, f"--data={B}/data/quiz.jsonl", f"--output={B}/eval/one"])
    evaluate.main([*flags, f"--data={tmp_path}/quiz.jsonl", "--output=two"])
    names = {"results.json", "predictions.jsonl", "predictions.settings.json", "report.html"}
    assert objects(cloud, "eval/one").keys() == names
    for name in ("predictions.jsonl", "predictions.settings.json"):
        assert objects(cloud, "eval/one")[name] == Path("two", name).read_bytes()
    assert f"written    {B}/eval/one/results.json" in capsys.readouterr().out
    ours, theirs = (
        json.loads(objects(cloud, "eval/one")["results.json"]),
        json.loads(Path("two/results.json").read_text()),
    )
    assert ours["data"]["quiz"].pop("path") == f"{B}/data/quiz.jsonl"
    assert theirs["data"]["quiz"].pop("path") == f"{tmp_path}/quiz.jsonl"
    assert ours["model"] == theirs["model"] and ours["overall"] == theirs["overall"] and ours["data"] == theirs["data"]
    assert ours["model"]["path"] == ours["model"]["tuning"]["base"] == f"{B}/model"

    capsys.readouterr()
    compare.main([f"one={B}/eval/one", "two=two", f"--output={B}/tables", "--published=none"])
    assert objects(cloud, "tables").keys() == {"compare.txt", "compare.csv", "differences.csv", "compare.html"}
    assert objects(cloud, "tables")["compare.txt"].decode().strip() in capsys.readouterr().out

    (tmp_path / "rated").mkdir()
    make_runs(tmp_path / "rated")
    for run in (tmp_path / "rated").iterdir():
        put(cloud, run, f"rated/{run.name}")
    names = sorted(run.name for run in (tmp_path / "rated").iterdir() if run.is_dir())
    runs = ",".join(f"{n}={B}/rated/{n}" for n in names)
    rate.main(["sheet", f"--runs={runs}", f"--output={B}/sheets/a.csv"])
    assert objects(cloud, "sheets").keys() == {"a.csv", "a.csv.key.json"}
    with pytest.raises(UserError, match=f"^--output={B}/sheets/a.csv: is there already"):
        rate.main(["sheet", f"--runs={runs}", f"--output={B}/sheets/a.csv"])
    lines = cloud.read("bucket", "sheets/a.csv").decode()
    assert lines.count("\n") > 3


def test_plan_writes_its_file_into_a_bucket(cloud, monkeypatch):
    monkeypatch.setattr(plan, "plan_config", lambda config, flags: write_text(flags.json, "{}"))
    plan.main(["--config=stage1", f"--json={B}/plans/plan.json"])
    assert objects(cloud, "plans") == {"plan.json": b"{}"}


def test_data_gen_reads_and_writes_records(cloud):
    data_gen(["handcraft", f"--output={B}/made/hand.jsonl", "--kind=mcq"])
    data_gen(["handcraft", "--output=hand.jsonl", "--kind=mcq"])
    assert objects(cloud, "made") == {"hand.jsonl": Path("hand.jsonl").read_bytes()}
    data_gen(["handcraft", f"--input={B}/made/hand.jsonl", f"--output={B}/made/again.jsonl.gz", "--kind=mcq"])
    assert objects(cloud, "made").keys() == {"hand.jsonl", "again.jsonl.gz"}
    with pytest.raises(UserError, match=f"^--output={B}/made/hand.jsonl: is named by another flag as well"):
        data_gen(["handcraft", f"--input={B}/made/hand.jsonl", f"--output={B}/made/hand.jsonl"])
    with pytest.raises(UserError, match=f"^--input={B}/made/hands.jsonl: nothing is there, did you mean 'hand.jsonl'"):
        data_gen(["handcraft", f"--input={B}/made/hands.jsonl"])


def test_documents_become_a_table_that_is_read(cloud, bench, tmp_path, capsys):  # noqa: F811
    put(cloud, Path(bench.tokenizer), "corpus/tok")
    texts = [{"id": f"d{n}", "text": f"The liver, part {n}. " * 9, "language": "en"} for n in range(30)]
    cloud.write("bucket", "corpus/leaflets.jsonl", "".join(json.dumps(t) + "\n" for t in texts).encode())
    flags = [f"--input={B}/corpus/leaflets.jsonl", f"--tokenizer={B}/corpus/tok", "--seq_len=64", "--output=table"]
    flags.append("--validation_fraction=0")
    data_gen(["corpus", "tokenize", *flags, "--workers=1"])
    assert "en/leaflets" in capsys.readouterr().out
    put(cloud, Path("table"), "corpus/table")
    inspect.main([f"--table={B}/corpus/table", "--check"])
    assert f"table {B}/corpus/table: kind document" in capsys.readouterr().out
    keys = {"data.train": f"{B}/corpus/table", "data.seq_len": 64, "tokenizer": bench.tokenizer}
    config, _ = parse_args(["--config=pretrain", *(f"--config.{k}={v}" for k, v in keys.items())])
    prepared = prepare(config, load_tokenizer(bench.tokenizer), say=lambda line: None)
    rows = {name.partition("#")[0] for row in range(len(prepared.train)) for name in prepared.train.describe_row(row)}
    assert rows == {t["id"] for t in texts}


def test_a_bucket_that_refuses_keeps_the_work(cloud, engine):
    cloud.write("bucket", "few.txt", b"one\n")
    engine(lambda text: "1")
    made = generate.write_answers

    def refuse(*args):
        cloud.fault("POST ", status=403)
        return made(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(WorkError, match="it lies in .*: copy it from there"):
        patch.setattr(generate, "write_answers", refuse)
        generate.main([f"--model={B}/model", f"--input={B}/few.txt", f"--output={B}/kept.jsonl", "--raw"])
