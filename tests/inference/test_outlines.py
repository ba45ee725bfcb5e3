"""Outlines of objects along the edges of their pixels."""

import cv2
import numpy as np
import pytest
from helpers.rings import filled

from unet_core.inference.instances import components, watershed
from unet_core.inference.outlines import outline_of, outlines_of

shapely = pytest.importorskip("shapely", reason="needs shapely")


def corners(ring):
    return {tuple(corner) for corner in ring.tolist()}


def area(ring):
    x, y = ring.T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


class TestOutline:
    def test_has_the_corners_of_the_pixels_that_it_turns_at(self):
        mask = np.zeros((4, 5), bool)
        mask[1:3, 1:5] = True
        mask[1, 1] = False
        # Rows 1 and 2, columns 1 to 4 without the first pixel of the upper row.
        found = outline_of(mask)
        assert corners(found.exterior) == {(2, 1), (5, 1), (5, 3), (1, 3), (1, 2), (2, 2)}
        assert found.holes == ()
        # Clockwise as seen, y down, so that the sum is positive: 7 pixels.
        assert area(found.exterior) == 7
        moved = outline_of(mask, corner=(10, 20))
        np.testing.assert_array_equal(moved.exterior - found.exterior, [[10, 20]] * 6)

    def test_hole_is_a_ring_of_its_own_the_other_way_round(self):
        mask = np.ones((3, 4), bool)
        mask[1, 2] = False
        found = outline_of(mask)
        assert corners(found.exterior) == {(0, 0), (4, 0), (4, 3), (0, 3)}
        (hole,) = found.holes
        assert corners(hole) == {(2, 1), (3, 1), (3, 2), (2, 2)}
        assert area(hole) == -1

    def test_opening_at_a_corner_makes_a_hole_that_touches_the_exterior(self):
        # The middle and the corner below it are open; the ring around them is 4-connected.
        mask = np.ones((3, 3), bool)
        mask[1, 1] = mask[2, 2] = False
        found = outline_of(mask)
        assert len(found.holes) == 1
        assert shapely.Polygon(found.exterior, found.holes).is_valid
        np.testing.assert_array_equal(filled([found.exterior, *found.holes], (3, 3)), mask)

    @pytest.mark.parametrize("number_objects", [components, watershed])
    @pytest.mark.parametrize("sigma", [0, 0.7, 1.5])
    def test_of_random_objects_is_valid_and_encloses_exactly_their_pixels(
        self, sigma, number_objects
    ):
        rng = np.random.default_rng(0)
        noise = rng.random((40, 37))
        labels = number_objects((cv2.GaussianBlur(noise, (0, 0), sigma) if sigma else noise) > 0.5)
        assert labels.max() > 5
        for number in range(1, labels.max() + 1):
            parts = outlines_of(labels == number)
            polygon = shapely.MultiPolygon([(part.exterior, part.holes) for part in parts])
            assert polygon.is_valid
            assert polygon.area == (labels == number).sum()
            rings = [ring for part in parts for ring in (part.exterior, *part.holes)]
            drawn = filled(rings, labels.shape)
            np.testing.assert_array_equal(drawn, labels == number)

    def test_must_be_of_one_component(self):
        with pytest.raises(ValueError, match="has 2"):
            outline_of(np.array([[True, False, True]]))
        with pytest.raises(ValueError, match="has 0"):
            outline_of(np.zeros((2, 2), bool))
