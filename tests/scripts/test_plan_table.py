"""The table of adapters in docs/performance.md: what its cells say is what `plan` says of the same settings."""

import json
import re

import pytest

from scripts import plan_table
from tests.support.planning import arithmetic_compiler, run_plan

GIB = 2**30


def table(capsys, *argv):
    plan_table.main(["--adapters", *argv])
    head, _, *rows = (line.strip("| \n").split(" | ") for line in capsys.readouterr().out.splitlines())
    return {(r[0], r[1]): dict(zip(head[2:], r[2:], strict=True)) for r in rows}


def test_cells_are_what_plan_says_of_the_same_settings(capsys, tmp_path):
    rows = table(capsys, "--only=8b")
    assert list(rows) == [("8b", way) for way in plan_table.WAYS.values()]
    checked = 0
    for way, config in zip(rows, ("stage1:8b", "stage1:8b-lora", "stage1:8b-qlora"), strict=True):
        for chip, text in rows[way].items():
            if text == "does not fit":
                with arithmetic_compiler(off=1.0):
                    assert run_plan(plan_table.CHIPS[chip][-1], "--no_verify", config=config).code == 1
                continue
            name, parts, memory, seconds, speed = re.fullmatch(
                r"(?:(\S+), )?(\d+) parts?: ([\d.]+) GiB, ([\d.,]+) s, ([\d,]+)", text
            ).groups()
            with arithmetic_compiler(off=1.0):
                flags = (name or plan_table.CHIPS[chip][0], f"--json={tmp_path}/plan.json")
                assert run_plan(*flags, config=config, grad_accum=parts, remat="full").code == 0
            found = json.loads((tmp_path / "plan.json").read_text())
            assert float(memory) == pytest.approx(found["needed_bytes"] / GIB, abs=0.06)
            assert float(seconds.replace(",", "")) == pytest.approx(found["schedule_s"], abs=0.06)
            assert int(speed.replace(",", "")) == round(found["tokens_per_second_chip"]["schedule"])
            checked += 1
    assert checked > 10


def test_less_is_held_where_less_is_trained(capsys):
    rows = table(capsys)
    chips = {chip: names for chip, names in plan_table.CHIPS.items() if not chip.startswith("one")}
    for size in plan_table.SIZES:
        for chip, names in chips.items():
            cells = [rows[size, way][chip] for way in plan_table.WAYS.values()]
            places = [len(names) if c == "does not fit" else names.index(c.split(",")[0]) for c in cells]
            assert places == sorted(places, reverse=True), (size, chip, cells)
    # One card of 80 GB: an 8B with an adapter, a 70B in four bits.
    held = {key for key, cells in rows.items() if cells["one H100"] != "does not fit"}
    assert {("8b", "LoRA"), ("70b", "QLoRA, nf4")} <= held and not {("8b", "full"), ("70b", "LoRA")} & held


def test_what_no_row_has_is_refused(capsys):
    with pytest.raises(SystemExit) as e:
        plan_table.main(["--adapters", "--only=9b"])
    assert e.value.code == 2 and "--only=9b: no variant has that; there are 1b, 3b" in capsys.readouterr().err
