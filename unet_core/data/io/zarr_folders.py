"""OME-Zarr images, by zarr: folders whose name ends in .zarr, of which the full resolution is read.

Channels are channels; times and planes are pages.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unet_core.data.io import limits
from unet_core.data.io.page import MOST_PAGES, Page
from unet_core.errors import UserError

SUFFIX = ".zarr"
_UM = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "angstrom": 1e-4, "meter": 1e6}
_AXES_OF_BEFORE = "tczyx"


def is_zarr(path: str | os.PathLike) -> bool:
    """Returns whether there is a folder that counts as one file."""
    return pathlib.Path(path).suffix.lower() == SUFFIX and os.path.isdir(path)


def open_zarr(where: str, page: int) -> Page:
    """Returns page `page` of the image in a folder.

    Raises:
        UserError: If zarr is not installed, or the folder is of a kind that is not read.
    """
    try:
        import zarr  # Not always installed.
    except ImportError:
        raise UserError(f"{where}: OME-Zarr needs zarr: pip install 'unet_core[zarr]'.") from None
    folder, image = _image(where, zarr)
    place = image["datasets"][0]["path"]
    _check_inside(where, place)
    array = zarr.open_array(str(folder / place), mode="r")
    names = _axes(where, image, array.ndim)
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "buif":
        raise UserError(f"{where}: holds an array of {dtype}; it must be of numbers.")
    sizes = dict(zip(names, array.shape, strict=True))
    pages = math.prod(size for name, size in sizes.items() if name not in "cyx")
    if min(array.shape) < 1 or pages > MOST_PAGES:
        raise UserError(
            f"{where}: holds an array {list(array.shape)}, which is {pages} pages; 1 to "
            f"{MOST_PAGES} are read. Split it."
        )
    samples = sizes.get("c", 1)
    beyond = [sizes[name] for name in names if name not in "cyx"]
    # Of a page that is not there nothing is read; `opened` tells.
    index = iter(np.unravel_index(min(page, pages - 1), beyond) if beyond else ())
    chosen = {name: int(next(index)) for name in names if name not in "cyx"}
    chunks = dict(zip(names, array.chunks, strict=True))

    def read_rows(first: int, last: int) -> np.ndarray:
        touched = -(-last // chunks["y"]) - first // chunks["y"]
        touched *= -(-sizes["x"] // chunks["x"]) * -(-samples // chunks.get("c", 1))
        limits.check_bytes(
            where,
            touched * math.prod(array.chunks) * dtype.itemsize,
            f"chunks {list(array.chunks)} of {dtype.name}, {touched} beside one another",
        )
        part: dict[str, Any] = {**chosen, "y": slice(first, last)}
        pixels = np.asarray(array[tuple(part.get(name, slice(None)) for name in names)])
        left = [name for name in names if name not in chosen]
        order = [left.index(name) for name in ("y", "x", "c") if name in left]
        rows = np.ascontiguousarray(pixels.transpose(order)).astype(dtype.newbyteorder("="))
        return rows[..., 0] if samples == 1 and rows.ndim == 3 else rows

    return Page(
        where,
        "OME-Zarr",
        pages,
        sizes["y"],
        sizes["x"],
        samples,
        dtype.newbyteorder("="),
        read_rows,
        1 if dtype.kind == "b" else 8 * dtype.itemsize,
        in_bands=True,
        pixel_size_um=_pixel_size_um(image, names),
    )


def _image(where: str, zarr: Any) -> tuple[pathlib.Path, Mapping[str, Any]]:
    """Returns the folder of an image and what its metadata say of it."""
    folder = pathlib.Path(where)
    found = _metadata(folder, zarr)
    if "bioformats2raw.layout" in found and not found.get("multiscales"):
        series = [each for each in folder.iterdir() if each.is_dir() and each.name.isdecimal()]
        if len(series) != 1:
            raise UserError(
                f"{where}: holds {len(series)} images; it must hold one. Copy each into a folder "
                "of its own whose name ends in .zarr."
            )
        folder = series[0]
        found = _metadata(folder, zarr)
    if "plate" in found or "well" in found:
        raise UserError(
            f"{where}: is a plate of wells; it must be one image. Copy its images, each into a "
            "folder whose name ends in .zarr."
        )
    images = found.get("multiscales") or []
    if len(images) != 1:
        raise UserError(
            f"{where}: holds {len(images)} image(s) by its OME metadata (multiscales); it must "
            "hold one. Write it as OME-Zarr, by ome-zarr or bioformats2raw."
        )
    return folder, images[0]


def _metadata(folder: pathlib.Path, zarr: Any) -> Mapping[str, Any]:
    attributes = dict(zarr.open_group(str(folder), mode="r").attrs)
    # Since OME-Zarr 0.5 all is below one key.
    return attributes.get("ome", attributes)


def _check_inside(where: str, place: Any) -> None:
    """Raises UserError if the path of an array leaves its folder."""
    if not isinstance(place, str) or not place or {"..", ""} & set(place.split("/")):
        raise UserError(f"{where}: names {place!r} as its array, which must lie in it.")


def _axes(where: str, image: Mapping[str, Any], number: int) -> list[str]:
    """Returns the names of the axes, each one letter; versions before 0.3 had always the same."""
    axes = image.get("axes") or list(_AXES_OF_BEFORE)
    names = [str(axis["name"] if isinstance(axis, Mapping) else axis).lower() for axis in axes]
    if (
        len(names) != number
        or len(set(names)) != number
        or not {"y", "x"} <= set(names) <= set(_AXES_OF_BEFORE)
    ):
        raise UserError(
            f"{where}: has the axes {','.join(names)} for an array of {number}; they must be some "
            "of t, c, z, y and x, and y and x among them."
        )
    return names


def _pixel_size_um(image: Mapping[str, Any], names: list[str]) -> tuple[float, float] | None:
    """Returns width and height of a pixel; None if the metadata do not say."""
    scale = np.ones(len(names))
    is_said = False
    for place in (image, image["datasets"][0]):
        for each in place.get("coordinateTransformations") or []:
            if each.get("type") == "scale" and len(each["scale"]) == len(names):
                scale, is_said = scale * np.asarray(each["scale"], float), True
    units = {a["name"].lower(): a.get("unit") for a in image.get("axes") or [] if "name" in a}
    found = [scale[names.index(axis)] * _UM.get(str(units.get(axis)), math.nan) for axis in "xy"]
    return (found[0], found[1]) if is_said and all(0 < each < math.inf for each in found) else None
