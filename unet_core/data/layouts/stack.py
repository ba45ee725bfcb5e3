"""Stacks: a TIFF of many pages for the images and one for the masks, in the folder or in train."""

from __future__ import annotations

import pathlib

from unet_core.data import images
from unet_core.data.layouts.listing import (
    SUFFIXES_OF_PAGES,
    FolderNames,
    SampleListing,
    is_one_file,
    stem_of,
)
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError

_MOST_NAMED = 5


def find(data_dir: pathlib.Path, names: FolderNames) -> SampleListing:
    """Returns the pages of stacks as samples, one group for each stack of images."""
    problems: list[str] = []
    samples = _samples(data_dir, names, problems)
    return SampleListing(tuple(samples), tuple(problems))


def _samples(data_dir: pathlib.Path, names: FolderNames, problems: list[str]) -> list[Sample]:
    folder = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    paths: list[pathlib.Path] = []
    pages: list[int] = []
    for name in (names.images, *names.masks):
        try:
            path = _stack(folder / name, "image_folder" if name == names.images else "mask_folder")
            pages.append(images.read_header(path, of_any_size=True).pages)
            paths.append(path)
        except UserError as error:
            problems.append(str(error))
    if len(paths) < 1 + len(names.masks):
        return []
    if len(set(pages)) > 1:
        problems.append(
            f"{paths[0]}: has {pages[0]} page(s), its masks {', '.join(map(str, pages[1:]))}; they "
            "must be equally many."
        )
        return []
    image, *masks = paths
    digits = len(str(pages[0] - 1))
    return [
        Sample(
            f"{page:0{digits}d}",
            Source(image, page),
            tuple(Source(mask, page) for mask in masks),
            group=stem_of(image),
        )
        for page in range(pages[0])
    ]


def _stack(place: pathlib.Path, setting: str) -> pathlib.Path:
    """Returns the file of a stack, whose name may be given with its suffix or without.

    Raises:
        UserError: If there is none.
    """
    there = sorted(place.parent.iterdir()) if place.parent.is_dir() else []
    stacks = [p for p in there if p.name.lower().endswith(SUFFIXES_OF_PAGES) and is_one_file(p)]
    found = [path for path in stacks if place.name in (path.stem, stem_of(path), path.name)]
    if not found:
        names = ", ".join(path.name for path in stacks[:_MOST_NAMED]) or "none"
        raise UserError(
            f"{place}: there is no stack of this name ({', '.join(SUFFIXES_OF_PAGES)}); there are: "
            f"{names}. Name one of them in `{setting}`."
        )
    return min(found, key=lambda path: SUFFIXES_OF_PAGES.index(_suffix_of(path)))


def _suffix_of(path: pathlib.Path) -> str:
    return next(suffix for suffix in SUFFIXES_OF_PAGES if path.name.lower().endswith(suffix))
