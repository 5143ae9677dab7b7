"""Profiles are written for the steps asked for and read without xprof; what recompiles a run is said."""

import types

import jax
import numpy as np
import pytest

from mmed_jax import report
from mmed_jax.common.errors import UserError
from mmed_jax.training import profiling, state
from mmed_jax.training.profiling import Operation, operations, parse_steps, top_operations
from tests.support.training import (
    STEPS,
    bench,  # noqa: F401
    call,
    losses,
    metrics,
    train_here,
)


@pytest.mark.parametrize("text", ["3", "0:3", "5:4", "a:b", "1:2:3", "-1:2", "1:", "10..12"])
def test_bad_steps_are_one_line(text, bench, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="must be START:STOP"):
        parse_steps(text)
    outcome = train_here(*bench.argv(tmp_path / "run"), f"--profile={text}")
    assert outcome.code == 2 and outcome.error.startswith(f"--profile={text}: must be START:STOP")
    assert not (tmp_path / "run").exists()


def test_steps_beyond_the_run_are_one_line(bench, tmp_path):  # noqa: F811
    outcome = train_here(*bench.argv(tmp_path / "run"), f"--profile={STEPS + 1}:{STEPS + 2}")
    assert outcome.code == 2 and outcome.error == f"--profile={STEPS + 1}:{STEPS + 2}: the run has {STEPS} steps"


def test_good_steps():
    assert parse_steps("") is None and parse_steps("1:1") == (1, 1) and parse_steps("10:12") == (10, 12)


@pytest.mark.parametrize("steps", ["1:2", f"{STEPS - 1}:{STEPS + 9}"], ids=["from the first", "cut short by the end"])
def test_a_profile_holds_the_steps(bench, tmp_path, steps):  # noqa: F811
    run = tmp_path / "run"
    outcome = train_here(*bench.argv(run), f"--profile={steps}")
    assert outcome.code == 0, outcome.err
    np.testing.assert_array_equal(losses(run), losses(bench.reference))
    (file,) = (run / "profile" / "plugins" / "profile" / f"steps_{steps.replace(':', '-')}").glob("*.xplane.pb")
    modules = [
        dict(e.stats).get("hlo_module")
        for p in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in p.lines
        for e in line.events
    ]
    assert "jit_train_step" in modules
    # Two steps: what runs once a step was called twice.
    assert {o.calls for o in operations([file]) if o.calls < 4} >= {2}

    table = call(report.main, f"--run={run}", "--profile")
    assert table.code == 0 and not table.err
    title, head, *rows = table.out.splitlines()
    assert str(file.parent) in title and "share" in head and len(rows) == 11 and rows[-1].endswith("all others")
    shares = [float(r.split("%")[0]) for r in rows]
    assert sum(shares) == pytest.approx(100, abs=1) and shares[:-1] == sorted(shares[:-1], reverse=True)


def test_a_run_without_profile_and_a_damaged_one(bench, tmp_path):  # noqa: F811
    outcome = call(report.main, f"--run={bench.reference}", "--profile")
    assert outcome.code == 2 and "no profile there; train with --profile=START:STOP" in outcome.error
    folder = tmp_path / "profile" / "plugins" / "profile" / "steps_1-2"
    folder.mkdir(parents=True)
    (folder / "host.xplane.pb").write_bytes(b"")
    with pytest.raises(UserError, match="no operation of a device"):
        top_operations(tmp_path)
    (folder / "host.xplane.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        top_operations(tmp_path)


def _plane(name, **lines):
    def event(e):
        return types.SimpleNamespace(name=e[0], duration_ns=e[1], stats=list(e[2].items()))

    return types.SimpleNamespace(
        name=name, lines=[types.SimpleNamespace(name=n, events=[event(e) for e in v]) for n, v in lines.items()]
    )


def test_only_what_ran_on_devices_counts(monkeypatch):
    """The layouts of the three platforms: operations of a TPU, streams of a GPU, threads of a host."""
    tpu = _plane(
        "/device:TPU:0",
        **{
            "Steps": [("0", 9e9, {})],
            "XLA Modules": [("jit_train_step(1)", 9e9, {})],
            "XLA Ops": [
                ("%while.3 = (f32[8]) while(...)", 8e9, {}),
                ("%fusion.1 = f32[8] fusion(f32[8] %p)", 2e9, {"tf_op": "jit(train_step)/layers/dot:"}),
                ("%fusion.1 = f32[8] fusion(f32[8] %p)", 1e9, {"tf_op": "jit(train_step)/layers/dot:"}),
            ],
        },
    )
    gpu = _plane(
        "/device:GPU:0",
        **{"Stream #13(Compute)": [("sm90_gemm", 4e9, {"hlo_op": "gemm.1", "tf_op": "XlaModule:", "name": "a/b"})]},
    )
    cpu = _plane(
        "/host:CPU",
        python=[("PjitFunction(train_step)", 9e9, {})],
        pool=[("dot.4", 5e8, {"hlo_op": "dot.4"}), ("call.1", 6e8, {"hlo_op": "call.1"})],
    )
    profile = types.SimpleNamespace(planes=[tpu, gpu, cpu])
    monkeypatch.setattr(jax.profiler, "ProfileData", types.SimpleNamespace(from_file=lambda path: profile))
    assert profiling.operations(["x"]) == [
        Operation("sm90_gemm", "a/b", 4.0, 1),
        Operation("fusion.1", "jit(train_step)/layers/dot", 3.0, 2),
        Operation("dot.4", "", 0.5, 1),
    ]


def test_a_recompilation_is_a_warning_and_an_event(bench, tmp_path, monkeypatch):  # noqa: F811
    place, count = state.BatchPlacer.__call__, iter(range(1, 1000))

    def other_dtype_once(self, batch):
        step = next(count)
        if step == 5:
            batch = {**batch, "loss_mask": batch["loss_mask"].astype(np.float16)}
        return place(self, batch)

    monkeypatch.setattr(state.BatchPlacer, "__call__", other_dtype_once)
    outcome = bench.train(tmp_path / "run")
    assert outcome.code == 0, outcome.err
    what = "batch/loss_mask: float32[8,128] -> float16[8,128]"
    warnings = [line for line in outcome.err.splitlines() if "warning" in line]
    assert warnings == [f"warning: step 5 was compiled anew, which costs time: {what}"]
    records = metrics(tmp_path / "run")
    (event,) = (e for e in records.events if e["event"] == "recompiled")
    assert (event["step"], event["changed"], event["compile_count"]) == (5, [what], 2)
    # Its time is no step's time; the masks are the same numbers.
    assert [r["step"] for r in records.train if "step_seconds" not in r] == [1, 5]
    np.testing.assert_array_equal(losses(tmp_path / "run"), losses(bench.reference))
