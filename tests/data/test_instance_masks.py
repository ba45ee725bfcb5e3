"""Masks that hold the numbers of objects."""

import cv2
import numpy as np
import pytest
import tifffile

from unet_core.conventions import IGNORED
from unet_core.data import survey
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import ObjectsFound, numbered, of_objects
from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample, Source
from unet_core.data.weight_maps import border_weights
from unet_core.errors import UserError

PLAIN, BORDERED = "0:background,1:nucleus", "0:background,1:nucleus,2:border"


def classes_of(text=PLAIN, border_px=0):
    return of_objects(ClassMap.parse(text), border_px)


class TestClasses:
    @pytest.mark.parametrize("text", ["a,b", "0:a,1:b,2:c,3:d"])
    def test_other_than_two_or_three_that_exclude_one_another_are_refused(self, text):
        with pytest.raises(UserError, match="two or three"):
            classes_of(text)

    def test_class_of_borders_needs_a_width(self):
        with pytest.raises(UserError, match="`border_px` is 0"):
            classes_of(BORDERED)


class TestNumbered:
    def test_every_number_that_is_not_listed_is_an_object(self):
        mask = np.array([[0, 1, 2, 300, 65535, 7]], np.uint16)
        classes = classes_of(PLAIN + ",65535|7:ignore")
        found = numbered([mask], classes)
        np.testing.assert_array_equal(found.numbers, [[0, 1, 2, 300, 0, 0]])
        np.testing.assert_array_equal(found.ids(classes), [[0, 1, 1, 1, IGNORED, IGNORED]])

    def test_zero_is_an_object_where_another_number_is_outside(self):
        found = numbered([np.array([[255, 0, 0, 1]], np.uint8)], classes_of("255:out,1:cell"))
        np.testing.assert_array_equal(found.numbers, [[0, 1, 1, 2]])

    def test_colours_number_objects_too(self):
        mask = np.zeros((1, 3, 3), np.uint8)
        mask[0, 1], mask[0, 2] = (1, 2, 3), (9, 0, 0)
        found = numbered([mask], classes_of("#000000:background,#ffffff:cell"))
        np.testing.assert_array_equal(found.numbers, [[0, 0x010203, 0x090000]])

    def test_one_file_for_each_object(self):
        files = [np.array([row], np.uint8) for row in ([255, 255, 0, 0], [0, 1, 1, 0], [0] * 4)]
        found = numbered(files, classes_of())
        # The second pixel is in both, and of the last.
        np.testing.assert_array_equal(found.numbers, [[1, 2, 2, 0]])
        assert found.claimed_twice == 1

    def test_several_objects_in_one_of_several_files_and_negative_numbers_are_refused(self):
        two = np.array([[1, 2]], np.uint8)
        with pytest.raises(UserError, match="Mask 2 of 2 holds several values"):
            numbered([255 * (two > 1), two], classes_of())
        with pytest.raises(UserError, match="below 0"):
            numbered([np.array([[-1, 0]], np.int32)], classes_of())


class TestBorder:
    # Objects 7 and 9 touch; 4 is two pixels further on.
    mask = np.array([[0, 7, 7, 7, 9, 9, 9, 0, 0, 4, 4]] * 3, np.int32)

    @pytest.mark.parametrize(
        ("reach", "expected"),
        [
            (1, [0, 1, 1, 2, 2, 1, 1, 0, 0, 1, 1]),
            # Each pixel of the gap has both objects within 2; those beside it see only one.
            (2, [0, 1, 2, 2, 2, 2, 1, 2, 2, 1, 1]),
        ],
    )
    def test_is_what_is_within_reach_of_two_objects(self, reach, expected):
        classes = classes_of(BORDERED, reach)
        ids = numbered([self.mask], classes).ids(classes)
        np.testing.assert_array_equal(ids[1], expected)
        # Without a class of its own it is outside.
        classes = classes_of(PLAIN, reach)
        ids = numbered([self.mask], classes).ids(classes)
        np.testing.assert_array_equal(ids[1], np.array(expected) % 2)

    def test_is_counted_in_words(self):
        classes = classes_of(BORDERED, 2)
        found = ObjectsFound(classes)
        single = np.array([[0, 1, 2, 2, 2, 2, 0, 0, 0, 0, 5]])
        for mask in (self.mask, single):
            each = numbered([mask], classes)
            found.add(each.numbers, each.ids(classes), 3)
        # 7, 9, 4 and 1, 2, 5; 7, 9, 1, 2 touch; all of 1 is border.
        assert found.describe().splitlines() == [
            "6 object(s) of nucleus, 4 of them touching another",
            "  1 of them have no pixel of nucleus left beside the border: a smaller --border_px "
            "keeps them.",
            "  6 pixel(s) are claimed by several files of one image; each is of the last of them.",
        ]


class TestReader:
    @pytest.fixture(params=["uint8", "uint16", "uint32"])
    def sample(self, request, tmp_path):
        numbers = np.zeros((8, 12), request.param)
        numbers[2:6, 1:5], numbers[2:6, 5:9] = 3, np.iinfo(request.param).max // 4
        tifffile.imwrite(tmp_path / "mask.tif", numbers)
        cv2.imwrite(str(tmp_path / "image.png"), np.full((8, 12), 9, np.uint8))
        files = [Source(tmp_path / name) for name in ("image.png", "mask.tif")]
        return Sample("a", files[0], (files[1],)), numbers

    def test_gives_classes_numbers_and_weights_between_objects(self, sample):
        sample, numbers = sample
        classes = classes_of(BORDERED, 1)
        read = Reader(classes, Scaling.parse("range"))
        pair = read(sample)
        np.testing.assert_array_equal(pair.instances, numbers)
        expected = (numbers > 0).astype(np.uint8)
        expected[2:6, 4:6] = 2
        np.testing.assert_array_equal(pair.mask, expected)
        np.testing.assert_array_equal(read.mask(sample), expected)
        read.make_weights = border_weights
        weights = read.weights(sample)
        # Row 3: between columns 3 and 6 lie two pixels of border, 1 and 2 from the objects.
        assert weights[3, 4] == weights[3, 5] == pytest.approx(1 + 10 * np.exp(-(3**2) / 50))
        assert (weights[expected == 1] == 1).all()

    def test_survey_tells_of_objects_and_of_classes_not_of_numbers(self, sample):
        sample, _ = sample
        read = Reader(classes_of(BORDERED, 1), Scaling.parse("range"))
        memory = survey.Memory(None, read.classes)
        found = survey.read_pixels([sample], read, memory=memory)
        assert found.problems == ()
        # 96 pixels, two objects of 16, of which 8 are border.
        assert found.values == {0: 64, 1: 24, 2: 8}
        assert found.objects == "2 object(s) of nucleus, 2 of them touching another"
        np.testing.assert_array_equal(found.counts[sample], [64, 24, 8])
        counted = survey.count_classes([sample], read, memory=memory)
        np.testing.assert_array_equal(counted[sample], [64, 24, 8])

    def test_counts_are_remembered_until_a_file_or_the_border_changes(self, tmp_path, monkeypatch):
        # Two objects in files of their own, as the second of which must be looked at too.
        masks = np.zeros((2, 8, 12), np.uint8)
        masks[0, 2:6, 1:5], masks[1, 2:6, 5:9] = 255, 255
        for name, pixels in zip(("image", "0", "1"), (masks[0], *masks), strict=True):
            cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        image, *files = (Source(tmp_path / f"{name}.png") for name in ("image", "0", "1"))
        sample = Sample("a", image, tuple(files))
        read = Reader(classes_of(BORDERED, 1), Scaling.parse("range"))
        kept = tmp_path / "known_masks.json"
        memory = survey.Memory(kept, read.classes)
        assert not survey.is_known(sample, read, memory)
        survey.read_pixels([sample], read, memory=memory)
        memory.store()
        monkeypatch.setattr(read, "mask", None)
        again = survey.Memory(kept, read.classes)
        assert survey.is_known(sample, read, again)
        found = survey.count_classes([sample], read, memory=again)[sample]
        np.testing.assert_array_equal(found, [64, 24, 8])
        wider = survey.Memory(kept, classes_of(BORDERED, 2))
        assert not survey.is_known(sample, read, wider)
        cv2.imwrite(str(tmp_path / "1.png"), masks[1] // 2)
        assert not survey.is_known(sample, read, again)
