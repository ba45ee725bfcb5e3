"""The size of a pixel, from files as other programs write them."""

import cv2
import numpy as np
import pytest
import tifffile

from unet_core.data.pixel_size import kept_metadata, pixel_size_um

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


class TestKeptMetadata:
    @pytest.mark.parametrize(
        "how",
        [
            {"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}},
            {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}},
        ],
        ids=["imagej", "ome"],
    )
    def test_size_in_a_text_becomes_a_resolution(self, tmp_path, how):
        tifffile.imwrite(tmp_path / "a.tif", GREY, **how)
        # 0.25 micrometres are 40,000 pixels a centimetre, the unit 3.
        found = kept_metadata(tmp_path / "a.tif", 0, {33550: (33550, 12, 3, (1.0, 1.0, 0.0))})
        across, down = found[282][3], found[283][3]
        assert (across[0] / across[1], down[0] / down[1]) == (40_000, 20_000)
        assert found[296][3] == 3
        assert 33550 in found

    def test_resolution_with_a_unit_stays(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", GREY)
        tags = {282: (282, 5, 1, (72, 1)), 283: (283, 5, 1, (72, 1)), 296: (296, 3, 1, 2)}
        assert kept_metadata(tmp_path / "a.tif", 0, tags) == tags
