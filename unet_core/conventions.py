"""What all rooms agree on: ids of masks, pixel values, and how an image goes on beyond its edge.

A mask [H, W] holds class ids from 0, and one id that is no class. An image is given to a network in
pixel values, 0 to 255.
"""

from __future__ import annotations

from typing import Any

IGNORED = 255
"""The id of a pixel that counts nowhere: not in losses, not in metrics, not in scores."""

MIDDLE = 127.5
"""The pixel value that a network maps to 0."""

SPREAD = 63.75
"""The pixel values between 0 and 1 as a network sees them: it maps 0..255 to -2..2."""


def mirrored(index: Any, size: Any, arrays: Any) -> Any:
    """Returns indices folded back into 0 ... size-1 by mirroring, without repeating the edge.

    Args:
        index: Integers of any sign and shape, an array or tensor.
        size: Length of the axis, >= 1: an int, or a scalar of the kind of `index`.
        arrays: The module that computes with both: `numpy` or `tensorflow`.
    """
    period = arrays.maximum(2 * (size - 1), 1)
    index = index % period
    return arrays.where(index < size, index, period - index)
