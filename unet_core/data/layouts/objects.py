"""A folder for each image: its one picture in images, in masks a file for each object (DSB2018).

The folders lie in train (val and test likewise), or directly in the data folder.
"""

from __future__ import annotations

import pathlib

from unet_core.data.layouts.listing import (
    FolderNames,
    SampleListing,
    listed,
    numeric_order,
    part_folders,
)
from unet_core.data.samples import Sample, Source


def find(data_dir: pathlib.Path, _: FolderNames) -> SampleListing:
    """Returns the samples of such folders; the names of their folders are fixed."""
    problems: list[str] = []
    there = part_folders(data_dir)
    if "train" not in there:
        return SampleListing(tuple(_samples(data_dir, "", problems)), tuple(problems))
    samples: list[Sample] = []
    for folder, part in there.items():
        samples += _samples(data_dir / folder, part, problems)
    return SampleListing(tuple(samples), tuple(problems))


def _samples(folder: pathlib.Path, part: str, problems: list[str]) -> list[Sample]:
    try:
        found = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    except OSError as error:
        problems.append(f"{folder}: cannot be listed ({error.strerror}).")
        return []
    samples = []
    for each in sorted(found, key=numeric_order):
        # Test images without masks are there to be predicted.
        if part == "test" and not (each / "masks").is_dir():
            continue
        image = listed(each / "images", problems)
        masks = listed(each / "masks", problems)
        if image is None or masks is None:
            continue
        if len(image) != 1:
            problems.append(f"{each / 'images'}: holds {len(image)} pictures; it must hold one.")
        elif not masks:
            problems.append(
                f"{each / 'masks'}: holds no picture. An image without objects has one mask, of "
                "zeros."
            )
        else:
            sources = tuple(Source(mask) for mask in masks)
            samples.append(Sample(each.name, Source(image[0]), sources, split=part))
    if not found:
        problems.append(f"{folder}: holds no folders, one for each image.")
    return samples
