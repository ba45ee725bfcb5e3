"""GeoJSON of QuPath, in pixels: a file for each picture, called as the picture is."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from unet_core.data.annotations import Annotated, AnnotationFormat, LeftOut
from unet_core.data.annotations.drawing import Area, Dots, Geometry, Line, Shape
from unet_core.files import fitted


class _Geometry(msgspec.Struct):
    type: str
    coordinates: Any = None
    plane: dict[str, Any] = {}


class _Feature(msgspec.Struct):
    geometry: _Geometry
    properties: dict[str, Any] | None = None


def read(path: pathlib.Path, value: Any, _: LeftOut) -> Iterator[Annotated]:
    """Gives the one picture of a file."""
    if isinstance(value, dict):
        value = value["features"] if value["type"] == "FeatureCollection" else [value]
    way = "Export it again from QuPath as GeoJSON."
    features = fitted(path, value, list[_Feature], what="features of GeoJSON", way=way)
    yield Annotated(_shapes(features))


def _shapes(features: Sequence[_Feature]) -> Iterator[Shape]:
    for feature in features:
        yield Shape(_labels(feature.properties or {}), _geometry(feature.geometry))


def _labels(properties: dict[str, Any]) -> tuple[str, ...]:
    """Returns the class of an object; QuPath has several names for one of "Tumor: Positive"."""
    found = properties.get("classification")
    if isinstance(found, dict):
        names = [found["name"]] if "name" in found else found.get("names", ())
        return (": ".join(map(str, names)),) if names else ()
    return (str(found),) if found else ()


def _geometry(found: _Geometry) -> Geometry:
    if any(found.plane.get(axis) for axis in "zt"):
        raise ValueError(f"it lies in plane z={found.plane.get('z')}, t={found.plane.get('t')}")
    kinds: dict[str, Callable[[Any], Geometry]] = {
        "Polygon": lambda c: Area([c]),
        "MultiPolygon": Area,
        "LineString": Line,
        "Point": lambda c: Dots([c]),
        "MultiPoint": Dots,
    }
    if found.type not in kinds:
        raise ValueError(f"shapes of type {found.type!r} are not drawn")
    return kinds[found.type](found.coordinates)


def _recognises(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(
            isinstance(f, dict) and f.get("type") == "Feature" for f in value
        )
    if not isinstance(value, dict):
        return False
    return value.get("type") == "Feature" or (
        value.get("type") == "FeatureCollection" and "features" in value
    )


GEOJSON = AnnotationFormat("GeoJSON (QuPath)", "json", _recognises, read)
