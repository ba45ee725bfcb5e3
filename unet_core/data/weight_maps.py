"""The paper's weight maps: pixels between two neighbouring cells count more.

w(x) = w_c(x) + w0 * exp(-(d1 + d2)^2 / (2 sigma^2)), Ronneberger et al. 2015, equation 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from unet_core.conventions import IGNORED

# Beyond this many sigmas d1 + d2 adds less than 1e-9 of w0.
_REACH = 6.5


def border_weights(
    mask: np.ndarray,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: Sequence[float] | None = None,
    background: int = 0,
    instances: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the weight of every pixel.

    Args:
        mask: [H, W] class ids, or `IGNORED`, which is neither a cell nor background; losses leave
            such pixels out, whatever their weight.
        w0: Weight of a pixel where two cells would touch.
        sigma: How far that reaches, in pixels.
        class_weights: w_c, one per class; 1 by default.
        background: The class between the cells.
        instances: [H, W] cell ids, 0 outside. By default cells are the 4-connected components of
            all other classes.

    Returns:
        [H, W] float32. d1 and d2 are the distances, from pixel centre to pixel centre, to the
        nearest and the second nearest cell; with fewer than two cells the second term is 0. Only
        pixels outside all cells get it.
    """
    weights = np.ones(mask.shape, np.float32)
    if class_weights is not None:
        table = np.ones(256, np.float32)
        table[: len(class_weights)] = class_weights
        weights = table[mask]
    if instances is None:
        cells = ((mask != background) & (mask != IGNORED)).astype(np.uint8)
        _, labels, boxes, _ = cv2.connectedComponentsWithStats(cells, connectivity=4)
        boxes = [box[:4] for box in boxes[1:]]
        numbers = np.arange(1, len(boxes) + 1)
    else:
        labels = instances
        numbers, boxes = _boxes_of(instances)
    reach = int(np.ceil(_REACH * sigma))
    # Distances to the nearest and the second nearest cell; far is as good as infinitely far.
    far = np.float32(1e6)
    first, second = np.full((2, *mask.shape), far)
    for number, (x, y, width, height) in zip(numbers, boxes, strict=True):
        window = (
            slice(max(0, y - reach), y + height + reach),
            slice(max(0, x - reach), x + width + reach),
        )
        outside = (labels[window] != number).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        one, two = first[window], second[window]
        np.minimum(two, np.maximum(one, distance), out=two)
        np.minimum(one, distance, out=one)
    between = w0 * np.exp(-((first + second) ** 2) / np.float32(2 * sigma**2))
    return weights + np.where((labels == 0) & (mask != IGNORED), between, 0).astype(np.float32)


def _boxes_of(instances: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Returns the ids of all cells and of each the box (x, y, width, height), in one pass."""
    rows, columns = np.nonzero(instances)
    # By their place in order: numbers may be of 32 bits.
    numbers, owners = np.unique(instances[rows, columns], return_inverse=True)
    edges = []
    for places in (columns, rows):
        first = np.full(len(numbers), max(instances.shape))
        last = np.zeros_like(first)
        np.minimum.at(first, owners, places)
        np.maximum.at(last, owners, places)
        edges.append((first, last - first + 1))
    (x, width), (y, height) = edges
    return numbers, list(zip(x, y, width, height, strict=True))
