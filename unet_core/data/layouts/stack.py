"""Stacks: a TIFF of many pages for the images and one for the masks, in the folder or in train."""

from __future__ import annotations

import pathlib

from unet_core.data import images
from unet_core.data.layouts.listing import SUFFIXES_OF_PAGES, FolderNames, SampleListing
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError


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
        found = [folder / (name + suffix) for suffix in SUFFIXES_OF_PAGES]
        path = next((each for each in found if each.is_file()), None)
        if path is None:
            problems.append(f"{found[0]}: there is no such stack.")
            continue
        try:
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
            group=image.stem,
        )
        for page in range(pages[0])
    ]
