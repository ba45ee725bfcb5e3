import importlib.util

import numpy as np
import pytest

from unet_core.errors import UserError
from unet_core.inference.post_processing import Step, check_installed, post_process

A, B, C = range(3)


def ids_of(*rows):
    return np.array([[int(letter) for letter in row] for row in rows], np.uint8)


def done(ids, *steps, probabilities=None):
    if probabilities is None:
        probabilities = np.full((*ids.shape, 3), 1 / 3, np.float32)
    before = ids.copy()
    found = post_process(ids, probabilities, steps)
    np.testing.assert_array_equal(ids, before)
    assert found.dtype == np.uint8
    return found.tolist()


class TestFillHoles:
    @pytest.fixture(autouse=True)
    def _needs_scipy(self):
        pytest.importorskip("scipy", reason="the extra `scores` is not installed")

    def test_what_a_class_encloses_becomes_of_it_and_a_bay_does_not(self):
        ids = ids_of("11110", "10210", "11110", "10010")
        assert (
            done(ids, Step("fill_holes", B)) == ids_of("11110", "11110", "11110", "10010").tolist()
        )

    def test_hole_that_leads_out_over_a_corner_alone_is_closed(self):
        # Backgrounds are 4-connected, and the hole touches the outside at its corner.
        ids = ids_of("011", "101", "111")
        assert done(ids, Step("fill_holes", B))[1][1] == 1

    def test_missing_package_is_named_with_the_flag(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        check_installed([Step("drop_smaller", B, 3)])
        with pytest.raises(UserError, match=r"`fill_holes` needs scipy.*unet_core\[scores\]"):
            check_installed([Step("fill_holes", B)])


class TestDropSmaller:
    def test_objects_of_fewer_pixels_go_and_those_of_as_many_stay(self):
        # Objects of 3, 2 and 1 pixels, the first of which touch at a corner.
        ids = ids_of("01000", "10010", "01010", "00000", "00001")
        expected = ids_of("01000", "10000", "01000", "00000", "00000")
        assert done(ids, Step("drop_smaller", B, 3)) == expected.tolist()
        assert done(ids, Step("drop_smaller", B, 1)) == ids.tolist()

    def test_dropped_pixels_become_of_the_most_probable_other_class(self):
        ids = ids_of("010")
        probabilities = np.array([[[0.9, 0.1, 0], [0.2, 0.5, 0.3], [0.9, 0.1, 0]]], np.float32)
        assert done(ids, Step("drop_smaller", B, 9), probabilities=probabilities) == [[0, 2, 0]]

    def test_background_may_be_the_class(self):
        ids = ids_of("101", "111", "110")
        found = done(
            ids,
            Step("drop_smaller", A, 2),
            probabilities=np.full((3, 3, 2), 0.5, np.float32),
        )
        assert found == ids_of("111", "111", "111").tolist()


class TestKeepLargest:
    def test_others_go_and_of_equals_the_first_stays(self):
        ids = ids_of("11011", "00000", "10000")
        expected = ids_of("11000", "00000", "00000")
        assert done(ids, Step("keep_largest", B)) == expected.tolist()
        # Three pixels in a diagonal are more than two in a row.
        ids = ids_of("11000", "00001", "00010", "00100")
        expected = ids_of("00000", "00001", "00010", "00100")
        assert done(ids, Step("keep_largest", B)) == expected.tolist()

    def test_mask_without_the_class_or_with_one_object_stays(self):
        for ids in (ids_of("000", "000"), ids_of("010", "010"), ids_of("11", "11")):
            assert done(ids, Step("keep_largest", B)) == ids.tolist()


class TestOrder:
    def test_steps_are_done_one_after_the_other(self):
        pytest.importorskip("scipy", reason="the extra `scores` is not installed")
        # A ring of 8 pixels around one, beside an object of 9: filled it has 9 too, and is first.
        ids = ids_of("111000", "101000", "111011", "000011", "000111", "000110")
        filled = done(ids, Step("fill_holes", B), Step("keep_largest", B))
        assert filled == ids_of("111000", "111000", "111000", *["000000"] * 3).tolist()
        assert done(ids, Step("keep_largest", B), Step("fill_holes", B))[0] == [0] * 6


class TestOverlapping:
    """Ids are 1 for A, 2 for B, 3 for both."""

    def done(self, ids, step):
        return post_process(ids, np.zeros((*ids.shape, 2)), [step], overlapping=True).tolist()

    def test_hole_becomes_of_the_class_too_and_keeps_the_others(self):
        pytest.importorskip("scipy", reason="the extra `scores` is not installed")
        ids = ids_of("1111", "1021", "1111")
        assert self.done(ids, Step("fill_holes", A)) == ids_of("1111", "1131", "1111").tolist()

    def test_object_that_is_dropped_leaves_the_others(self):
        # Of A three pixels and one: the latter goes, what is of B stays.
        ids = ids_of("1303", "1022")
        assert self.done(ids, Step("drop_smaller", A, 3)) == ids_of("1302", "1022").tolist()
        assert self.done(ids, Step("keep_largest", A)) == ids_of("1302", "1022").tolist()
