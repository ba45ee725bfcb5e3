import numpy as np
import pytest

from unet_core.reports import pictures


class TestErrors:
    def test_missed_pixels_are_blue_invented_ones_red_and_others_dimmed(self):
        image = np.full((1, 4), 100, np.uint8)
        truth = np.array([[1, 1, 0, 0]])
        predicted = np.array([[1, 0, 1, 0]])
        found = pictures.errors(image, truth, predicted, of_class=1)
        # 100 / 2 + 64 = 114.
        assert found.tolist() == [
            [
                [114, 114, 114],
                list(pictures.MISSED_BGR),
                list(pictures.INVENTED_BGR),
                [114, 114, 114],
            ]
        ]
        blue, red = pictures.MISSED_BGR, pictures.INVENTED_BGR
        assert blue.index(max(blue)) == 0
        assert red.index(max(red)) == 2

    def test_confusion_of_other_classes_is_no_error_of_this_one(self):
        image = np.full((1, 1), 100, np.uint8)
        found = pictures.errors(image, np.array([[2]]), np.array([[0]]), of_class=1)
        assert found.tolist() == [[[114, 114, 114]]]

    def test_brightest_grey_stays_within_range(self):
        image = np.full((1, 1), 255, np.uint8)
        ids = np.array([[0]])
        # 255 // 2 + 64 = 191.
        assert pictures.errors(image, ids, ids, of_class=1).tolist() == [[[191, 191, 191]]]


class TestOverlay:
    def test_most_frequent_class_is_clear_and_others_are_blended(self):
        image = np.full((1, 3), 100, np.uint8)
        found = pictures.overlay(image, np.array([[1, 0, 1]]), alpha=0.5)
        # Class 0 is vermilion, (0, 94, 213) in BGR: half of it and half of 100.
        assert found[0, 0].tolist() == found[0, 2].tolist() == [100, 100, 100]
        np.testing.assert_allclose(found[0, 1], [50, 97, 156.5], atol=0.5)

    def test_classes_have_different_colours(self):
        image = np.full((1, 10), 100, np.uint8)
        found = pictures.overlay(image, np.array([[0, 0, 0, 1, 2, 3, 4, 5, 6, 7]]))
        assert len({tuple(pixel) for pixel in found[0].tolist()}) == 8

    def test_colours_repeat_beyond_eight_classes(self):
        image = np.full((1, 5), 100, np.uint8)
        found = pictures.overlay(image, np.array([[0, 0, 0, 1, 9]]))
        assert found[0, 3].tolist() == found[0, 4].tolist() != [100, 100, 100]

    def test_image_is_not_changed(self):
        image = np.full((1, 3), 100, np.uint8)
        pictures.overlay(image, np.array([[1, 0, 1]]))
        assert (image == 100).all()


class TestSideBySide:
    def test_pictures_stand_in_frames_under_their_titles(self):
        grey = np.full((10, 60), 80, np.uint8)
        colour = np.full((10, 70, 3), (1, 2, 3), np.uint8)
        found = pictures.side_by_side([grey, colour], ["one", "two"])
        # Frames add 22 above, 4 below and 4 on either side.
        assert found.shape == (36, 68 + 78, 3)
        assert (found[22:32, 4:64] == 80).all()
        assert (found[22:32, 72:142] == (1, 2, 3)).all()
        assert (found[32:] == 255).all()
        for title in (found[:22, :68], found[:22, 68:]):
            assert title.min() < 100

    def test_titles_must_be_as_many_as_pictures(self):
        with pytest.raises(ValueError, match="zip"):
            pictures.side_by_side([np.zeros((4, 4), np.uint8)], [])
