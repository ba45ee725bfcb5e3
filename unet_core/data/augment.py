"""Joint random deformation of an image and its mask, and random intensities of the image.

All geometry (crop, rotation, scale, flip, elastic deformation) is one map from crop pixels to image
pixels, sampled
once: linearly for the image, by nearest neighbour for the mask. All intensity curves (contrast,
brightness, gamma) are one lookup table. An `Augmenter` keeps its scratch arrays, because fresh ones
cost a page fault per 4 KiB; so each thread needs an augmenter of its own.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How strongly samples are changed. The default changes nothing but where the crop lies.

    Attributes:
        rotation_degrees: Largest rotation either way; 180 is any.
        scale: Range of the magnification; 1 is none. Drawn uniformly in its logarithm.
        flips: Whether to mirror left-right and up-down, each with probability 1/2.
        elastic_grid: Control points a side of the elastic grid, >= 2.
        elastic_px: Standard deviation of the control points' displacement in pixels; 0 is none.
        contrast: Range of the factor on the distance from the image's mean intensity.
        brightness: Largest shift either way; 1 is the whole range of intensities.
        gamma: Range of the exponent on intensities in 0..1. Drawn uniformly in its logarithm.
        noise: Largest standard deviation of the Gaussian noise; 1 is the whole range of
            intensities.
        noise_share: Share of samples that get noise.
        blur_share: Share of samples that get a Gaussian blur of 0.5 to 1.5 pixels.
    """

    rotation_degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    flips: bool = False
    elastic_grid: int = 5
    elastic_px: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    noise_share: float = 0.0
    blur_share: float = 0.0


class Augmenter:
    """Draws augmented crops of one size.

    Args:
        crop_size: Pixels a side of the square crop.
        recipe: What may happen to it.
    """

    _NOISE_SPARE = 509

    def __init__(self, crop_size: int, recipe: Recipe):
        self._size = crop_size
        self._recipe = recipe
        # A map is rows @ core @ columns: the first `grid` rows and columns interpolate the elastic
        # grid, the last
        # two are the coordinate, measured from the centre of the crop, and the constant 1.
        coordinate = np.arange(crop_size, dtype=np.float32) - (crop_size - 1) / 2
        basis = np.vstack(
            [_cubic_weights(crop_size, recipe.elastic_grid), coordinate, np.ones(crop_size)]
        ).astype(np.float32)
        self._columns = basis
        self._rows = np.ascontiguousarray(basis.T)
        side = recipe.elastic_grid + 2
        self._core = np.zeros((2, side, side), np.float32)
        self._map = np.empty((2, crop_size, crop_size), np.float32)
        self._pixels = np.empty((crop_size, crop_size), np.uint8)
        self._levels = np.arange(256, dtype=np.float32) / 255
        if recipe.noise and recipe.noise_share:
            bank = np.random.Generator(np.random.Philox(key=0))
            self._noise_bank = bank.standard_normal([crop_size + self._NOISE_SPARE] * 2, np.float32)

    def __call__(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        mask: np.ndarray,
        image_out: np.ndarray,
        mask_out: np.ndarray,
    ) -> None:
        """Writes one augmented crop of `image` and `mask` ([H, W] uint8) to the two [crop, crop]
        uint8 outputs.
        """
        x, y = self._draw_map(rng, image.shape)
        cv2.remap(
            image, x, y, cv2.INTER_LINEAR, dst=self._pixels, borderMode=cv2.BORDER_REFLECT_101
        )
        cv2.remap(mask, x, y, cv2.INTER_NEAREST, dst=mask_out, borderMode=cv2.BORDER_REFLECT_101)
        self._draw_intensities(rng, float(self._pixels[::8, ::8].mean()) / 255, image_out)

    def _draw_map(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns for every crop pixel the image coordinates x and y to sample, each [crop, crop]
        float32.
        """
        recipe = self._recipe
        angle = np.deg2rad(rng.uniform(-recipe.rotation_degrees, recipe.rotation_degrees))
        magnification = _log_uniform(rng, *recipe.scale)
        flip_x, flip_y = np.where(rng.random(2) < 0.5, -1.0, 1.0) if recipe.flips else (1.0, 1.0)
        cosine, sine = np.cos(angle) / magnification, np.sin(angle) / magnification
        # The centre lies so that an unturned crop falls on whole pixels inside the image.
        half = (self._size - 1) / 2
        centre_y = half + rng.integers(0, shape[0] - self._size + 1)
        centre_x = half + rng.integers(0, shape[1] - self._size + 1)

        core = self._core
        core[0, -1, -2], core[0, -2, -1], core[0, -1, -1] = (
            flip_x * cosine,
            -flip_y * sine,
            centre_x,
        )
        core[1, -1, -2], core[1, -2, -1], core[1, -1, -1] = flip_x * sine, flip_y * cosine, centre_y
        if recipe.elastic_px:
            shifts = rng.standard_normal((2, recipe.elastic_grid, recipe.elastic_grid), np.float32)
            core[:, :-2, :-2] = shifts * np.float32(recipe.elastic_px)
        for axis in (0, 1):
            np.matmul(self._rows, core[axis] @ self._columns, out=self._map[axis])
        return self._map[0], self._map[1]

    def _draw_intensities(self, rng: np.random.Generator, mean: float, out: np.ndarray) -> None:
        recipe = self._recipe
        contrast = rng.uniform(*recipe.contrast)
        brightness = rng.uniform(-recipe.brightness, recipe.brightness)
        gamma = _log_uniform(rng, *recipe.gamma)
        table = np.clip((self._levels - mean) * contrast + mean + brightness, 0, 1) ** gamma
        cv2.LUT(self._pixels, np.rint(table * 255).astype(np.uint8), dst=out)
        if rng.random() < recipe.blur_share:
            cv2.GaussianBlur(out, (0, 0), rng.uniform(0.5, 1.5), dst=out)
        if recipe.noise and rng.random() < recipe.noise_share:
            # A window of fixed noise at a random place: as random to the eye, at a tenth of the
            # time of fresh noise.
            top, left = rng.integers(0, self._NOISE_SPARE, 2)
            noise = self._noise_bank[top : top + self._size, left : left + self._size]
            sigma = rng.uniform(0, recipe.noise) * 255 * (1 if rng.random() < 0.5 else -1)
            cv2.addWeighted(out, 1.0, noise, sigma, 0.0, dst=out, dtype=cv2.CV_8U)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _cubic_weights(size: int, grid: int) -> np.ndarray:
    """Returns [grid, size]: the weight of each control point at each pixel, cubic convolution (Keys
    1981, a = -1/2).

    The control points span the crop from edge to edge; beyond the edge the outermost point is
    repeated.
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
