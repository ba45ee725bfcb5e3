"""The size of a pixel as a file says it; a TIFF in OME-XML, ImageJ's description or its resolution.

pixel_size_um("cells.ome.tif")      # (0.325, 0.325), or None if the file does not say
kept_metadata("cells.ome.tif", 0, rows.metadata)    # what predictions of it are to say
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import tifffile

from unet_core.data.io import opened, zarr_folders
from unet_core.errors import UserError
from unet_core.files import open_to_read

_UM = {"µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "nm": 1e-3}
_UM |= {"å": 1e-4, "mm": 1e3, "cm": 1e4, "m": 1e6}
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_RESOLUTION = {_X_RESOLUTION, _Y_RESOLUTION, _UNIT}
GEOREFERENCE = frozenset((33550, 33922, 34264))
"""Tags of GeoTIFF that say where pixels lie on Earth."""
_OF_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}
LARGEST_UM = 20.0
"""What a resolution without ImageJ's or OME's unit may make of a pixel: 72 to 1200 dots per inch,
which programs write for paper, are 353 to 21 micrometres."""


def pixel_size_um(path: str | os.PathLike, page: int = 0) -> tuple[float, float] | None:
    """Returns width and height of a pixel in micrometres; None if the file does not say.

    DICOM, NIfTI and OME-Zarr do, and TIFF files, where OME-XML counts before ImageJ's description,
    and that before the resolution.

    Args:
        path: The file of a picture.
        page: The page, from 0.

    Raises:
        OSError: If the file cannot be read.
    """
    if zarr_folders.is_zarr(path):
        return _of_page(path, page)
    with open_to_read(path) as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _of_page(path, page)
        file.seek(0)
        try:
            with tifffile.TiffFile(file) as tiff:
                return _positive(_size(tiff, page))
        except Exception:  # tifffile raises anything; the pixels of the file were fine.
            return None


def _of_page(path: str | os.PathLike, page: int) -> tuple[float, float] | None:
    try:
        with opened(path, page) as found:
            return found.pixel_size_um
    except UserError:  # Where its pixels are read, it is told.
        return None


def kept_metadata(
    path: str | os.PathLike, page: int, metadata: Mapping[int, tuple]
) -> Mapping[int, tuple]:
    """Returns the tags that a prediction takes over from its image.

    A size of pixels that stands in OME-XML or in ImageJ's description becomes a resolution, as
    that text is not taken over.

    Args:
        path: The file of the image.
        page: The page, from 0.
        metadata: `Page.metadata` of it.

    Raises:
        OSError: If the file cannot be read.
    """
    has_unit = set(metadata) >= _RESOLUTION and metadata[_UNIT][3] in _OF_RESOLUTION_UNIT
    size = None if has_unit else pixel_size_um(path, page)
    if size is None:
        return metadata
    tags: dict[int, tuple] = {_UNIT: (_UNIT, 3, 1, 3)}
    for tag, length in zip((_X_RESOLUTION, _Y_RESOLUTION), size, strict=True):
        per_cm = 10_000 / length
        of = 10_000 if per_cm < 2**32 / 10_000 else 1
        if round(per_cm * of) >= 2**32:
            return metadata
        tags[tag] = (tag, 5, 1, (round(per_cm * of), of))
    return {**metadata, **tags}


def _size(tiff: Any, page: int) -> tuple[float, float] | None:
    if tiff.is_ome:
        return _of_ome(tiff.ome_metadata)
    tags = tiff.pages[page if page < len(tiff.pages) else 0].tags
    if "XResolution" not in tags or "YResolution" not in tags:
        return None
    across, down = (
        tags[name].value[1] / tags[name].value[0] for name in ("XResolution", "YResolution")
    )
    unit = _um_of((tiff.imagej_metadata or {}).get("unit")) if tiff.is_imagej else None
    if unit is not None:
        return across * unit, down * unit
    unit = _OF_RESOLUTION_UNIT.get(
        int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
    )
    if unit is None or max(across, down) * unit > LARGEST_UM:
        return None
    return across * unit, down * unit


def _of_ome(text: str) -> tuple[float, float] | None:
    """Returns the size in OME-XML; None if its images differ."""
    images = tifffile.xml2dict(text)["OME"]["Image"]
    found = set()
    for image in images if isinstance(images, list) else [images]:
        pixels = image["Pixels"]
        if "PhysicalSizeX" not in pixels:
            return None
        across = _ome_length(pixels, "X")
        found.add((across, _ome_length(pixels, "Y") if "PhysicalSizeY" in pixels else across))
    return found.pop() if len(found) == 1 else None


def _ome_length(pixels: dict[str, Any], axis: str) -> float:
    unit = _um_of(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return float(pixels[f"PhysicalSize{axis}"]) * (math.nan if unit is None else unit)


def _um_of(unit: Any) -> float | None:
    """Returns the micrometres of a unit of length, None if it is none that is known."""
    # ImageJ writes the sign for micro as an escape; there are two characters for it.
    text = str(unit).replace("\\u00B5", "µ").replace("\u03bc", "µ")
    return _UM.get(text.strip().lower().replace("\u03bc", "µ"))


def _positive(size: tuple[float, float] | None) -> tuple[float, float] | None:
    if size is None or not all(math.isfinite(each) and each > 0 for each in size):
        return None
    return size
