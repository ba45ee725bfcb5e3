"""Host-side scores of whole images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def best_threshold_dice(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], class_id: int
) -> tuple[float, str]:
    """Returns the best Dice of `class_id` that any one threshold of the grey values reaches, and
    how.

    Thresholds of the images as they are and blurred by Gaussians of 1, 2 and 3 pixels are tried,
    both the dark and the bright side, and the best is chosen with the truth in hand: a baseline
        that no honest threshold beats.

    Args:
        images: [H, W] uint8 each.
        masks: [H, W] integer class ids each.
        class_id: The class to find.
    """
    best, how = 0.0, "no threshold"
    for sigma in (0, 1, 2, 3):
        counts = np.zeros((2, 256))
        for image, mask in zip(images, masks, strict=True):
            values = cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image
            for is_class in (0, 1):
                counts[is_class] += np.bincount(
                    values[(mask == class_id) == is_class], minlength=256
                )
        total = counts[1].sum()
        dark = np.cumsum(counts, axis=1)
        for side, (others, hits) in (("<=", dark), (">", dark[:, -1:] - dark)):
            dice = 2 * hits / np.maximum(hits + others + total, 1)
            if dice.max() > best:
                best = float(dice.max())
                blurred = f" after a blur of {sigma} px" if sigma else ""
                how = f"grey {side} {int(dice.argmax())}{blurred}"
    return best, how
