"""What is said of memory before the first step, and of time after the first that were timed."""

import dataclasses
import mmap
import types

import keras
import pytest
import tensorflow as tf

from unet_core import training
from unet_core.runs import step_memory
from unet_core.runs.outlook import Outlook
from unet_core.settings import RunConfig
from unet_core.training.report import Report

REPORT = Report(
    *(20, True, False, False, 0.5, {}, 1e-3, 1.0, {}, {}, 1.0, 0),
    step_ms=500.0,
    examples_per_sec=8.0,
    data_wait_share=0.0,
)


class Made:
    """An outlook, its loop and a feed of it."""

    def __init__(self):
        self.model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 1)])
        self.config = RunConfig.of(
            global_batch_size=6, micro_batches=2, crop_size=4, train_steps=140
        )
        self.loop = training.Loop(
            self.model,
            keras.optimizers.SGD(0.1, momentum=0.9),
            loss=lambda logits, batch: tf.reduce_mean(logits, [1, 2, 3]),
            micro_batches=2,
        )
        plan = types.SimpleNamespace(config=self.config, workers=types.SimpleNamespace(count=1))
        self.outlook = Outlook(plan, self.model, self.loop)
        batch = (tf.zeros([3, 4, 4, 1]),)
        self.feed = self.loop.feed(lambda *_: tf.data.Dataset.from_tensors(batch).repeat())
        self.say_time = self.outlook.say_time

    def say_memory(self):
        self.outlook.say_memory(self.feed)

    def still_needed(self):
        """Returns the bytes of a step beside weights and optimizer, which are there already."""
        graph = self.loop.trace(self.feed)
        found = step_memory.estimate(graph, self.model, self.loop.optimizer, self.config)
        return found.tensors + found.slack + found.program


@pytest.fixture
def made():
    return Made()


class TestMemory:
    def test_that_does_not_fit_is_a_warning_that_names_what_to_change(
        self, made, monkeypatch, capsys
    ):
        needed = made.still_needed()
        monkeypatch.setattr(step_memory, "available", lambda: needed - 1)
        made.say_memory()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("WARNING: A training step needs about")
        for words in ("--global_batch_size (6)", "--crop_size (4)", "--micro_batches (2)"):
            assert words in err

    def test_that_fits_is_a_line(self, made, monkeypatch, capsys):
        needed = made.still_needed()
        monkeypatch.setattr(step_memory, "available", lambda: needed)
        made.say_memory()
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith("A training step needs about")

    def test_that_is_not_known_is_not_spoken_of(self, made, monkeypatch, capsys):
        monkeypatch.setattr(step_memory, "available", lambda: None)
        made.say_memory()
        assert capsys.readouterr() == ("", "")

    def test_is_said_without_a_trace_of_its_own(self, made, capsys):
        made.say_memory()
        list(made.loop.train(made.feed, until_step=3))
        assert made.loop.traces["train"] == 1

    def test_in_use_is_what_is_resident(self):
        # Not of malloc, which may keep what is freed.
        with mmap.mmap(-1, 64 << 20) as ballast:
            ballast.write(b"1" * (64 << 20))
            with_it, of = step_memory.in_use()
        assert of == "resident memory of this process"
        assert with_it - step_memory.in_use()[0] > 32 << 20


class TestTime:
    def test_is_said_once_at_the_first_report_that_was_timed(self, made, monkeypatch, capsys):
        monkeypatch.setattr(step_memory, "in_use", lambda: (1_234_000_000, "in use"))
        made.say_time(dataclasses.replace(REPORT, step_ms=float("nan")))
        assert capsys.readouterr().out == ""
        made.say_time(REPORT)
        # 140 - 20 = 120 steps of half a second.
        assert capsys.readouterr().out == (
            "Step 20: at 500 ms a step the other 120 take about 1 min 0 s, evaluations not "
            "counted; 1,234 MB in use.\n"
        )
        made.say_time(dataclasses.replace(REPORT, step=40))
        assert capsys.readouterr().out == ""

    def test_is_not_said_at_the_end(self, made, capsys):
        made.say_time(dataclasses.replace(REPORT, step=140))
        assert capsys.readouterr().out == ""
