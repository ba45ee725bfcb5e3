"""Shapes of annotations, and the one function that draws them into a mask of class ids.

mask = draw([(Area([[ring, hole]]), 1)], (H, W))

Coordinates are x, y in pixels from the top left corner of the picture, so that pixel (row, column)
covers column to column + 1 and row to row + 1. A pixel belongs to what its middle lies in.
`Filled` and `Disc` are drawn as labelme draws them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from unet_core.data.io import limits

LINE_WIDTH, POINT_RADIUS = 10, 5
"""As labelme draws them, in pixels."""

# OpenCV takes coordinates in 2^-4 pixels, of the middle of the first pixel.
_SHIFT = 4
_LARGEST = 1e6
# Of one ring: the rows that its sides cross. Those of any real one are far fewer.
_MOST_CROSSINGS = 2**27
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class Area:
    """Polygons. A pixel is inside one if it is in an odd number of its rings, so rings make holes.

    Attributes:
        polygons: The rings of each, [N, 2].
    """

    polygons: Sequence[Sequence[Any]]

    def __post_init__(self):
        checked = tuple(tuple(_points(ring, 3) for ring in rings) for rings in self.polygons)
        if not checked or not all(checked):
            raise ValueError("it has no points")
        for ring in itertools.chain(*checked):
            if np.abs(np.diff(ring[:, 1], append=ring[:1, 1])).sum() > _MOST_CROSSINGS:
                raise ValueError(f"its outline crosses more than {_MOST_CROSSINGS} rows")
        object.__setattr__(self, "polygons", checked)


@dataclasses.dataclass(frozen=True)
class Ellipse:
    """An ellipse with its middle at x, y, turned clockwise as it is seen."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    degrees: float = 0.0

    def __post_init__(self):
        _points([[self.x, self.y], [self.radius_x, self.radius_y], [self.degrees, 0]], 1)
        if not (self.radius_x > 0 and self.radius_y > 0):
            raise ValueError("its radius must be above 0")


@dataclasses.dataclass(frozen=True)
class Line:
    """An open line through points [N, 2], drawn `LINE_WIDTH` wide."""

    points: Any

    def __post_init__(self):
        object.__setattr__(self, "points", _points(self.points, 2))


@dataclasses.dataclass(frozen=True)
class Dots:
    """Single points [N, 2], drawn as discs of `POINT_RADIUS`."""

    points: Any

    def __post_init__(self):
        object.__setattr__(self, "points", _points(self.points, 1))


@dataclasses.dataclass(frozen=True)
class Filled:
    """A polygon [N, 2] with all pixels that its outline passes."""

    points: Any

    def __post_init__(self):
        object.__setattr__(self, "points", _points(self.points, 3))


@dataclasses.dataclass(frozen=True)
class Disc:
    """A disc, given its middle and a point of its outline, [2, 2]."""

    points: Any

    def __post_init__(self):
        object.__setattr__(self, "points", _points(self.points, 2))


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pixels [H, W] bool, the first of which is at row `top` and column `left`."""

    inside: np.ndarray
    left: int = 0
    top: int = 0


Geometry = Area | Ellipse | Line | Dots | Filled | Disc | Pixels


@dataclasses.dataclass(frozen=True)
class Shape:
    """Something drawn on a picture.

    Attributes:
        labels: What it may be called; one of them is a class. Empty if it has no label.
        geometry: Where it is.
        page: The page of the picture that it lies on, from 0; None if that is not said.
    """

    labels: tuple[str, ...]
    geometry: Geometry
    page: int | None = None


def draw(shapes: Iterable[tuple[Geometry, int]], size: tuple[int, int]) -> np.ndarray:
    """Returns the class ids [H, W] uint8 that shapes draw, later ones over earlier ones.

    Args:
        shapes: What to draw, each with its class id.
        size: (H, W) of the picture.
    """
    mask = np.zeros(size, np.uint8)
    for geometry, value in shapes:
        _paint(geometry, mask, value)
    return mask


def is_outside(geometry: Geometry, size: tuple[int, int]) -> bool:
    """Returns whether a shape lies outside of a picture of `size` (H, W) altogether."""
    left, top, right, bottom = _box(geometry)
    return right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]


def rectangle(left: float, top: float, width: float, height: float) -> np.ndarray:
    """Returns the ring of a rectangle, [4, 2].

    Raises:
        ValueError: If it encloses nothing.
    """
    if not (width > 0 and height > 0):
        raise ValueError("its width and height must be above 0")
    right, bottom = left + width, top + height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def turned(points: np.ndarray, about: tuple[float, float], degrees: float) -> np.ndarray:
    """Returns points [N, 2] turned clockwise, as it is seen."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return (points - about) @ np.array([[cosine, sine], [-sine, cosine]]) + about


def runs(counts: Any, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels [H, W] bool of a run-length encoding.

    Args:
        counts: How many pixels are outside, inside, outside, ..., row by row.
        size: (H, W).

    Raises:
        ValueError: If they are no counts, or do not make up `size`.
    """
    height, width = size
    found = np.asarray(counts)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 0).any():
        raise ValueError("its run lengths are no whole numbers from 0 on")
    if not (0 < height <= _LARGEST and 0 < width <= _LARGEST):
        raise ValueError(f"it has {width}x{height} pixels")
    if height * width > limits.most_bytes():
        raise ValueError(f"it has {width}x{height} pixels, too many for this machine's memory")
    if sum(found.tolist()) != height * width:
        raise ValueError(f"its run lengths do not make up {width}x{height} pixels")
    return np.repeat(np.arange(len(found)) % 2 == 1, found).reshape(size)


def _points(points: Any, fewest: int) -> np.ndarray:
    """Returns points [N, 2] as float64.

    Raises:
        ValueError: If they are no coordinates, or too few.
    """
    found = np.asarray(points, np.float64)
    if found.size and found.shape[1:] != (2,):
        raise ValueError("its points are no pairs of x and y")
    if not np.isfinite(found).all() or np.abs(found).max(initial=0) > _LARGEST:
        raise ValueError("its points are no coordinates, from -1,000,000 to 1,000,000")
    if len(found) < fewest:
        raise ValueError(f"it needs {fewest} points or more, and has {len(found)}")
    return found


@functools.singledispatch
def _box(geometry: Any) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of what may be drawn of a shape."""
    points = geometry.points
    by: float = {Dots: POINT_RADIUS, Line: LINE_WIDTH / 2}.get(type(geometry), 1)
    if isinstance(geometry, Disc):
        points, by = points[:1], math.dist(points[0], points[1])
    (left, top), (right, bottom) = points.min(0) - by, points.max(0) + by
    return left, top, right, bottom


@_box.register
def _(geometry: Area) -> tuple[float, float, float, float]:
    points = np.concatenate([ring for rings in geometry.polygons for ring in rings])
    return (*points.min(0), *points.max(0))


@_box.register
def _(geometry: Ellipse) -> tuple[float, float, float, float]:
    # The bounds of a turned ellipse.
    angle = math.radians(geometry.degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    x = math.hypot(geometry.radius_x * cosine, geometry.radius_y * sine)
    y = math.hypot(geometry.radius_x * sine, geometry.radius_y * cosine)
    return geometry.x - x, geometry.y - y, geometry.x + x, geometry.y + y


@_box.register
def _(geometry: Pixels) -> tuple[float, float, float, float]:
    height, width = geometry.inside.shape
    return geometry.left, geometry.top, geometry.left + width, geometry.top + height


@functools.singledispatch
def _paint(geometry: Any, mask: np.ndarray, value: int) -> None:
    raise NotImplementedError(type(geometry))


@_paint.register
def _(geometry: Area, mask: np.ndarray, value: int) -> None:
    for rings in geometry.polygons:
        points = np.concatenate(rings)
        rows, columns = _window(points.min(0), points.max(0), mask)
        part = mask[rows, columns]
        if part.size:
            part[_inside(rings, rows, columns)] = value


@_paint.register
def _(geometry: Ellipse, mask: np.ndarray, value: int) -> None:
    left, top, right, bottom = _box(geometry)
    rows, columns = _window((left, top), (right, bottom), mask)
    y = np.arange(rows.start, rows.stop)[:, None] + 0.5 - geometry.y
    x = np.arange(columns.start, columns.stop)[None] + 0.5 - geometry.x
    angle = math.radians(geometry.degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    along, across = x * cosine + y * sine, y * cosine - x * sine
    inside = (along / geometry.radius_x) ** 2 + (across / geometry.radius_y) ** 2 <= 1
    mask[rows, columns][inside] = value


@_paint.register
def _(geometry: Line, mask: np.ndarray, value: int) -> None:
    cv2.polylines(mask, [_fixed(geometry.points - 0.5)], False, value, LINE_WIDTH, shift=_SHIFT)


@_paint.register
def _(geometry: Dots, mask: np.ndarray, value: int) -> None:
    for centre in _fixed(geometry.points - 0.5).tolist():
        cv2.circle(mask, centre, POINT_RADIUS << _SHIFT, value, cv2.FILLED, shift=_SHIFT)


@_paint.register
def _(geometry: Filled, mask: np.ndarray, value: int) -> None:
    cv2.fillPoly(mask, [_fixed(geometry.points - 0.5)], value, shift=_SHIFT)


@_paint.register
def _(geometry: Disc, mask: np.ndarray, value: int) -> None:
    radius = round(math.dist(geometry.points[0], geometry.points[1]) * 2**_SHIFT)
    centre = _fixed(geometry.points - 0.5)[0].tolist()
    cv2.circle(mask, centre, radius, value, cv2.FILLED, shift=_SHIFT)


@_paint.register
def _(geometry: Pixels, mask: np.ndarray, value: int) -> None:
    inside, left, top = geometry.inside, geometry.left, geometry.top
    part = mask[max(0, top) : max(0, top + inside.shape[0]), max(0, left) :]
    inside = inside[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
    part[: inside.shape[0], : inside.shape[1]][inside] = value


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(points * 2**_SHIFT).astype(np.int32)


def _window(first: Any, last: Any, mask: np.ndarray) -> tuple[slice, slice]:
    """Returns the rows and columns of a mask that lie between two corners."""
    low = np.maximum(np.floor(first), 0).astype(int)
    high = np.minimum(np.ceil(last), mask.shape[::-1]).astype(int)
    # Beside the picture it is empty.
    low = np.minimum(low, high)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _inside(rings: Sequence[np.ndarray], rows: slice, columns: slice) -> np.ndarray:
    """Returns which pixels of a window have their middle in an odd number of rings.

    Whether they have changes, along a row, wherever a side of a ring crosses the middle of it.
    """
    height, width = rows.stop - rows.start, columns.stop - columns.start
    changes = np.zeros((height, width + 1), np.uint8)  # What overflows stays odd or even.
    for ring in rings:
        start, end = ring, np.roll(ring, -1, 0)
        down = (start[:, 1] <= end[:, 1])[:, None]
        upper, lower = np.where(down, start, end), np.where(down, end, start)
        first = np.clip(np.ceil(upper[:, 1] - 0.5), rows.start, rows.stop).astype(np.int64)
        count = np.clip(np.ceil(lower[:, 1] - 0.5), rows.start, rows.stop).astype(np.int64) - first
        crossing = np.flatnonzero(count)
        upper, lower, first, count = (each[crossing] for each in (upper, lower, first, count))
        slope = (lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1])
        ends = np.cumsum(count)
        for sides in _blocks(ends):
            side = np.repeat(np.arange(len(count))[sides], count[sides])
            row = np.arange(len(side)) + (ends - count)[sides.start] - (ends - count)[side]
            row += first[side]
            x = upper[side, 0] + (row + 0.5 - upper[side, 1]) * slope[side]
            column = np.clip(np.ceil(x - 0.5) - columns.start, 0, width).astype(np.int64)
            np.add.at(changes.ravel(), (row - rows.start) * (width + 1) + column, np.uint8(1))
    return np.add.accumulate(changes, axis=1, dtype=np.uint8)[:, :-1] % 2 == 1


def _blocks(ends: np.ndarray) -> Iterator[slice]:
    """Gives slices of sides that have about `_BLOCK` crossings together, which `ends` adds up."""
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _BLOCK), "right")
    for begin, stop in itertools.pairwise([*cuts.tolist(), len(ends)]):
        if stop > begin:
            yield slice(begin, stop)
