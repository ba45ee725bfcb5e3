"""Objects as ImageJ's regions of interest, a zip file that its ROI Manager opens.

ImageJ counts the corners of pixels, from the top left corner of the picture, as outlines do. An
object of one ring is a traced ROI, as its wand makes; one of several is a composite ROI, whose
rings ImageJ fills by the even-odd rule. Each is bound to its page of a stack.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_core.errors import UserError
from unet_core.inference.outlines import Outline
from unet_core.outputs.objects import ObjectFormat, Picture

_MOVE, _LINE, _CLOSE = 0, 1, 4


def check_installed() -> None:
    """Raises UserError if roifile is not installed."""
    if importlib.util.find_spec("roifile") is None:
        raise UserError("`objects` roi needs roifile: pip install 'unet_core[objects]'.")


def make_rois(pictures: Sequence[Picture]) -> bytes:
    """Returns a zip file with a ROI for each object, named after its class and number."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for picture in pictures:
            objects = picture.objects
            plain = objects.class_name.replace("/", "_")
            for number, outlines in zip(objects.columns["id"], objects.outlines, strict=True):
                name = f"{plain}-{number:05d}"
                roi = _roi(outlines, name, picture.source.page)
                # A fixed date: the same objects give the same file.
                archive.writestr(zipfile.ZipInfo(f"{name}.roi"), roi.tobytes())
    return content.getvalue()


def _roi(outlines: Sequence[Outline], name: str, page: int) -> Any:
    from roifile import ROI_TYPE, ImagejRoi

    rings = [ring for part in outlines for ring in (part.exterior, *part.holes)]
    corners = np.concatenate(rings)
    left, top = corners.min(0).tolist()
    right, bottom = corners.max(0).tolist()
    bounds = {"left": left, "top": top, "right": right, "bottom": bottom}
    if len(rings) == 1:
        roi = ImagejRoi.frompoints(corners, name=name, position=page)
        # roifile (2026.2) takes corners for pixels, and makes the bounds larger by one.
        return dataclasses.replace(roi, roitype=ROI_TYPE.TRACED, **bounds)
    path: list[float] = []
    for ring in rings:
        for place, corner in enumerate(ring.tolist()):
            path += [_LINE if place else _MOVE, *corner]
        path.append(_CLOSE)
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,
        name=name,
        position=page + 1,
        multi_coordinates=np.array(path, np.float32),
        shape_roi_size=len(path),
        **bounds,
    )


ROI = ObjectFormat("rois.zip", make_rois, check_installed=check_installed)
