"""The report is made from whatever a run left behind."""

import base64
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.report import main
from mmed_jax.training.metric_log import MetricsLogger
from mmed_jax.training.run_page import make_report

CONFIG = {"name": "stage1", "variant": "demo", "optim": {"lr": 1e-3}, "data": {"train": ["<b>.jsonl"]}}


def write_run(run_dir, points=0, evals=0, nan_at=(), resume_at=None):
    (run_dir / "config.json").write_text(json.dumps(CONFIG))
    with MetricsLogger(run_dir, tensorboard=False) as log:
        log.start(0, steps=points, mfu_formula="MFU = a / b", peak_device="8 x chip", peak_flops_per_device=1e12)
        for step in range(1, points + 1):
            if step - 1 == resume_at:
                log.start(resume_at, steps=points)
            loss = math.nan if step in nan_at else 3 / step + 0.5
            log.train(
                step,
                {
                    "loss": loss,
                    "loss/en": loss,
                    "loss/zh": loss + 1,
                    "lr": 1e-3 / step,
                    "grad_norm": 1.25,
                    "tokens_per_second": 1e4,
                    "supervised_tokens_per_second": 4e3,
                    "mfu": 0.415,
                },
            )
        log.event("compiled", 1, compile_count=1, compile_seconds=2.5)
        for i in range(1, evals + 1):
            values = {"validation/loss": 2.0 + (i - 2) ** 2, "validation/loss/en": 1.5, "validation/loss/ko": 2.5}
            bits = {"validation/bits_per_byte": 0.5 + i / 10, "validation/bits_per_byte/en": 1 / i}
            values |= {**bits, "validation/perplexity": 20.0 - i} if evals > 1 else {}
            log.evaluation(i * 10, values)


def check_page(page):
    text = page.read_text()
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert all(b"viewBox" in base64.b64decode(i) for i in images)
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)  # nothing is fetched
    assert 'name="viewport"' in text and "@media print" in text
    return text, len(images)


@pytest.mark.parametrize(
    "run, images",
    [
        ({"points": 0}, 0),
        ({"points": 1}, 5),
        ({"points": 1, "evals": 1}, 5),
        ({"points": 0, "evals": 1}, 2),
        ({"points": 3, "nan_at": (1, 2, 3)}, 5),
        ({"points": 300, "evals": 3, "nan_at": (5,), "resume_at": 120}, 6),
    ],
)
def test_any_number_of_points(tmp_path, run, images):
    write_run(tmp_path, **run)
    text, count = check_page(make_report(tmp_path))
    assert count == images == len(list((tmp_path / "plots").glob("*.png")))
    assert ("NaN or infinite" in text) == bool(run.get("nan_at"))
    assert ("resumed after step" in text) == ("resume_at" in run)
    assert "optim.lr" in text and "&lt;b&gt;.jsonl" in text  # the whole config, escaped
    again = make_report(tmp_path)
    assert len(check_page(again)[0]) == pytest.approx(len(text), rel=0.01)


def test_numbers_and_languages(tmp_path):
    write_run(tmp_path, points=40, evals=4)
    text, _ = check_page(make_report(tmp_path))
    for cell in (
        "<td>40 of 40</td>",
        "<td>41.5%</td>",
        "<td>10,000</td>",
        "<td>6 at step 40</td>",  # validation loss, last
        "<td>2 at step 20</td>",  # and best
        "<td>English</td><td>0.575</td><td>1.5</td><td>1.5</td><td>0.25</td><td>0.25</td>",
        "<td>Korean</td><td></td><td>2.5</td><td>2.5</td><td></td><td></td>",
        "<td>validation bits per byte, best</td><td>0.6 at step 10</td>",
        "<td>validation perplexity, last</td><td>16 at step 40</td>",
        "MFU = a / b; 8 x chip",
        "<td>compilations of the step</td><td>1</td>",
    ):
        assert cell in text, cell


def test_plots_show_the_points_and_the_resume(tmp_path, monkeypatch):
    """The curves hold every finite point, and NaN points are marked instead of silently missing."""
    from matplotlib.figure import Figure

    drawn = {}
    save = Figure.savefig

    def keep(self, path, *args, **kwargs):
        axes = self.axes[0]
        drawn[path.name.split(".")[0]] = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        return save(self, path, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    write_run(tmp_path, points=4, evals=2, nan_at=(2,), resume_at=3)
    make_report(tmp_path)
    loss = drawn["loss"]
    np.testing.assert_allclose(loss["training"], [[1, 3.5], [3, 1.5], [4, 1.25]])
    np.testing.assert_allclose(loss["validation"], [[10, 3], [20, 2]])
    assert [x for x, _ in loss["NaN or infinite"]] == [2] and [x for x, _ in loss["resumed"]] == [3, 3]
    assert set(drawn["loss_by_language"]) == {"English", "Korean", "resumed"}


def test_a_deterministic_series_is_never_smoothed(tmp_path, monkeypatch):
    """A rolling median bends the corners of a schedule: 300 points of a learning rate are drawn as they are."""
    from matplotlib.figure import Figure

    drawn = {}
    save = Figure.savefig

    def keep(self, path, *args, **kwargs):
        drawn[path.name.split(".")[0]] = {line.get_label(): len(line.get_xdata()) for line in self.axes[0].lines}
        return save(self, path, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    write_run(tmp_path, points=300)
    make_report(tmp_path)
    assert drawn["learning_rate"] == {"learning rate": 300}
    assert "training (rolling median)" in drawn["loss"]


def test_damaged_files_are_said(tmp_path):
    write_run(tmp_path, points=2)
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"kind": "train", "step": 3, "loss": 1')
    (tmp_path / "config.json").write_text("{")
    text, images = check_page(make_report(tmp_path))
    assert images == 5 and "torn by an interruption" in text and "config.json: not readable" in text


def test_not_a_run_is_a_user_error(tmp_path):
    for path, message in [(tmp_path / "no", "no such folder"), (tmp_path, "neither metrics nor a run.s config.json")]:
        with pytest.raises(UserError, match=message):
            make_report(path)
    with pytest.raises(UserError, match="--run"):
        main([])
    write_run(tmp_path, points=1)
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        make_report(tmp_path)


def test_command_needs_no_jax(tmp_path, repo):
    write_run(tmp_path, points=2, evals=1)
    code = (
        "import sys; sys.modules['jax'] = None; from mmed_jax.report import main; main(sys.argv[1:]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    command = [sys.executable, "-c", code, f"--run={tmp_path}"]
    out = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    goodput, *files = out.stdout.splitlines()
    assert goodput.startswith("goodput    ") and files == [f"{tmp_path}/report.html", f"{tmp_path}/plots/"]


def test_a_model_folder_is_no_run(tmp_path):
    """Its config.json is a model's: a page written into it would pass for a part of the model."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(UserError, match="is it a run directory"):
        make_report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
