"""The table of chips: a new TPU is one row, and everything that asks for a chip finds it."""

import json
from types import SimpleNamespace

import pytest

from mmed_jax.parallel import chips
from mmed_jax.parallel.xla_flags import compiler_options
from mmed_jax.planning import topology
from mmed_jax.training.flops import mfu
from tests.support.planning import arithmetic_compiler, run_plan

# Figures of no real chip.
ROW = chips.Chip(
    192 * chips.GIB, 2000e12, 7000e9, 100e9, 12.5e9, 2e9, ("tpu v9x",), {8: (2, 2, 1), 128: (4, 4, 4)}, "v9"
)


@pytest.fixture
def new_chip(monkeypatch):
    monkeypatch.setitem(chips.TPUS, "v9x", ROW)


def test_a_new_tpu_is_one_row(new_chip, tmp_path):
    with arithmetic_compiler() as compiled:
        outcome = run_plan("2xv9x-128", cache=tmp_path, config="stage1:8b", mesh__data=2)
    assert outcome.code == 0 and len(compiled) == 1
    assert "2xv9x-128: 128 chips v9x, 2 slices of 4x4x4 (torus)" in outcome.out
    assert "of 192.00 GiB a chip: fits" in outcome.out
    assert "nearest: v9x-8, v9x-128" in run_plan("v9x-64", config="stage1:8b").err
    assert mfu(2000, 5e11, "TPU v9x", 1) == pytest.approx(0.5)
    devices = [
        SimpleNamespace(platform="tpu", device_kind="TPU v9x", coords=(x, y, 0), slice_index=0)
        for x in range(2)
        for y in range(2)
    ]
    assert topology.of_devices(devices).shape == (2, 2, 1)
    assert compiler_options(chips.tpu_of("TPU v9x")) == {}


def test_two_devices_a_chip(tmp_path):
    t = topology.parse("2xtpu7x-128")
    assert (t.chips, t.device_count, t.devices_a_slice) == (128, 256, 128)
    with arithmetic_compiler():
        outcome = run_plan(
            "2xtpu7x-128",
            f"--json={tmp_path / 'plan.json'}",
            cache=tmp_path / "cache",
            config="stage1:8b",
            batch_size=256,
        )
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert "128 chips tpu7x of 2 devices each, 2 slices of 4x4x4 (torus)" in outcome.out
    # A device has half of the chip's 192 GiB and half of its rows; speed is of the whole chip.
    assert "of 96.00 GiB a device: fits" in outcome.out and "(4,096 a chip)" in outcome.out
    assert "note       seconds on tpu7x are rough: its clock is an assumption" in outcome.out
    assert plan["mesh"] == {"data": 2, "fsdp": 128, "tensor": 1, "context": 1}
    seconds = plan["schedule_s"]
    assert plan["tokens_per_second_chip"]["schedule"] == pytest.approx(256 * 2048 / seconds / 128)
    whole_chip = plan["model_flops"] * 2 / seconds / 2307e12
    assert plan["mfu"]["schedule"] == pytest.approx(whole_chip)
    devices = [
        SimpleNamespace(platform="tpu", device_kind="TPU7x", coords=(x, 0, 0), slice_index=0)
        for x in (0, 1)
        for _ in range(2)
    ]
    assert topology.of_devices(devices).device_count == 4
    assert mfu(2000, 5e11, "TPU7x", 1) == pytest.approx(1e15 / 1153.5e12)


def test_a_search_for_a_chip_without_flags_does_not_compile_without_them_again(tmp_path):
    with arithmetic_compiler() as compiled:
        outcome = run_plan("tpu7x-8", "--search", "--max_compiles=5", cache=tmp_path, config="stage1:1b")
    assert outcome.code == 0 and compiled and {c["xla_flags"] for c in compiled} == {"auto"}
    assert outcome.out.count("note       seconds on tpu7x are rough") == 1


def test_rows_are_complete():
    for name, chip in (chips.TPUS | chips.GPUS).items():
        assert chip.kinds and all(kind == kind.lower() for kind in chip.kinds), name
        assert min(chip.hbm_bytes, chip.peak_flops, chip.hbm_bandwidth, chip.link_bandwidth, chip.dcn_bandwidth) > 0
    for name, chip in chips.TPUS.items():
        assert chip.clock_hz and chip.compiler_name and len(set(map(len, chip.shapes.values()))) == 1, name
    kinds = [kind for chip in chips.TPUS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
