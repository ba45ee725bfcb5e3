"""Annotations of other programs: files of shapes on pictures, which become a VOC folder.

done = convert(source, output_dir, class_names)     # unet_core.data.annotations.convert

labelme        a JSON file for each picture
coco           COCO JSON: polygons and run-length encodings
cvat           XML of "CVAT for images 1.1"
via            JSON of the VGG Image Annotator, 1 and 2
label_studio   JSON of Label Studio
geojson        GeoJSON of QuPath, a file for each picture
imagej         regions of interest of ImageJ, .roi or .zip, a file for each picture

A format is recognised by what is in a file, never by its name. It is an `AnnotationFormat`: a file
here, and its line below. It yields each picture of a file with the shapes on it, in the order in
which they are drawn (`unet_core.data.annotations.drawing`), and raises UserError if the file cannot
be read, or, while its shapes are asked for, ValueError and the like if one cannot be drawn.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from unet_core.registry import Registry

if TYPE_CHECKING:  # The settings import this page, and shapes need OpenCV.
    from unet_core.data.annotations.drawing import Shape

ANNOTATIONS = Registry(
    {
        "labelme": "unet_core.data.annotations.labelme:LABELME",
        "coco": "unet_core.data.annotations.coco:COCO",
        "cvat": "unet_core.data.annotations.cvat:CVAT",
        "via": "unet_core.data.annotations.via:VIA",
        "label_studio": "unet_core.data.annotations.label_studio:LABEL_STUDIO",
        "geojson": "unet_core.data.annotations.geojson:GEOJSON",
        "imagej": "unet_core.data.annotations.imagej:IMAGEJ",
    }
)

LeftOut = Callable[[str, str], None]
"""Takes what kind of thing is left out of a file, such as "tag(s)", and which one it is."""


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A picture and what is drawn on it.

    Attributes:
        shapes: In the order in which they are drawn.
        image: Its path or address as the file has it; None if it has the name of the file.
        content: The picture itself, if it lies in the file.
        size: (H, W) as the file says; None where it does not.
        name: What its files are to be called, if not as the picture is.
    """

    shapes: Iterable[Shape]
    image: str | None = None
    content: bytes | None = None
    size: tuple[int | None, int | None] = (None, None)
    name: str = ""


@dataclasses.dataclass(frozen=True)
class AnnotationFormat:
    """One kind of file; see above.

    Attributes:
        title: Its name for people.
        content: What a file is read as: "json", "xml" or "bytes".
        recognises: Whether a file is of this kind, given what it holds: the JSON value, the root
            of the XML, or the bytes.
        read: The pictures of a file, given its path, what it holds, and what to tell of what is
            left out.
    """

    title: str
    content: str
    recognises: Callable[[Any], bool]
    read: Callable[[pathlib.Path, Any, LeftOut], Iterator[Annotated]]
