import numpy as np
import pytest

from unet_core import scores
from unet_core.conventions import IGNORED


def best(images, masks, class_id):
    baseline = scores.ThresholdBaseline(2)
    for image, mask in zip(images, masks, strict=True):
        baseline.add(image, mask)
    return baseline.best(class_id)


class TestThresholdBaseline:
    def test_dark_side_matches_the_hand_value(self):
        # Three pixels of grey 10, all of class 0; two of 20, one of each class; four of 30, all of
        # class 1. Class 0 as grey <= 10 is 2 * 3 / (3 + 4) = 6/7, as grey <= 20 it is
        # 2 * 4 / (5 + 4) = 8/9. The row is its own mirror image, so that no blur tells one 20 from
        # the other.
        image = np.array([[10, 30, 20, 30, 10, 30, 20, 30, 10]] * 3, np.uint8)
        mask = np.array([[0, 1, 0, 1, 0, 1, 1, 1, 0]] * 3, np.uint8)
        dice, how = best([image], [mask], 0)
        assert dice == pytest.approx(8 / 9)
        assert how == "grey <= 20"

    def test_bright_side_is_tried_too(self):
        image = np.array([[200, 200], [50, 40]], np.uint8)
        mask = np.array([[1, 1], [0, 0]], np.uint8)
        dice, how = best([image], [mask], 1)
        assert dice == 1
        assert how == "grey > 50"

    def test_one_threshold_serves_all_images(self):
        # Each image alone could be parted exactly, but grey 100 is class 1 in one of them and
        # class 0 in the other. Class 1: 4 + 4 of 16 pixels; above 50 are the 12 of grey 100 and
        # 150 (dice 16/20), above 100 the 4 of grey 150 (dice 8/12).
        first = np.repeat(np.array([[50, 100]], np.uint8), 2, 1).repeat(2, 0)
        second = np.repeat(np.array([[100, 150]], np.uint8), 2, 1).repeat(2, 0)
        mask = np.array([[0, 0, 1, 1]] * 2, np.uint8)
        for image in (first, second):
            assert best([image], [mask], 1)[0] == 1
        dice, how = best([first, second], [mask, mask], 1)
        assert dice == pytest.approx(0.8)
        assert how.startswith("grey > ")

    def test_blur_helps_against_noise(self):
        rng = np.random.default_rng(0)
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 32:] = 1
        image = np.clip(100 + 40 * mask + rng.normal(0, 30, mask.shape), 0, 255).astype(np.uint8)
        dice, how = best([image], [mask], 1)
        assert dice > 0.95
        assert "after a blur of" in how

    def test_class_that_is_not_there_scores_zero(self):
        image = np.array([[1, 2]], np.uint8)
        assert best([image], [np.zeros((1, 2), np.uint8)], 1) == (
            0.0,
            "no threshold",
        )

    def test_ignored_pixels_do_not_count(self):
        # Without the pixel of grey 40 the classes part exactly at 50.
        image = np.array([[200, 40], [50, 40]], np.uint8)
        mask = np.array([[1, IGNORED], [0, 0]], np.uint8)
        assert best([image], [mask], 1) == (1.0, "grey > 50")
