"""metrics.jsonl across interruptions, side channels, delayed fetching, speed, compile counting, progress."""

import io
import json
import math
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.progress import Progress, clock
from mmed_jax.training import telemetry
from mmed_jax.training.metric_log import DelayedMetrics, MetricsLogger
from mmed_jax.training.run_page import make_report
from mmed_jax.training.telemetry import CompileCounter, CompileWatch, SpeedMeter, host_memory_bytes, memory


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_every_kind_of_number_is_strict_json(tmp_path):
    with MetricsLogger(tmp_path, tensorboard=False) as log:
        log.train(
            np.int64(1), {"a": np.float32(1.5), "b": jnp.int32(2), "c": math.nan, "d": -math.inf, "e": np.arange(3)}
        )
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (record["kind"], record["step"]) == ("train", 1) and record["time"] > 1e9
    assert {k: record[k] for k in "abcde"} == {"a": 1.5, "b": 2, "c": "NaN", "d": "-Infinity", "e": [0, 1, 2]}
    back = read_metrics(tmp_path).train[0]
    assert math.isnan(back["c"]) and back["d"] == -math.inf


def test_resume_appends_and_readers_take_the_last(tmp_path):
    with MetricsLogger(tmp_path, tensorboard=False) as log:
        log.start(0, devices=1)
        for step in range(1, 6):
            log.train(step, {"loss": float(step)})
        log.evaluation(4, {"validation/loss": 4.0})
        log.evaluation(5, {"validation/loss": 5.0})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"kind": "train", "step": 6, "lo')  # killed while writing
    assert "line 9: torn by an interruption" in read_metrics(tmp_path).notes[0]
    with MetricsLogger(tmp_path, tensorboard=False) as log:
        log.start(3)
        log.train(4, {"loss": 40.0})
    raw = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(raw) == 11 and raw[8] == '{"kind": "train", "step": 6, "lo'  # nothing was taken away
    records = read_metrics(tmp_path)
    assert records.series("loss") == ([1, 2, 3, 4], [1.0, 2.0, 3.0, 40.0])
    assert records.series("validation/loss") == ([], [])
    assert [e["step"] for e in records.events] == [0, 3] and records.events[0]["devices"] == 1
    assert len(records.notes) == 1


def test_missing_or_foreign_file_is_noted(tmp_path):
    assert "not readable" in read_metrics(tmp_path).notes[0]
    (tmp_path / "metrics.jsonl").write_bytes(b'[1]\n\xff\xfe\n{"kind": "train", "step": 1, "loss": 2}\n')
    records = read_metrics(tmp_path)
    assert len(records.notes) == 2 and records.series("loss") == ([1], [2.0])


def test_a_file_that_is_removed_meanwhile_is_begun_again(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with MetricsLogger(tmp_path / "run", tensorboard=False) as log:
        log.train(1, {"loss": 1.0})
        shutil.rmtree(tmp_path / "run")
        log.train(2, {"loss": 2.0})
        log.train(3, {"loss": 3.0})
    assert read_metrics(tmp_path / "run").series("loss") == ([2, 3], [2.0, 3.0])
    assert capsys.readouterr().err.count("was removed while the run went on") == 1


def test_not_main_writes_nothing(tmp_path):
    with MetricsLogger(tmp_path, is_main=False, wandb="p") as log:
        log.start(0)
        log.train(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_a_work_error(tmp_path):
    with MetricsLogger(tmp_path, tensorboard=False) as log:
        log._file.close()
        log._file = types.SimpleNamespace(write=lambda line: len(line) // 2, close=lambda: None)
        with pytest.raises(WorkError, match="metrics.jsonl: cannot be written .the disk is full"):
            log.train(1, {"loss": 1.0})


def test_tensorboard_without_tensorflow(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def write(start, steps, factor):
        with MetricsLogger(tmp_path) as log:
            log.start(start)
            for step in steps:
                log.train(step, {"loss": step * factor, "text": "not a number"})
            log.evaluation(steps[-1], {"validation/loss": 9.0})

    write(0, range(1, 5), 1.0)
    write(2, range(3, 6), 10.0)
    assert "tensorflow" not in sys.modules
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(board.Tags()["scalars"]) == ["train/goodput", "train/loss", "validation/loss"]
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]


ANSWERS = [
    {"language": "zh", "question": "发热？", "answer": "a\nb"},
    {"language": "en", "question": "?", "answer": ""},
]


def test_begun_again_at_step_0_nothing_of_before_counts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for value, evaluated in ((9.0, True), (3.0, True), (0.0, False)):  # twice killed before the first save
        with MetricsLogger(tmp_path) as log:
            log.start(0)
            if evaluated:
                log.evaluation(0, {"validation/loss": value})
                log.train(1, {"loss": 1.0})
        if value == 3.0:
            board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
            assert [(x.step, x.value) for x in board.Scalars("validation/loss")] == [(0, 3.0)]
    assert not read_metrics(tmp_path).evals and not read_metrics(tmp_path).train


def test_answers_are_an_event_and_text_on_the_board(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLogger(tmp_path) as log:
        log.answers(7, ANSWERS)
        log.answers(8, [])
    (event,) = read_metrics(tmp_path).events
    assert (event["event"], event["step"], event["answers"]) == ("answers", 7, ANSWERS)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["tensors"] == ["validation/answers/1_zh", "validation/answers/2_en"]
    (shown,) = board.Tensors("validation/answers/1_zh")
    assert shown.tensor_proto.string_val[0].decode() == "    发热？\n\n    a\n    b" and shown.step == 7


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0
        self.Table = lambda columns, data: (columns, data)

    def init(self, **arguments):
        self.started.append(arguments)
        run = types.SimpleNamespace(define_metric=lambda *a, **k: None, log=self.logged.append)
        run.finish = lambda: setattr(self, "finished", self.finished + 1)
        return run


def test_wandb_resumes_the_same_run(tmp_path, monkeypatch, capsys):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 1):
        with MetricsLogger(tmp_path, tensorboard=False, wandb="medical", config={"lr": 1.0, "t": (1,)}) as log:
            log.start(start)
            log.train(start + 1, {"loss": 2.0})
    first, second = fake.started
    assert first["project"] == "medical" and first["config"] == {"lr": 1.0, "t": [1]}
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    assert [0 <= x.pop("train/goodput") <= 1 for x in fake.logged] == [True, True] and fake.finished == 2
    assert fake.logged == [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 2.0}]

    with MetricsLogger(tmp_path, tensorboard=False, wandb="medical") as log:
        log.answers(2, ANSWERS)
        rows = [list(a.values()) for a in ANSWERS]
        assert fake.logged[-1] == {"step": 2, "validation/answers": (["language", "question", "answer"], rows)}
        log._wandb.log = lambda _: 1 / 0
        log.train(3, {"loss": 1.0})  # a broken side channel does not stop training
        log.train(4, {"loss": 1.0})
    assert capsys.readouterr().err.count("wandb: writing failed") == 1
    assert read_metrics(tmp_path).series("loss")[0] == [1, 2, 3, 4]


def test_wandb_missing_or_refusing_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsLogger(tmp_path, tensorboard=False, wandb="p")
    fake = FakeWandb()
    fake.init = lambda **_: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        MetricsLogger(tmp_path, tensorboard=False, wandb="p")


def test_delayed_metrics_fetch_one_step_late(monkeypatch):
    fetched = []
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or x)
    delayed, log = DelayedMetrics(), []
    for step in (1, 2, 3):
        out = delayed.push(step, f"device {step}", rows=step)
        log.append((step, list(fetched)))
        assert out == (None if step == 1 else (step - 1, f"device {step - 1}", {"rows": step - 1}))
    assert log == [(1, []), (2, ["device 1"]), (3, ["device 1", "device 2"])]
    assert delayed.flush() == (3, "device 3", {"rows": 3}) and delayed.flush() is None


def test_speed_meter(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: now[0])
    meter = SpeedMeter(flops_per_token=1e9, device_kind="NVIDIA H200", num_devices=2, window=3)

    def step(seconds, tokens=1000, **kw):
        now[0] += seconds
        return meter.step(real_tokens=tokens, supervised_tokens=tokens / 4, **kw)

    meter.restart()
    assert step(60, compiled=True) == {"tokens_seen": 1000}
    with meter.data_wait():
        now[0] += 0.5
    out = step(1.5)
    assert out["step_seconds"] == 2.0 and out["data_wait_seconds"] == 0.5 and out["tokens_seen"] == 2000
    assert out["data_wait_share"] == 0.25
    assert out["tokens_per_second"] == 500 and out["supervised_tokens_per_second"] == 125
    assert out["mfu"] == pytest.approx(500 * 1e9 / (2 * 989e12))
    assert step(4)["data_wait_seconds"] == 0.0
    now[0] += 1000  # an evaluation
    meter.restart()
    assert [step(s)["step_seconds_median"] for s in (4, 6, 8)] == [4, 4, 6]
    assert meter.totals() == {"train_seconds": 24.0, "data_wait_share": 0.5 / 24}  # neither compiling nor evaluating
    described = meter.describe()
    assert "real tokens/s" in described["mfu_formula"] and described["peak_device"] == "2 x NVIDIA H200"

    cpu = SpeedMeter(flops_per_token=1e9, device_kind="cpu", num_devices=1)
    cpu.restart()
    now[0] += 1
    assert "mfu" not in cpu.step(real_tokens=1, supervised_tokens=1) and "no MFU" in cpu.describe()["peak_device"]


def test_memory_says_something():
    before = host_memory_bytes()
    block = np.ones(64 << 20, np.uint8)
    assert host_memory_bytes() - before > 48 << 20 and block.any()
    assert 0 < memory()["host_memory_gib"] < 1000


def test_compile_counter_counts_by_name_and_cache(tmp_path):
    keys = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = [getattr(jax.config, k) for k in keys]
    from jax.experimental.compilation_cache import compilation_cache

    def fresh():
        def some_step(x):
            return jnp.tanh(x) * 3

        return jax.jit(some_step)

    try:
        for key, value in zip(keys, (str(tmp_path), 0, 0), strict=True):
            jax.config.update(key, value)
        compilation_cache.reset_cache()
        x, y = jnp.ones(7), jnp.ones(9)
        with CompileCounter() as counter:
            step = fresh()
            for _ in range(3):
                step(x)
            assert counter.count("some_step") == 1
            assert counter.cache_hits == 0 and counter.cache_misses == 1 and counter.seconds > 0
            fresh()(x)
            assert counter.cache_hits == 1
            assert counter.count("some_step") == 2
            step(y)
        summary = counter.summary("some_step")
        assert (summary["compile_count"], summary["compile_cache_hits"], summary["compile_cache_misses"]) == (3, 1, 2)
        step(jnp.ones(11))
        assert counter.count("some_step") == 3  # not listening any more
        assert counter.count("never") == 0
    finally:
        for key, value in zip(keys, before, strict=True):
            jax.config.update(key, value)
        compilation_cache.reset_cache()


def test_a_recompilation_names_what_changed():
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("x"))

    def some_step(state, batch):
        return state + batch["a"].sum(), batch["b"].sum()

    jitted = jax.jit(some_step, donate_argnums=0, out_shardings=(whole, whole))
    state, b = jax.device_put((np.zeros(3, np.float32), np.ones(2, np.int32)), whole)
    with CompileCounter() as counter:
        step = CompileWatch(counter, "some_step", jitted, ("state", "batch"))

        def changed(a, sharding=whole, **more):
            nonlocal state
            state, total = step(state, {"a": jax.device_put(a, sharding), "b": b, **more})
            assert total == 2
            return step.changed

        narrow, wide = np.ones(4, np.float32), np.ones(8, np.float32)
        assert changed(narrow) == []  # at first nothing can have changed
        assert changed(narrow) == []
        assert changed(wide) == ["batch/a: float32[4] -> float32[8]"]
        assert changed(wide) == []
        assert changed(wide.astype(np.int32)) == ["batch/a: float32[8] -> int32[8]"]
        (line,) = changed(wide.astype(np.int32), split)
        assert re.fullmatch(r"batch/a: NamedSharding\(.*spec=P\(\).* -> NamedSharding\(.*spec=P\('x'.*", line)
        assert changed(wide.astype(np.int32), split, c=b) == ["batch/c: absent -> int32[2]"]
        with jax.default_matmul_precision("highest"):
            (line,) = changed(wide.astype(np.int32), split, c=b)
        assert "the same shapes" in line
        assert counter.count("some_step") == 6 and state.tolist() == [56.0] * 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_lines_and_bar(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mmed_jax.common.progress.time.monotonic", lambda: now[0])
    log, terminal = io.StringIO(), Terminal()
    with (
        Progress(20, start=3, every=5, stream=log) as lines_,
        Progress(20, start=3, every=5, stream=terminal) as bar,
        Progress(20, stream=log, is_main=False) as silent,
    ):
        for step in range(4, 21):
            now[0] += 100 if step == 4 else 2  # the first step compiles
            for p in (lines_, bar, silent):
                p.update(step, {"loss": 2.34567, "lr": 1e-5})
            if step == 10:
                assert lines_.seconds_left() == pytest.approx(20)
                bar.note("saved step 10")
    text = log.getvalue().splitlines()
    assert [line.split()[1] for line in text] == ["4/20", "5/20", "10/20", "15/20", "20/20"]
    assert text[2] == "train 10/20 (50%)  loss 2.346  lr 1.00e-05  0:20 left"
    drawn = terminal.getvalue()
    assert drawn.count("\r") > 10 and "50% |██████████··········| 10/20" in drawn and "saved step 10\n" in drawn
    assert all(len(part) < 200 for part in drawn.split("\r")) and drawn.endswith("\n")
    assert [clock(s) for s in (0.4, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "train", "step": 1e999, "loss": 1}',
        '{"kind": "train", "step": NaN}',
        '{"kind": "train", "step": -1}',
        '{"kind": "train", "step": ' + "1" * 5000 + "}",
        "[" * 100_000,
        '{"kind": "train", "step": {"a": 1}}',
        "[]",
        "3",
        '{"kind": ["train"], "step": 3}',
        '{"kind": "event", "step": 3}',
        '{"kind": "event", "step": 3, "event": 5}',
        '{"a": ' * 100_000,
        "\xff",
        '{"kind": "train", "step": true, "step": null}',
    ],
)
def test_a_line_of_any_content_is_left_out_and_the_report_is_made(tmp_path, line):
    with MetricsLogger(tmp_path, tensorboard=False) as log:
        log.start(0, steps=3, mfu_formula="x", peak_flops_per_device="many")
        log.train(1, {"loss": 2.0, "mfu": 0.1})
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(line.encode("latin-1") + b"\n")
        f.write(b'{"kind": "train", "step": 2, "time": 1e300, "loss": 1' + b"0" * 400 + b"}\n")
        f.write(b'{"kind": "event", "step": 2, "time": "noon", "event": "end"}\n')
    (tmp_path / "config.json").write_text('{"a":' * 900 + "1" + "}" * 900)
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records.train] == [1, 2] and len(records.notes) == 1 and "line 3" in records.notes[0]
    assert records.series("loss") == ([1, 2], [2.0, float("inf")])
    assert "line 3: not a record" in make_report(tmp_path).read_text()
