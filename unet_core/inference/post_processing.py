"""Post-processing of masks, class by class: holes filled, small objects dropped, the largest kept.

steps = [Step("fill_holes", cell), Step("drop_smaller", cell, 50), Step("keep_largest", nucleus)]
ids = post_process(ids, probabilities, steps)

Objects are 8-connected and holes 4-connected, see `unet_core.conventions.OBJECT_CONNECTIVITY`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence

import cv2
import numpy as np

from unet_core.conventions import OBJECT_CONNECTIVITY, has_class
from unet_core.errors import UserError

KINDS = ("fill_holes", "drop_smaller", "keep_largest")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of post-processing.

    Attributes:
        kind: One of `KINDS`.
        class_id: The class it is done to.
        pixels: For "drop_smaller": objects of fewer pixels are dropped.
    """

    kind: str
    class_id: int
    pixels: int = 0


def post_process(
    ids: np.ndarray,
    probabilities: np.ndarray,
    steps: Sequence[Step],
    *,
    overlapping: bool = False,
) -> np.ndarray:
    """Returns a mask after all `steps`, in their order.

    A hole of a class is what its pixels enclose, whatever it is of; it becomes of that class. A
    pixel that a class loses becomes of the most probable of the other classes. Where classes may
    overlap, a pixel gains and loses the class alone.

    Args:
        ids: [H, W] uint8 class ids of a whole image; left as it is.
        probabilities: [H, W, C], those of the image.
        steps: What to do.
        overlapping: Whether classes may overlap.

    Returns:
        [H, W] uint8 class ids.

    Raises:
        UserError: If scipy, with which holes are filled, is not installed.
    """
    ids = ids.copy()
    for step in steps:
        mask = has_class(ids, step.class_id, overlapping)
        own = np.uint8(2**step.class_id if overlapping else step.class_id)
        if step.kind == "fill_holes":
            filled = _filled(mask)
            ids[filled] = ids[filled] | own if overlapping else own
            continue
        lost = _small(mask, step.pixels) if step.kind == "drop_smaller" else _not_largest(mask)
        if overlapping:
            ids[lost] -= own
        elif lost.any():
            others = probabilities[lost].copy()
            others[:, step.class_id] = -1
            ids[lost] = others.argmax(-1)
    return ids


def check_installed(steps: Sequence[Step]) -> None:
    """Raises UserError if a package that `steps` need is not installed."""
    needs_scipy = any(step.kind == "fill_holes" for step in steps)
    if needs_scipy and importlib.util.find_spec("scipy") is None:
        raise UserError(
            "`fill_holes` needs scipy, which comes with scikit-image: "
            "pip install 'unet_core[scores]'."
        )


def _filled(mask: np.ndarray) -> np.ndarray:
    check_installed([Step("fill_holes", 0)])
    from scipy import ndimage

    # 4-connected by default.
    return ndimage.binary_fill_holes(mask)


def _small(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Returns where [H, W] bool `mask` has objects of fewer than `pixels` pixels."""
    labels, areas = _objects(mask)
    is_small = areas < pixels
    is_small[0] = False
    return is_small[labels]


def _not_largest(mask: np.ndarray) -> np.ndarray:
    """Returns where [H, W] bool `mask` has other objects than its largest, the first of equals."""
    labels, areas = _objects(mask)
    if len(areas) <= 2:
        return np.zeros(mask.shape, bool)
    return mask & (labels != 1 + areas[1:].argmax())


def _objects(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers [H, W] of the objects, 0 outside, and the pixels of each number."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=OBJECT_CONNECTIVITY
    )
    return labels, stats[:, cv2.CC_STAT_AREA].copy()
