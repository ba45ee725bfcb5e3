"""The size of a pixel, from files as other programs write them."""

import cv2
import numpy as np
import pytest

from unet_core.data.pixel_size import pixel_size_um

tifffile = pytest.importorskip("tifffile", reason="needs tifffile")

GREY = np.zeros((6, 8), np.uint8)


@pytest.fixture
def written(tmp_path):
    """A function that writes a TIFF and returns what is read of it."""

    def write(pixels=GREY, page=0, **how):
        tifffile.imwrite(tmp_path / "a.tif", pixels, **how)
        return pixel_size_um(tmp_path / "a.tif", page)

    return write


class TestPixelSize:
    @pytest.mark.parametrize(
        ("unit", "um"),
        [("um", 1), ("micron", 1), ("\\u00B5m", 1), ("nm", 1e-3), ("mm", 1e3)],
    )
    def test_of_imagej_follows_its_unit(self, written, unit, um):
        # 4 pixels a unit across and 2 down.
        found = written(imagej=True, resolution=(4, 2), metadata={"unit": unit})
        assert found == pytest.approx((um / 4, um / 2))

    def test_of_every_page_of_an_imagej_stack_is_that_of_the_first(self, written):
        stack = np.zeros((3, 6, 8), np.uint8)
        how = {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um", "axes": "ZYX"}}
        assert written(stack, page=2, **how) == (0.25, 0.25)

    def test_of_ome_follows_its_units(self, written):
        sizes = {"PhysicalSizeX": 325, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.65}
        found = written(ome=True, metadata={"axes": "YX", **sizes, "PhysicalSizeYUnit": "\u00b5m"})
        assert found == pytest.approx((0.325, 0.65))
        assert written(ome=True, metadata={"axes": "YX", "PhysicalSizeX": 0.5}) == (0.5, 0.5)
        assert written(ome=True, metadata={"axes": "YX"}) is None

    def test_of_a_resolution_is_taken_unless_it_is_one_for_paper(self, written):
        # 20000 pixels a centimetre are 0.5 micrometres each, 50800 an inch too.
        centimetre = tifffile.RESUNIT.CENTIMETER
        assert written(resolution=(20_000, 20_000), resolutionunit=centimetre) == (0.5, 0.5)
        inch = tifffile.RESUNIT.INCH
        assert written(resolution=(50_800, 25_400), resolutionunit=inch) == (0.5, 1.0)
        for dots in (72, 300, 1200):
            assert written(resolution=(dots, dots), resolutionunit=inch) is None

    def test_is_not_known_where_nothing_says_it(self, written, tmp_path):
        assert written() is None
        none = tifffile.RESUNIT.NONE
        assert written(resolution=(20_000, 20_000), resolutionunit=none) is None
        assert written(imagej=True, resolution=(4, 4), metadata={"unit": "furlong"}) is None
        cv2.imwrite(str(tmp_path / "a.png"), GREY)
        assert pixel_size_um(tmp_path / "a.png") is None

    def test_of_a_damaged_description_is_not_known(self, written):
        found = written(description='<?xml version="1.0"?><OME><Image></OME>', metadata=None)
        assert found is None
