"""Folders: train/image and train/label (val and test likewise), or image and label directly."""

from __future__ import annotations

import pathlib

from unet_core.data.layouts.listing import PARTS, FolderNames, SampleListing, pairs


def find(data_dir: pathlib.Path, names: FolderNames) -> SampleListing:
    """Returns the samples of such folders."""
    problems: list[str] = []
    parts = [part for part in PARTS if (data_dir / part).is_dir()]
    if "train" not in parts and (data_dir / names.images).is_dir():
        return SampleListing(tuple(pairs(data_dir, names, "", problems)), tuple(problems))
    samples = []
    for part in ("train", *(part for part in parts if part != "train")):
        masks = [data_dir / part / folder for folder in names.masks]
        # Test images without masks are there to be predicted.
        if part != "test" or all(folder.is_dir() for folder in masks):
            name = part if "val" in parts or part == "test" else ""
            samples += pairs(data_dir / part, names, name, problems)
    return SampleListing(tuple(samples), tuple(problems))
