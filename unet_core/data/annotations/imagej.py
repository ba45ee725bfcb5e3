"""Regions of interest of ImageJ: a .roi or .zip for each picture, called as the picture is.

A region's class is its name, or that without a number behind it, such as cell-0012; a name of
numbers alone, which ImageJ gives by itself, is none.
"""

from __future__ import annotations

import importlib.util
import io
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

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
from unet_core.errors import UserError

_ROI, _ZIP = b"Iout", b"PK"
_MOST_BYTES = 2**28
_NUMBER = re.compile(r"[-_ .#]*\d*$")
_LETTER = re.compile(r"[^\W\d_]")


def read(path: pathlib.Path, content: bytes, left_out: LeftOut) -> Iterator[Annotated]:
    """Gives the one picture of a file."""
    if importlib.util.find_spec("roifile") is None:
        raise UserError(
            f"{path}: regions of ImageJ need roifile: pip install 'unet_core[annotations]'."
        )
    rois = [(path.stem, content)] if content.startswith(_ROI) else _unpacked(path, content)
    yield Annotated(_shapes(rois, left_out))


def _unpacked(path: pathlib.Path, content: bytes) -> list[tuple[str, bytes]]:
    """Returns the regions of a zip file, with their names.

    Raises:
        UserError: If there are none, or they are too large together.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [e for e in archive.infolist() if e.filename.lower().endswith(".roi")]
            if not entries:
                raise UserError(
                    f"{path}: is a zip file without regions of ImageJ (.roi). Unpack it first."
                )
            if sum(entry.file_size for entry in entries) > _MOST_BYTES:
                raise UserError(f"{path}: has more than {_MOST_BYTES} bytes unpacked.")
            # No entry gives more than it says.
            return [(entry.filename[:-4], archive.read(entry)) for entry in entries]
    except UserError:
        raise
    except Exception as error:  # zipfile and zlib raise anything.
        raise UserError(
            f"{path}: cannot be unpacked ({error}). Save it again in ImageJ."
        ) from error


def _shapes(rois: list[tuple[str, bytes]], left_out: LeftOut) -> Iterator[Shape]:
    from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi

    for entry, content in rois:
        try:
            roi = ImagejRoi.frombytes(content)
        except Exception as error:  # It raises anything.
            raise ValueError(f"{entry}.roi is damaged: {error}") from error
        name = roi.name or entry
        if roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.IMAGE) or roi.roitype == ROI_TYPE.NOROI:
            left_out("text(s) and pictures, which are no regions", name)
            continue
        if not roi.position and max(roi.c_position, roi.z_position, roi.t_position) > 1:
            raise ValueError(f"{name} lies in a hyperstack; save its planes as a plain stack")
        yield Shape(_labels(name), _geometry(roi), roi.position - 1 if roi.position else None)


def _labels(name: str) -> tuple[str, ...]:
    return (name, _NUMBER.sub("", name)) if _LETTER.search(name) else ()


def _geometry(roi: Any) -> Geometry:
    from roifile import ROI_TYPE

    kind = roi.roitype
    if roi.composite:
        return Area([roi.coordinates(multi=True)])
    if kind in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        box = (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top)
        if roi.subpixelrect:
            box = (roi.xd, roi.yd, roi.widthd, roi.heightd)
        ring = rectangle(*map(float, box))
        if kind == ROI_TYPE.RECT:
            return Area([[ring]])
        return Ellipse(*ring.mean(0).tolist(), *(np.ptp(ring, axis=0) / 2).tolist())
    points = roi.coordinates()
    if kind in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
        return Area([[points]])
    if kind in (ROI_TYPE.LINE, ROI_TYPE.POLYLINE, ROI_TYPE.FREELINE):
        return Line(points)
    if kind == ROI_TYPE.POINT:
        return Dots(points)
    raise ValueError(f"regions of type {kind!r} are not drawn")


IMAGEJ = AnnotationFormat("ImageJ", "bytes", lambda content: content.startswith((_ROI, _ZIP)), read)
