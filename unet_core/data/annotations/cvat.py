"""XML of CVAT, "CVAT for images 1.1"."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import numpy as np

from unet_core.data.annotations import Annotated, AnnotationFormat, LeftOut
from unet_core.data.annotations.drawing import (
    Area,
    Dots,
    Ellipse,
    Geometry,
    Line,
    Pixels,
    Shape,
    rectangle,
    runs,
    turned,
)
from unet_core.errors import UserError

_NO_SHAPES = ("tag", "attribute")


def read(path: pathlib.Path, root: Element, left_out: LeftOut) -> Iterator[Annotated]:
    """Gives the pictures of a file."""
    if root.find("track") is not None:
        raise UserError(
            f"{path}: holds the tracks of a video. Export it as CVAT for images 1.1, which has a "
            "picture for each frame."
        )
    for image in root.iterfind("image"):
        name = image.get("name", "")
        for element in image.iterfind("tag"):
            left_out("tag(s), which have no place", f"{element.get('label')} of {name}")
        try:
            size = (int(image.attrib["height"]), int(image.attrib["width"]))
        except (LookupError, ValueError):
            raise UserError(f"{path}: does not say width and height of {name!r}.") from None
        yield Annotated(_shapes(image), image=name, size=size)


def _shapes(image: Element) -> Iterator[Shape]:
    elements = [element for element in image if element.tag not in _NO_SHAPES]
    for element in sorted(elements, key=lambda each: int(each.get("z_order", 0))):
        yield Shape((element.attrib["label"],), _geometry(element))


def _geometry(element: Element) -> Geometry:
    kind = element.tag
    if kind in ("polygon", "polyline", "points"):
        pairs = element.attrib["points"].split(";")
        points = np.array([pair.split(",") for pair in pairs], np.float64)
        if kind == "polygon":
            return Area([[points]])
        return Line(points) if kind == "polyline" else Dots(points)
    if kind == "box":
        left, top, right, bottom = _numbers(element, "xtl", "ytl", "xbr", "ybr")
        ring = rectangle(left, top, right - left, bottom - top)
        middle = (left + right) / 2, (top + bottom) / 2
        return Area([[turned(ring, middle, float(element.get("rotation", 0)))]])
    if kind == "ellipse":
        x, y, radius_x, radius_y = _numbers(element, "cx", "cy", "rx", "ry")
        return Ellipse(x, y, radius_x, radius_y, float(element.get("rotation", 0)))
    if kind == "mask":
        left, top, width, height = map(int, _numbers(element, "left", "top", "width", "height"))
        counts = np.array(element.attrib["rle"].split(","), np.float64).astype(np.int64)
        return Pixels(runs(counts, (height, width)), left, top)
    raise ValueError(f"shapes of type {kind!r} are not drawn")


def _numbers(element: Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


CVAT = AnnotationFormat("CVAT", "xml", lambda root: root.tag == "annotations", read)
