"""What all layouts share: the listing, pictures of a folder, pairs of equal names."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from unet_core.data import images
from unet_core.data.io import zarr_folders
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError
from unet_core.files import safe_name

SUFFIXES_OF_PAGES = (
    *(".tif", ".tiff", ".npy", ".npz", ".dcm", ".nii", ".nii.gz"),
    zarr_folders.SUFFIX,
)
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *SUFFIXES_OF_PAGES)
PART_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders, lists and cells are called, and which part of the data that is."""
_MOST_NAMED = 5
_DOUBLE_SUFFIXES = {(".tif", ".tiff", zarr_folders.SUFFIX): ".ome", (".gz",): ".nii"}


@dataclasses.dataclass(frozen=True)
class SampleListing:
    """The samples of a data folder.

    Attributes:
        samples: They.
        problems: Everything wrong with their names, as complete sentences.
        notes: What is there and not used, likewise.
    """

    samples: tuple[Sample, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FolderNames:
    """What the parts of a data folder are called.

    Attributes:
        images: Name of the folders of images, or of the stack without its suffix.
        masks: Names of the folders of masks, or of the stacks; several are binary masks, one per
            class.
        mask_suffix: What the name of a mask adds to that of its image. Images and masks may then
            lie in one folder.
        outside: Whether a table may name files outside of its folder.
    """

    images: str = "image"
    masks: tuple[str, ...] = ("label",)
    mask_suffix: str = ""
    outside: bool = False


def part_folders(data_dir: pathlib.Path) -> dict[str, str]:
    """Returns the folders of parts that are there, and what the samples of each are marked as.

    Without a folder to hold out, those of train are of no part: some of them are held out.
    """
    there = {name: part for name, part in PART_OF.items() if (data_dir / name).is_dir()}
    marks_train = "val" in there.values()
    return {name: part if part != "train" or marks_train else "" for name, part in there.items()}


def pairs(
    folder: pathlib.Path,
    names: FolderNames,
    part: str,
    problems: list[str],
) -> list[Sample]:
    """Returns the samples of two folders whose images and masks have equal names.

    The two lie in `folder`; the samples are those of `part`. What is wrong is added to `problems`.
    """
    mask_suffix = composed(names.mask_suffix)
    image_dir, mask_dirs = folder / names.images, [folder / name for name in names.masks]
    if image_dir in mask_dirs and not mask_suffix:
        problems.append(
            f"{image_dir}: is named as the folder of images and of masks, so that every image "
            "would be its own mask. Name two folders, or give `mask_suffix`."
        )
        return []
    listings = [listed(each, problems) for each in (image_dir, *mask_dirs)]
    found = [paths for paths in listings if paths is not None]
    if len(found) < len(listings):
        return []
    image_paths, *mask_lists = found
    if mask_suffix:
        image_paths = [
            path
            for path in image_paths
            if image_dir not in mask_dirs or not stem_of(path).endswith(mask_suffix)
        ]
        mask_lists = [
            [path for path in paths if stem_of(path).endswith(mask_suffix)] for paths in mask_lists
        ]
    if not image_paths:
        problems.append(f"{image_dir}: holds no pictures ({', '.join(SUFFIXES)}).")
    stems = [by_stem(image_dir, image_paths, "images", "", problems)]
    for mask_dir, paths in zip(mask_dirs, mask_lists, strict=True):
        stems.append(by_stem(mask_dir, paths, "masks", mask_suffix, problems))
    image_of, *masks_of = stems
    samples = []
    for stem, path in image_of.items():
        missing = [d for d, of in zip(mask_dirs, masks_of, strict=True) if stem not in of]
        problems += [f"{path}: there is no mask of the same name in {d}." for d in missing]
        if not missing:
            masks = [of[stem] for of in masks_of]
            samples += paged(Sample(stem, Source(path), (), split=part), masks, problems)
    for of in masks_of:
        problems += [
            f"{path}: there is no image of the same name in {image_dir}."
            for stem, path in of.items()
            if stem not in image_of
        ]
    return samples


def paged(sample: Sample, masks: Sequence[pathlib.Path], problems: list[str]) -> list[Sample]:
    """Returns the samples of the pages of an image and its masks, one group if they are several.

    Args:
        sample: Name, group and part, and the image, whose page does not matter.
        masks: The files of its masks.
        problems: Gets a sentence if they have different numbers of pages.
    """
    image = sample.image.path
    pages = [page_count(path) for path in (image, *masks)]
    if len(set(pages)) > 1:
        problems.append(
            f"{image}: has {pages[0]} page(s), its mask {', '.join(map(str, pages[1:]))}; they "
            "must have equally many."
        )
        return []
    if pages[0] == 1:
        return [dataclasses.replace(sample, mask=tuple(Source(path) for path in masks))]
    digits = max(3, len(str(pages[0] - 1)))
    return [
        dataclasses.replace(
            sample,
            name=f"{sample.name}_{page:0{digits}d}",
            image=Source(image, page),
            mask=tuple(Source(path, page) for path in masks),
            group=sample.group or sample.name,
        )
        for page in range(pages[0])
    ]


def page_count(path: pathlib.Path) -> int:
    """Returns the pictures in a file; 1 if it cannot be read, of which its reader tells."""
    if not path.name.lower().endswith(SUFFIXES_OF_PAGES):
        return 1
    try:
        return images.read_header(path, of_any_size=True).pages
    except UserError:
        return 1


def pictures(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path]:
    """Returns the pictures in `folder` in numeric order, but for hidden ones.

    Links that lead to no file are added to `problems`.

    Raises:
        UserError: If there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder. See README.md for the layout of a data folder."
        )
    shown = (path for path in folder.iterdir() if not path.name.startswith("."))
    return files_of(folder, shown, problems)


def files_of(
    place: str | os.PathLike, paths: Iterable[pathlib.Path], problems: list[str]
) -> list[pathlib.Path]:
    """Returns the pictures among `paths` in numeric order.

    Links that lead to no file are added to `problems`, in a sentence that begins with `place`.
    """
    found = sorted(
        (path for path in paths if path.name.lower().endswith(SUFFIXES)), key=numeric_order
    )
    files, empty = [], []
    for path in found:
        if is_one_file(path):
            files.append(path)
        elif path.is_symlink() and not path.exists():
            empty.append(path)
    if empty:
        problems.append(
            f"{place}: {len(empty)} link(s) there lead to no file, such as {empty[0].name}. Fetch "
            "what they lead to (`git annex get`, `dvc pull`), or remove them."
        )
    return files


def is_one_file(path: str | os.PathLike) -> bool:
    """Returns whether there is a file, or a folder that counts as one."""
    return os.path.isfile(path) or zarr_folders.is_zarr(path)


def left_out(
    place: str | os.PathLike,
    paths: Iterable[pathlib.Path],
    *,
    used: Collection[str] = (),
    suffix: str | None = "",
) -> list[str]:
    """Returns a sentence about those of `paths` that are not read as pictures, if there are any.

    Args:
        place: What the sentence begins with.
        paths: What is there.
        used: Names among them that are used otherwise.
        suffix: What the names of the pictures that are read end in; None if none are read there.
    """
    kinds: collections.Counter[str] = collections.Counter()
    folders = []
    for path in paths:
        if path.name in used:
            continue
        if path.name.startswith("."):
            kinds["hidden"] += 1
        elif path.is_dir() and not is_one_file(path):
            folders.append(path.name)
        elif path.exists() and not path.is_dir() and not path.is_file():
            kinds["pipe(s), socket(s) or device(s)"] += 1
        elif suffix is not None and _is_picture(path.name):
            kinds[f"without {suffix}"] += not stem_of(path).endswith(composed(suffix))
        else:
            kinds[path.suffix.lower() or "without a suffix"] += 1
    ordered = sorted((-count, kind) for kind, count in kinds.items() if count)
    found = [f"{-count} {kind}" for count, kind in ordered]
    if folders:
        named = ", ".join(sorted(folders)[:_MOST_NAMED]) + ", ..." * (len(folders) > _MOST_NAMED)
        found.append(f"{len(folders)} folder(s) ({named})")
    return [f"{place}: not read: {', '.join(found)}."] if found else []


def unread(folder: pathlib.Path, names: FolderNames) -> list[str]:
    """Returns sentences about what is in the folders of images and of masks and is not read."""
    notes = []
    for name in dict.fromkeys((names.images, *names.masks)):
        if (folder / name).is_dir():
            suffix = names.mask_suffix if name != names.images else ""
            notes += left_out(folder / name, (folder / name).iterdir(), suffix=suffix)
    return notes


def beside(folder: pathlib.Path, used: Collection[str]) -> list[str]:
    """Returns a sentence about pictures and folders in `folder` that are not read, if any.

    Args:
        folder: Where only other folders are read.
        used: The names of these.
    """
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() or _is_picture(path.name))
    return left_out(folder, found, used=used, suffix=None)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def listed(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path] | None:
    """Returns the pictures in `folder`, or None if there is none, which is a problem."""
    try:
        return pictures(folder, problems)
    except UserError as error:
        problems.append(str(error))
        return None


def by_stem(
    folder: pathlib.Path,
    paths: Sequence[pathlib.Path],
    word: str,
    suffix: str,
    problems: list[str],
) -> dict[str, pathlib.Path]:
    """Returns `paths` by their names without `suffix`; adds those that share one to `problems`.

    Names are composed, so that an image from a Mac finds its mask.
    """
    stems = collections.Counter(map(stem_of, paths))
    problems += [
        f"{folder / stem}.*: {count} {word} share this stem; rename one."
        for stem, count in stems.items()
        if count > 1
    ]
    return {stem_of(path).removesuffix(suffix): path for path in paths}


def stem_of(path: pathlib.Path) -> str:
    """Returns what the name of a picture shares with that of its mask, composed.

    That is `a` of `a.ome.tif`, `a.ome.zarr` and `a.nii.gz` too.
    """
    stem = composed(path.stem)
    for endings, before in _DOUBLE_SUFFIXES.items():
        if path.suffix.lower() in endings and stem.lower().endswith(before):
            return stem[: -len(before)]
    return stem


def composed(name: str) -> str:
    """Returns a name in the composed form of Unicode (NFC); Macs write "e" and an accent (NFD)."""
    return unicodedata.normalize("NFC", name)


def unique_names(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the samples with names that are unique, and that every file system takes.

    Of those that share one, each has that of its part before it, and else a number behind it.
    """
    names = [safe_name(sample.name) for sample in samples]
    count = collections.Counter(names)
    names = numbered(
        f"{sample.split}_{name}" if count[name] > 1 and sample.split else name
        for sample, name in zip(samples, names, strict=True)
    )
    return [dataclasses.replace(s, name=name) for s, name in zip(samples, names, strict=True)]


def numbered(names: Iterable[str]) -> list[str]:
    """Returns names of which those that repeat have a number behind them, from 2.

    None is given the name of another.
    """
    found = list(names)
    taken, used = set(found), set[str]()
    for place, name in enumerate(found):
        if name in used:
            others = (f"{name}_{number}" for number in itertools.count(2))
            found[place] = next(each for each in others if each not in taken)
            taken.add(found[place])
        used.add(found[place])
    return found


def numeric_order(path: pathlib.Path) -> tuple:
    """Returns a sort key that puts `2.png` before `10.png`."""
    parts = re.split(r"(\d+)", stem_of(path))
    return tuple(int(part) if part.isdecimal() else part for part in parts), path.name
