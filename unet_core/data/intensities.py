"""How the intensities of files become what the networks expect.

A network maps x to (x - MIDDLE) / SPREAD, so 0 to 255 is the range it is made for, and
MIDDLE + SPREAD * z is what it sees as z.

scaling = Scaling.parse("percentile:1,99")
scaled = scaling(image)          # [H, W, C] as in the file -> [H, W, C] float32, 0 to 255
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from unet_core.conventions import MIDDLE, SPREAD
from unet_core.errors import UserError

_LARGEST_SAMPLE = 2**22
WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_FORMS = (
    "range (the range of the file's type: 0 to 255, 0 to 65535, or 0 to 1 for floats), "
    "percentile:LOW,HIGH such as percentile:1,99, zscore, "
    "or fixed:MEAN,STD in the units of the files such as fixed:1200,340"
)

_Measured = Sequence[Any] | np.ndarray


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
        """Returns the scaling that `text` names.

        It is written as `range`, `percentile:LOW,HIGH`, `zscore` or `fixed:MEAN,STD`.

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
        """Returns the one dtype in which all images of a data set are kept.

        It is uint8 if nothing is lost by it, else float32.

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
        self._check(image)
        measured: _Measured = self.numbers
        if self.form == "percentile":
            measured = np.percentile(image.astype(np.float32), self.numbers, axis=(0, 1))
        elif self.form == "zscore":
            measured = _mean_and_deviation([image])
        scaled = self._scaled(image, measured)
        return scaled if dtype is None else scaled.astype(dtype, copy=False)

    def fit(self, bands: Iterable[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that scales rows of an image, after one pass over the image.

        It scales any rows as the call scales the whole image.

        Of a float image the percentiles are those of every k-th pixel, row by row; k is the least
        power of 2 that takes at most 2^22 pixels. All others are exact.

        Args:
            bands: The rows of the image from top to bottom, each [h, W, C]; not looked at if the
                form is "range" or "fixed".

        Raises:
            UserError: Here or from the function, as from the call.
            ValueError: If the form needs bands and there are none.
        """
        measured: _Measured = self.numbers
        if self.form == "percentile":
            measured = _percentiles(map(self._check, bands), self.numbers)
        elif self.form == "zscore":
            measured = _mean_and_deviation(map(self._check, bands))
        return lambda band: self._scaled(self._check(band), measured)

    def _scaled(self, image: np.ndarray, measured: _Measured) -> np.ndarray:
        """Returns `image` scaled by what was measured.

        `measured` are the two percentiles, each [C], for "percentile"; mean and deviation, each [C]
        or one number, for "zscore" and "fixed"; nothing for "range".
        """
        if self.form == "range" and image.dtype == np.uint8:
            return image
        pixels = image.astype(np.float32)
        if self.form == "range":
            return pixels * np.float32(255 / WHITE[image.dtype.name])
        if self.form == "percentile":
            low, high = measured
            return np.clip((pixels - low) * (255 / _or_one(high - low)), 0, 255).astype(np.float32)
        mean, deviation = measured
        return (MIDDLE + SPREAD * ((pixels - mean) / deviation)).astype(np.float32)

    def _check(self, image: np.ndarray) -> np.ndarray:
        """Returns `image`; raises UserError if it holds floats that cannot be scaled."""
        if image.dtype.kind != "f":
            return image
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
        return image


def _mean_and_deviation(bands: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation (1 in place of 0) of each channel, [C] float64 both.

    Source: Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115, for merging.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for band in bands:
        more = band.shape[0] * band.shape[1]
        band_mean = band.mean((0, 1), np.float64)
        step = band_mean - mean
        squares = squares + band.var((0, 1), np.float64) * more
        squares = squares + step**2 * (count * more / (count + more))
        count += more
        mean = mean + step * (more / count)
    if not count:
        raise ValueError("`bands` must hold at least one row of pixels; it is empty.")
    return mean, _or_one(np.sqrt(squares / count))


def _percentiles(bands: Iterable[np.ndarray], numbers: Sequence[float]) -> np.ndarray:
    """Returns the percentiles `numbers` of each channel, [len(numbers), C] float64, see `fit`."""
    counts: np.ndarray | None = None
    samples: list[np.ndarray] = []
    sampled, seen, step = 0, 0, 1
    for band in bands:
        pixels = band.reshape(-1, band.shape[2])
        if band.dtype.kind == "u":
            levels = np.iinfo(band.dtype).max + 1
            found = [np.bincount(channel, minlength=levels) for channel in pixels.T]
            counts = np.array(found) if counts is None else counts + found
            continue
        samples.append(pixels[-seen % step :: step].copy())
        sampled += len(samples[-1])
        seen += len(pixels)
        while sampled > _LARGEST_SAMPLE:
            step *= 2
            samples = [np.concatenate(samples)[::2].copy()]
            sampled = len(samples[0])
    if counts is not None:
        return np.array([_percentiles_of_counts(row, numbers) for row in counts]).T
    if not sampled:
        raise ValueError("`bands` must hold at least one row of pixels; it is empty.")
    return np.percentile(np.concatenate(samples), numbers, axis=0)


def _percentiles_of_counts(counts: np.ndarray, numbers: Sequence[float]) -> np.ndarray:
    """Returns the percentiles `numbers` of values of which there are `counts`.

    They are interpolated linearly between the two nearest values in order, as `np.percentile` does.
    """
    places = np.array(numbers) / 100 * (counts.sum() - 1)
    before = np.floor(places).astype(np.int64)
    up_to = np.cumsum(counts)
    low = np.searchsorted(up_to, before, side="right")
    high = np.searchsorted(up_to, np.ceil(places).astype(np.int64), side="right")
    return low + (high - low) * (places - before)


def _or_one(spread: np.ndarray) -> np.ndarray:
    """Returns `spread` with 1 in place of 0: what does not vary stays finite."""
    return np.where(spread > 0, spread, 1.0)
