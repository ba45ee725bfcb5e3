"""A VOC folder: JPEGImages, SegmentationClass, and lists in ImageSets/Segmentation."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

from unet_core.data.layouts.listing import (
    PART_OF,
    SUFFIXES,
    FolderNames,
    SampleListing,
    by_stem,
    composed,
    listed,
    paged,
    pairs,
    stem_of,
    unread,
)
from unet_core.data.samples import Sample, Source
from unet_core.files import read_bytes, write_whole

_NAMES = FolderNames("JPEGImages", ("SegmentationClass",))


def find(data_dir: pathlib.Path, _: FolderNames) -> SampleListing:
    """Returns the samples of a VOC folder; its names are fixed."""
    problems: list[str] = []
    samples = _samples(data_dir, problems)
    notes = unread(data_dir, _NAMES)
    if any(sample.split for sample in samples):
        used = {sample.image.path for sample in samples}
        names = [p for p in listed(data_dir / _NAMES.images, []) or () if p not in used]
        if names:
            notes.append(
                f"{data_dir / _NAMES.images}: {len(names)} picture(s) are in no list, such as "
                f"{names[0].name}."
            )
    return SampleListing(tuple(samples), tuple(problems), tuple(notes))


def _samples(data_dir: pathlib.Path, problems: list[str]) -> list[Sample]:
    lists = data_dir / "ImageSets" / "Segmentation"
    parts = [part for part in PART_OF if (lists / f"{part}.txt").is_file()]
    if not parts:
        return pairs(data_dir, _NAMES, "", problems)
    image_dir, mask_dir = data_dir / "JPEGImages", data_dir / "SegmentationClass"
    image_paths, mask_paths = listed(image_dir, problems), listed(mask_dir, problems)
    if image_paths is None or mask_paths is None:
        return []
    image_of = by_stem(image_dir, image_paths, "images", "", problems)
    mask_of = by_stem(mask_dir, mask_paths, "masks", "", problems)
    samples = []
    part_of: dict[str, str] = {}
    for part in parts:
        try:
            lines = read_bytes(lists / f"{part}.txt").decode("utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            problems.append(f"{lists / part}.txt: cannot be read as text ({error}).")
            continue
        for stem in filter(None, (_stem(line, image_of) for line in lines)):
            if stem in part_of:
                problems.append(
                    f"{lists / part}.txt: {stem!r} is in {part_of[stem]}.txt already; remove one."
                )
                continue
            part_of[stem] = part
            for folder, of in ((image_dir, image_of), (mask_dir, mask_of)):
                if stem not in of:
                    problems.append(f"{lists / part}.txt: {stem!r} has no picture in {folder}.")
            if stem in image_of and stem in mask_of:
                sample = Sample(stem, Source(image_of[stem]), (), split=PART_OF[part])
                samples += paged(sample, [mask_of[stem]], problems)
    return samples


def _stem(line: str, image_of: Mapping[str, pathlib.Path]) -> str:
    """Returns the name of a picture in a list, which may have its suffix there."""
    name = composed(line.strip())
    if name in image_of or not name.lower().endswith(SUFFIXES):
        return name
    return stem_of(pathlib.Path(name))


def write_voc_lists(
    data_dir: str | os.PathLike, training: Sequence[Sample], held_out: Sequence[Sample]
) -> None:
    """Writes train.txt, val.txt and trainval.txt of a VOC folder; those that are there stay.

    Raises:
        OSError: If they cannot be written.
    """
    folder = pathlib.Path(data_dir, "ImageSets", "Segmentation")
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in (
        ("train", training),
        ("val", held_out),
        ("trainval", [*training, *held_out]),
    ):
        path = folder / f"{name}.txt"
        if not path.exists():
            write_whole(
                path, "".join(f"{stem_of(sample.image.path)}\n" for sample in samples).encode()
            )
