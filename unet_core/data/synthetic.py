"""Synthetic electron micrographs of packed cells, for a first run without data.

Slices are sections through one volume: cells wander, grow and shrink from slice to slice, so
neighbours resemble one another. Cells are a multiplicatively weighted Voronoi diagram (each has its
own pace of growth, so borders are curved and small cells lie in the bends of large ones) under a
smooth warp. Membranes vary in width and darkness; mitochondria with cristae, vesicles and synaptic
smears are as dark as membranes but are none; light is uneven and noise is that of counted
electrons. Everything is a pure function of a seed.

    write_dataset("data/membrane")     # train/image, train/label, test
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import cv2
import numpy as np

from unet_core.data import images
from unet_core.errors import UserError
from unet_core.files import new_folder, os_errors

MEMBRANE, CELL = 0, 255
_BLOCK_PX = 16
_SLICES_PER_KEY = 6


def write_dataset(
    data_dir: str | os.PathLike,
    *,
    train_slices: int = 30,
    test_slices: int = 10,
    size: int = 512,
    seed: int = 2012,
    progress: Callable = iter,
) -> None:
    """Writes `train/image`, `train/label` and `test` under `data_dir`.

    The files are PNG, named 0.png, 1.png, ...

    They appear as a whole, so that a killed write never looks like a data set.

    Args:
        data_dir: The folder to make; it must not exist.
        train_slices: Consecutive slices with masks.
        test_slices: Consecutive slices of another volume, without masks.
        size: Pixels a side.
        seed: Everything is a function of it.
        progress: Wraps the list of slices to show progress.

    Raises:
        UserError: If `data_dir` exists, or cannot be written.
    """
    data_dir = pathlib.Path(data_dir)
    if os.path.lexists(data_dir):
        raise UserError(
            f"{data_dir}: exists already; synthetic data are only written to a new folder."
        )
    work = [("train", z) for z in range(train_slices)] + [("test", z) for z in range(test_slices)]
    volumes = {"train": Volume(size=size, seed=seed), "test": Volume(size=size, seed=seed + 1)}
    way = "Make room, or choose another folder."
    with os_errors(data_dir, "synthetic data cannot be written", way), new_folder(data_dir) as new:
        for folder in ("train/image", "train/label", "test"):
            (new / folder).mkdir(parents=True)
        for part, z in progress(work):
            image, mask = volumes[part].slice_at(z)
            if part == "train":
                images.write_png(new / "train" / "image" / f"{z}.png", image)
                images.write_png(new / "train" / "label" / f"{z}.png", mask)
            else:
                images.write_png(new / "test" / f"{z}.png", image)


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One cell of the diagram.

    It has a centre, a drift of it per slice, a pace of growth and a grey.
    """

    centre: np.ndarray
    drift: np.ndarray
    sway: np.ndarray
    pace: float
    grey: float


@dataclasses.dataclass(frozen=True)
class _Organelle:
    """An ellipsoid (mitochondrion) or a small ring (vesicle).

    It has a centre in x, y, z, semi-axes, a turn and a grey.
    """

    centre: np.ndarray
    axes: np.ndarray
    angle: float
    grey: float


class Volume:
    """A block of synthetic tissue.

    Args:
        size: Pixels a side of a slice.
        seed: Two volumes with one seed are equal.
    """

    def __init__(self, *, size: int = 512, seed: int = 0):
        self._size = size
        self._seed = seed
        rng = self._generator(0)
        area = (size + 160) ** 2
        self._cells = [self._draw_cell(rng) for _ in range(int(area / 2200))]
        self._mitochondria = [self._draw_mitochondrion(rng) for _ in range(int(area / 900))]
        self._vesicles = [self._draw_vesicle(rng) for _ in range(int(area / 700))]
        self._pair_draws = rng.random((3, 4096), np.float32)

    def slice_at(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns slice `z` as (image, mask), each [size, size] uint8.

        The mask is 0 on membranes, 255 in cells.
        """
        x, y = self._warped_coordinates(z)
        owner, neighbour, distance = self._diagram(x, y, z)
        pair = (np.minimum(owner, neighbour) * 131 + np.maximum(owner, neighbour) * 17) % 4096
        width_draw, dark_draw, blur_draw = self._pair_draws[:, pair]

        half_width = (1.4 + 1.3 * width_draw) * np.exp(0.18 * self._field(z, 1, 24))
        membrane = distance < half_width
        mask = np.where(membrane, MEMBRANE, CELL).astype(np.uint8)

        rng = self._generator(1 + z)
        greys = np.array([cell.grey for cell in self._cells], np.float32)
        image = greys[owner] + 0.05 * self._texture(rng, 1.2) + 0.035 * self._texture(rng, 3.0)
        image += 0.03 * self._field(z, 2, 40)
        inside = distance - half_width
        self._paint_mitochondria(image, inside, owner, x, y, z, rng)
        self._paint_vesicles(image, inside, z)
        smear = np.clip(self._field(z, 3, 30) - 1.3, 0, 1) * np.exp(-np.maximum(inside, 0) / 7)
        image -= 0.35 * smear
        # Membranes cut obliquely are wide and faint: the profile spreads while its darkness falls.
        spread = half_width * (0.75 + 0.9 * blur_draw)
        depth = (
            (0.3 + 0.24 * dark_draw) * (1 - 0.3 * blur_draw) * (1 + 0.25 * self._field(z, 4, 20))
        )
        image -= np.clip(depth, 0.1, 0.6) * np.exp(-((distance / spread) ** 2))

        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.9)
        return self._expose(image, z, rng), mask

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._seed, stream]))

    def _draw_cell(self, rng: np.random.Generator) -> _Cell:
        return _Cell(
            centre=rng.uniform(-80, self._size + 80, 2),
            drift=rng.normal(0, 1.3, 2),
            sway=rng.uniform(0, 2 * np.pi, 2),
            pace=float(np.exp(rng.normal(0, 0.6))),
            grey=float(rng.normal(0.68, 0.045)),
        )

    def _draw_mitochondrion(self, rng: np.random.Generator) -> _Organelle:
        width = rng.uniform(9, 24)
        return _Organelle(
            centre=np.array([*rng.uniform(-40, self._size + 40, 2), rng.uniform(-4, 40)]),
            axes=np.array([width * rng.uniform(1.0, 2.4), width, rng.uniform(3, 9)]),
            angle=rng.uniform(0, np.pi),
            grey=rng.uniform(0.28, 0.42),
        )

    def _draw_vesicle(self, rng: np.random.Generator) -> _Organelle:
        radius = rng.uniform(2.0, 5.0)
        return _Organelle(
            centre=np.array([*rng.uniform(0, self._size, 2), rng.uniform(-2, 40)]),
            axes=np.array([radius, radius, rng.uniform(0.6, 1.6)]),
            angle=0.0,
            grey=rng.uniform(0.1, 0.35),
        )

    def _field(self, z: float, stream: int, spacing: int) -> np.ndarray:
        """Returns a smooth random field [size, size] that changes slowly with `z`.

        Its variance is about 1.
        """
        key, share = divmod(z / _SLICES_PER_KEY, 1)
        grid = -(-self._size // spacing) + 3
        coarse = np.zeros((grid, grid), np.float32)
        for number, weight in (
            (int(key), np.cos(share * np.pi / 2)),
            (int(key) + 1, np.sin(share * np.pi / 2)),
        ):
            draws = self._generator(10_000 + 1000 * stream + number).standard_normal(
                (grid, grid), np.float32
            )
            coarse = coarse + np.float32(weight) * draws
        fine = cv2.resize(coarse, None, fx=spacing, fy=spacing, interpolation=cv2.INTER_CUBIC)
        return fine[spacing : spacing + self._size, spacing : spacing + self._size] * np.float32(
            1.3
        )

    def _texture(self, rng: np.random.Generator, sigma: float) -> np.ndarray:
        """Returns fresh noise of unit variance, blurred by `sigma` pixels."""
        blurred = cv2.GaussianBlur(
            rng.standard_normal((self._size, self._size), np.float32), (0, 0), sigma
        )
        return blurred / blurred.std()

    def _warped_coordinates(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[: self._size, : self._size].astype(np.float32)
        x = x + 11 * self._field(z, 5, 90) + 3.5 * self._field(z, 6, 30)
        y = y + 11 * self._field(z, 7, 90) + 3.5 * self._field(z, 8, 30)
        return x, y

    def _diagram(self, x, y, z: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the cell of each pixel, the cell next to it, and the distance to their border.

        The distance is approximate, in pixels.
        """
        paces = np.array([cell.pace for cell in self._cells], np.float32)
        centres = np.array(
            [c.centre + c.drift * z + 6 * np.sin(z / 7 + c.sway) for c in self._cells], np.float32
        )
        # Only cells that may be first or second in a block of pixels are looked at there.
        x_blocks, y_blocks = (_in_blocks(axis) for axis in (x, y))
        may_reach = _may_reach(x_blocks, y_blocks, centres, paces)
        first, second = np.full((2, *x_blocks.shape), np.inf, np.float32)
        owner, neighbour = np.zeros((2, *x_blocks.shape), np.int32)
        for number, (centre_x, centre_y) in enumerate(centres):
            at = np.flatnonzero(may_reach[number])
            time = np.hypot(x_blocks[at] - centre_x, y_blocks[at] - centre_y) / paces[number]
            is_first = time < first[at]
            is_second = ~is_first & (time < second[at])
            second[at] = np.where(is_first, first[at], np.where(is_second, time, second[at]))
            others = np.where(is_second, number, neighbour[at])
            neighbour[at] = np.where(is_first, owner[at], others)
            first[at] = np.where(is_first, time, first[at])
            owner[at] = np.where(is_first, number, owner[at])
        first, second, owner, neighbour = (
            _out_of_blocks(blocks, self._size) for blocks in (first, second, owner, neighbour)
        )
        # The border is where the times are equal; their difference over its slope is the distance
        # to it.
        slope_x, slope_y = (
            (axis - centres[neighbour, i]) / (second * paces[neighbour] ** 2)
            - (axis - centres[owner, i]) / (np.maximum(first, 1e-3) * paces[owner] ** 2)
            for i, axis in enumerate((x, y))
        )
        distance = (second - first) / np.maximum(np.hypot(slope_x, slope_y), 1e-3)
        return owner, neighbour, distance

    def _paint_mitochondria(self, image, inside, owner, x, y, z, rng) -> None:
        for organelle in self._mitochondria:
            cut = 1 - ((z - organelle.centre[2]) / organelle.axes[2]) ** 2
            if cut <= 0.1:
                continue
            reach = int(organelle.axes[0] * 1.3) + 24
            column, row = (round(float(v)) for v in organelle.centre[:2])
            window = (
                slice(max(0, row - reach), max(0, row + reach)),
                slice(max(0, column - reach), max(0, column + reach)),
            )
            if not image[window].size:
                continue
            dx, dy = x[window] - organelle.centre[0], y[window] - organelle.centre[1]
            cosine, sine = np.cos(organelle.angle), np.sin(organelle.angle)
            along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
            long_axis, short_axis = organelle.axes[:2] * np.sqrt(cut)
            radius = np.hypot(along / long_axis, across / short_axis)
            # It lies in one cell, clear of its membrane, or not at all.
            body = radius < 1
            if not body.any():
                continue
            home = np.bincount(owner[window][body]).argmax()
            roomy = (owner[window] == home) & (inside[window] > 3)
            if roomy[body].mean() < 0.7:
                continue
            body &= roomy
            rim = np.exp(-(((1 - radius) * short_axis / 2.0) ** 2))
            cristae = np.sin(along * 0.9 + 2.5 * np.sin(across * 0.25) + organelle.angle * 7)
            grey = organelle.grey + 0.09 * cristae - 0.14 * rim + rng.normal(0, 0.02, body.shape)
            image[window] = np.where(body, grey, image[window])

    def _paint_vesicles(self, image, inside, z) -> None:
        for vesicle in self._vesicles:
            cut = 1 - ((z - vesicle.centre[2]) / vesicle.axes[2]) ** 2
            column, row = (int(v) for v in vesicle.centre[:2])
            if cut <= 0 or inside[row, column] < vesicle.axes[0] + 2:
                continue
            radius = vesicle.axes[0] * np.sqrt(cut)
            rows = slice(max(0, row - 8), row + 9)
            columns = slice(max(0, column - 8), column + 9)
            dy, dx = np.mgrid[
                rows.start : rows.start + image[rows].shape[0], columns.start : columns.start + 17
            ]
            dx = dx[:, : image[rows, columns].shape[1]]
            dy = dy[:, : image[rows, columns].shape[1]]
            ring = np.exp(-((np.hypot(dx - column, dy - row) - radius) ** 2))
            image[rows, columns] -= vesicle.grey * ring

    def _expose(self, image: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the 8-bit picture: uneven light, the slice's own contrast, electrons counted."""
        light = 1 + 0.08 * self._field(z, 9, 200) + 0.03 * rng.standard_normal()
        contrast = rng.uniform(0.9, 1.1)
        lit = np.clip(((image - 0.55) * contrast + 0.55) * light, 0.02, 1.2)
        electrons = 55.0
        counted = rng.poisson(lit * electrons) / electrons
        return np.clip(np.rint((0.85 * counted + 0.15 * lit) * 235), 0, 255).astype(np.uint8)


def _in_blocks(values: np.ndarray) -> np.ndarray:
    """Returns [H, H] in squares of `_BLOCK_PX`, [blocks, pixels]; the last are filled up."""
    filled = np.pad(values, (0, -len(values) % _BLOCK_PX), mode="edge")
    blocks = len(filled) // _BLOCK_PX
    split = filled.reshape(blocks, _BLOCK_PX, blocks, _BLOCK_PX).swapaxes(1, 2)
    return split.reshape(blocks**2, _BLOCK_PX**2)


def _out_of_blocks(values: np.ndarray, size: int) -> np.ndarray:
    """Undoes `_in_blocks`."""
    blocks = -(-size // _BLOCK_PX)
    split = values.reshape(blocks, blocks, _BLOCK_PX, _BLOCK_PX).swapaxes(1, 2)
    return split.reshape(blocks * _BLOCK_PX, blocks * _BLOCK_PX)[:size, :size]


def _may_reach(x: np.ndarray, y: np.ndarray, centres: np.ndarray, paces: np.ndarray) -> np.ndarray:
    """Returns [cells, blocks] bool: whether a cell may be first or second somewhere in a block.

    It cannot be where even its least time is more than what two cells need at most.
    """
    least, most = np.zeros((2, len(centres), len(x)))
    for axis, centre in ((x, centres[:, :1]), (y, centres[:, 1:])):
        low, high = axis.min(1) - centre, axis.max(1) - centre
        least += np.maximum(0, np.maximum(low, -high)) ** 2
        most += np.maximum(high, -low) ** 2
    least, most = (np.sqrt(squared) / paces[:, None] for squared in (least, most))
    # 1e-3: times are rounded to float32 later.
    return least <= np.partition(most, 1, axis=0)[1] * (1 + 1e-3)
