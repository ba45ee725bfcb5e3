"""Files of annotations: found, recognised, read."""

from __future__ import annotations

import os
import pathlib
import xml.etree.ElementTree
from typing import Any

from unet_core.data.annotations import ANNOTATIONS, Annotated, AnnotationFormat, LeftOut
from unet_core.data.layouts.listing import numeric_order
from unet_core.errors import UserError
from unet_core.files import open_to_read, os_errors, read_bytes, read_json

SUFFIXES = (".json", ".geojson", ".xml", ".roi", ".zip")
MOST_BYTES = 2**30
"""No file is larger; pictures may lie in it."""
_MARKS = (b"Iout", b"PK")


def find_files(source: pathlib.Path) -> list[pathlib.Path]:
    """Returns `source`, or the files of annotations in it if it is a folder, in numeric order.

    Hidden files, such as macOS leaves beside others, are none.

    Raises:
        UserError: If there are none.
    """
    if not source.is_dir():
        return [source]
    with os_errors(source, "cannot be listed", "Name another folder."):
        names = os.listdir(source)
    found = [
        source / name
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
    if not found:
        raise UserError(
            f"{source}: holds no files of annotations ({', '.join(SUFFIXES)}). Name a file, or the "
            "folder that they lie in."
        )
    return sorted(found, key=numeric_order)


def open_annotations(path: pathlib.Path, left_out: LeftOut) -> tuple[str, list[Annotated]]:
    """Returns the title of the format of a file, and its pictures.

    Raises:
        UserError: If it cannot be read, or is in no format that is known.
    """
    content, value = _read(path)
    for name in ANNOTATIONS:
        kind: AnnotationFormat = ANNOTATIONS[name]
        if kind.content == content and kind.recognises(value):
            return kind.title, list(kind.read(path, value, left_out))
    titles = ", ".join(ANNOTATIONS[name].title for name in ANNOTATIONS)
    raise UserError(
        f"{path}: is in no format of annotations that is known ({titles}). Export it in one of "
        "these, or leave it out."
    )


def _read(path: pathlib.Path) -> tuple[str, Any]:
    """Returns what kind of content a file has, and the content."""
    with os_errors(path, "cannot be read as annotations", "Copy it again, or remove it."):
        with open_to_read(path) as file:
            start = file.read(256)
        if start.startswith(_MARKS):
            return "bytes", read_bytes(path, most_bytes=MOST_BYTES)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
            return "xml", _xml(path, read_bytes(path, most_bytes=MOST_BYTES))
    way = "Export it again, or remove it."
    return "json", read_json(path, Any, what="annotations", way=way, most_bytes=MOST_BYTES)


def _xml(path: pathlib.Path, content: bytes) -> Any:
    """Returns the root of an XML file.

    Raises:
        UserError: If it is none in UTF-8, or declares a document type: entities of one can read
            other files, or grow without end.
    """
    try:
        text = content.decode("utf-8-sig")
        if "<!DOCTYPE" in text:
            raise UserError(
                f"{path}: declares a document type (DOCTYPE), which no annotations need and which "
                "is not read. Remove that line."
            )
        return xml.etree.ElementTree.fromstring(text)
    except UserError:
        raise
    except (ValueError, xml.etree.ElementTree.ParseError) as error:
        raise UserError(
            f"{path}: cannot be read as annotations ({error}). Export it again, or remove it."
        ) from error
