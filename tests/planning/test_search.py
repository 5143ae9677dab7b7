"""The search for the fastest setting that fits, and the config file that it writes."""

import json
import re
from pathlib import Path
from unittest import mock

import pytest

from mmed_jax import train
from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import flatten, with_values
from mmed_jax.model.config import PRESETS
from mmed_jax.planning import advice, planner, search, topology
from tests.support.hlo_cases import tpu_devices
from tests.support.planning import arithmetic_compiler, run_plan, small
from tests.support.training import Outcome, call

CFG = PRESETS["llama3-8b"]


def run_search(name: str, *flags: str, **keys: object) -> Outcome:
    return run_plan(name, "--search", *flags, **keys)


def setting(outcome: Outcome) -> dict[str, str]:
    """The changes of the line that names the fastest."""
    (line,) = [x for x in outcome.out.splitlines() if x.startswith("fastest")]
    return dict(re.findall(r"--config\.(\S+)=(\S+)", line))


def test_proposals_keep_the_global_batch_and_divide():
    config, slice_ = load_config("stage1:8b"), topology.parse("v5p-128")
    found = list(search.proposals(config, CFG, slice_))
    assert found[0].changes == {} and len(found) > 30
    for c in found:
        assert c.config.batch_size == 128 and c.config.data.seq_len == 2048
        assert planner.mesh_sizes(c.config, CFG, slice_) == c.mesh
        # Only what changes something is named.
        assert all(flatten(config)[k] != v for k, v in c.changes.items())
        assert flatten(with_values(config, c.changes)) == flatten(c.config)
    assert {c.config.remat for c in found} == set(search.REMAT)
    assert {c.mesh["tensor"] for c in found} >= {1, 2, 4}
    # 128 rows on 64 chips: one or two a chip at a time; with tensor=2 up to four.
    assert {c.config.grad_accum for c in found if c.mesh["tensor"] == 1} == {1, 2}
    others = {c.config.batch_size for c in search.proposals(config, CFG, slice_, (256, 64))}
    assert others == {128, 256, 64}


def test_the_fastest_that_fits_wins_and_nothing_on_the_frontier_is_beaten(tmp_path):
    with arithmetic_compiler() as compiled:
        config = load_config("stage1:8b")
        said = []
        state = search.search(
            config, CFG, topology.parse("v6e-64"), recipe="stage1:8b", max_compiles=6, say=said.append, cache_dir=None
        )
    assert len(compiled) == len(state.tried) == 6
    # The config as it is comes first, for comparison.
    assert state.tried[0].changes == {}
    fitting = [c for c in state.tried if c.works]
    assert state.winner.result.schedule_s == min(c.result.schedule_s for c in fitting)
    assert state.winner.result.schedule_s <= state.tried[0].result.schedule_s
    frontier = [(c.result.schedule_s, c.result.needed_bytes) for c in state.frontier()]
    assert len(set(frontier)) == len(frontier)
    for c in fitting:
        beaten = any(
            o.result.schedule_s <= c.result.schedule_s
            and o.result.needed_bytes < c.result.needed_bytes
            or o.result.schedule_s < c.result.schedule_s
            and o.result.needed_bytes <= c.result.needed_bytes
            for o in fitting
        )
        assert ((c.result.schedule_s, c.result.needed_bytes) in frontier) is not beaten
    text = "\n".join(said)
    assert all(f"{k} of 6" in text for k in range(1, 7))
    assert "xla_flags=none" in text


def test_what_the_compiler_said_prunes_what_comes_next():
    """A compiler that wants 2.5 times what arithmetic says: settings that could only fit by arithmetic are not tried
    after the first has shown it."""
    config, slice_ = with_values(load_config("stage1:8b"), {"batch_size": 512}), topology.parse("v6e-64")
    with arithmetic_compiler(off=2.5):
        state = search.search(
            config, CFG, slice_, recipe="stage1:8b", max_compiles=5, say=lambda _: None, cache_dir=None
        )
    assert state.factor == pytest.approx(2.5)
    for c in state.tried[1:]:
        assert c.bytes(2.5) <= advice.room(slice_) and c.works


def test_nothing_fits_exits_1_and_names_a_slice():
    with arithmetic_compiler():
        outcome = run_search("v5e-16", config="stage1:70b")
    assert outcome.code == 1 and "nothing that was tried fits on v5e-16 (" in outcome.error
    assert "settings of micro-batch, remat, mesh" in outcome.error
    assert "fastest" not in outcome.out


def test_ctrl_c_keeps_what_was_found_and_the_next_call_goes_on(tmp_path):
    output = tmp_path / "found.py"
    flags = ("--max_compiles=5", f"--output={output}")
    with arithmetic_compiler() as compiled:
        real, stop_at = planner._by_compiler, 3

        def stopping(*args):
            if len(compiled) == stop_at:
                raise KeyboardInterrupt
            real(*args)

        with mock.patch.object(planner, "_by_compiler", stopping):
            stopped = run_search("v6e-64", *flags, config="stage1:8b", cache=tmp_path / "kept")
        assert stopped.code == 130 and "again to continue" in stopped.err
        assert output.is_file() and "fastest" in stopped.out and len(compiled) == 3
        resumed = run_search("v6e-64", *flags, config="stage1:8b", cache=tmp_path / "kept")
        assert resumed.code == 0 and resumed.out.count("(at an earlier call)") == 3 and len(compiled) == 5
        # A third call compiles nothing.
        again = run_search("v6e-64", *flags, config="stage1:8b", cache=tmp_path / "kept")
        assert len(compiled) == 5 and setting(again) == setting(resumed)


def test_a_setting_on_which_the_compiler_fails_is_passed_over():
    from mmed_jax.common.errors import WorkError

    with arithmetic_compiler() as compiled:
        real = planner._by_compiler

        def failing(result, *args):
            real(result, *args)
            if len(compiled) == 2:
                raise WorkError("the compiler failed: vmem")

        with mock.patch.object(planner, "_by_compiler", failing):
            outcome = run_search("v6e-64", "--max_compiles=4", config="stage1:8b")
    assert outcome.code == 0 and "the compiler failed: vmem" in outcome.out and len(compiled) == 4
    assert "1 tried do not fit, or the compiler fails on them" in outcome.out


def printed_config(path: Path, *flags: str) -> dict:
    outcome = call(train.main, f"--config={path}", "--print_config", *flags)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_train_takes_the_file(tmp_path):
    """It is the recipe with what the command line and the search set, nothing else; and the plan of it is the one that
    was announced."""
    output = tmp_path / "found.py"
    keys = {
        "batch_size": 256,
        "data__languages": "en,zh",
        "data__source_weights": "medqa=2",
        "optim__mu_dtype": "bfloat16",
    }
    with arithmetic_compiler():
        outcome = run_search(
            "2xv5p-128",
            "--max_compiles=4",
            "--tokens=1e9",
            "--price=2",
            f"--output={output}",
            config="stage2:8b",
            cache=tmp_path / "kept",
            **keys,
        )
        assert outcome.code == 0, outcome.err
        assert f"python -m mmed_jax.train --config={output}" in outcome.out and "cost" in outcome.out
        planned = run_plan("2xv5p-128", f"--json={tmp_path}/plan.json", config=str(output), cache=tmp_path / "kept")
    assert planned.code == 0 and "cached" in planned.out
    result = json.loads((tmp_path / "plan.json").read_text())
    best = [float(x) for x in re.search(r"\* +([\d.]+) GiB +([\d,]+) ms", outcome.out.replace(",", "")).groups()]
    assert [round(result["needed_bytes"] / 2**30, 2), round(result["schedule_s"] * 1e3)] == best

    given = {
        "batch_size": 256,
        "data.languages": ("en", "zh"),
        "data.source_weights": {"medqa": 2.0},
        "optim.mu_dtype": "bfloat16",
    }
    found = {k: int(v) if v.isdecimal() else v for k, v in setting(outcome).items()}
    expected = with_values(load_config("stage2:8b"), given | found | {"mesh.data": 2})
    assert flatten(load_config(str(output))) == flatten(expected)
    assert printed_config(output, "--config.seed=5")["seed"] == 5
    header = output.read_text().split('"""')[1]
    assert "2xv5p-128" in header and "GiB a chip" in header and re.search(r" ms .* 20\d\d-\d\d-\d\d", header, re.S)
    # It is a recipe like others: a search may begin with it and write in its place.
    with arithmetic_compiler():
        second = run_search("2xv5p-128", "--max_compiles=2", f"--output={tmp_path / 'second.py'}", config=str(output))
    assert second.code == 0, second.err
    assert printed_config(tmp_path / "second.py")["batch_size"] == 256


def test_gpus_are_searched_by_arithmetic(tmp_path):
    output = tmp_path / "found.py"
    outcome = run_search("gpu:8xh100-80g", f"--output={output}", config="stage1:8b")
    assert outcome.code == 0 and "compiled" not in outcome.out, outcome.err
    assert load_config(str(output)).remat in ("minimal", "minimal_ctx")
    assert "arithmetic" in output.read_text()
    planned = run_plan("gpu:8xh100-80g", config=str(output))
    assert planned.code == 0 and ": fits (" in planned.out


def test_a_search_says_what_it_did_not_try():
    """A 70B fits 8 H200 with Adafactor, another optimizer, which no search takes by itself."""
    outcome = run_search("gpu:8xh200", config="stage1:70b")
    assert outcome.code == 1 and "nothing that was tried fits on gpu:8xh200" in outcome.error
    assert "not tried, fits by arithmetic: " in outcome.error and "adafactor is another optimizer" in outcome.error


def test_the_winner_is_on_the_printed_frontier_and_the_rule_is_said():
    """By arithmetic steps within 3 % are equal: of them the one that needs least memory, if it is clearly less."""

    def tried(seconds: float, gib: float) -> search.Candidate:
        fields = {"needed_bytes": gib * 2**30, "schedule_s": seconds, "tokens_per_step": 1, "method": "arithmetic"}
        result = mock.Mock(**fields, fits=True, chips=8, mfu=lambda s: 0.5, tokens_per_second_chip=lambda s: 1 / s)
        config = with_values(load_config("stage1:8b"), {"loss_chunk": int(gib)})
        return search.Candidate({"loss_chunk": int(gib)}, config, {}, seconds, 0.0, 0.0, result)

    near, less, slow = tried(1.02, 99.0), tried(1.01, 80.0), tried(1.2, 60.0)
    for others, winner, said in (([near], 100, False), ([near, less, slow], 80, True), ([slow], 100, False)):
        state = search.Search(tried=[tried(1.0, 100.0), *others])
        text = search.table(state, price=2.0)
        assert state.winner in state.frontier() and state.winner.changes == {"loss_chunk": winner}
        assert re.search(rf"^ *\* .*loss_chunk={winner}$", text, re.M)
        assert f"fastest    of {len(others) + 1} by arithmetic: --config.loss_chunk={winner}" in text
        assert ("differ by less than 3% count as equal by arithmetic: of those the one that needs" in text) is said
        hours = 1e9 * state.winner.result.schedule_s / 3600 * 8
        assert f"run        a billion tokens (how many the run has is not known): {hours / 8:,.2f} h, cost" in text
        assert f"cost {2 * hours:,.2f}" in text


def test_other_files_are_not_replaced(tmp_path):
    output = tmp_path / "mine.py"
    output.write_text("# by hand\n")
    with arithmetic_compiler() as compiled:
        outcome = run_search("v6e-64", f"--output={output}", config="stage1:8b")
    assert outcome.code == 2 and "no search wrote" in outcome.error and not compiled
    assert output.read_text() == "# by hand\n"


def test_a_batch_that_divides_nowhere_is_refused():
    outcome = run_search("v5p-128", "--batches=7", config="stage1:8b")
    assert outcome.code == 2 and "7 rows do not divide" in outcome.error


def test_a_search_with_the_real_compiler(tmp_path):
    tpu_devices()
    output = tmp_path / "found.py"
    outcome = run_search("v5e-1", "--max_compiles=2", f"--output={output}", cache=tmp_path, **small())
    assert outcome.code == 0, outcome.err
    assert re.search(r"1 of 2 +the config as it is\n +[\d.]+ GiB +[\d,]+ ms", outcome.out)
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert printed_config(output)["model"]["hidden_size"] == 128
