"""How images and masks lie on disk: several ways to make the one list of samples.

    found = find_samples(data_dir, "folders")
    found.samples, found.problems

folders   train/image and train/label (val and test likewise), or image and label directly
voc       JPEGImages, SegmentationClass, and lists in ImageSets/Segmentation
csv       samples.csv with the columns image, mask and, if wanted, group, split, page
stack     a TIFF of many pages for the images and one for the masks

Only names are looked at, and of stacks the number of pages.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import glob
import io
import itertools
import os
import pathlib
import re
from collections.abc import Sequence

from unet_core.data import images
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError
from unet_core.files import read_bytes, write_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LAYOUTS = ("folders", "voc", "csv", "stack")
PARTS = ("train", "val", "test")
_MOST_TABLE_BYTES = 2**30
_PREDICTED = re.compile(r"_(predict|overlay|outlines|instances|probability(_.*)?)$")


@dataclasses.dataclass(frozen=True)
class SampleListing:
    """The samples of a data folder, and every problem with their names, as complete sentences."""

    samples: tuple[Sample, ...]
    problems: tuple[str, ...]


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
    data_dir = pathlib.Path(data_dir)
    problems: list[str] = []
    if layout == "voc":
        samples = _voc(data_dir, problems)
    elif layout == "csv":
        samples = _csv(data_dir, problems)
    elif layout == "stack":
        samples = _stack(data_dir, image_folder, mask_folder.split(","), problems)
    else:
        samples = _folders(data_dir, image_folder, mask_folder.split(","), mask_suffix, problems)
    if group_pattern:
        samples = _grouped(samples, group_pattern, problems)
    return SampleListing(tuple(samples), tuple(problems))


def find_images(path: str | os.PathLike) -> list[Source]:
    """Returns the images at `path`: a file (each page of it), those of a folder, or those that
    match a glob, in numeric order. What an earlier prediction wrote is not taken for an image,
    unless `path` names it.

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
        paths = _pictures(pathlib.Path(path))
    sources = []
    for found in paths:
        if _PREDICTED.search(found.stem) and not os.path.isfile(path):
            continue
        pages = 1
        if found.suffix.lower() in (".tif", ".tiff"):
            # What cannot be read is one picture, of which its reader tells; the others can be.
            with contextlib.suppress(UserError):
                pages = images.read_header(found, of_any_size=True).pages
        sources += [Source(found, page) for page in range(pages)]
    if not sources:
        raise UserError(f"{path}: holds no pictures ({', '.join(SUFFIXES)}).")
    return sources


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
            write_whole(path, "".join(f"{sample.name}\n" for sample in samples).encode())


def numeric_order(path: pathlib.Path) -> tuple:
    """Returns a sort key by which `2.png` comes before `10.png`."""
    parts = re.split(r"(\d+)", path.stem)
    return tuple(int(part) if part.isdecimal() else part for part in parts), path.name


def _folders(
    data_dir: pathlib.Path,
    image_folder: str,
    mask_folders: Sequence[str],
    mask_suffix: str,
    problems: list[str],
) -> list[Sample]:
    parts = [part for part in PARTS if (data_dir / part).is_dir()]
    if "train" not in parts and (data_dir / image_folder).is_dir():
        return _pairs(data_dir, image_folder, mask_folders, mask_suffix, "", problems)
    samples = []
    for part in ("train", *(part for part in parts if part != "train")):
        masks = [data_dir / part / folder for folder in mask_folders]
        # Test images without masks are there to be predicted.
        if part != "test" or all(folder.is_dir() for folder in masks):
            name = part if "val" in parts or part == "test" else ""
            samples += _pairs(
                data_dir / part, image_folder, mask_folders, mask_suffix, name, problems
            )
    return samples


def _pairs(
    folder: pathlib.Path,
    image_folder: str,
    mask_folders: Sequence[str],
    mask_suffix: str,
    part: str,
    problems: list[str],
) -> list[Sample]:
    image_dir, mask_dirs = folder / image_folder, [folder / name for name in mask_folders]
    if image_dir in mask_dirs and not mask_suffix:
        problems.append(
            f"{image_dir}: is named as the folder of images and of masks, so that every image "
            "would be its own mask. Name two folders, or give --mask_suffix."
        )
        return []
    listed = [_listed(each, problems) for each in (image_dir, *mask_dirs)]
    if None in listed:
        return []
    image_paths, *mask_lists = listed
    if mask_suffix:
        image_paths = [
            path
            for path in image_paths
            if image_dir not in mask_dirs or not path.stem.endswith(mask_suffix)
        ]
        mask_lists = [[p for p in paths if p.stem.endswith(mask_suffix)] for paths in mask_lists]
    if not image_paths:
        problems.append(f"{image_dir}: holds no pictures ({', '.join(SUFFIXES)}).")
    by_stem = [_by_stem(image_dir, image_paths, "images", "", problems)]
    for mask_dir, paths in zip(mask_dirs, mask_lists, strict=True):
        by_stem.append(_by_stem(mask_dir, paths, "masks", mask_suffix, problems))
    image_of, *masks_of = by_stem
    samples = []
    for stem, path in image_of.items():
        missing = [d for d, of in zip(mask_dirs, masks_of, strict=True) if stem not in of]
        problems += [f"{path}: there is no mask of the same name in {d}." for d in missing]
        if not missing:
            masks = tuple(Source(of[stem]) for of in masks_of)
            samples.append(Sample(stem, Source(path), masks, split=part))
    for of in masks_of:
        problems += [
            f"{path}: there is no image of the same name in {image_dir}."
            for stem, path in of.items()
            if stem not in image_of
        ]
    return samples


def _voc(data_dir: pathlib.Path, problems: list[str]) -> list[Sample]:
    lists = data_dir / "ImageSets" / "Segmentation"
    parts = [part for part in PARTS if (lists / f"{part}.txt").is_file()]
    if not parts:
        return _pairs(data_dir, "JPEGImages", ["SegmentationClass"], "", "", problems)
    image_dir, mask_dir = data_dir / "JPEGImages", data_dir / "SegmentationClass"
    listed = [_listed(each, problems) for each in (image_dir, mask_dir)]
    if None in listed:
        return []
    image_of = _by_stem(image_dir, listed[0], "images", "", problems)
    mask_of = _by_stem(mask_dir, listed[1], "masks", "", problems)
    samples, part_of = [], {}
    for part in parts:
        try:
            lines = read_bytes(lists / f"{part}.txt").decode("utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            problems.append(f"{lists / part}.txt: cannot be read as text ({error}).")
            continue
        for stem in filter(None, map(str.strip, lines)):
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
                mask = (Source(mask_of[stem]),)
                samples.append(Sample(stem, Source(image_of[stem]), mask, split=part))
    return samples


def _csv(path: pathlib.Path, problems: list[str]) -> list[Sample]:
    path = path / "samples.csv" if path.is_dir() else path
    try:
        text = read_bytes(path, most_bytes=_MOST_TABLE_BYTES).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeError, csv.Error) as error:
        problems.append(f"{path}: cannot be read as a CSV file ({error}).")
        return []
    if not rows or not {"image", "mask"} <= set(rows[0]):
        problems.append(
            f"{path}: needs the columns image and mask and at least one row; group, split, page "
            "may follow."
        )
        return []
    samples, taken = [], set()
    root = path.parent.resolve()
    for number, row in enumerate(rows, 2):
        place = f"{path}, line {number}"
        cells = [row["image"] or "", *(row["mask"] or "").split("|")]
        if not all(cells):
            problems.append(f"{place}: the cell of the image or of a mask is empty; name a file.")
            continue
        files = [path.parent / cell for cell in cells]
        outside = [c for c, f in zip(cells, files, strict=True) if root not in f.resolve().parents]
        if outside:
            problems.append(f"{place}: {outside[0]!r} leaves the data folder {path.parent}.")
            continue
        missing = [file for file in files if not file.is_file()]
        page, split = row.get("page") or "0", row.get("split") or ""
        if missing:
            problems.append(f"{place}: there is no file {missing[0]}.")
        elif not page.isdecimal():
            problems.append(f"{place}: page {page!r} is no number from 0.")
        elif split not in ("", *PARTS):
            problems.append(f"{place}: split {split!r} is none of {', '.join(PARTS)}.")
        else:
            name = files[0].stem if page == "0" else f"{files[0].stem}_{int(page):03d}"
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            name = next(each for each in itertools.chain([name], numbered) if each not in taken)
            taken.add(name)
            image, *masks = (Source(file, int(page)) for file in files)
            samples.append(Sample(name, image, tuple(masks), row.get("group") or "", split))
    return samples


def _stack(
    data_dir: pathlib.Path, image_name: str, mask_names: Sequence[str], problems: list[str]
) -> list[Sample]:
    folder = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    paths, pages = [], []
    for name in (image_name, *mask_names):
        found = [folder / (name + suffix) for suffix in (".tif", ".tiff")]
        path = next((each for each in found if each.is_file()), None)
        if path is None:
            problems.append(f"{found[0]}: there is no such stack.")
            continue
        try:
            pages.append(images.read_header(path).pages)
            paths.append(path)
        except UserError as error:
            problems.append(str(error))
    if len(paths) < 1 + len(mask_names):
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


def _grouped(samples: Sequence[Sample], pattern: str, problems: list[str]) -> list[Sample]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"`group_pattern` ({pattern!r}) is no regular expression ({error})."
        ) from error
    grouped = []
    for sample in samples:
        match = expression.search(sample.name)
        group = match and match.group(1 if expression.groups else 0)
        if not group:
            problems.append(f"{sample.image}: `group_pattern` ({pattern!r}) is not in its name.")
            continue
        grouped.append(dataclasses.replace(sample, group=group))
    return grouped


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder. See README.md for the layout of a data folder."
        )
    with os.scandir(folder) as entries:
        found = [
            folder / entry.name
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
        ]
    return sorted(found, key=numeric_order)


def _listed(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path] | None:
    try:
        return _pictures(folder)
    except UserError as error:
        problems.append(str(error))
        return None


def _by_stem(
    folder: pathlib.Path,
    paths: Sequence[pathlib.Path],
    word: str,
    suffix: str,
    problems: list[str],
) -> dict[str, pathlib.Path]:
    stems = collections.Counter(path.stem for path in paths)
    problems += [
        f"{folder / stem}.*: {count} {word} share this stem; rename one."
        for stem, count in stems.items()
        if count > 1
    ]
    return {path.stem.removesuffix(suffix): path for path in paths}
