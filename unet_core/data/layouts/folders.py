"""Folders: train/image and train/label (val and test likewise), or image and label directly."""

from __future__ import annotations

import pathlib

from unet_core.data.layouts.listing import (
    PART_OF,
    FolderNames,
    SampleListing,
    left_out,
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
    if data_dir.is_dir():
        folders = (path for path in data_dir.iterdir() if path.is_dir())
        notes += left_out(data_dir, folders, used=PART_OF)
    for folder, part in {"train": "", **there}.items():
        masks = [data_dir / folder / name for name in names.masks]
        # Test images without masks are there to be predicted.
        if part != "test" or all(mask.is_dir() for mask in masks):
            samples += pairs(data_dir / folder, names, part, problems)
            notes += _beside(data_dir / folder, names) + unread(data_dir / folder, names)
    return SampleListing(tuple(samples), tuple(problems), tuple(notes))


def _beside(folder: pathlib.Path, names: FolderNames) -> list[str]:
    """Returns a sentence about folders beside those of images and masks, if there are any."""
    if not folder.is_dir():
        return []
    used = {pathlib.Path(name).parts[0] for name in (names.images, *names.masks) if name}
    return left_out(
        folder, (path for path in folder.iterdir() if path.is_dir()), used={*used, "test"}
    )
