"""Host-side scores of whole images."""

from __future__ import annotations

import cv2
import numpy as np

from unet_core.conventions import IGNORED

_SIGMAS = (0, 1, 2, 3)


class ThresholdBaseline:
    """The best Dice that any one threshold of the grey values reaches, chosen with the truth in
    hand: a baseline that no honest threshold beats.

    Thresholds of the images as they are and blurred by Gaussians of 1, 2 and 3 pixels are tried,
    both the dark and the bright side. Images are added one by one, so any number will do.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int):
        self._counts = np.zeros((len(_SIGMAS), classes, 256), np.int64)

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Counts one `image` [H, W] uint8 and its `mask` [H, W] of class ids or `IGNORED`."""
        kept = mask != IGNORED
        ids = mask[kept].astype(np.int64) * 256
        for counts, sigma in zip(self._counts, _SIGMAS, strict=True):
            values = cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image
            counts += np.bincount(ids + values[kept], minlength=counts.size).reshape(counts.shape)

    def best(self, class_id: int) -> tuple[float, str]:
        """Returns the best Dice of `class_id`, and how it is reached."""
        best, how = 0.0, "no threshold"
        for counts, sigma in zip(self._counts, _SIGMAS, strict=True):
            total = counts[class_id].sum()
            dark_hits, dark_all = np.cumsum(counts[class_id]), np.cumsum(counts.sum(0))
            for side, hits, above in (
                ("<=", dark_hits, dark_all),
                (">", dark_hits[-1] - dark_hits, dark_all[-1] - dark_all),
            ):
                dice = 2 * hits / np.maximum(above + total, 1)
                if dice.max() > best:
                    best = float(dice.max())
                    blurred = f" after a blur of {sigma} px" if sigma else ""
                    how = f"grey {side} {int(dice.argmax())}{blurred}"
        return best, how
