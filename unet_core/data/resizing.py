"""Images of another size for the network, and what it makes of them back at their own.

resize = Resize(um=0.65)                           # or Resize(factor=0.5); Resize() changes nothing
size = resize.size(512, 512, Source("cells.tif"))  # (height, width) for the network
small = resized(image, size)
probabilities = resized(window(small), image.shape[:2])
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from unet_core.data.io import limits
from unet_core.data.pixel_size import pixel_size_um
from unet_core.data.samples import Source
from unet_core.errors import UserError

LEAST_FACTOR, MOST_FACTOR = 0.01, 16.0
_MOST_CHANNELS = 64
"""That OpenCV is given at once; it takes 128 at most (seen on 5.0)."""


@dataclasses.dataclass(frozen=True)
class Resize:
    """How images are resized before the network sees them.

    Attributes:
        factor: By which height and width are multiplied.
        um: Or the width and height that their pixels are to have, in micrometres; 0 is by `factor`.
        pixel_size_um: Width and height of a pixel of the images as they are; 0 is as each file
            says.
    """

    factor: float = 1.0
    um: float = 0.0
    pixel_size_um: float = 0.0

    @property
    def is_on(self) -> bool:
        """Whether any image may change."""
        return bool(self.um) or self.factor != 1

    def __str__(self) -> str:
        return f"{self.um:g}um" if self.um else f"{self.factor:g}"

    def size(self, height: int, width: int, source: Source | None = None) -> tuple[int, int]:
        """Returns the height and width that an image is to have.

        Args:
            height: Its rows.
            width: Its columns.
            source: Its file, which says the size of its pixels; None is an array.

        Raises:
            UserError: If the size of its pixels is needed and not known, or it would become too
                large or too small.
        """
        if not self.is_on:
            return height, width
        down, across = self._factors(source)
        where = "the image" if source is None else str(source)
        for factor in (down, across):
            if not LEAST_FACTOR <= factor <= MOST_FACTOR:
                raise UserError(
                    f"{where}: would be resized by {factor:g} (`resize` {self}); from "
                    f"{LEAST_FACTOR:g} to {MOST_FACTOR:g} is possible. Look whether the size of "
                    "its pixels is right, or give `pixel_size_um`."
                )
        found = max(1, round(height * down)), max(1, round(width * across))
        # As probabilities of two classes, the least that is made of them.
        limits.check_bytes(where, found[0] * found[1] * 8, f"{found[1]}x{found[0]} pixels, resized")
        return found

    def _factors(self, source: Source | None) -> tuple[float, float]:
        """Returns by what height and width are multiplied."""
        if not self.um:
            return self.factor, self.factor
        if self.pixel_size_um:
            return (self.pixel_size_um / self.um,) * 2
        found = None if source is None else pixel_size_um(source.path, source.page)
        if found is None:
            what = "an array or a frame" if source is None else f"{source}: the file"
            raise UserError(
                f"{what} does not say the size of its pixels, which `resize` ({self}) needs. Give "
                "it as `pixel_size_um`, or a factor as `resize`."
            )
        across, down = found
        return down / self.um, across / self.um


AS_THEY_ARE = Resize()
"""Images keep their size."""


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns intensities or probabilities [H, W] or [H, W, C] at another size.

    Each pixel is the mean of the area it covers or, where it becomes larger, interpolated linearly.

    Args:
        pixels: uint8 or float32; returned as they are if they have that size.
        size: Height and width.
    """
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    smaller = height <= pixels.shape[0] and width <= pixels.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    planes = pixels.reshape(*pixels.shape[:2], -1)
    parts = [
        cv2.resize(planes[..., n : n + _MOST_CHANNELS], (width, height), interpolation=how)
        for n in range(0, planes.shape[2], _MOST_CHANNELS)
    ]
    found = np.concatenate([part.reshape(height, width, -1) for part in parts], axis=2)
    return found.reshape(height, width, *pixels.shape[2:])


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns class values or numbers of objects, [H, W] or [H, W, C], at another size.

    Each pixel has the value of that at its centre.
    """
    if values.shape[:2] == size:
        return values
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, values.shape[:2], strict=True)
    )
    return values[rows[:, None], columns]
