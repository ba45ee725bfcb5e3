"""The objects of a prediction as a picture of their numbers, and one that shows them in colours."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import object_class
from unet_core.data.tiff_writer import TiffWriter
from unet_core.drawing import pictures
from unet_core.errors import UserError
from unet_core.inference.instances import number_objects

SUFFIXES = ("instances", "instances_overlay")
_MOST_OF_PNG = 65535
_BAND_ROWS = 1024


def check_numbering(how: str, of_class: str, classes: ClassMap) -> None:
    """Checks, before anything is predicted, that objects can be numbered.

    Raises:
        UserError: If there is no such class, or a package is missing.
    """
    if how == "none":
        return
    if not object_class(classes, of_class):
        raise UserError(
            f"`instances` {how} needs `object_class`, one of {', '.join(classes.names)}."
        )
    number_objects(np.zeros((1, 1), np.uint8), classes, of_class, how=how)


def paths(stem: pathlib.Path, *, is_large: bool) -> list[pathlib.Path]:
    """Returns the files of a picture: numbers, of a large one as TIFF, and colours."""
    kinds = (".tif" if is_large else ".png", ".png")
    return [
        stem.with_name(f"{stem.name}_{suffix}{kind}")
        for suffix, kind in zip(SUFFIXES, kinds, strict=True)
    ]


def write_numbered(
    stem: pathlib.Path,
    labels: np.ndarray,
    image: np.ndarray,
    metadata: Mapping[int, tuple],
    *,
    alpha: float,
    is_large: bool = False,
) -> None:
    """Writes the files of one picture.

    Args:
        stem: What the paths of its files begin with.
        labels: [H, W] int32, the numbers of its objects.
        image: [h, w(, C)], the picture, or every n-th pixel of every n-th row.
        metadata: That of the picture, for the file of numbers.
        alpha: How strongly colours cover it, 0..1.
        is_large: Whether the numbers go to a TIFF file.

    Raises:
        UserError: If a PNG file cannot hold so many objects.
        OSError: If a file cannot be written.
    """
    of_numbers, of_colours = paths(stem, is_large=is_large)
    most = int(labels.max(initial=0))
    if is_large:
        dtype = np.uint16 if most <= _MOST_OF_PNG else np.uint32
        height, width = labels.shape
        with TiffWriter(of_numbers, height, width, dtype=dtype, metadata=metadata) as tiff:
            for first in range(0, height, _BAND_ROWS):
                tiff.write(labels[first : first + _BAND_ROWS].astype(dtype))
    elif most > _MOST_OF_PNG:
        raise UserError(
            f"holds {most} objects; a 16-bit PNG numbers at most {_MOST_OF_PNG}. Drop small ones "
            "(`least_object_px`), cut it into parts, or leave `instances` out."
        )
    else:
        images.write_png(of_numbers, labels.astype(np.uint16), metadata)
    step = -(-len(labels) // len(image))
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    images.write_png(of_colours, pictures.objects(image, labels[::step, ::step], alpha=alpha))
