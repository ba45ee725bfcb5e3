"""What all rooms agree on: ids of masks, pixel values, and how an image goes on beyond its edge.

A mask [H, W] holds class ids from 0, and one id that is no class. Where classes may overlap (more
than one, or none, in a pixel), it holds the sum of 2^c over the classes c that are there. An image
is given to a network in pixel values, 0 to 255.
"""

from __future__ import annotations

from typing import Any

IGNORED = 255
"""The id of a pixel that counts nowhere: not in losses, not in metrics, not in scores."""

MOST_OVERLAPPING = 7
"""Classes that may overlap at most: all eight in one pixel would be `IGNORED`."""

OBJECT_CONNECTIVITY = 8
"""Pixels of one object touch at sides or corners, as in ImageJ, `skimage.measure.label` and OpenCV;
what is around objects touches at sides alone, so a hole that leads out at a corner only is a hole.
"""

MIDDLE = 127.5
"""The pixel value that a network maps to 0."""

SPREAD = 63.75
"""The pixel values between 0 and 1 as a network sees them: it maps 0..255 to -2..2."""


def has_class(mask: Any, class_id: int, overlapping: bool) -> Any:
    """Returns where a mask, an array or tensor of integers, has a class, as bool of its shape."""
    if not overlapping:
        return mask == class_id
    # Arithmetic that NumPy and TensorFlow share.
    return (mask // 2**class_id % 2 == 1) & (mask != IGNORED)


def names_overlapping(text: str) -> bool:
    """Returns whether classes written so are those that may overlap: names without values."""
    return ":" not in text


def number_of_logits(classes: int, overlapping: bool) -> int:
    """Returns K of logits [B, H, W, K]: two classes share one, unless they may overlap."""
    return 1 if classes == 2 and not overlapping else classes


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
