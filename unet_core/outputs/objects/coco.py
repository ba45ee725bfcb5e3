"""Objects as COCO JSON: one file for all pictures, each object a polygon.

COCO counts the corners of pixels, from the top left corner of the picture, as outlines do. Its
polygons have no holes: a hole is joined to the ring around it by a slit of no width, there and
back, which encloses nothing.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from unet_core.errors import UserError
from unet_core.files import printable, read_json
from unet_core.inference.outlines import Outline
from unet_core.outputs.objects import ObjectFormat, Picture

_CATEGORY = 1
_MOST_BYTES = 2**31
_Number = int | float


class _Image(msgspec.Struct):
    id: int
    file_name: str
    page: int
    width: int
    height: int


class _Annotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    segmentation: list[list[_Number]]
    area: _Number
    bbox: list[_Number]
    iscrowd: int
    object: int


class _Category(msgspec.Struct):
    id: int
    name: str


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def make_coco(pictures: Sequence[Picture]) -> bytes:
    """Returns images, annotations and categories."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = dict.fromkeys(picture.objects.class_name for picture in pictures)
    ids = {name: number for number, name in enumerate(names, _CATEGORY)}
    for image_id, picture in enumerate(pictures, 1):
        objects, source = picture.objects, picture.source
        images.append(
            {
                "id": image_id,
                "file_name": printable(source.path.name),
                "page": source.page,
                "width": objects.width,
                "height": objects.height,
            }
        )
        for row, outlines in zip(objects.rows(), objects.outlines, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[objects.class_name],
                    **_shape(row, outlines),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return _encoded(images, annotations, categories)


def _encoded(images: Sequence, annotations: Sequence, categories: Sequence) -> bytes:
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content, separators=(",", ":")).encode()


def merge_coco(parts: Mapping[pathlib.Path, Sequence[int]]) -> bytes:
    """Returns what `make_coco` makes of the pictures of all shares.

    Args:
        parts: The file of each share, and the place of each of its pictures among all.

    Raises:
        UserError: If one cannot be read, or is of other pictures.
    """
    way = "Start its share again with `overwrite`."
    placed: list[tuple[int, _Image, list[_Annotation]]] = []
    names: dict[str, None] = {}
    for path, places in parts.items():
        what = "the COCO JSON of a share"
        part = read_json(path, _Coco, what=what, way=way, most_bytes=_MOST_BYTES)
        of_image: dict[int, list[_Annotation]] = {image.id: [] for image in part.images}
        for each in part.annotations:
            of_image.setdefault(each.image_id, []).append(each)
        if not len(part.images) == len(of_image) == len(places):
            raise UserError(
                f"{path}: cannot be read as {what} (it tells of {len(of_image)} picture(s), and "
                f"the share has {len(places)}). {way}"
            )
        placed += [
            (place, image, of_image[image.id])
            for place, image in zip(places, part.images, strict=True)
        ]
        names |= dict.fromkeys(category.name for category in part.categories)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (_, image, of_one) in enumerate(sorted(placed, key=lambda each: each[0]), 1):
        images.append(msgspec.to_builtins(image) | {"id": image_id})
        for each in of_one:
            numbers = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(msgspec.to_builtins(each) | numbers)
    # All objects of a prediction are of one class.
    categories = [{"id": number, "name": name} for number, name in enumerate(names, _CATEGORY)]
    return _encoded(images, annotations, categories)


def _shape(row: dict[str, Any], outlines: Sequence[Outline]) -> dict[str, Any]:
    box = [row[f"bbox_{side}_px"] for side in ("x", "y", "width", "height")]
    return {
        "segmentation": [ring_with_slits(part).ravel().tolist() for part in outlines],
        "area": row["area_px"],
        "bbox": box,
        "iscrowd": 0,
        "object": row["id"],
    }


def ring_with_slits(outline: Outline) -> np.ndarray:
    """Returns one ring [N, 2] that encloses an object without its holes.

    From the leftmost corner of each hole, the upper one of several, a slit runs left to the next
    ring: through pixels of the object alone, and never to a hole that lies further right.
    """
    rings = [outline.exterior, *outline.holes]
    joins = _joins(rings)
    path: list[tuple[int, int]] = []
    # Holes hang on one another in chains too long for recursion.
    waiting = [_steps(rings[0], 0, joins[0])]
    while waiting:
        step = next(waiting[-1], None)
        if step is None:
            waiting.pop()
        elif isinstance(step, int):
            waiting.append(_steps(rings[step], _leftmost(rings[step]), joins[step]))
        elif not path or path[-1] != step:
            path.append(step)
    # The first corner is not repeated at the end.
    return np.array(path[:-1])


_Joins = dict[int, list[tuple[int, int]]]


def _steps(ring: np.ndarray, start: int, joins: _Joins) -> Iterator[tuple[int, int] | int]:
    """Gives the corners of a ring from one of them until it again, and the holes that join it.

    Before and after a hole comes the corner where its slit begins.
    """
    order = [*range(start, len(ring)), *range(start)]
    for side in order:
        x, y = ring[side].tolist()
        yield x, y
        for _, at, hole in sorted((abs(at - y), at, hole) for at, hole in joins.get(side, ())):
            yield x, at
            yield hole
            yield x, at
    yield tuple(ring[start].tolist())


def _joins(rings: Sequence[np.ndarray]) -> list[_Joins]:
    """Returns of each ring, by its vertical sides, the y of each slit there and whose it is."""
    sides = np.concatenate(
        [
            np.column_stack([np.full(len(r), number), np.arange(len(r)), r, np.roll(r, -1, 0)])
            for number, r in enumerate(rings)
        ]
    )
    sides = sides[sides[:, 2] == sides[:, 4]]
    x, low, high = sides[:, 2], sides[:, [3, 5]].min(1), sides[:, [3, 5]].max(1)
    # A line for each row of pixels that a side passes, in the order of rows and columns.
    of_side = np.repeat(np.arange(len(sides)), high - low)
    row = np.arange(len(of_side)) - np.repeat(np.cumsum(high - low) - high, high - low)
    width = x.max() + 1
    keys = row * width + x[of_side]
    order = keys.argsort()
    joins: list[_Joins] = [{} for _ in rings]
    for hole, ring in enumerate(rings[1:], 1):
        left, top = ring[_leftmost(ring)].tolist()
        before = np.searchsorted(keys, top * width + left, sorter=order) - 1
        number, side, *_ = sides[of_side[order[before]]].tolist()
        joins[number].setdefault(side, []).append((top, hole))
    return joins


def _leftmost(ring: np.ndarray) -> int:
    return int(np.lexsort(ring.T[::-1])[0])


COCO = ObjectFormat("objects_coco.json", make_coco, merge=merge_coco)
