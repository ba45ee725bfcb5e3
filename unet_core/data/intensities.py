"""How the intensities of files become what the networks expect.

A network maps x to (x - MIDDLE) / SPREAD, so 0 to 255 is the range it is made for, and
MIDDLE + SPREAD * z is what it sees as z.

scaling = Scaling.parse("percentile:1,99")
scaled = scaling(image)          # [H, W, C] as in the file -> [H, W, C] float32, 0 to 255
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unet_core.conventions import MIDDLE, SPREAD
from unet_core.errors import UserError

_LARGEST_SAMPLE = 2**22
WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_FORMS = (
    "range (the range of the file's type, 0 to 255, 0 to 65535, or 0 to 1 for floats, or of the "
    "data set if that is a small part of it), range:LOW,HIGH in the units of the files such as "
    "range:0,4095, percentile:LOW,HIGH such as percentile:1,99, zscore, "
    "or fixed:MEAN,STD in the units of the files such as fixed:1200,340"
)

_MIN_MAX = "min-max"
_SMALL_PART = 1 / 4
# So many of a data set's pixels may lie beyond its range at either end: hot and dead ones.
_BEYOND = 1e-5

_Measured = Sequence[Any] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One way to scale intensities.

    Attributes:
        form: "range", the range of the type, or LOW to HIGH, becomes 0 to 255; "percentile", the
            percentiles LOW and HIGH of each image and channel become 0 and 255, and what is beyond
            is clipped; "zscore", each image and channel gets the mean 0 and standard deviation 1,
            as the network sees it; "fixed", so do the given MEAN and STD of all images.
        numbers: (LOW, HIGH), (MEAN, STD), or ().
        min_max: Whether percentiles that are one value, as where few pixels are not 0, are replaced
            by the least and the greatest value of that image and channel.
    """

    form: str
    numbers: tuple[float, ...] = ()
    min_max: bool = False

    @classmethod
    def parse(cls, text: str) -> Scaling:
        """Returns the scaling that `text` names.

        It is written as `range`, `range:LOW,HIGH`, `percentile:LOW,HIGH`, `zscore` or
        `fixed:MEAN,STD`; runs store `percentile:LOW,HIGH,min-max`.

        Raises:
            UserError: If it has another form, or not LOW < HIGH, percentiles from 0 to 100, or STD
                is not positive.
        """
        form, colon, written = text.strip().partition(":")
        if form in ("range", "zscore") and not colon:
            return cls(form)
        if form not in ("range", "percentile", "fixed"):
            raise UserError(f"`intensities` ({text!r}) must be {_FORMS}.")
        parts = [part.strip() for part in written.split(",")]
        min_max = form == "percentile" and parts[2:] == [_MIN_MAX]
        try:
            first, second = (float(number) for number in (parts[:2] if min_max else parts))
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
        if form == "range" and not -math.inf < first < second < math.inf:
            raise UserError(
                f"`intensities` ({text!r}): the range must rise; write for example range:0,4095."
            )
        return cls(form, (first, second), min_max)

    def __str__(self) -> str:
        if not self.numbers:
            return self.form
        numbers = ",".join(repr(number).removesuffix(".0") for number in self.numbers)
        return f"{self.form}:{numbers}" + f",{_MIN_MAX}" * self.min_max

    def is_asked_for_by(self, asked: Scaling) -> bool:
        """Returns whether a run that stores this may have been begun with `asked`."""
        if asked.form == "range" == self.form:
            return asked.numbers in ((), self.numbers)
        return dataclasses.replace(asked, min_max=self.min_max) == self

    def resolved(self, ranges: Mapping[str, tuple[float, float]]) -> Scaling:
        """Returns the scaling of a new run: the whole of what is to be repeated in predictions.

        Args:
            ranges: Least and greatest value of the data set by the dtype of the files, as
                `find_ranges` returns them. A range of 16 bits or of floats that takes less than a
                quarter of its type, as 12 bits in 16 do, is that of the data set.
        """
        if self.form == "percentile":
            return dataclasses.replace(self, min_max=True)
        if self.form != "range" or self.numbers or len(ranges) != 1:
            return self
        ((dtype, (low, high)),) = ranges.items()
        white = WHITE[dtype]
        is_small = 0 <= low < high <= white and high - low < _SMALL_PART * white
        return Scaling("range", (low, high)) if is_small and dtype != "uint8" else self

    def problem(self, ranges: Mapping[str, tuple[float, float]]) -> str | None:
        """Returns what is wrong with images of such ranges, as `find_ranges` returns them.

        It begins with what they hold: floats that cannot be scaled by their type.
        """
        low, high = ranges.get("float32", (0.0, 1.0))
        if self != Scaling("range") or (low >= 0 and high <= 1):
            return None
        return (
            f"floats from {low:g} to {high:g}; `intensities` (range) takes floats from 0 to 1. Use "
            "percentile:1,99, or range:LOW,HIGH or fixed:MEAN,STD in the units of the files."
        )

    def dtype_for(self, file_dtypes: Iterable[str]) -> np.dtype:
        """Returns the one dtype in which all images of a data set are kept.

        It is uint8 if nothing is lost by it, else float32.

        Args:
            file_dtypes: The dtypes of the files, such as {"uint8", "uint16"}.
        """
        untouched = self == Scaling("range") and set(file_dtypes) <= {"uint8"}
        return np.dtype(np.uint8 if untouched else np.float32)

    def __call__(self, image: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
        """Returns `image` scaled: itself if it is uint8 and scaled by its type, else float32.

        Args:
            image: [H, W, C] uint8, uint16 or float32.
            dtype: What `dtype_for` returned, if the image is one of several: with float32 even an
                image that is left as it is becomes float32.

        Raises:
            UserError: If `image` holds NaN or infinite values, or floats outside 0 to 1 and is
                scaled by its type.
        """
        self._check(image)
        measured: _Measured = self.numbers
        if self.form == "percentile":
            measured = self._apart(
                np.percentile(image.astype(np.float32), self._percents(), axis=(0, 1))
            )
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
            measured = self._apart(_percentiles(map(self._check, bands), self._percents()))
        elif self.form == "zscore":
            measured = _mean_and_deviation(map(self._check, bands))
        return lambda band: self._scaled(self._check(band), measured)

    def _percents(self) -> tuple[float, ...]:
        return (*self.numbers, 0, 100) if self.min_max else self.numbers

    def _apart(self, measured: np.ndarray) -> np.ndarray:
        """Returns the percentiles [2, C] to scale by, of those of `_percents`."""
        if not self.min_max:
            return measured
        return np.where(measured[0] < measured[1], measured[:2], measured[2:])

    def _scaled(self, image: np.ndarray, measured: _Measured) -> np.ndarray:
        """Returns `image` scaled by what was measured.

        `measured` are the two percentiles, each [C], for "percentile"; mean and deviation, each [C]
        or one number, for "zscore" and "fixed"; nothing, or two numbers, for "range".
        """
        of_type = self.form == "range" and not self.numbers
        if of_type and image.dtype == np.uint8:
            return image
        pixels = image.astype(np.float32)
        if self.form == "range" and self.numbers:
            low, high = self.numbers
            return (pixels - np.float32(low)) * np.float32(255 / (high - low))
        if of_type:
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
        problem = self.problem({"float32": (image.min(), image.max())})
        if problem:
            raise UserError(f"The image holds {problem}")
        return image


def find_ranges(images: Iterable[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Returns the least and the greatest value of images, uint8, uint16 or float32, by dtype.

    One in 100,000 pixels may lie beyond either, as hot and dead pixels of a camera do. Floats are
    told apart in 65,536 steps from 0 to 1; if one lies outside, the two are exact.
    """
    counts: dict[str, np.ndarray] = {}
    exact: dict[str, tuple[float, float]] = {}
    for image in images:
        name, pixels = image.dtype.name, image.ravel()
        least, greatest = float(pixels.min()), float(pixels.max())
        before = exact.get(name, (least, greatest))
        exact[name] = (min(before[0], least), max(before[1], greatest))
        levels = 256 if name == "uint8" else 65_536
        if image.dtype.kind == "f":
            finite = pixels[np.isfinite(pixels)]
            pixels = np.rint(finite.clip(0, 1) * (levels - 1)).astype(np.uint16)
        found = np.bincount(pixels, minlength=levels)
        counts[name] = counts[name] + found if name in counts else found
    ranges = {}
    for name, (least, greatest) in exact.items():
        if name == "float32" and not (least >= 0 and greatest <= 1):
            ranges[name] = least, greatest
            continue
        below = np.cumsum(counts[name])
        beyond = _BEYOND * below[-1]
        low = np.searchsorted(below, beyond, side="right")
        high = np.searchsorted(below, below[-1] - beyond)
        unit = WHITE[name] / (len(below) - 1)
        ranges[name] = float(low * unit), float(high * unit)
    return ranges


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
