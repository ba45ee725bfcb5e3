"""Folders: train/image and train/label (val and test likewise), or image and label directly."""

from __future__ import annotations

import pathlib

from unet_core.data.layouts.listing import (
    PART_OF,
    FolderNames,
    SampleListing,
    beside,
    pairs,
    part_folders,
    unread,
)


def find(data_dir: pathlib.Path, names: FolderNames) -> SampleListing:
    """Returns the samples of such folders; valid and validation are other names of val."""
    problems: list[str] = []
    notes: list[str] = []
    there = part_folders(data_dir)
    if "train" not in there and (data_dir / names.images).is_dir():
        samples = pairs(data_dir, names, "", problems)
        return SampleListing(
            tuple(samples), tuple(problems), (*_beside(data_dir, names), *unread(data_dir, names))
        )
    samples = []
    notes += beside(data_dir, PART_OF)
    for folder, part in {"train": "", **there}.items():
        masks = [data_dir / folder / name for name in names.masks]
        # Test images without masks are there to be predicted.
        if part != "test" or all(mask.is_dir() for mask in masks):
            samples += pairs(data_dir / folder, names, part, problems)
            notes += _beside(data_dir / folder, names) + unread(data_dir / folder, names)
    return SampleListing(tuple(samples), tuple(problems), tuple(notes))


def _beside(folder: pathlib.Path, names: FolderNames) -> list[str]:
    """Returns a sentence about what lies beside the folders of images and masks, if anything."""
    used = [pathlib.Path(name).parts[:1] for name in (names.images, *names.masks)]
    # One of them may be the folder itself.
    return beside(folder, {"test", *(first for (first,) in used)}) if all(used) else []
