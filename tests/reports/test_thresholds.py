import numpy as np
import pytest

from unet_core import metrics
from unet_core.conventions import IGNORED
from unet_core.inference.masks import Threshold, predicted_ids
from unet_core.reports.thresholds import THRESHOLDS, ThresholdCounts, score_by

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
