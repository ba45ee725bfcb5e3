"""The largest batch that fits: the line through what was measured, and the mode."""

import re

import pytest
import tensorflow as tf
from helpers.program import check_refused

from unet_core.runs import step_memory
from unet_core.runs.find_batch import Memory

SMALL = ("--mode=find_batch", "--crop_size=64", "--base_filters=4", "--depth=1")


class TestMemory:
    def test_is_the_line_through_the_two_largest(self):
        # 100 + 50 n at 4 and 8; what was measured at 1 does not count.
        memory = Memory.of({1: 999, 4: 300, 8: 500})
        assert (memory.each, memory.fixed) == (50, 100)
        # (1000 - 100) / 50 = 18.
        assert memory.largest(1000) == 18
        assert memory.largest(99) == 0


class TestMode:
    def test_says_the_largest_batch_without_data(self, door):
        code, out, _ = door(*SMALL)
        assert code == 0
        found = int(re.search(r"--global_batch_size=(\d+)", out)[1])
        assert 8 <= found <= 4096
        assert "8 example(s)" in out

    def test_system_that_does_not_tell_its_memory_is_refused(self, door, monkeypatch):
        monkeypatch.setattr(step_memory, "room", lambda: None)
        check_refused(door(*SMALL), "does not tell")

    @pytest.mark.parametrize(
        ("fitting", "code", "words"),
        [(0, 2, ["one example", "does not fit"]), (1, 0, ["--global_batch_size=1."])],
    )
    def test_device_that_runs_out_of_memory(self, door, monkeypatch, fitting, code, words):
        class Trial:
            def __init__(self, model, config):
                self.rows = config.training.global_batch_size

            def run(self):
                if self.rows > fitting:
                    raise tf.errors.ResourceExhaustedError(None, None, "OOM")

        monkeypatch.setattr(step_memory, "Trial", Trial)
        found, out, err = door(*SMALL)
        assert found == code
        assert all(word in out + err for word in words)
