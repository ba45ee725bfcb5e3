"""How the intensities of files become what the networks expect.

A network maps x to x / 255 * 4 - 2, so 0 to 255 is the range it is made for, and 127.5 + 63.75 * z
is what it sees as z.

scaling = Scaling.parse("percentile:1,99")
scaled = scaling(image)          # [H, W, C] as in the file -> [H, W, C] float32, 0 to 255
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from unet_core.errors import UserError

WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_FORMS = (
    "range (the range of the file's type: 0 to 255, 0 to 65535, or 0 to 1 for floats), "
    "percentile:LOW,HIGH such as percentile:1,99, zscore, "
    "or fixed:MEAN,STD in the units of the files such as fixed:1200,340"
)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One way to scale intensities.

    Attributes:
        form: "range", the range of the type becomes 0 to 255; "percentile", the percentiles LOW and
            HIGH of each image and channel become 0 and 255, and what is beyond is clipped;
            "zscore", each image and channel gets the mean 0 and standard deviation 1, as the
            network sees it; "fixed", so do the given MEAN and STD of all images.
        numbers: (LOW, HIGH), (MEAN, STD), or ().
    """

    form: str
    numbers: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Scaling:
        """Returns the scaling written as `range`, `percentile:LOW,HIGH`, `zscore` or
        `fixed:MEAN,STD`.

        Raises:
            UserError: If it has another form, or not 0 <= LOW < HIGH <= 100, or STD is not
                positive.
        """
        form, colon, written = text.strip().partition(":")
        if form in ("range", "zscore") and not colon:
            return cls(form)
        if form not in ("percentile", "fixed"):
            raise UserError(f"`intensities` ({text!r}) must be {_FORMS}.")
        try:
            first, second = (float(number) for number in written.split(","))
        except ValueError:
            raise UserError(
                f"`intensities` ({text!r}): {form} takes two numbers; write {_FORMS}."
            ) from None
        if form == "percentile" and not 0 <= first < second <= 100:
            raise UserError(
                f"`intensities` ({text!r}): the percentiles must rise, from 0 to 100; write for "
                "example percentile:1,99."
            )
        if form == "fixed" and not (math.isfinite(first) and 0 < second < math.inf):
            raise UserError(
                f"`intensities` ({text!r}): the mean must be finite and the standard deviation "
                "finite and above 0; write for example fixed:1200,340."
            )
        return cls(form, (first, second))

    def __str__(self) -> str:
        if not self.numbers:
            return self.form
        return f"{self.form}:" + ",".join(repr(n).removesuffix(".0") for n in self.numbers)

    def dtype_for(self, file_dtypes: Iterable[str]) -> np.dtype:
        """Returns the one dtype in which all images of a data set are kept: uint8 if nothing is
        lost by it, else float32.

        Args:
            file_dtypes: The dtypes of the files, such as {"uint8", "uint16"}.
        """
        untouched = self.form == "range" and set(file_dtypes) <= {"uint8"}
        return np.dtype(np.uint8 if untouched else np.float32)

    def __call__(self, image: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
        """Returns `image` scaled: itself if it is uint8 and the form is "range", else float32.

        Args:
            image: [H, W, C] uint8, uint16 or float32.
            dtype: What `dtype_for` returned, if the image is one of several: with float32 even an
                image that is left as it is becomes float32.

        Raises:
            UserError: If `image` holds NaN or infinite values, or floats outside 0 to 1 and the
                form is "range".
        """
        if image.dtype.kind == "f":
            self._check_floats(image)
        if self.form == "range" and image.dtype == np.uint8:
            return image if dtype is None else image.astype(dtype, copy=False)
        pixels = image.astype(np.float32)
        if self.form == "range":
            return pixels * np.float32(255 / WHITE[image.dtype.name])
        if self.form == "percentile":
            low, high = np.percentile(pixels, self.numbers, axis=(0, 1))
            return np.clip((pixels - low) * (255 / _or_one(high - low)), 0, 255).astype(np.float32)
        if self.form == "zscore":
            mean = pixels.mean((0, 1), np.float64)
            deviation = _or_one(pixels.std((0, 1), np.float64))
        else:
            mean, deviation = self.numbers
        return (127.5 + 63.75 * ((pixels - mean) / deviation)).astype(np.float32)

    def _check_floats(self, image: np.ndarray) -> None:
        """Raises UserError if `image` cannot be scaled."""
        bad = np.count_nonzero(~np.isfinite(image))
        if bad:
            raise UserError(
                f"The image holds {bad} pixel value(s) that are NaN or infinite; a network cannot "
                "learn from them. Replace them, for example by the background."
            )
        low, high = image.min(), image.max()
        if self.form == "range" and not (low >= 0 and high <= 1):
            raise UserError(
                f"The image holds floats from {low:g} to {high:g}; `intensities` (range) takes "
                "floats from 0 to 1. Use percentile:1,99, or fixed:MEAN,STD in the "
                "units of the files."
            )


def _or_one(spread: np.ndarray) -> np.ndarray:
    """Returns `spread` with 1 in place of 0: what does not vary stays finite."""
    return np.where(spread > 0, spread, 1.0)
