"""Functions of one's own that flags name: loss, metric, augmentation, control."""

import csv
import sys
import textwrap
import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.program import TINY, check_refused, write_slices

from unet_core import losses
from unet_core.runs import hooks

SMALL = [*TINY, "--train_steps=4"]
CODE = """
    import tensorflow as tf
    from unet_core.training.controls import Decision

    def loss(masks, logits):
        return tf.reduce_mean(tf.cast(masks, tf.float32), [1, 2]) + 0 * logits[:, 0, 0, 0]

    def mean_loss(masks, logits):
        return tf.reduce_mean(logits)

    def wrong_arguments(masks):
        return masks

    def raises(masks, logits):
        raise KeyError("nothing here")

    def metric(masks, logits):
        cells = tf.cast(masks == 1, tf.float32)
        return {"cells": (tf.reduce_mean(cells), tf.size(cells))}

    def bare_metric(masks, logits):
        return {"cells": tf.reduce_mean(logits)}

    def taken_metric(masks, logits):
        return {"dice/mean": (1.0, 1.0)}

    def black(image, mask, rng):
        return 0 * image, mask

    def shift(image, mask, rng):
        return image + rng.integers(0, 3, dtype="uint8"), mask

    def smaller(image, mask, rng):
        return image[:-1], mask

    class Once:
        name = "once"
        def __init__(self, monitor):
            self.monitor, self.asked = monitor, tf.Variable(0)
            self.state = {"asked": self.asked}
        @property
        def stopped(self):
            return int(self.asked) >= 1
        def decide(self, evaluation):
            self.asked.assign_add(1)
            return Decision(stop=True, reasons=(f"seen {self.monitor}",))

    def no_control(monitor):
        return object()

    number = 3
"""


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"), test_slices=0)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(textwrap.dedent(CODE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


class TestLoss:
    def test_is_summed_with_those_of_the_package(self):
        def own(name):
            return hooks.make_own_loss(name, 2)

        loss = losses.parse("cross_entropy:2,mine:loss:0.5,mine:loss", own=own)
        masks, logits = np.ones((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 1), np.float32)
        # Cross entropy of a logit of 0 is ln 2; the mean of the mask is 1.
        np.testing.assert_allclose(loss(masks, logits), [2 * np.log(2) + 1.5] * 2, rtol=1e-6)

    @pytest.mark.parametrize("classes", [1, 2, 3])
    def test_of_classes_that_may_overlap_it_gets_a_logit_of_each(self, monkeypatch, classes):
        given = []
        own = types.ModuleType("mine")
        own.loss = lambda *pair: given.append(pair) or tf.zeros(2)
        monkeypatch.setitem(sys.modules, "mine", own)
        hooks.make_own_loss("mine:loss", classes, overlapping=True)
        masks, logits = given[0]
        assert set(np.unique(masks)) == set(range(2**classes))
        assert logits.shape[-1] == classes

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("mine:mean_loss", ["shape [B]", "(2,)", "of shape ()"]),
            ("mine:wrong_arguments", ["my_loss(masks, logits)"]),
            ("mine:raises", ["KeyError", "mine.py, line", "nothing here"]),
            ("mine:number", ["number is no function"]),
            ("mine:nobody", ["nobody is not there"]),
            ("nowhere:loss", ["nowhere cannot be imported"]),
            ("mine:loss:heavy", ["'mine:loss:heavy'", "name:weight"]),
        ],
    )
    def test_mistakes_are_refused_before_the_run_folder_is_made(
        self, door, slices, tmp_path, name, words
    ):
        result = door(f"--data_dir={slices}", "--run_dir=run", *SMALL, f"--loss={name}")
        check_refused(result, "--loss", *words)
        assert not (tmp_path / "run").exists()


class TestMetric:
    def test_score_is_that_of_all_batches_together(self):
        metric = hooks.OwnMetric("mine:metric", 2)
        masks = [np.zeros((2, 4, 4), np.uint8), np.ones((1, 4, 4), np.uint8)]
        sums = [metric.sums(tf.constant(m), tf.zeros((*m.shape, 1))) for m in masks]
        # 16 of 48 pixels are of class 1; a mean of the batches would be a half.
        total = {name: sum(each[name] for each in sums) for name in sums[0]}
        assert metric.scores(total) == {"cells": pytest.approx(1 / 3)}

    @pytest.mark.parametrize(
        ("name", "words"),
        [("bare_metric", ["(value, weight)", "'cells'"]), ("taken_metric", ["'dice/mean'"])],
    )
    def test_mistakes_are_refused(self, door, slices, name, words):
        result = door(f"--data_dir={slices}", "--run_dir=run", *SMALL, f"--metric=mine:{name}")
        check_refused(result, "--metric", *words)


class TestAugmentation:
    def test_is_done_after_the_recipe_with_a_generator_of_the_sample(self):
        augment = hooks.make_own_augmentation("mine:shift", 1)
        image, mask = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
        one, same = (augment(image, mask, np.random.default_rng(5))[0] for _ in range(2))
        np.testing.assert_array_equal(one, same)
        assert not image.any()

    def test_other_shapes_are_refused(self, door, slices):
        args = ["--augmentation=mine:smaller"]
        result = door(f"--data_dir={slices}", "--run_dir=run", *SMALL, *args)
        check_refused(result, "--augmentation", "image as (16, 16) uint8", "(15, 16)")


class TestProgram:
    def test_trains_with_all_of_them(self, door, slices, tmp_path):
        args = ["--loss=cross_entropy,mine:loss", "--metric=mine:metric", "--monitor=cells"]
        args += ["--augmentation=mine:black", "--control=mine:Once"]
        same = [f"--data_dir={slices}", "--run_dir=run", *SMALL, *args]
        code, out, err = door(*same)
        assert code == 0, err
        assert "Training ends here: seen cells." in out
        with (tmp_path / "run" / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["2"]
        assert 0 < float(rows[0]["held_out/cells"]) < 1
        code, out, _ = door(*same)
        assert code == 0
        assert "leave --control out" in out
        # Nothing of it is imported by what works with the finished run.
        sys.modules.pop("mine")
        (tmp_path / "mine.py").unlink()
        code, _, err = door("--mode=evaluate", "--run_dir=run", f"--data_dir={slices}")
        assert code == 0, err

    def test_what_is_no_control_is_refused(self, door, slices):
        result = door(f"--data_dir={slices}", "--run_dir=run", *SMALL, "--control=mine:no_control")
        check_refused(result, "--control", "has no name")

    def test_what_is_no_name_is_refused(self, door):
        check_refused(door("--metric=my metric"), "--metric ('my metric')", "my_module:my_function")
