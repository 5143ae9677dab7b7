"""How a model was tuned goes from its folder through results.json into the tables of compare; answers from a table."""

import csv
import json

import pytest

from mmed_jax import compare, evaluate, export
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import write_records
from mmed_jax.evaluation.comparison.runs import read_runs
from mmed_jax.evaluation.models import local
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.peft_folder import save_adapter
from mmed_jax.hf.save import write_assets
from mmed_jax.model.config import num_params
from mmed_jax.model.lora import LoraSpec, num_adapter_params
from tests.support.hf_folders import hf_folder
from tests.support.inference import TableEngine
from tests.support.peft_folders import lora_run, random_adapter
from tests.support.results import record


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """({name: flags of a model}, its config, spec of the adapters, the base's folder)"""
    place = tmp_path_factory.mktemp("tuned")
    base = hf_folder(place / "base", max_position_embeddings=2048)
    source = open_model(base)
    layers = source.cfg.num_layers
    spec = LoraSpec(4, 8.0, tuple((t, (4,) * layers, (8.0,) * layers) for t in ("q", "v")))
    adapter = random_adapter(spec, source.cfg)
    run = lora_run(place / "lora", spec, adapter, source, source.tokenizer, quantization="int8")
    peft = save_adapter(place / "peft", adapter, spec, source.cfg, base_name="org/model", tokenizer=source.tokenizer)
    full = place / "full"
    (full / "checkpoints/7").mkdir(parents=True)
    (full / "config.json").write_text(json.dumps({"run_dir": "x", "init_from": "models/Base"}))
    write_assets(full / "hf_assets", source.cfg, source.tokenizer, dtype="float32")
    merged = place / "merged"
    export.main([f"--model={run}", f"--output={merged}"])
    flags = {
        "base": [f"--model={base}"],
        "run": [f"--model={run}"],
        "peft": [f"--model={base}", f"--adapter={peft}"],
        "merged": [f"--model={merged}"],
        "full": [f"--model={full}"],
    }
    return flags, source.cfg, spec, base


@pytest.fixture
def evaluated(models, tmp_path, monkeypatch):
    """Folders of evaluations of all models."""
    quiz = tmp_path / "quiz.jsonl"
    write_records(quiz, [record(n, "en") for n in range(4)])
    engine = TableEngine(open_model(models[3]).tokenizer, lambda item: "Answer: A")
    monkeypatch.setattr(local, "load_engine", lambda *_: engine)
    for name, flags in models[0].items():
        evaluate.main([*flags, f"--data={quiz}", f"--output={tmp_path / name}"])
    return [str(tmp_path / name) for name in models[0]]


def test_tables_say_how_models_were_tuned(models, evaluated, tmp_path, capsys):
    _, cfg, spec, base = models
    capsys.readouterr()
    compare.main([*evaluated, f"--output={tmp_path / 'out'}", "--published=none"])
    adapter, total = num_adapter_params(spec, cfg), num_params(cfg)
    lora = "LoRA of rank 4, alpha 8, on q,v"
    expected = {
        "base": ("none", 0, str(base)),
        "run": (f"{lora}, base in int8", adapter, str(base)),
        "peft": (lora, adapter, str(base)),
        "merged": (f"{lora}, base in int8", adapter, str(base)),
        "full": ("full", total, "models/Base"),
    }
    rows = {r["name"]: r for r in csv.DictReader((tmp_path / "out/compare.csv").open())}
    assert {n: (r["tuning"], int(r["trained_parameters"]), r["base"]) for n, r in rows.items()} == expected
    shown = capsys.readouterr().out.splitlines()
    head = [line.split() for line in shown[:6]]
    assert head[0] == ["run", "tuning", "trained", "parameters", "base"]
    assert head[1] == ["base", "none", "0", str(base)]
    assert head[5] == ["full", "full", f"{total:,}", "(100.00%)", "models/Base"]
    below = shown.index(next(line for line in shown if line.startswith("  peft ")))
    assert shown[below + 1].startswith(f"    {lora} ")
    page = (tmp_path / "out/compare.html").read_text()
    assert page.count(f"<small>{lora}</small>") == 1 and f"<td>{adapter:,} ({adapter / total:.2%})</td>" in page
    report = (tmp_path / "run/report.html").read_text()
    assert f"{lora}, base in int8, {adapter:,} of {total:,} parameters trained, base {base}" in report


def test_what_is_not_told_is_not_known(evaluated):
    """Of endpoints, and of evaluations of earlier versions."""
    file = f"{evaluated[1]}/results.json"
    results = json.loads(open(file).read())
    spoilt = {**results["model"]["tuning"], "trained_parameters": "all"}
    for tuning, error in ((None, ""), (spoilt, "results.json: field 'model.tuning': must hold")):
        results["model"]["tuning"] = tuning
        open(file, "w").write(json.dumps(results))
        if error:
            with pytest.raises(UserError, match=error):
                read_runs([evaluated[1]])
        else:
            (run,) = read_runs([evaluated[1]])
            assert (run.tuning.text, run.tuning.trained, run.tuning.base) == ("not known", None, "")
