"""Finds the samples of a data folder, and images to predict."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Sequence

from unet_core.data.layouts import LAYOUTS
from unet_core.data.layouts.listing import (
    SUFFIXES,
    FolderNames,
    SampleListing,
    files_of,
    is_one_file,
    left_out,
    page_count,
    pictures,
    unique_names,
)
from unet_core.data.predicted import NAME as PREDICTED_LIST
from unet_core.data.predicted import Predicted, is_list
from unet_core.data.samples import Source
from unet_core.errors import UserError


def find_samples(
    data_dir: str | os.PathLike,
    layout: str,
    *,
    image_folder: str = "image",
    mask_folder: str = "label",
    mask_suffix: str = "",
    group_pattern: str = "",
    outside_paths: bool = False,
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
        outside_paths: Whether a table may name files outside of its folder.

    Raises:
        UserError: If the pattern is none.
    """
    names = FolderNames(image_folder, tuple(mask_folder.split(",")), mask_suffix, outside_paths)
    listing = LAYOUTS[layout](pathlib.Path(data_dir), names)
    listing = _grouped(listing, group_pattern) if group_pattern else listing
    return dataclasses.replace(listing, samples=tuple(unique_names(listing.samples)))


def find_images(
    path: str | os.PathLike,
    *,
    notes: list[str] | None = None,
    problems: list[str] | None = None,
) -> list[Source]:
    """Returns the images at `path`, in numeric order.

    `path` is a file (each page of it is an image), a folder, or a glob, in which `**` is folders at
    any depth; links to folders are not followed there. What an earlier prediction
    has written there, by its list, is not taken for an image, unless `path` names it, nor is a
    hidden file.

    Args:
        path: Where.
        notes: Takes a sentence about what is left out.
        problems: Takes a sentence about images that are named there and are not there.

    Raises:
        UserError: If there are none.
    """
    problems = [] if problems is None else problems
    found_there: list[pathlib.Path] = []
    if is_one_file(path):
        paths = [pathlib.Path(path)]
    elif glob.has_magic(str(path)) and not os.path.isdir(path):
        found_there = _matches(pathlib.Path(path), notes)
        names_hidden = os.path.basename(path).startswith(".")
        matches = [each for each in found_there if names_hidden or not each.name.startswith(".")]
        paths = _without_predictions(files_of(path, matches, problems), path, notes)
    else:
        found_there = list(pathlib.Path(path).iterdir()) if os.path.isdir(path) else []
        paths = _without_predictions(pictures(pathlib.Path(path), problems), path, notes)
    if notes is not None:
        unused = set(found_there).difference(paths)
        lists = {each.name for each in unused if is_list(each.name)}
        notes += left_out(path, sorted(unused), used=lists)
    sources = []
    for found in paths:
        sources += [Source(found, page) for page in range(page_count(found))]
    if not sources:
        raise UserError(*problems, f"{path}: holds no pictures ({', '.join(SUFFIXES)}).")
    return sources


def _matches(pattern: pathlib.Path, notes: list[str] | None) -> list[pathlib.Path]:
    """Returns what a glob matches.

    A folder that is there is taken as it is called, whatever brackets that has.

    Raises:
        UserError: If it is malformed.
    """
    base = pathlib.Path(pattern.anchor)
    parts = list(pattern.parts[1:] if pattern.anchor else pattern.parts)
    while len(parts) > 1 and (base / parts[0]).is_dir():
        base /= parts.pop(0)
    if "**" in parts and notes is not None:
        below = (pathlib.Path(folder, name) for folder, names, _ in os.walk(base) for name in names)
        links = [path for path in below if path.is_symlink()]
        if links:
            notes.append(
                f"{pattern}: {len(links)} link(s) to folders are not followed, such as {links[0]}; "
                "one may lead to where it is."
            )
    try:
        return sorted(base.glob(str(pathlib.Path(*parts))))
    except ValueError as error:
        # Before Python 3.13, of `**` with something else between slashes.
        raise UserError(
            f"{pattern}: is no pattern of names ({error}). Write * in names and ** for folders at "
            "any depth, such as 'data/**/*.png'."
        ) from error


def _without_predictions(
    paths: Sequence[pathlib.Path], place: str | os.PathLike, notes: list[str] | None
) -> list[pathlib.Path]:
    """Returns the paths without what predictions have written; `notes` takes how many they were."""
    lists = {folder: Predicted(folder) for folder in {path.parent for path in paths}}
    kept = [path for path in paths if not lists[path.parent].owns(path)]
    count = len(paths) - len(kept)
    if count and notes is not None:
        notes.append(
            f"{place}: {count} earlier prediction(s) there are left out, by {PREDICTED_LIST}."
        )
    return kept


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
