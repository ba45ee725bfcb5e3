"""Channels of OME-TIFF files, each of which has a directory of its own."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Sequence

import numpy as np
import tifffile

from unet_core.data.io.page import Page
from unet_core.errors import UserError

Directory = tuple[int, int | None]
"""The number of a directory in the file, and its place in bytes."""


def find_channels(
    where: str, tiff: tifffile.TiffFile, places: Collection[int | None]
) -> tuple[list[Directory], int] | None:
    """Returns the directories of an OME-TIFF whose images have several channels, and how many.

    Those of the channels of a page come one after another.

    Args:
        where: The file, for messages.
        tiff: It.
        places: Of all directories that are pictures.

    Returns:
        None if its images have one channel each, or its OME-XML is of other directories.

    Raises:
        UserError: If images differ in their number of channels, or some of them are in other files.
    """
    try:
        series = list(tiff.series)
        found = [(each.axes, each.shape, list(each.pages)) for each in series]
    except Exception:  # tifffile raises anything; the directories are sound.
        return None
    if any(each.kind != "ome" for each in series):
        # So it is where OME-XML names other files, which are not opened, or cannot be followed.
        sizes = map(int, re.findall(r'SizeC="(\d{1,9})"', tiff.ome_metadata))
        if (
            "FileName=" in tiff.ome_metadata
            and max(sizes, default=1) > tiff.pages.first.samplesperpixel
        ):
            raise _in_other_files(where)
        return None
    counts = {shape[axes.index("C")] if "C" in axes else 1 for axes, shape, _ in found}
    if counts == {1} or not counts:
        return None
    if len(counts) > 1:
        raise UserError(
            f"{where}: holds images of {' and '.join(map(str, sorted(counts)))} channels by its "
            "OME-XML. Save each image in a file of its own."
        )
    directories: list[Directory] = []
    for axes, shape, pages in found:
        if any(page is None for page in pages):
            raise _in_other_files(where)
        # Of samples in one directory there is one place along these axes.
        before = {axis: n for axis, n in zip(axes, shape, strict=True) if axis not in "YXS"}
        if math.prod(before.values()) != len(pages):
            return None
        order = np.moveaxis(
            np.arange(len(pages)).reshape(tuple(before.values())), list(before).index("C"), -1
        )
        directories += [(pages[n].index, pages[n].offset) for n in order.ravel()]
    if {place for _, place in directories} != set(places):
        return None
    return directories, counts.pop()


def _in_other_files(where: str) -> UserError:
    return UserError(
        f"{where}: says by its OME-XML that some of its channels or planes are in other files, or "
        "they are missing. Save all in one file."
    )


def together(where: str, channels: Sequence[Page]) -> Page:
    """Returns a page of the samples of several.

    Raises:
        UserError: If they cannot be channels of one.
    """
    first = channels[0]
    same = {(c.height, c.width, c.dtype, c.orientation, c.white_is_zero) for c in channels}
    if len(same) > 1 or any(c.palette is not None or c.bits == 1 for c in channels):
        raise UserError(
            f"{where}: has channels of several sizes or kinds by its OME-XML, or of colours; they "
            "must be alike. Save each in a file of its own."
        )

    def read_rows(first_row: int, last_row: int) -> np.ndarray:
        return np.dstack([each.read_rows(first_row, last_row) for each in channels])

    samples = sum(each.samples for each in channels)
    more: dict = {"samples": samples, "read_rows": read_rows, "alpha": False}
    return dataclasses.replace(first, **more, lossy=any(each.lossy for each in channels))
