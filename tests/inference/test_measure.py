"""Measures of objects, against values computed by hand."""

import sys

import numpy as np
import pytest

from unet_core.errors import UserError
from unet_core.inference.measure import measure


@pytest.fixture
def picture():
    """A square of 4 x 4 with two brightnesses, and a ring of 3 x 3 at the right and lower edge."""
    labels, grey = np.zeros((8, 10), np.int32), np.full((8, 10), 50, np.uint8)
    labels[1:5, 2:6] = 1
    grey[1:5, 2:4], grey[1:5, 4:6] = 120, 160
    labels[5:8, 7:10] = 2
    labels[6, 8] = 0
    grey[5:8, 7:10] = 200
    return labels, grey[..., None]


class TestMeasure:
    def test_of_a_square_and_a_ring_are_those_computed_by_hand(self, picture):
        found = measure(*picture, "cell")
        assert (found.class_name, found.height, found.width) == ("cell", 8, 10)
        square, ring = found.rows()
        # Columns 2 to 5 run from 2 to 6, rows 1 to 4 from 1 to 5, so their middles are 4 and 3.
        # The 12 pixels of the border count 1 each, as all steps are along an axis: 4 * (4 - 1).
        # Both axes of a square are equal: eccentricity 0. Half are 120 and half 160: 140 +- 20.
        expected = {
            **{"id": 1, "class": "cell", "area_px": 16, "centroid_x_px": 4, "centroid_y_px": 3},
            **{"bbox_x_px": 2, "bbox_y_px": 1, "bbox_width_px": 4, "bbox_height_px": 4},
            **{"perimeter_px": 12, "eccentricity": 0, "mean_intensity": 140, "sd_intensity": 20},
            "touches_edge": 0,
        }
        assert list(square)[: len(expected)] == list(expected)
        for name, value in expected.items():
            assert square[name] == pytest.approx(value, abs=1e-6), name
        # Of 9 pixels the middle is missing, which leaves the middle where it is.
        assert (ring["id"], ring["area_px"], ring["touches_edge"]) == (2, 8, 1)
        assert (ring["centroid_x_px"], ring["centroid_y_px"]) == (8.5, 6.5)
        assert (ring["mean_intensity"], ring["sd_intensity"]) == (200, 0)
        assert [len(part.holes) for part in found.outlines[1]] == [1]

    def test_in_micrometres_lengths_are_scaled_and_areas_twice(self, picture):
        square = measure(*picture, "cell", pixel_size_um=(0.5, 0.5)).rows()[0]
        # 16 pixels of 0.25 square micrometres; 4, 3, 2, 1, 4, 4 and 12 pixels of 0.5.
        names = ["centroid_x", "centroid_y", "bbox_x", "bbox_y", "bbox_width", "bbox_height"]
        found = [square[f"{name}_um"] for name in [*names, "perimeter"]]
        assert square["area_um2"] == 4
        assert found == [2, 1.5, 1, 0.5, 2, 2, 6]
        assert (square["pixel_width_um"], square["pixel_height_um"]) == (0.5, 0.5)

    def test_of_pixels_that_are_not_square_the_perimeter_is_not_known(self, picture):
        square = measure(*picture, "cell", pixel_size_um=(0.5, 2.0)).rows()[0]
        assert square["area_um2"] == 16
        assert (square["centroid_x_um"], square["centroid_y_um"]) == (2, 6)
        assert (square["bbox_width_um"], square["bbox_height_um"]) == (2, 8)
        assert square["perimeter_um"] is None

    def test_without_a_pixel_size_micrometres_are_empty(self, picture):
        square = measure(*picture, "cell").rows()[0]
        assert [square[name] for name in square if "_um" in name] == [None] * 10

    def test_of_colours_each_is_measured_and_opacity_is_not(self, picture):
        labels, grey = picture
        colours = np.concatenate([grey, grey // 2, 0 * grey, 255 - grey], -1)
        square = measure(labels, colours, "cell").rows()[0]
        assert (square["mean_red"], square["mean_green"], square["mean_blue"]) == (140, 70, 0)
        assert (square["sd_red"], square["sd_green"]) == (20, 10)
        assert not [name for name in square if "intensity" in name or "alpha" in name]
        assert measure(labels, colours[..., ::3], "cell").rows()[0]["mean_intensity"] == 140

    def test_no_objects_have_empty_columns(self, picture):
        _, grey = picture
        found = measure(np.zeros((8, 10), np.int32), grey, "cell")
        assert found.rows() == found.outlines == []
        assert list(found.columns)[:3] == ["id", "class", "area_px"]

    def test_missing_package_is_one_message(self, picture, monkeypatch):
        monkeypatch.setitem(sys.modules, "skimage", None)
        with pytest.raises(UserError, match=r"needs scikit-image: .* 'unet_core\[objects\]'"):
            measure(*picture, "cell")
