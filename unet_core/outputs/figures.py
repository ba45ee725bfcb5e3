"""Figures of one prediction, for the table on the screen and for warnings."""

from __future__ import annotations

import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.samples import Source


class Figures:
    """Figures of one prediction, added up over its bands.

    Attributes:
        counts: The pixels of each class [C].
        pixels: All of them.
        lost_georeference: Whether the image has a georeference that its files do not.
    """

    def __init__(self, classes: ClassMap):
        self.counts = np.zeros(len(classes), np.int64)
        self.pixels = 0
        self.lost_georeference = False
        self._classes = classes
        self._names = classes.names
        self._of_two = len(classes) == 2 and not classes.overlapping
        self._least, self._sum, self._most = 1.0, 0.0, 0.0

    def add(self, probabilities: np.ndarray, ids: np.ndarray) -> None:
        """Adds a band: probabilities [h, W, C] and the ids [h, W] of its mask."""
        # Of two classes the probability of the second says all; of more, that of the class
        # predicted, or of the most probable of those that may overlap.
        shown = probabilities[..., 1] if self._of_two else probabilities.max(-1)
        self._least = min(self._least, float(shown.min()))
        self._most = max(self._most, float(shown.max()))
        self._sum += float(shown.sum(dtype=np.float64))
        self.counts += self._classes.count(ids)
        self.pixels += ids.size

    def header(self) -> list[str]:
        """Returns the titles of the columns."""
        of_more = "p(highest)" if self._classes.overlapping else "p(predicted)"
        shown = f"p({self._names[1]})" if self._of_two else of_more
        return ["image", f"min {shown}", "mean", "max", *(f"share {name}" for name in self._names)]

    def cells(self) -> list[str]:
        """Returns the figures as text: least, mean and highest probability, shares of classes."""
        shares = self.counts / self.pixels
        figures = (self._least, self._sum / self.pixels, self._most, *shares)
        return [f"{value:.3f}" for value in figures]

    def warnings(self, source: Source) -> list[str]:
        """Returns a warning if all pixels are alike."""
        everywhere = self.counts == self.pixels
        if not (everywhere | (self.counts == 0)).all():
            return []
        found = [name for name, is_it in zip(self._names, everywhere, strict=True) if is_it]
        what = " + ".join(found) or "no class"
        return [
            f"{source}: the prediction is constant, {what} everywhere. If more is to be seen, the "
            "network has not learned this kind of image: train longer, or check that images and "
            "masks belong together."
        ]


def describe_lost(count: int) -> list[str]:
    """Returns a warning if `count` images have a georeference that their files do not."""
    if not count:
        return []
    return [
        f"{count} image(s) have a georeference, which PNG files cannot hold: copy it from the "
        "image with a program for maps. TIFF files, which large images give, have it."
    ]
