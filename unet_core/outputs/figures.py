"""Figures of one prediction, for the table on the screen and for warnings."""

from __future__ import annotations

import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.samples import Source


class Figures:
    """Figures of one prediction, added up over its bands."""

    def __init__(self, classes: ClassMap):
        self.counts = np.zeros(len(classes), np.int64)
        self._names = classes.names
        self._least, self._sum, self._most = 1.0, 0.0, 0.0

    def add(self, probabilities: np.ndarray, ids: np.ndarray) -> None:
        """Adds a band: probabilities [h, W, C] and the ids [h, W] of its mask."""
        # Of two classes the probability of the second says all; of more, that of the class
        # predicted.
        shown = probabilities[..., 1] if len(self._names) == 2 else probabilities.max(-1)
        self._least = min(self._least, float(shown.min()))
        self._most = max(self._most, float(shown.max()))
        self._sum += float(shown.sum(dtype=np.float64))
        self.counts += np.bincount(ids.ravel(), minlength=len(self._names))

    def header(self) -> list[str]:
        """Returns the titles of the columns."""
        shown = f"p({self._names[1]})" if len(self._names) == 2 else "p(predicted)"
        return ["image", f"min {shown}", "mean", "max", *(f"share {name}" for name in self._names)]

    def cells(self) -> list[str]:
        """Returns the figures as text: least, mean and highest probability, shares of classes."""
        pixels = self.counts.sum()
        figures = (self._least, self._sum / pixels, self._most, *(self.counts / pixels))
        return [f"{value:.3f}" for value in figures]

    def pixels(self) -> int:
        """Returns the number of pixels."""
        return int(self.counts.sum())

    def warnings(self, source: Source) -> list[str]:
        """Returns a warning if one class is everywhere."""
        found = np.flatnonzero(self.counts)
        if len(found) != 1:
            return []
        return [
            f"{source}: the prediction is constant, {self._names[found[0]]} everywhere. The "
            "network has not learned this kind of image: train longer, or check that images and "
            "masks belong together."
        ]
