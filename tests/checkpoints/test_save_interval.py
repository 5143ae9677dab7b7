"""checkpoint.every_minutes: a fixed time, or what Young's formula makes of measured saves."""

import pytest

from mmed_jax.checkpoints.save_interval import SaveInterval
from mmed_jax.common.errors import UserError
from mmed_jax.config.checks import validate
from mmed_jax.config.overrides import set_override
from mmed_jax.config.recipes import load_config
from tests.support.checkpoints import CONFIG, checkpointer, make_state


def test_the_interval_is_the_cheapest_one():
    fixed = SaveInterval(2.5, 24.0)
    fixed.add(100.0)
    assert fixed.seconds == 150 and SaveInterval(0, 24.0).seconds == 0
    auto = SaveInterval("auto", 4.0)
    assert auto.seconds == pytest.approx((2 * 1 * 4 * 3600) ** 0.5)  # before a save was measured
    for blocked in (30.0, 10.0, 10.0):  # the first one takes longer
        auto.add(blocked)
    assert auto.seconds == pytest.approx(536.7, abs=0.1)

    def cost(seconds):  # of saves, and of steps taken again, by second of the run
        return 10 / seconds + seconds / 2 / (4 * 3600)

    assert cost(auto.seconds) <= min(cost(auto.seconds * 0.9), cost(auto.seconds * 1.1))


def test_a_run_saves_as_often_as_its_measured_saves_ask_for(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("mmed_jax.checkpoints.checkpointer.time.monotonic", lambda: now[0])
    hours = 800 / 3600  # 40 s for a save that is assumed to take 1 s
    with checkpointer(tmp_path, every_minutes="auto", mean_hours_between_interruptions=hours, keep_last=99) as c:
        save, saved = c._manager.save, []

        def takes_four_seconds(*args, **keys):
            now[0] += 4
            return save(*args, **keys)

        monkeypatch.setattr(c._manager, "save", takes_four_seconds)
        for step in range(1, 25):
            now[0] += 10
            if c.maybe_save(step, make_state(), data_state={}, config=CONFIG):
                saved.append(step)
        assert saved == [4, 12, 20]  # then 80 s = sqrt(2 x 4 x 800)
        assert c.last_save() == {"blocked_seconds": 4, "next_save_seconds": pytest.approx(80)}


def test_the_keys_are_checked():
    config = load_config("stage1:demo")
    set_override(config, "checkpoint.every_minutes", "auto")
    set_override(config, "checkpoint.mean_hours_between_interruptions", "4")
    validate(config)
    assert config.checkpoint.every_minutes == "auto"
    set_override(config, "checkpoint.every_minutes", "15")
    assert config.checkpoint.every_minutes == 15.0
    with pytest.raises(UserError, match="checkpoint.every_minutes=often: must be a number or auto"):
        set_override(config, "checkpoint.every_minutes", "often")
    set_override(config, "checkpoint.mean_hours_between_interruptions", "0")
    with pytest.raises(UserError, match="mean_hours_between_interruptions=0.0: must be greater than 0"):
        validate(config)
