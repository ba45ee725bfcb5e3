"""From a mask of one class to numbered objects.

labels = components(ids == cell)          # [H, W] bool -> [H, W] int32, 0 outside
labels = watershed(ids == cell)           # the same, touching objects split at their necks
"""

from __future__ import annotations

import cv2
import numpy as np

from unet_core.errors import UserError

_LEAST_DEPTH_PX = 1.0


def components(mask: np.ndarray) -> np.ndarray:
    """Returns the 4-connected components of `mask` [H, W] bool, numbered from 1, [H, W] int32."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]


def watershed(mask: np.ndarray) -> np.ndarray:
    """Returns the objects in `mask` [H, W] bool, numbered from 1, [H, W] int32; no pixel is lost.

    The distance to the outside is flooded from its peaks. A peak counts if the way to a higher one
    leads at least a pixel down (h-maxima; Soille 2003, Morphological Image Analysis), so that a
    ragged outline does not split an object.

    Raises:
        UserError: If scikit-image is not installed.
    """
    try:
        from skimage import segmentation
        from skimage.morphology import h_maxima
    except ImportError as error:
        raise UserError(
            "`instances` watershed needs scikit-image: pip install 'unet_core[scores]'."
        ) from error
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    seeds = components(h_maxima(distance, _LEAST_DEPTH_PX) > 0)
    # A component lower than that has no seed, and is one object.
    parts = components(mask)
    seeded = np.zeros(parts.max() + 1, bool)
    seeded[parts[seeds > 0]] = True
    seeds = np.where(seeded[parts], seeds, np.where(parts > 0, seeds.max() + parts, 0))
    labels = segmentation.watershed(-distance, seeds, connectivity=1, mask=mask)
    # Numbered without gaps; 0 stays 0 also where nothing is outside.
    renumber = np.zeros(labels.max() + 1, np.int32)
    used = np.unique(labels[labels > 0])
    renumber[used] = np.arange(1, len(used) + 1)
    return renumber[labels]
