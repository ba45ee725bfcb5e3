"""Objects as GeoJSON (RFC 7946), which QuPath and QGIS open.

Coordinates are pixels, from the top left corner of the picture, as in QuPath. The properties are
those by which QuPath knows detections: class, name and measurements.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_core.files import without_nan
from unet_core.inference.outlines import Outline
from unet_core.outputs.objects import ObjectFormat, Picture


def make_geojson(pictures: Sequence[Picture]) -> bytes:
    """Returns a feature for each object."""
    features = [
        _feature(row, outlines, picture.objects.class_name)
        for picture in pictures
        for row, outlines in zip(picture.objects.rows(), picture.objects.outlines, strict=True)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    return json.dumps(without_nan(collection), separators=(",", ":"), allow_nan=False).encode()


def _feature(row: dict[str, Any], outlines: Sequence[Outline], class_name: str) -> dict[str, Any]:
    measured = {k: v for k, v in row.items() if k not in ("id", "class") and v is not None}
    parts = [[_closed(ring) for ring in (part.exterior, *part.holes)] for part in outlines]
    geometry = {"type": "Polygon", "coordinates": parts[0]}
    if len(parts) > 1:
        geometry = {"type": "MultiPolygon", "coordinates": parts}
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {
            "objectType": "detection",
            "name": f"{class_name} {row['id']}",
            "classification": {"name": class_name},
            "measurements": measured,
        },
    }


def _closed(ring: np.ndarray) -> list[list[int]]:
    return [*ring.tolist(), ring[0].tolist()]


GEOJSON = ObjectFormat("objects.geojson", make_geojson)
