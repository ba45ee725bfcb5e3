import cv2
import numpy as np
import pytest

from unet_core.inference import instances


def disc(mask, x, y, radius):
    cv2.circle(mask, (x, y), radius, 1, -1)


class TestComponents:
    def test_touching_by_a_corner_is_apart(self):
        mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]], bool)
        np.testing.assert_array_equal(instances.components(mask), [[1, 0, 0], [0, 2, 2], [0, 0, 2]])


class TestWatershed:
    @pytest.fixture(autouse=True)
    def _needs_scikit_image(self):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")

    def test_overlapping_discs_are_parted_at_their_neck_and_no_pixel_is_lost(self):
        mask = np.zeros((40, 70), np.uint8)
        disc(mask, 20, 20, 12)
        disc(mask, 42, 20, 12)
        labels = instances.watershed(mask == 1)
        assert instances.components(mask == 1).max() == 1
        assert sorted(np.unique(labels)) == [0, 1, 2]
        np.testing.assert_array_equal(labels > 0, mask == 1)
        # The neck is half-way between the middles.
        assert (labels[mask == 1] != 0).all()
        assert len(np.unique(labels[:, :30])) == 2
        assert labels[20, 20] != labels[20, 42]

    def test_ragged_disc_and_single_pixel_stay_whole(self):
        mask = np.zeros((50, 50), np.uint8)
        disc(mask, 22, 22, 15)
        mask[5:40:2, 36:38] = 1
        mask[45, 45] = 1
        labels = instances.watershed(mask == 1)
        assert labels[45, 45] not in (0, labels[22, 22])
        assert len(np.unique(labels[mask == 1])) == instances.components(mask == 1).max()

    def test_nothing_and_everything(self):
        assert instances.watershed(np.zeros((5, 6), bool)).max() == 0
        assert (instances.watershed(np.ones((5, 6), bool)) == 1).all()
