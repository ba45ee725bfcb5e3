"""COCO JSON: pictures, categories, and annotations that are polygons or run-length encodings."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from unet_core.data.annotations import Annotated, AnnotationFormat, LeftOut
from unet_core.data.annotations.drawing import Area, Geometry, Pixels, Shape, runs
from unet_core.errors import UserError
from unet_core.files import fitted

_Id = int | str


class _Image(msgspec.Struct):
    id: _Id
    file_name: str
    height: int | None = None
    width: int | None = None
    # Ours, of files of many pages; from 0.
    page: int | None = None


class _Annotation(msgspec.Struct):
    image_id: _Id
    category_id: _Id
    segmentation: Any = None


class _Category(msgspec.Struct):
    id: _Id
    name: str


class _Document(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read(path: pathlib.Path, value: Any, left_out: LeftOut) -> Iterator[Annotated]:
    """Gives the pictures of a file; those that are listed for several pages once."""
    way = "Export it again as COCO with outlines (instances)."
    document = fitted(path, value, _Document, what="annotations of COCO", way=way)
    names = {category.id: category.name for category in document.categories}
    of_image: dict[_Id, list[_Annotation]] = {image.id: [] for image in document.images}
    if len(of_image) < len(document.images):
        raise UserError(f"{path}: two of its images have the same id. {way}")
    for number, annotation in enumerate(document.annotations):
        if annotation.image_id in of_image:
            of_image[annotation.image_id].append(annotation)
        else:
            left_out("annotation(s) of an image that it does not list", f"number {number}")
    pages: dict[str, list[_Image]] = {}
    for image in document.images:
        pages.setdefault(image.file_name, []).append(image)
    for name, listed in pages.items():
        first = listed[0]
        size = (first.height or None, first.width or None)
        yield Annotated(_shapes(listed, of_image, names), image=name, size=size)


def _shapes(
    images: Sequence[_Image], of_image: dict[_Id, list[_Annotation]], names: dict[_Id, str]
) -> Iterator[Shape]:
    for image in images:
        for annotation in of_image[image.id]:
            if annotation.category_id not in names:
                raise ValueError(f"its category {annotation.category_id!r} is not listed")
            geometry = _geometry(annotation.segmentation, image)
            yield Shape((names[annotation.category_id],), geometry, image.page)


def _geometry(segmentation: Any, image: _Image) -> Geometry:
    if not segmentation:
        raise ValueError("it has no outline")
    if isinstance(segmentation, dict):
        return Pixels(_decoded(segmentation, image))
    return Area([[np.asarray(ring, np.float64).reshape(-1, 2)] for ring in segmentation])


def _decoded(segmentation: dict[str, Any], image: _Image) -> np.ndarray:
    """Returns the pixels of a run-length encoding, column by column."""
    height, width = size = tuple(segmentation["size"])
    if size != (image.height, image.width):
        raise ValueError(f"it has {width}x{height} pixels, its image {image.width}x{image.height}")
    counts = segmentation["counts"]
    try:
        return runs(_counts(counts) if isinstance(counts, str) else counts, (width, height)).T
    except OverflowError:
        raise ValueError("its run lengths are beyond 64 bits") from None


def _counts(text: str) -> list[int]:
    """Returns the run lengths of a text of COCO.

    pycocotools (2.0.11) does not look whether they make up the picture, and leaves what is in
    memory where they fall short. A character less 48 has five bits of a number, the low ones first,
    and a sixth if more follow; the highest bit is the sign. From the fourth number on they are
    differences to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"its run lengths hold {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut short")
    return counts


def _recognises(value: Any) -> bool:
    return isinstance(value, dict) and {"images", "annotations"} <= set(value)


COCO = AnnotationFormat("COCO", "json", _recognises, read)
