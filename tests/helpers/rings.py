"""Fills rings of corners of pixels, to compare an outline with its mask."""

import numpy as np


def filled(rings, shape):
    """Returns [H, W] bool: the pixels inside an odd number of rings, whose sides are along axes.

    Whether a pixel is inside changes wherever a vertical side lies left of it.
    """
    inside = np.zeros(shape, bool)
    for ring in rings:
        corners = np.asarray(ring, np.int64)
        for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, 0), strict=True):
            assert x == next_x or y == next_y
            if x == next_x:
                inside[min(y, next_y) : max(y, next_y), x:] ^= True
    return inside
