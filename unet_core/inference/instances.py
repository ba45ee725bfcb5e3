"""From a mask of one class to numbered objects.

labels = components(ids == cell)                     # [H, W] bool -> [H, W] int32, 0 outside
labels = watershed(ids == cell)                      # the same, touching objects split at necks
labels = watershed(ids == cell, ids == border)       # or split where a network sees borders
labels = number_objects(ids, classes, "cell", how="watershed")      # the same, by name
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from unet_core.conventions import OBJECT_CONNECTIVITY
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import border_class, object_class
from unet_core.errors import UserError

# A peak counts if the way to a higher one leads at least so far down.
_LEAST_DEPTH_PX = 1.0
# Distances are smoothed so far: the steps of an outline of pixels make peaks of their own.
_SMOOTHING_PX = 1.0
# Whole numbers have one order on every machine and with any number of threads.
_STEPS_PER_PX = 64
_MOST_PIXELS = 2**26


def number_objects(
    ids: np.ndarray, classes: ClassMap, of_class: str, *, how: str = "none", least_px: int = 0
) -> np.ndarray:
    """Returns the objects of a mask, numbered from 1, [H, W] int32.

    Args:
        ids: [H, W] class ids.
        classes: Their meaning; they tell whether there is a border between objects.
        of_class: The class of the objects; empty is that of `instance_masks.object_class`.
        how: "components", "watershed" or "none", which is watershed where there is a border, and
            else components.
        least_px: Objects of fewer pixels are none.

    Raises:
        UserError: If there is no such class; as `watershed`.
    """
    own = classes.index(object_class(classes, of_class))
    between = border_class(classes, own)
    mask = classes.has(ids, own)
    if how == "components" or (how == "none" and between is None):
        return components(mask, least_px=least_px)
    return watershed(mask, None if between is None else ids == between, least_px=least_px)


def components(mask: np.ndarray, *, least_px: int = 0) -> np.ndarray:
    """Returns the 8-connected components of `mask` [H, W] bool, numbered from 1, [H, W] int32.

    Those of fewer than `least_px` pixels are left out.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=OBJECT_CONNECTIVITY
    )
    stays = stats[:, cv2.CC_STAT_AREA] >= least_px
    stays[0] = False
    return np.where(stays, np.cumsum(stays), 0).astype(np.int32)[labels]


def watershed(
    mask: np.ndarray, border: np.ndarray | None = None, *, least_px: int = 0
) -> np.ndarray:
    """Returns the objects of `mask`, numbered from 1, [H, W] int32. Objects are 8-connected.

    Without `border`, the distance to the outside, smoothed, is flooded from its peaks. A peak
    counts if the way to a higher one leads at least a pixel down (h-maxima; Soille 2003,
    Morphological Image Analysis), so that a ragged outline does not split an object. No pixel is
    lost.

    With `border`, the components of `mask` are the objects, and grow over the border between them,
    each pixel to the nearest. A border without an object in it is none.

    Args:
        mask: [H, W] bool, where objects are.
        border: [H, W] bool, what separates them and is of them; no pixel of `mask`.
        least_px: Objects of fewer pixels are none: those they touch take their pixels.

    Raises:
        UserError: If scikit-image is not installed, or objects that touch are too large together.
    """
    try:
        import skimage.segmentation  # noqa: F401
    except ImportError as error:
        raise UserError(
            "`instances` watershed needs scikit-image: pip install 'unet_core[scores]'."
        ) from error
    region = (mask if border is None else mask | border).astype(np.uint8)
    # What does not touch is independent: pictures of any size are worked through part by part.
    count, parts, stats, _ = cv2.connectedComponentsWithStats(
        region, connectivity=OBJECT_CONNECTIVITY
    )
    labels, found = np.zeros(mask.shape, np.int32), 0
    for number in range(1, count):
        x, y, width, height, area = stats[number].tolist()
        if area < least_px:
            continue
        if width * height > _MOST_PIXELS:
            raise UserError(
                f"has objects that touch one another over {width}x{height} pixels; they are "
                f"separated in regions of up to {_MOST_PIXELS}. Choose `instances` components, or "
                "leave it out."
            )
        window = slice(y, y + height), slice(x, x + width)
        inside = parts[window] == number
        flood = _of_distance(inside) if border is None else _of_border(inside, mask[window])
        own = _flooded(flood, inside, least_px)
        labels[window] += np.where(own > 0, own + found, 0)
        found += int(own.max())
    return labels


class _Flood(NamedTuple):
    """Where a flood begins, [H, W] int32 numbers, and how high each pixel lies, [H, W] int32."""

    seeds: np.ndarray
    relief: np.ndarray


def _of_distance(inside: np.ndarray) -> _Flood:
    """Returns the flood of one region by its distance to the outside."""
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction

    padded = np.pad(inside, 1)
    distance = _distance(padded)
    smooth = ndimage.gaussian_filter(distance, _SMOOTHING_PX)[1:-1, 1:-1]
    height = np.where(inside, np.rint(smooth * _STEPS_PER_PX), 0).astype(np.int32)
    # One pixel wide, or two: nothing can lie a pixel deeper than the neck.
    if distance.max() < 2:
        return _Flood(inside.astype(np.int32), -height)
    # Not `h_maxima` of scikit-image (0.26): peaks of one height are several to it, however shallow
    # the way between them, as the two halves of an ellipse.
    cut = reconstruction(height - round(_LEAST_DEPTH_PX * _STEPS_PER_PX), height)
    peaks = local_maxima(cut, connectivity=2) & inside
    seeds = _numbered(peaks)
    # Lower than that it has no peak, and is one object.
    return _Flood(seeds if seeds.any() else inside.astype(np.int32), -height)


def _of_border(inside: np.ndarray, mask: np.ndarray) -> _Flood:
    """Returns the flood of one region from the components of `mask` in it."""
    cores = mask & inside
    seeds = _numbered(cores)
    distance = _distance(~cores) if cores.any() else np.zeros(cores.shape)
    return _Flood(seeds, np.rint(distance * _STEPS_PER_PX).astype(np.int32))


def _flooded(flood: _Flood, inside: np.ndarray, least_px: int) -> np.ndarray:
    """Returns the objects of one region [H, W], numbered without gaps."""
    from skimage.segmentation import watershed as flooded

    labels = flooded(flood.relief, flood.seeds, connectivity=2, mask=inside)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    stays = areas >= max(least_px, 1)
    if areas.any() and not stays.any():
        # Together they are large enough.
        stays[areas.argmax()] = True
    if (areas > 0).sum() > stays.sum():
        seeds = np.where(stays[flood.seeds], flood.seeds, 0)
        labels = flooded(flood.relief, seeds, connectivity=2, mask=inside)
    return np.where(stays, np.cumsum(stays), 0).astype(np.int32)[labels]


def _numbered(mask: np.ndarray) -> np.ndarray:
    """Returns the numbers [H, W] int32 of the components of [H, W] bool `mask`, 0 outside."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=OBJECT_CONNECTIVITY)[1]


def _distance(inside: np.ndarray) -> np.ndarray:
    """Returns the distances [H, W] float64 in pixels of what is `inside` to the outside."""
    distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares of distances are whole numbers; OpenCV 5.0 does not always round them alike.
    return np.sqrt(np.rint(np.square(distance.astype(np.float64))))
