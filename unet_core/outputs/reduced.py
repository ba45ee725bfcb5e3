"""A picture of what is too large for one: an image and its mask, made small band by band."""

from __future__ import annotations

import cv2
import numpy as np

LARGEST_PX = 4096
"""Pixels of the longer side, at most."""


class Reduced:
    """A large image and its class ids, made small band by band.

    Attributes:
        factor: Every so many-th pixel of every so many-th row stays.
    """

    def __init__(self, height: int, width: int):
        self.factor = -(-max(height, width) // LARGEST_PX)
        self._images: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []

    def add(self, first: int, image: np.ndarray, ids: np.ndarray) -> None:
        """Takes a band: its first row, its pixels [h, W, C] and class ids [h, W]."""
        factor = self.factor
        offset = -first % factor
        smooth = cv2.blur(image, (factor, factor))
        self._images.append(smooth[offset::factor, ::factor].copy())
        self._ids.append(ids[offset::factor, ::factor].copy())

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns both, each every n-th pixel of every n-th row."""
        return np.concatenate(self._images), np.concatenate(self._ids)
