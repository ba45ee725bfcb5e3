import numpy as np
import pytest

from unet_core.models.stem import DepthToSpace, SpaceToDepth


class TestSpaceToDepth:
    def test_pixels_of_a_block_become_channels_row_by_row(self):
        images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.float32)
        found = SpaceToDepth(2)(images)
        assert found.shape == (2, 2, 3, 12)
        for y in range(2):
            for x in range(2):
                part = found[..., 3 * (2 * y + x) : 3 * (2 * y + x) + 3]
                np.testing.assert_array_equal(part, images[:, y::2, x::2])

    @pytest.mark.parametrize("factor", [2, 4])
    def test_depth_to_space_is_its_inverse(self, factor):
        images = np.random.default_rng(0).normal(size=(1, 8, 12, 2)).astype(np.float32)
        there = SpaceToDepth(factor)(images)
        np.testing.assert_array_equal(DepthToSpace(factor)(there), images)
