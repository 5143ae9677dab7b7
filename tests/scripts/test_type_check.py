"""The ratchet of type errors: more fail, fewer have to be written down, clean rooms have none."""

import json

import pytest

from mmed_jax.common.errors import WorkError
from scripts import type_check


def error(file: str, line: int = 1) -> dict:
    return {"file": file, "line": line, "message": "no", "code": "misc", "severity": "error"}


@pytest.fixture
def ratchet(tmp_path, monkeypatch):
    """Runs the command on given errors; returns what the counts are afterwards."""
    monkeypatch.setattr(type_check, "RATCHET", tmp_path / "type_errors.json")

    def run(allowed: dict[str, int], errors: list[dict], *flags: str) -> dict[str, int]:
        type_check.RATCHET.write_text(json.dumps(allowed))
        monkeypatch.setattr(type_check, "find_errors", lambda: errors)
        monkeypatch.setattr("sys.argv", ["type_check", *flags])
        type_check.main()
        return json.loads(type_check.RATCHET.read_text())

    return run


def test_a_rise_fails_and_names_the_errors(ratchet, capsys):
    with pytest.raises(WorkError):
        ratchet({"mmed_jax/train.py": 1}, [error("mmed_jax/train.py", 3), error("mmed_jax/train.py", 7)])
    said = capsys.readouterr().err
    assert "mmed_jax/train.py:7: no [misc]" in said and "2 type errors, 1 allowed" in said


def test_a_fall_tells_to_lower_the_counts(ratchet, capsys):
    with pytest.raises(WorkError, match="--write"):
        ratchet({"mmed_jax/train.py": 2}, [error("mmed_jax/train.py")])
    assert "fewer than the 2 allowed" in capsys.readouterr().err
    assert ratchet({"mmed_jax/train.py": 2}, [error("mmed_jax/train.py")], "--write") == {"mmed_jax/train.py": 1}


def test_write_follows_a_move_and_refuses_a_rise(ratchet):
    assert ratchet({"mmed_jax/train.py": 1}, [error("mmed_jax/plan.py")], "--write") == {"mmed_jax/plan.py": 1}
    with pytest.raises(WorkError, match="may only fall"):
        ratchet({"mmed_jax/train.py": 1}, [error("mmed_jax/plan.py"), error("mmed_jax/train.py")], "--write")


def test_what_is_written_today_is_sorted():
    counts = json.loads(type_check.RATCHET.read_text(encoding="utf-8"))
    assert list(counts) == sorted(counts) and min(counts.values()) > 0
    assert not [file for file in counts if file.startswith(type_check.CLEAN)]
