"""JSON of the VGG Image Annotator (VIA) 1 and 2: its projects, and its annotations alone."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from unet_core.data.annotations import Annotated, AnnotationFormat, LeftOut
from unet_core.data.annotations.drawing import (
    Area,
    Dots,
    Ellipse,
    Geometry,
    Line,
    Shape,
    rectangle,
)
from unet_core.files import fitted

_PROJECT = "_via_img_metadata"


class _Region(msgspec.Struct):
    shape_attributes: dict[str, Any]
    region_attributes: dict[str, Any]


class _File(msgspec.Struct):
    filename: str
    # VIA 1 numbers them by keys.
    regions: list[_Region] | dict[str, _Region]


def read(path: pathlib.Path, value: Any, _: LeftOut) -> Iterator[Annotated]:
    """Gives the pictures of a file."""
    files = value.get(_PROJECT, value)
    way = "Export it again from VIA 1 or 2 as JSON."
    found = fitted(path, files, dict[str, _File], what="annotations of VIA", way=way)
    for file in found.values():
        regions = file.regions
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        yield Annotated(_shapes(regions), image=file.filename)


def _shapes(regions: Iterable[_Region]) -> Iterator[Shape]:
    for region in regions:
        labels = tuple(filter(None, map(_label, region.region_attributes.values())))
        yield Shape(labels, _geometry(region.shape_attributes))


def _label(value: Any) -> str:
    """Returns what an attribute of a region says; of check boxes, the one that is checked."""
    if isinstance(value, dict):
        return ", ".join(name for name, checked in value.items() if checked)
    return "" if value is None else str(value).strip()


def _geometry(shape: dict[str, Any]) -> Geometry:
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
        return Area([[points]]) if kind == "polygon" else Line(points)
    if kind == "rect":
        return Area([[rectangle(*(float(shape[n]) for n in ("x", "y", "width", "height")))]])
    if kind not in ("circle", "ellipse", "point"):
        raise ValueError(f"shapes of type {kind!r} are not known")
    x, y = float(shape["cx"]), float(shape["cy"])
    if kind == "point":
        return Dots([[x, y]])
    names = ("r", "r") if kind == "circle" else ("rx", "ry")
    radius_x, radius_y = (float(shape[name]) for name in names)
    return Ellipse(x, y, radius_x, radius_y, math.degrees(float(shape.get("theta", 0))))


def _recognises(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return _PROJECT in value or all(
        isinstance(file, dict) and {"filename", "regions"} <= set(file) for file in value.values()
    )


VIA = AnnotationFormat("VIA (VGG Image Annotator)", "json", _recognises, read)
