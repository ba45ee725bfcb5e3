"""JSON of Label Studio: tasks with their annotations, in percent of the size of a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from unet_core.data.annotations import Annotated, AnnotationFormat, LeftOut
from unet_core.data.annotations.drawing import (
    Area,
    Dots,
    Ellipse,
    Geometry,
    Pixels,
    Shape,
    rectangle,
    turned,
)
from unet_core.data.layouts.listing import SUFFIXES
from unet_core.errors import UserError
from unet_core.files import fitted

_SHAPES = ("polygon", "rectangle", "ellipse", "brush", "keypoint")
# Answers, which have no place, or that of a shape which is there too.
_ANSWERS = ("choices", "textarea", "rating", "number", "taxonomy", "datetime", "relation")


class _Result(msgspec.Struct):
    type: str
    value: dict[str, Any] = {}
    id: str | None = None
    original_width: int = 0
    original_height: int = 0
    image_rotation: float = 0.0


class _Annotation(msgspec.Struct):
    result: list[_Result]
    was_cancelled: bool = False
    ground_truth: bool = False


class _Task(msgspec.Struct):
    data: dict[str, Any]
    annotations: list[_Annotation]


def read(path: pathlib.Path, value: Any, left_out: LeftOut) -> Iterator[Annotated]:
    """Gives the pictures of the tasks that were annotated.

    Of several annotations of a task, that which is marked as ground truth counts, or else the last.
    """
    way = "Export it again from Label Studio as JSON."
    tasks = value if isinstance(value, list) else [value]
    found = fitted(path, tasks, list[_Task], what="annotations of Label Studio", way=way)
    for number, task in enumerate(found):
        image = _image(path, task, number)
        done = [each for each in task.annotations if not each.was_cancelled]
        if not done:
            left_out("picture(s) that nobody has annotated", image)
            continue
        best = max(range(len(done)), key=lambda place: (done[place].ground_truth, place))
        for _ in done[1:]:
            left_out("annotation(s) of a picture that has several", image)
        results = done[best].result
        sizes = [(r.original_height, r.original_width) for r in results if r.original_width]
        size = sizes[0] if sizes else (None, None)
        for result in results:
            if result.type in _ANSWERS:
                left_out("answer(s), which are no shapes", f"{result.type} of {image}")
        yield Annotated(_shapes(results), image=image, size=size)


def _image(path: pathlib.Path, task: _Task, number: int) -> str:
    """Returns the address of the picture of a task."""
    found = [
        text
        for text in task.data.values()
        if isinstance(text, str) and text.lower().partition("#")[0].endswith(SUFFIXES)
    ]
    image = task.data.get("image", found[0] if len(found) == 1 else None)
    if not isinstance(image, str):
        raise UserError(
            f"{path}: the data of task {number} name {len(found)} pictures. There must be one, or "
            "one that is called image."
        )
    return image


def _shapes(results: Sequence[_Result]) -> Iterator[Shape]:
    labelled = {result.id for result in results if _labels(result)}
    for result in results:
        labels = _labels(result)
        # A tool without labels gives the shape, and another result its label with the shape again.
        if result.type not in _ANSWERS and (labels or result.id not in labelled):
            yield Shape(labels, _geometry(result))


def _labels(result: _Result) -> tuple[str, ...]:
    found = result.value.get(result.type if result.type.endswith("labels") else "labels", ())
    return tuple(map(str, found))


def _geometry(result: _Result) -> Geometry:
    value, height, width = result.value, result.original_height, result.original_width
    kind = result.type.removesuffix("labels") or _kind(value)
    if kind not in _SHAPES:
        raise ValueError(f"shapes of type {result.type!r} are not known")
    if not (height > 0 and width > 0):
        raise ValueError("it has no original_width and original_height")
    if result.image_rotation:
        raise ValueError(f"it was drawn on a picture turned by {result.image_rotation:g} degrees")
    if kind == "brush":
        return Pixels(brush(value["rle"], (height, width)))
    scale = np.array([width, height], np.float64) / 100
    if kind == "polygon":
        return Area([[np.asarray(value["points"], np.float64) * scale]])
    corner = np.array([float(value["x"]), float(value["y"])]) * scale
    if kind == "keypoint":
        return Dots([corner])
    degrees = float(value.get("rotation", 0))
    if kind == "ellipse":
        radii = np.array([float(value["radiusX"]), float(value["radiusY"])]) * scale
        return Ellipse(corner[0], corner[1], radii[0], radii[1], degrees)
    sides = np.array([float(value["width"]), float(value["height"])]) * scale
    ring = rectangle(*corner.tolist(), *sides.tolist())
    return Area([[turned(ring, (corner[0], corner[1]), degrees)]])


def _kind(value: dict[str, Any]) -> str:
    """Returns the kind of shape of a result that says labels alone."""
    marks = {"points": "polygon", "rle": "brush", "radiusX": "ellipse", "height": "rectangle"}
    return next((kind for mark, kind in marks.items() if mark in value), "keypoint")


def brush(rle: Any, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels [H, W] bool that a brush covers.

    It is the opacity of a picture in red, green, blue and opacity, all numbers packed in bits: how
    many there are (32 bits), the bits of a number less one (5), and four lengths of counts less one
    (4 each). Then come blocks: whether one number repeats (1), which length its count has (2), the
    count less one, and the number or numbers.

    Raises:
        ValueError: If it is cut short, or not of `size`.
    """
    found = np.asarray(rle)
    if found.dtype.kind not in "iu" or found.ndim != 1 or ((found < 0) | (found > 255)).any():
        raise ValueError("its run lengths are no bytes")
    bits = np.unpackbits(found.astype(np.uint8))
    place = 0

    def take(length: int) -> np.ndarray:
        nonlocal place
        place += length
        if place > len(bits):
            raise ValueError("its run lengths are cut short")
        return bits[place - length : place]

    def number(length: int) -> int:
        return int("".join(map(str, take(length))), 2)

    height, width = size
    total, length = number(32), number(5) + 1
    if total != 4 * height * width or length != 8:
        raise ValueError(f"its brush has not {width}x{height} pixels of 8 bits")
    lengths = [number(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    filled = 0
    while filled < total:
        repeats = number(1)
        count = number(lengths[number(2)]) + 1
        if count > total - filled:
            raise ValueError("its run lengths are too long")
        if repeats:
            values[filled : filled + count] = number(8)
        else:
            values[filled : filled + count] = np.packbits(take(8 * count))
        filled += count
    return values.reshape(height, width, 4)[..., 3] > 0


def _recognises(value: Any) -> bool:
    tasks = value if isinstance(value, list) else [value]
    return bool(tasks) and all(
        isinstance(task, dict) and {"data", "annotations"} <= set(task) for task in tasks
    )


LABEL_STUDIO = AnnotationFormat("Label Studio", "json", _recognises, read)
