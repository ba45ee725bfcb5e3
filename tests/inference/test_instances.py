import cv2
import numpy as np
import pytest

from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import of_objects
from unet_core.errors import UserError
from unet_core.inference import instances

BORDERED = of_objects(ClassMap.parse("0:background,1:nucleus,2:border"), 2)


def discs(*circles, shape=(40, 70)):
    """Returns a mask of discs, each x, y and radius."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = [(x - column) ** 2 + (y - row) ** 2 <= radius**2 for column, row, radius in circles]
    return np.any(found, axis=0)


def ellipse(long, short, degrees):
    """Returns a mask of one ellipse, whose middle is between pixels."""
    reach = int(long) + 4
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] - 0.3
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return ((x * cosine + y * sine) / long) ** 2 + ((y * cosine - x * sine) / short) ** 2 < 1


class TestComponents:
    def test_touching_by_a_corner_is_one_as_by_watershed_and_scikit_image(self):
        mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]], bool)
        found = instances.components(mask)
        np.testing.assert_array_equal(found, [[1, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 2]])
        measure = pytest.importorskip("skimage.measure", reason="`scores` is not installed")
        np.testing.assert_array_equal(found, measure.label(mask))
        np.testing.assert_array_equal(found, instances.watershed(mask))

    def test_smaller_ones_are_left_out_and_numbers_have_no_gaps(self):
        mask = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
        found = instances.components(mask, least_px=3)
        np.testing.assert_array_equal(found, [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])


class TestWatershed:
    @pytest.fixture(autouse=True)
    def _needs_scikit_image(self):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")

    def test_overlapping_discs_are_parted_at_their_neck_and_no_pixel_is_lost(self):
        mask = discs((20, 20, 12), (42, 20, 12))
        labels = instances.watershed(mask)
        assert instances.components(mask).max() == 1
        np.testing.assert_array_equal(labels > 0, mask)
        assert labels.max() == 2
        # The neck is half-way between the middles, at column 31.
        np.testing.assert_array_equal(labels[:, :31], mask[:, :31] * labels[20, 20])
        np.testing.assert_array_equal(labels[:, 32:], mask[:, 32:] * labels[20, 42])

    @pytest.mark.parametrize(("long", "short"), [(12, 12), (25, 17), (25, 8), (15, 3)])
    def test_ellipse_is_one_object_whichever_way_it_lies(self, long, short):
        found = [instances.watershed(ellipse(long, short, d)).max() for d in (0, 15, 30, 45, 75)]
        assert found == [1] * 5

    def test_objects_are_8_connected(self):
        # A line one pixel wide, and two squares that touch in a corner: the middle of a square is
        # 2 pixels from the outside, the way through the corner 1, which is less by one.
        mask = np.eye(12, dtype=bool)
        assert instances.watershed(mask).max() == 1
        mask = np.zeros((12, 12), bool)
        mask[1:4, 1:4] = True
        np.testing.assert_array_equal(instances.watershed(mask), mask)

    def test_ragged_disc_and_single_pixel_stay_whole(self):
        mask = discs((22, 22, 15), shape=(50, 50))
        mask[5:40:2, 36:38] = True
        mask[45, 45] = True
        labels = instances.watershed(mask)
        assert labels[45, 45] not in (0, labels[22, 22])
        inside = labels[discs((22, 22, 14), shape=(50, 50))]
        assert (inside == labels[22, 22]).all()

    def test_same_mask_gives_the_same_partition_with_any_number_of_threads(self):
        noise = np.random.default_rng(2).random((120, 130))
        mask = cv2.GaussianBlur(noise, (0, 0), 2) > 0.5
        threads = cv2.getNumThreads()
        try:
            found = []
            for count in (1, 2, 5):
                cv2.setNumThreads(count)
                found.append(instances.watershed(mask))
        finally:
            cv2.setNumThreads(threads)
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])
        # A part of the picture is partitioned as in the whole.
        count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        for number in (1, count - 1):
            alone = instances.watershed(parts == number)
            whole = np.where(parts == number, found[0], 0)
            pairs = {*zip(alone[alone > 0], whole[alone > 0], strict=True)}
            assert len(pairs) == alone.max() == len(np.unique(whole)) - 1

    def test_border_separates_what_has_no_neck_and_is_shared_out(self):
        # A bar of 8 rows: no neck. Columns 9 and 10 are border, so each half gets one of them.
        mask = np.zeros((10, 20), bool)
        mask[1:9, 1:19] = True
        border = np.zeros_like(mask)
        border[1:9, 9:11] = True
        assert instances.watershed(mask).max() == 1
        labels = instances.watershed(mask & ~border, border)
        expected = np.zeros((10, 20), int)
        expected[1:9, 1:10], expected[1:9, 10:19] = 1, 2
        np.testing.assert_array_equal(labels, expected)

    def test_border_without_an_object_is_none_and_a_neck_without_border_splits_nothing(self):
        mask = discs((20, 20, 12), (42, 20, 12))
        border = discs((64, 5, 3))
        np.testing.assert_array_equal(instances.watershed(mask, border), mask)

    def test_small_objects_go_to_what_they_touch_or_are_left_out(self):
        # Discs of radius 10 and 5 have about 314 and 79 pixels; the last stands alone.
        mask = discs((15, 20, 10), (30, 20, 5), (60, 20, 5))
        assert instances.watershed(mask).max() == 3
        labels = instances.watershed(mask, least_px=100)
        np.testing.assert_array_equal(labels, mask & (np.arange(70) < 40))
        # Two halves of up to 79 pixels are one object of more than 100.
        mask = discs((15, 20, 5), (25, 20, 5))
        assert instances.watershed(mask).max() == 2
        np.testing.assert_array_equal(instances.watershed(mask, least_px=100), mask)

    def test_nothing_and_everything(self):
        assert instances.watershed(np.zeros((5, 6), bool)).max() == 0
        assert (instances.watershed(np.ones((5, 6), bool)) == 1).all()

    def test_regions_too_large_to_flood_are_refused(self, monkeypatch):
        monkeypatch.setattr(instances, "_MOST_PIXELS", 29)
        with pytest.raises(UserError, match="over 6x5 pixels"):
            instances.watershed(np.ones((5, 6), bool))


class TestNumberObjects:
    ids = np.array([[1, 1, 2, 2, 1, 0]], np.uint8)

    def test_by_default_goes_by_the_border_if_there_is_one(self):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")
        found = instances.number_objects(self.ids, BORDERED, "")
        np.testing.assert_array_equal(found, [[1, 1, 1, 2, 2, 0]])
        found = instances.number_objects(self.ids, BORDERED, "", how="components")
        np.testing.assert_array_equal(found, [[1, 1, 0, 0, 2, 0]])

    def test_of_masks_of_classes_no_class_is_a_border(self):
        classes = ClassMap.parse("0:background,1:nucleus,2:other")
        for how in ("none", "components"):
            found = instances.number_objects(self.ids, classes, "nucleus", how=how)
            np.testing.assert_array_equal(found, [[1, 1, 0, 0, 2, 0]])
