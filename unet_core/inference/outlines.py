"""The outlines of an object, exactly along the edges of its pixels.

outlines = outlines_of(labels == 3)
outlines[0].exterior    # [N, 2] x, y; (0, 0) is the top left corner of the top left pixel
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class Outline(NamedTuple):
    """A polygon with holes.

    Its corners are x, y in pixels, whole numbers: pixel (row, column) covers column to column + 1
    and row to row + 1. The first corner is not repeated at the end. No ring crosses or touches
    itself; rings may touch one another in corners.

    Attributes:
        exterior: [N, 2] int64, clockwise as it is seen, y pointing down.
        holes: The rings around each hole, counterclockwise.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...]


def outlines_of(mask: np.ndarray, *, corner: tuple[int, int] = (0, 0)) -> list[Outline]:
    """Returns the outlines of the 4-connected parts of an object.

    Parts of an object that touch in corners alone have one each: one ring would touch itself.

    Args:
        mask: [H, W] bool.
        corner: x and y of the corner of `mask` in the picture.
    """
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return [outline_of(parts == number, corner=corner) for number in range(1, count)]


def outline_of(mask: np.ndarray, *, corner: tuple[int, int] = (0, 0)) -> Outline:
    """Returns the outline of an object.

    Args:
        mask: [H, W] bool, with one 4-connected component.
        corner: x and y of the corner of `mask` in the picture.

    Raises:
        ValueError: If there is not one component.
    """
    # OpenCV gives the pixels along a border. Of a mask that is enlarged twice, those of columns
    # 2x - 1 and 2x lie on both sides of the corner x: where a border turns, both are that corner.
    twice = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    found, hierarchy = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for contour, (_, _, _, parent) in zip(found, hierarchy[0] if found else (), strict=True):
        corners = _turns((contour[:, 0].astype(np.int64) + 1) // 2)
        is_hole = bool(parent >= 0)
        clockwise = _area(corners) > 0
        rings[is_hole].append((corners if clockwise != is_hole else corners[::-1]) + corner)
    if len(rings[0]) != 1:
        raise ValueError(f"`mask` must have one component. It has {len(rings[0])}.")
    return Outline(rings[0][0], tuple(rings[1]))


def _turns(corners: np.ndarray) -> np.ndarray:
    """Returns those of a ring of corners [N, 2] at which it turns."""
    corners = corners[(corners != np.roll(corners, 1, 0)).any(1)]
    before, after = corners - np.roll(corners, 1, 0), np.roll(corners, -1, 0) - corners
    return corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _area(ring: np.ndarray) -> float:
    """Returns the area of a ring, negative if it runs counterclockwise as seen, y down."""
    x, y = ring.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
