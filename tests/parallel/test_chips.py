"""The table of chips: a new TPU is one row, and everything that asks for a chip finds it."""

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


def test_rows_are_complete():
    for name, chip in (chips.TPUS | chips.GPUS).items():
        assert chip.kinds and all(kind == kind.lower() for kind in chip.kinds), name
        assert min(chip.hbm_bytes, chip.peak_flops, chip.hbm_bandwidth, chip.link_bandwidth, chip.dcn_bandwidth) > 0
    for name, chip in chips.TPUS.items():
        assert chip.clock_hz and chip.compiler_name and len(set(map(len, chip.shapes.values()))) == 1, name
    kinds = [kind for chip in chips.TPUS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
