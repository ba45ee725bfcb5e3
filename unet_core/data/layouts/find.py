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
    left_out,
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


def find_images(path: str | os.PathLike, *, notes: list[str] | None = None) -> list[Source]:
    """Returns the images at `path`, in numeric order.

    `path` is a file (each page of it is an image), a folder, or a glob, in which `**` is folders at
    any depth; links to folders are not followed there. What an earlier prediction wrote is not
    taken for an image, unless `path` names it, nor are hidden files.

    Args:
        path: Where.
        notes: Takes a sentence about what is left out.

    Raises:
        UserError: If there are none.
    """
    noted: list[str] = []
    if os.path.isfile(path):
        paths = [pathlib.Path(path)]
    elif glob.has_magic(str(path)) and not os.path.isdir(path):
        matches = _matches(pathlib.Path(path))
        names_hidden = os.path.basename(path).startswith(".")
        paths = [p for p in matches if names_hidden or not p.name.startswith(".")]
        paths = [p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file()]
        paths.sort(key=numeric_order)
        noted = left_out(path, set(matches).difference(paths))
    else:
        paths = pictures(pathlib.Path(path))
        noted = left_out(path, pathlib.Path(path).iterdir())
    if notes is not None:
        notes += noted
    sources = []
    for found in paths:
        if _PREDICTED.search(found.stem) and not os.path.isfile(path):
            continue
        sources += [Source(found, page) for page in range(page_count(found))]
    if not sources:
        raise UserError(f"{path}: holds no pictures ({', '.join(SUFFIXES)}).")
    return sources


def _matches(pattern: pathlib.Path) -> list[pathlib.Path]:
    """Returns what a glob matches.

    A folder that is there is taken as it is called, whatever brackets that has.

    Raises:
        UserError: If it is malformed.
    """
    base = pathlib.Path(pattern.anchor)
    parts = list(pattern.parts[1:] if pattern.anchor else pattern.parts)
    while len(parts) > 1 and (base / parts[0]).is_dir():
        base /= parts.pop(0)
    try:
        return list(base.glob(str(pathlib.Path(*parts))))
    except ValueError as error:
        # Before Python 3.13, of `**` with something else between slashes.
        raise UserError(
            f"{pattern}: is no pattern of names ({error}). Write * in names and ** for folders at "
            "any depth, such as 'data/**/*.png'."
        ) from error


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
    return SampleListing(tuple(grouped), tuple(problems), listing.notes)
