"""labelme: a JSON file for each picture, which may lie in it.

Shapes are drawn as labelme draws them: its coordinates are those of the middles of pixels.
"""

from __future__ import annotations

import base64
import binascii
import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from unet_core.data import images
from unet_core.data.annotations import Annotated, AnnotationFormat, LeftOut
from unet_core.data.annotations.drawing import (
    Disc,
    Dots,
    Filled,
    Geometry,
    Line,
    Pixels,
    Shape,
)
from unet_core.errors import UserError
from unet_core.files import fitted

_FEWEST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2}


class _Document(msgspec.Struct):
    shapes: list[dict[str, Any]]
    imageData: str | None = None
    imagePath: str | None = None
    imageHeight: int | None = None
    imageWidth: int | None = None


def read(path: pathlib.Path, value: Any, _: LeftOut) -> Iterator[Annotated]:
    """Gives the one picture of a file, called as the file is."""
    way = "Save it again in labelme, or remove it."
    document = fitted(path, value, _Document, what="an annotation of labelme", way=way)
    content = None
    if document.imageData:
        try:
            content = base64.b64decode(document.imageData, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{path}: its imageData cannot be decoded ({error}).") from error
    yield Annotated(
        shapes(document.shapes),
        image=document.imagePath or "",
        content=content,
        size=(document.imageHeight or None, document.imageWidth or None),
        name=path.stem,
    )


def shapes(found: list[dict[str, Any]]) -> Iterator[Shape]:
    """Gives the shapes of a document.

    Raises:
        ValueError, LookupError, TypeError: If one is of an unknown kind, or malformed.
    """
    for shape in found:
        label = shape["label"]
        if not isinstance(label, str):
            raise TypeError(f"its label {label!r} is no text")
        yield Shape((label,), _geometry(shape))


def _geometry(shape: dict[str, Any]) -> Geometry:
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], np.float64).reshape(-1, 2) + 0.5
    fewest = _FEWEST_POINTS.get(kind, 1)
    if len(points) < fewest:
        raise ValueError(f"a {kind} needs {fewest} points or more")
    if kind == "polygon":
        return Filled(points)
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return Filled([[left, top], [right, top], [right, bottom], [left, bottom]])
    if kind == "circle":
        return Disc(points)
    if kind in ("line", "linestrip"):
        return Line(points)
    if kind in ("point", "points"):
        return Dots(points)
    if kind == "mask":
        content = base64.b64decode(shape["mask"], validate=True)
        inside = images.to_channels(images.read_image("its mask", content=content), 1)[..., 0] > 0
        left, top = (round(float(v)) for v in points[0] - 0.5)
        return Pixels(inside, left, top)
    raise ValueError(f"shapes of type {kind!r} are not known")


LABELME = AnnotationFormat(
    "labelme", "json", lambda value: isinstance(value, dict) and "shapes" in value, read
)
