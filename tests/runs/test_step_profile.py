"""The profile is that of steps 10 to 20, once."""

import pytest
import tensorflow as tf

from unet_core.runs.step_profile import StepProfile


@pytest.fixture
def calls(monkeypatch):
    found = []
    profiler = tf.profiler.experimental
    monkeypatch.setattr(profiler, "start", lambda path: found.append("start"))
    monkeypatch.setattr(profiler, "stop", lambda: found.append("stop"))
    return found


def steps(profile, *numbers, calls):
    found = {}
    for step in numbers:
        before = len(calls)
        profile.at(step)
        found |= {step: calls[before:]} if len(calls) > before else {}
    return found


def test_begins_at_10_and_ends_at_20(tmp_path, calls):
    profile = StepProfile(tmp_path, 0)
    found = steps(profile, 4, 10, 12, 20, 30, 40, calls=calls)
    profile.close()
    assert found == {10: ["start"], 20: ["stop"]}


def test_ends_with_a_run_that_ends_before(tmp_path, calls):
    profile = StepProfile(tmp_path, 0)
    steps(profile, 10, 14, calls=calls)
    profile.close()
    profile.close()
    assert calls == ["start", "stop"]


def test_run_that_goes_on_later_has_none_and_says_so(tmp_path, calls, capsys):
    profile = StepProfile(tmp_path, 12)
    steps(profile, 20, 30, calls=calls)
    profile.close()
    assert calls == []
    assert "steps 10 to 20 are past" in capsys.readouterr().out


def test_one_that_is_there_is_left_alone(tmp_path, calls, capsys):
    (tmp_path / "plugins" / "profile" / "2026").mkdir(parents=True)
    profile = StepProfile(tmp_path, 0)
    steps(profile, 10, 20, calls=calls)
    assert calls == []
    assert "holds one already" in capsys.readouterr().out
