"""Joint random deformation of an image and its mask, and random intensities of the image.

All geometry (crop, rotation, shift, shear, zoom, scale, flips, elastic deformation) is one map from
crop pixels to image pixels, sampled once: linearly for the image and the weights, by nearest
neighbour for the mask. All intensity curves (channel shift, brightness, contrast, gamma) are one
lookup table. An `Augmenter` keeps its scratch arrays, because fresh ones cost a page fault per
4 KiB; so each thread needs an augmenter of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unet_core.conventions import IGNORED
from unet_core.errors import UserError

FILL_MODES: Mapping[str, int] = {
    "mirror": cv2.BORDER_REFLECT_101,
    "reflect": cv2.BORDER_REFLECT,
    "nearest": cv2.BORDER_REPLICATE,
    "wrap": cv2.BORDER_WRAP,
    "constant": cv2.BORDER_CONSTANT,
}
"""What lies outside the image, for an image a b c d: mirror is d c b | a b c d | c b a (OpenCV's
REFLECT_101), reflect c b a | a b c d | d c b (Keras' and SciPy's meaning of the word), nearest
a a a | a b c d | d d d, wrap b c d | a b c d | a b c, and constant one grey value.
"""


_PADDING: Mapping[int, Any] = {
    cv2.BORDER_REFLECT_101: "reflect",
    cv2.BORDER_REFLECT: "symmetric",
    cv2.BORDER_REPLICATE: "edge",
    cv2.BORDER_WRAP: "wrap",
}
"""NumPy's names of them."""
_LONGEST_SIDE = 2**15 - 1
"""Pixels; OpenCV 5.0 samples images whose sides are shorter, so a window of others is cut first."""
_COPIED_CROPS = 8
"""Images of at most so many crops are copied before they are sampled; larger ones would cost more
than that gains.
"""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How strongly samples are changed. The default changes nothing but where the crop lies.

    Ranges are drawn from uniformly, unless said otherwise. Grey values are in 0..255. With R, S, Z,
    F and Q the matrices of rotation, shear, zoom, flips and quarter turns, the pixel d from the
    centre of the crop shows the place

        centre of the crop in the image + R (shift + S Z F Q d / scale) + elastic displacement,

    which without quarter turns, scale and elastic displacement is the product that Keras'
    ImageDataGenerator makes. The intensities change in the order channel shift, brightness factor,
    contrast, brightness, inverted gamma, gamma, blur, low resolution, noise, cutout, and alike in
    all channels but for noise and the filling of cutouts.

    Attributes:
        rotation_degrees: Largest rotation either way; 180 is any.
        rotation_share: Share of samples that are rotated.
        scale: Range of the magnification; 1 is none. Drawn uniformly in its logarithm.
        scale_share: Share of samples that are magnified.
        flips: Whether to mirror left-right and up-down, each with probability 1/2.
        horizontal_flip: Whether to mirror left-right with probability 1/2.
        vertical_flip: Whether to mirror up-down with probability 1/2.
        quarter_turns: Whether to turn by 0, 90, 180 or 270 degrees, equally often.
        width_shift: Largest shift left or right as a share of the image's width.
        height_shift: Largest shift up or down as a share of the image's height.
        shear_degrees: Largest shear angle either way.
        zoom: Range of the factors, one for each axis, by which the crop shows more of the image:
            2 shrinks what is seen to half its size, as in Keras.
        elastic_grid: Control points a side of the elastic grid, >= 2.
        elastic_px: Standard deviation of the control points' displacement in pixels; 0 is none.
        fill_mode: What lies outside the image, a key of `FILL_MODES`.
        cval: The grey value outside the image if `fill_mode` is constant; the mask is IGNORED and
            the weights are 0 there.
        channel_shift: Largest shift of all grey values either way, clipped to the range of the
            crop's grey values, as in Keras.
        brightness_factor: Range of the factor on grey values.
        brightness_share: Share of samples that get `brightness_factor`.
        contrast: Range of the factor on the distance from the crop's mean intensity.
        contrast_share: Share of samples that get `contrast`.
        contrast_keeps_range: Whether contrast is clipped to the range of the crop's grey values.
        brightness: Largest shift either way; 1 is the whole range of intensities.
        gamma: Range of the exponent on intensities in 0..1. Drawn uniformly in its logarithm. 0 and
            1 are grey values 0 and 255 of uint8 images, the crop's lowest and highest of float32
            ones.
        gamma_share: Share of samples that get `gamma`.
        inverted_gamma_share: Share of samples that get, beside, an exponent from the range `gamma`
            on the inverted intensities: 1 - (1 - v)^exponent.
        noise: Largest standard deviation of the Gaussian noise; 1 is the whole range of
            intensities.
        noise_variance: Largest variance of the Gaussian noise; 1 is the variance of the crop's grey
            values. With `noise` the two are independent and add up.
        noise_share: Share of samples that get noise.
        blur_share: Share of samples that get a Gaussian blur.
        blur_px: Range of the blur's standard deviation in pixels.
        low_resolution: Range of the factor by which the crop is made smaller, by nearest neighbour,
            and then enlarged again, linearly; at most 1.
        low_resolution_share: Share of samples that get `low_resolution`.
        cutout_holes: Squares of the image, not of the mask, that are filled with the crop's mean.
        cutout_px: Pixels a side of such a square; its centre may be any pixel of the crop.

    Raises:
        UserError: If `fill_mode` is unknown.
    """

    rotation_degrees: float = 0.0
    rotation_share: float = 1.0
    scale: tuple[float, float] = (1.0, 1.0)
    scale_share: float = 1.0
    flips: bool = False
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: bool = False
    width_shift: float = 0.0
    height_shift: float = 0.0
    shear_degrees: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    elastic_grid: int = 5
    elastic_px: float = 0.0
    fill_mode: str = "mirror"
    cval: float = 0.0
    channel_shift: float = 0.0
    brightness_factor: tuple[float, float] = (1.0, 1.0)
    brightness_share: float = 1.0
    contrast: tuple[float, float] = (1.0, 1.0)
    contrast_share: float = 1.0
    contrast_keeps_range: bool = False
    brightness: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    gamma_share: float = 1.0
    inverted_gamma_share: float = 0.0
    noise: float = 0.0
    noise_variance: float = 0.0
    noise_share: float = 0.0
    blur_share: float = 0.0
    blur_px: tuple[float, float] = (0.5, 1.5)
    low_resolution: tuple[float, float] = (1.0, 1.0)
    low_resolution_share: float = 1.0
    cutout_holes: int = 0
    cutout_px: int = 0

    def __post_init__(self) -> None:
        if self.fill_mode not in FILL_MODES:
            raise UserError(
                f"`fill_mode` ({self.fill_mode!r}) is unknown; choose one of "
                f"{', '.join(FILL_MODES)}."
            )

    @staticmethod
    def preset(name: str) -> Recipe:
        """Returns the recipe `name` of `PRESETS`.

        Raises:
            UserError: If there is no such recipe.
        """
        if name not in PRESETS:
            raise UserError(
                f"The augmentation preset {name!r} is unknown; choose one of {', '.join(PRESETS)}."
            )
        return PRESETS[name]


PRESETS: Mapping[str, Recipe] = {
    "none": Recipe(),
    # The arguments of ImageDataGenerator in https://github.com/zhixuhao/unet (rotation_range=0.2,
    # shear_range=0.05: Keras takes both as degrees).
    "keras": Recipe(
        rotation_degrees=0.2,
        width_shift=0.05,
        height_shift=0.05,
        shear_degrees=0.05,
        zoom=(0.95, 1.05),
        horizontal_flip=True,
        fill_mode="nearest",
    ),
    # Ronneberger et al. 2015, section 3.1: shift (where the crop lies), rotation, grey value
    # variation (its extent is not given) and displacements of N(0, 10 px) on a 3x3 grid.
    "paper": Recipe(
        rotation_degrees=180,
        elastic_grid=3,
        elastic_px=10,
        contrast=(0.75, 1.25),
        brightness=0.15,
    ),
    # Isensee et al. 2021 (doi 10.1038/s41592-020-01008-z), supplementary note 2. There noise comes
    # first, and scale and gamma lie above 1 as often as below.
    "nnunet": Recipe(
        rotation_degrees=180,
        rotation_share=0.2,
        scale=(0.7, 1.4),
        scale_share=0.2,
        flips=True,
        brightness_factor=(0.75, 1.25),
        brightness_share=0.15,
        contrast=(0.75, 1.25),
        contrast_share=0.15,
        contrast_keeps_range=True,
        gamma=(0.7, 1.5),
        gamma_share=0.3,
        inverted_gamma_share=0.1,
        noise_variance=0.1,
        noise_share=0.1,
        blur_share=0.2,
        blur_px=(0.5, 1.0),
        low_resolution=(0.5, 1.0),
        low_resolution_share=0.25,
    ),
}


class _Curves(NamedTuple):
    """What is drawn of the intensity curves of one crop; the default changes nothing."""

    channel_shift: float = 0.0
    factor: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    inverted_gamma: float = 1.0
    gamma: float = 1.0


class Augmenter:
    """Draws augmented crops of one size.

    Args:
        crop_size: Pixels a side of the square crop.
        recipe: What may happen to it.
        channels: Channels C of the images.
        dtype: uint8, or float32 for images in the same units, 0..255, that may lie outside them;
            only uint8 results are clipped to 0..255.
    """

    _NOISE_SPARE = 509

    def __init__(
        self,
        crop_size: int,
        recipe: Recipe,
        *,
        channels: int = 1,
        dtype: npt.DTypeLike = np.uint8,
    ):
        self._size = crop_size
        self._recipe = recipe
        self._channels = channels
        self._dtype = np.dtype(dtype)
        self._border = FILL_MODES[recipe.fill_mode]
        # A map is rows @ core @ columns: the first `grid` rows and columns interpolate the elastic
        # grid, the last two are the coordinate, measured from the centre of the crop, and the
        # constant 1.
        coordinate = np.arange(crop_size, dtype=np.float32) - (crop_size - 1) / 2
        basis = np.vstack([coordinate, np.ones(crop_size)])
        if recipe.elastic_px:
            basis = np.vstack([_cubic_weights(crop_size, recipe.elastic_grid), basis])
        self._columns = basis.astype(np.float32)
        self._rows = np.ascontiguousarray(self._columns.T)
        self._core = np.zeros((2, len(basis), len(basis)), np.float32)
        self._map = np.empty((2, crop_size, crop_size), np.float32)
        self._levels = np.arange(256, dtype=np.float32)
        self._table = np.empty(256, np.float32)
        depth = 4 if channels == 3 else channels
        self._copy = np.empty(_COPIED_CROPS * crop_size * crop_size * depth, np.uint8)
        self._four = np.empty((crop_size, crop_size, 4), np.uint8)
        self._small = np.empty(crop_size * crop_size * channels, self._dtype)
        if recipe.noise_share and (recipe.noise or recipe.noise_variance):
            bank = np.random.Generator(np.random.Philox(key=0))
            sides = (crop_size + self._NOISE_SPARE, crop_size * channels + self._NOISE_SPARE)
            self._noise_bank = bank.standard_normal(sides, np.float32)

    def __call__(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        mask: np.ndarray,
        image_out: np.ndarray,
        mask_out: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        weights_out: np.ndarray | None = None,
        contain: tuple[int, int] | None = None,
    ) -> None:
        """Writes one augmented crop: a pure function of `rng` and the arguments.

        Args:
            rng: The source of everything drawn.
            image: [H, W] or [H, W, C] of the augmenter's dtype. Around one with a side shorter than
                the crop there is what the recipe's `fill_mode` says, and the mask is IGNORED: every
                pixel of it counts as often as one of a larger image, and no copy of it does.
            mask: [H, W] uint8.
            image_out: [crop, crop] or [crop, crop, C] of the same dtype, C-contiguous.
            mask_out: [crop, crop] uint8, C-contiguous.
            weights: [H, W] float32, sampled by the map of the image.
            weights_out: [crop, crop] float32, C-contiguous; needed if there are weights.
            contain: A pixel (y, x) of the image that the crop must show. It changes nothing drawn
                but the range of the crop's place.

        Raises:
            UserError: If an array has another shape or dtype.
        """
        size = (self._size, self._size)
        _check("image", image, image.shape[:2], self._channels, self._dtype)
        _check("mask", mask, image.shape[:2], 1, np.uint8)
        _check("image_out", image_out, size, self._channels, self._dtype)
        _check("mask_out", mask_out, size, 1, np.uint8)
        x, y = self.draw_map(rng, image.shape[:2], contain)
        if max(image.shape[:2]) >= _LONGEST_SIDE:
            (x, across), (y, down) = (
                _windowed(places, length, self._border)
                for places, length in zip((x, y), image.shape[1::-1], strict=True)
            )
            part = np.ix_(down, across)
            image, mask = image[part], mask[part]
            weights = None if weights is None else weights[part]
        self._sample(image, x, y, image_out, self._recipe.cval)
        border = cv2.BORDER_CONSTANT if min(mask.shape) < self._size else self._border
        near = self._copied(mask)
        cv2.remap(near, x, y, cv2.INTER_NEAREST, mask_out, borderMode=border, borderValue=IGNORED)
        if weights is not None:
            assert weights_out is not None
            _check("weights", weights, mask.shape, 1, np.float32)
            _check("weights_out", weights_out, size, 1, np.float32)
            self._sample(weights, x, y, weights_out, 0.0)
        self._draw_intensities(rng, image_out)

    def draw_map(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int],
        contain: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns for every crop pixel the image coordinates x and y to sample.

        Both are [crop, crop] float32 and valid until the next call.

        An unturned crop falls on whole pixels inside the image, or around all of it along an axis
        that is shorter, every place being equally likely, or every place that shows the pixel
        `contain` (y, x). Where that pixel would fall outside a
        crop that is turned, shifted or scaled, the crop is moved until the pixel is at its edge.

        Args:
            rng: The source of everything drawn.
            shape: Height and width of the image.
            contain: A pixel of the image that the crop must show, exactly at one of its pixels.
        """
        recipe = self._recipe
        size = self._size
        angle = 0.0
        if _happens(rng, recipe.rotation_share):
            angle = np.deg2rad(_uniform(rng, -recipe.rotation_degrees, recipe.rotation_degrees))
        magnification = 1.0
        if _happens(rng, recipe.scale_share):
            magnification = _log_uniform(rng, *recipe.scale)
        flip_x, flip_y = 1.0, 1.0
        if recipe.flips or recipe.horizontal_flip or recipe.vertical_flip:
            flipped_x, flipped_y = rng.random(2) < 0.5
            flip_x = -1.0 if flipped_x and (recipe.flips or recipe.horizontal_flip) else 1.0
            flip_y = -1.0 if flipped_y and (recipe.flips or recipe.vertical_flip) else 1.0
        turns = rng.integers(0, 4) if recipe.quarter_turns else 0
        shift_x = _uniform(rng, -recipe.width_shift, recipe.width_shift) * shape[1]
        shift_y = _uniform(rng, -recipe.height_shift, recipe.height_shift) * shape[0]
        shear = np.deg2rad(_uniform(rng, -recipe.shear_degrees, recipe.shear_degrees))
        stretch_x = flip_x * _uniform(rng, *recipe.zoom) / magnification
        stretch_y = flip_y * _uniform(rng, *recipe.zoom) / magnification
        top, left = self._draw_corner(rng, shape, contain)

        # Where one pixel to the right and one downwards lead: the columns of R S Z F / scale.
        # Rotation times shear turns the first column by the one angle and the second by both.
        cosine, sine = np.cos(angle), np.sin(angle)
        right = cosine * stretch_x, sine * stretch_x
        down = -np.sin(angle + shear) * stretch_y, np.cos(angle + shear) * stretch_y
        for _ in range(turns):
            right, down = down, (-right[0], -right[1])
        centre = (
            left + (size - 1) / 2 + cosine * shift_x - sine * shift_y,
            top + (size - 1) / 2 + sine * shift_x + cosine * shift_y,
        )
        core = self._core
        core[:, -1, -2], core[:, -2, -1], core[:, -1, -1] = right, down, centre
        if recipe.elastic_px:
            grid = recipe.elastic_grid
            shifts = rng.standard_normal((2, grid, grid), np.float32)
            core[:, :grid, :grid] = shifts * np.float32(recipe.elastic_px)
        if contain is not None:
            self._move_to_show(contain)
        np.matmul(self._rows, core @ self._columns, out=self._map)
        return self._map[0], self._map[1]

    def _draw_corner(
        self, rng: np.random.Generator, shape: tuple[int, int], contain: tuple[int, int] | None
    ) -> list[int]:
        """Returns top and left of an unturned crop inside the image, around it, or `contain`."""
        corner: list[Any] = []
        for axis, pixels in enumerate(shape):
            lowest, highest = sorted((0, pixels - self._size))
            if contain is not None:
                lowest = max(lowest, contain[axis] - self._size + 1)
                highest = min(highest, contain[axis])
            corner.append(rng.integers(lowest, highest + 1))
        return corner

    def _move_to_show(self, pixel: tuple[int, int]) -> None:
        """Moves the map so that `pixel` (y, x) of the image is at a whole pixel of the crop.

        It is the pixel nearest to where it was without the elastic deformation.
        """
        core = self._core
        wanted = np.array(pixel[::-1])
        matrix = np.stack([core[:, -1, -2], core[:, -2, -1]], axis=1)
        place = np.linalg.solve(matrix, wanted - core[:, -1, -1]) + (self._size - 1) / 2
        column, row = np.clip(np.rint(place), 0, self._size - 1).astype(int)
        core[:, -1, -1] += wanted - self._rows[row] @ core @ self._columns[:, column]

    def _sample(
        self, image: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray, outside: float
    ) -> None:
        near = self._copied(image)
        padded = near.shape[2:] == (4,) and out.shape[2:] == (3,)
        sampled = self._four if padded else out
        border_value = (outside,) * 4
        cv2.remap(
            near, x, y, cv2.INTER_LINEAR, sampled, borderMode=self._border, borderValue=border_value
        )
        if padded:
            cv2.cvtColor(sampled, cv2.COLOR_RGBA2RGB, out)

    def _copied(self, pixels: np.ndarray) -> np.ndarray:
        """Returns a copy in the cache of uint8 `pixels`, three channels as four, or `pixels`.

        A turned map reads a line of the cache for every pixel; a copy reads the image in order, and
        is written to the same addresses each time. OpenCV 5.0 samples four channels in less than
        half the time of three, to the same values.
        """
        height, width = pixels.shape[:2]
        if pixels.dtype != np.uint8 or height * width > _COPIED_CROPS * self._size**2:
            return pixels
        copy: np.ndarray
        if pixels.shape[2:] == (3,):
            copy = self._copy[: height * width * 4].reshape(height, width, 4)
            return cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA, copy)
        if self._core[1, -1, -2] == 0:
            # A row of the crop is along a row of the image, which is read in order anyway.
            return pixels
        copy = self._copy[: pixels.size].reshape(pixels.shape)
        np.copyto(copy, pixels)
        return copy

    def _draw_intensities(self, rng: np.random.Generator, picture: np.ndarray) -> None:
        """Changes the grey values of `picture` [crop, crop(, C)] in place."""
        recipe = self._recipe
        size = self._size
        self._draw_curves(rng, picture)
        if _happens(rng, recipe.blur_share):
            cv2.GaussianBlur(picture, (0, 0), _uniform(rng, *recipe.blur_px), picture)
        if recipe.low_resolution != (1.0, 1.0) and _happens(rng, recipe.low_resolution_share):
            side = max(1, round(size * _uniform(rng, *recipe.low_resolution)))
            small = self._small[: side * side * self._channels].reshape(side, side, self._channels)
            cv2.resize(picture, (side, side), small, interpolation=cv2.INTER_NEAREST_EXACT)
            cv2.resize(small, (size, size), picture, interpolation=cv2.INTER_LINEAR)
        if (recipe.noise or recipe.noise_variance) and _happens(rng, recipe.noise_share):
            self._draw_noise(rng, picture)
        if recipe.cutout_holes:
            self._draw_holes(rng, picture)

    def _draw_curves(self, rng: np.random.Generator, picture: np.ndarray) -> None:
        curves = self._drawn_curves(rng)
        if curves == _Curves():
            return
        if self._dtype != np.uint8:
            self._apply_curves(curves, picture, picture)
            return
        self._apply_curves(curves, picture, self._table)
        cv2.LUT(picture, np.rint(self._table).astype(np.uint8), picture)

    def _drawn_curves(self, rng: np.random.Generator) -> _Curves:
        recipe = self._recipe
        channel_shift = _uniform(rng, -recipe.channel_shift, recipe.channel_shift)
        factor = contrast = inverted_gamma = gamma = 1.0
        if _happens(rng, recipe.brightness_share):
            factor = _uniform(rng, *recipe.brightness_factor)
        if _happens(rng, recipe.contrast_share):
            contrast = _uniform(rng, *recipe.contrast)
        brightness = _uniform(rng, -recipe.brightness, recipe.brightness) * 255
        if _happens(rng, recipe.inverted_gamma_share):
            inverted_gamma = _log_uniform(rng, *recipe.gamma)
        if _happens(rng, recipe.gamma_share):
            gamma = _log_uniform(rng, *recipe.gamma)
        return _Curves(channel_shift, factor, contrast, brightness, inverted_gamma, gamma)

    def _apply_curves(self, curves: _Curves, picture: np.ndarray, values: np.ndarray) -> None:
        """Writes the changed levels of a table to `values`, or changes the picture if it is that.

        Either way the statistics are those of the picture.
        """
        channel_shift, factor, contrast, brightness, inverted_gamma, gamma = curves
        recipe, is_table = self._recipe, values is self._table
        mean = float(picture[::8, ::8].mean()) if contrast != 1 else 0.0
        if channel_shift or (recipe.contrast_keeps_range and contrast != 1):
            lowest, highest, *_ = cv2.minMaxLoc(picture.reshape(self._size, -1))
        if is_table:
            values[:] = self._levels
        if channel_shift:
            values += channel_shift
            np.clip(values, lowest, highest, out=values)
            mean = min(max(mean + channel_shift, lowest), highest)
        if factor != 1:
            values *= factor
        if contrast != 1:
            values *= contrast
            values += (1 - contrast) * mean * factor
            if recipe.contrast_keeps_range:
                np.clip(values, lowest * factor, highest * factor, out=values)
        if brightness:
            values += brightness
        if is_table:
            np.clip(values, 0, 255, out=values)
        if (inverted_gamma, gamma) != (1.0, 1.0):
            black, white = (0, 255) if is_table else (float(values.min()), float(values.max()))
            _bend(values, black, white, inverted_gamma, gamma)

    def _draw_noise(self, rng: np.random.Generator, picture: np.ndarray) -> None:
        # A window of fixed noise at a random place: as random to the eye, at a tenth of the time of
        # fresh noise.
        recipe = self._recipe
        size = self._size
        top, left = rng.integers(0, self._NOISE_SPARE, 2)
        noise = self._noise_bank[top : top + size, left : left + size * self._channels]
        sigma = _uniform(rng, 0.0, recipe.noise) * 255 * (1 if rng.random() < 0.5 else -1)
        if recipe.noise_variance:
            _, deviation = cv2.meanStdDev(picture.reshape(size, -1))
            variance = _uniform(rng, 0.0, recipe.noise_variance) * deviation.item() ** 2
            sigma = float(np.copysign(np.hypot(sigma, np.sqrt(variance)), sigma))
        depth = cv2.CV_8U if self._dtype == np.uint8 else cv2.CV_32F
        cv2.addWeighted(picture, 1.0, noise.reshape(picture.shape), sigma, 0.0, picture, depth)

    def _draw_holes(self, rng: np.random.Generator, picture: np.ndarray) -> None:
        side = self._recipe.cutout_px
        mean = picture[::8, ::8].mean(axis=(0, 1))
        if self._dtype == np.uint8:
            mean = np.rint(mean)
        corners = rng.integers(0, self._size, (self._recipe.cutout_holes, 2)) - side // 2
        for top, left in corners:
            picture[max(0, top) : top + side, max(0, left) : left + side] = mean


def _windowed(places: np.ndarray, length: int, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `places` in a window of a side, and the numbers of the pixels of that window.

    What lies outside of the image is what the border stands for, so that no place is outside of the
    window; with a border of one value all that is outside of the image is.
    """
    start, stop = math.floor(places.min()) - 1, math.ceil(places.max()) + 2
    if border == cv2.BORDER_CONSTANT:
        start = min(max(0, start), length - 1)
        return places - np.float32(start), np.arange(start, min(max(stop, start + 1), length))
    before, after = max(0, -start), max(0, stop - length)
    padded = np.pad(np.arange(length), (before, after), mode=_PADDING[border])
    return places - np.float32(start), padded[start + before : stop + before]


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A range of one value draws nothing."""
    return low if low == high else rng.uniform(low, high)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _happens(rng: np.random.Generator, share: float) -> bool:
    """Never and always draw nothing."""
    return share > 0 and (share >= 1 or rng.random() < share)


def _bend(
    values: np.ndarray, black: float, white: float, inverted_gamma: float, gamma: float
) -> None:
    """Applies exponents in place to `values` between `black`, meanwhile 0, and `white`, 1."""
    if black == white:
        return
    values -= black
    values /= white - black
    if inverted_gamma != 1:
        np.subtract(1, values, out=values)
        np.power(values, inverted_gamma, out=values)
        np.subtract(1, values, out=values)
    if gamma != 1:
        np.power(values, gamma, out=values)
    values *= white - black
    values += black


def _check(
    name: str, array: np.ndarray, sides: tuple[int, int], channels: int, dtype: npt.DTypeLike
) -> None:
    """Raises UserError if OpenCV could not read, or would not write to, `array` as expected.

    Given a wrong output, OpenCV writes to a new array that nobody sees.
    """
    shapes = [(*sides, channels)] if channels > 1 else [sides, (*sides, 1)]
    if array.dtype != dtype or array.shape not in shapes:
        raise UserError(
            f"`{name}` is {array.dtype} {list(array.shape)}; this augmenter needs "
            f"{np.dtype(dtype)} {list(shapes[0])}. Convert the array, or make an augmenter for it."
        )


def _cubic_weights(size: int, grid: int) -> np.ndarray:
    """Returns [grid, size]: the weight of each control point at each pixel.

    The weights are those of cubic convolution (Keys 1981, a = -1/2). The control points span the
    crop from edge to edge; beyond the edge the outermost point is repeated.
    """
    positions = np.linspace(0, grid - 1, size)
    weights = np.zeros((grid, size))
    first = np.floor(positions).astype(int)
    for offset in (-1, 0, 1, 2):
        distance = np.abs(positions - (first + offset))
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(weights, (np.clip(first + offset, 0, grid - 1), np.arange(size)), weight)
    return weights
