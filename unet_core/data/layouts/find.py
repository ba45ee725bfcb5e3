"""Finds the samples of a data folder, and images to predict."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
import re

from unet_core.data.layouts import LAYOUTS
from unet_core.data.layouts.listing import (
    SUFFIXES,
    FolderNames,
    SampleListing,
    numeric_order,
    page_count,
    pictures,
)
from unet_core.data.samples import Source
from unet_core.errors import UserError

_PREDICTED = re.compile(r"_(predict|overlay|outlines|instances|probability(_.*)?)$")


def find_samples(
    data_dir: str | os.PathLike,
    layout: str,
    *,
    image_folder: str = "image",
    mask_folder: str = "label",
    mask_suffix: str = "",
    group_pattern: str = "",
) -> SampleListing:
    """Returns the samples of `data_dir`.

    Args:
        data_dir: The folder; for "csv" also the file.
        layout: One of `LAYOUTS`.
        image_folder: Name of the folders of images, or of the stack without its suffix.
        mask_folder: Name of the folders of masks, or of the stack; several names with commas are
            binary masks, one per class.
        mask_suffix: What the name of a mask adds to that of its image. Images and masks may then
            lie in one folder.
        group_pattern: A regular expression found in every sample's name; its first group, or all
            it matches, is the sample's group.

    Raises:
        UserError: If the pattern is none.
    """
    names = FolderNames(image_folder, tuple(mask_folder.split(",")), mask_suffix)
    listing = LAYOUTS[layout](pathlib.Path(data_dir), names)
    return _grouped(listing, group_pattern) if group_pattern else listing


def find_images(path: str | os.PathLike) -> list[Source]:
    """Returns the images at `path`, in numeric order.

    `path` is a file (each page of it is an image), a folder, or a glob. What an earlier prediction
    wrote is not taken for an image, unless `path` names it.

    Raises:
        UserError: If there are none.
    """
    if os.path.isfile(path):
        paths = [pathlib.Path(path)]
    elif glob.has_magic(str(path)) and not os.path.isdir(path):
        matches = [pathlib.Path(match) for match in glob.glob(str(path))]
        paths = [p for p in matches if p.suffix.lower() in SUFFIXES and p.is_file()]
        paths.sort(key=numeric_order)
    else:
        paths = pictures(pathlib.Path(path))
    sources = []
    for found in paths:
        if _PREDICTED.search(found.stem) and not os.path.isfile(path):
            continue
        sources += [Source(found, page) for page in range(page_count(found))]
    if not sources:
        raise UserError(f"{path}: holds no pictures ({', '.join(SUFFIXES)}).")
    return sources


def _grouped(listing: SampleListing, pattern: str) -> SampleListing:
    """Returns the samples with the groups that the pattern finds in their names."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"`group_pattern` ({pattern!r}) is no regular expression ({error})."
        ) from error
    grouped, problems = [], list(listing.problems)
    for sample in listing.samples:
        match = expression.search(sample.name)
        group = match and match.group(1 if expression.groups else 0)
        if not group:
            problems.append(f"{sample.image}: `group_pattern` ({pattern!r}) is not in its name.")
            continue
        grouped.append(dataclasses.replace(sample, group=group))
    return SampleListing(tuple(grouped), tuple(problems))
