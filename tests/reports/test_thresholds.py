import numpy as np
import pytest

from unet_core import metrics
from unet_core.conventions import IGNORED
from unet_core.inference.masks import Threshold, Thresholds, predicted_ids
from unet_core.reports.thresholds import THRESHOLDS, ThresholdCounts, score_by, score_of_class

NAMES = ("membrane", "cell")


def two(second):
    second = np.asarray(second, np.float32)
    return np.stack([1 - second, second], -1)


class TestThresholdCounts:
    @pytest.mark.parametrize("class_id", [0, 1])
    def test_confusion_is_that_of_the_masks_at_every_threshold(self, class_id):
        rng = np.random.default_rng(0)
        # Probabilities that are thresholds are among them.
        probabilities = two(rng.integers(0, 101, (20, 30)).astype(np.float32) / 100)
        truth = rng.choice([0, 1, IGNORED], (20, 30)).astype(np.uint8)
        counts = ThresholdCounts(class_id)
        counts.add(probabilities[:7], truth[:7])
        counts.add(probabilities[7:], truth[7:])
        kept = truth != IGNORED
        for number, value in enumerate(THRESHOLDS):
            ids = predicted_ids(probabilities, Threshold(class_id, float(value)))
            expected = np.zeros((2, 2), int)
            np.add.at(expected, (truth[kept], ids[kept]), 1)
            np.testing.assert_array_equal(counts.confusion((number + 1) / 100), expected)

    def test_best_threshold_separates_the_classes(self):
        # Above 0.72 all is cell, below all is membrane: 0.7 to 0.71 are right, and nearest to
        # 1/2 is 0.7.
        counts = ThresholdCounts(1)
        counts.add(two([[0.1, 0.4, 0.7, 0.72, 0.9]]), np.array([[0, 0, 0, 1, 1]], np.uint8))
        assert counts.best("dice/cell", NAMES) == (0.7, 1.0)

    def test_of_equal_scores_that_nearest_to_a_half_wins(self):
        counts = ThresholdCounts(1)
        counts.add(two([[0.1, 0.9]]), np.array([[0, 1]], np.uint8))
        assert counts.best("accuracy", NAMES).value == 0.5

    def test_counts_are_added(self):
        first, second, both = (ThresholdCounts(1) for _ in range(3))
        first.add(two([[0.2]]), np.array([[0]]))
        second.add(two([[0.6]]), np.array([[1]]))
        both.add(two([[0.2, 0.6]]), np.array([[0, 1]]))
        np.testing.assert_array_equal((first + second).confusion(0.5), both.confusion(0.5))

    def test_nothing_counted_has_no_score(self):
        value, score = ThresholdCounts(1).best("dice/cell", NAMES)
        assert value == 0.5
        assert np.isnan(score)


class TestOverlapping:
    # Cells have the bits 1, nuclei 2.
    P = np.array([[[0.3, 0.8], [0.3, 0.7], [0.2, 0.6], [0.1, 0.2]]], np.float32)
    TRUTH = np.array([[3, 1, 2, IGNORED]], np.uint8)

    def counts(self, class_id):
        found = ThresholdCounts(class_id, overlapping=True)
        found.add(self.P, self.TRUTH)
        return found

    def test_confusion_is_of_the_pixels_with_and_without_the_class(self):
        # Of three pixels two are cells and two are nuclei. Above 0.25 are the two cells; above 0.65
        # are a nucleus and one that is none.
        assert self.counts(0).confusion(0.25).tolist() == [[1, 0], [0, 2]]
        assert self.counts(1).confusion(0.65).tolist() == [[0, 1], [1, 1]]
        for values in ((0.25, 0.65), (0.5, 0.1)):
            ids = predicted_ids(self.P, Thresholds(values))
            for class_id, value in enumerate(values):
                kept, bit = self.TRUTH != IGNORED, 1 << class_id
                expected = np.zeros((2, 2), int)
                where = (self.TRUTH[kept] & bit > 0).astype(int), (ids[kept] & bit > 0).astype(int)
                np.add.at(expected, where, 1)
                assert self.counts(class_id).confusion(value).tolist() == expected.tolist()

    def test_each_class_has_the_threshold_that_is_best_by_its_own_score(self):
        names = ("cells", "nuclei")
        # Cells have 0.3, and what is none has 0.2. Nuclei have 0.8 and 0.6, and what is none 0.7:
        # below 0.6 two of three are right and none is missed, Dice 2 * 2 / (3 + 2).
        for monitor in ("dice/mean", "dice/nuclei", "loss"):
            assert self.counts(0).best(monitor, names) == (0.29, 1.0)
            assert self.counts(1).best(monitor, names) == (0.5, 0.8)

    def test_score_of_a_class_is_like_that_of_the_monitor(self):
        names = ("cells", "nuclei")
        monitors = ("iou/mean", "recall/cells", "accuracy", "loss")
        found = [score_of_class(monitor, names, 1) for monitor in monitors]
        assert found == ["iou/nuclei", "dice/nuclei", "accuracy", "dice/nuclei"]


class TestScoreBy:
    @pytest.mark.parametrize(
        ("monitor", "expected"),
        [
            ("dice/cell", "dice/cell"),
            ("accuracy", "accuracy"),
            ("precision/cell", "dice/cell"),
            ("recall/membrane", "dice/membrane"),
            ("loss", "dice/mean"),
            ("majority_baseline", "dice/mean"),
        ],
    )
    def test_what_is_best_at_a_trivial_threshold_is_replaced(self, monitor, expected):
        assert score_by(monitor, NAMES) == expected
        assert expected in metrics.scores(np.zeros((2, 2)), NAMES)
