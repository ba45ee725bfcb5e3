"""From a data folder to arrays: finding pairs, checking all of them, splitting into folds.

The layout is `train/image`, `train/label` and `test`, pictures of one pair sharing their stem:

    dataset = load(data_dir, classes)           # every problem of the folder in one UserError
    train, held_out = split(dataset.samples, folds=5, fold=4)
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.errors import UserError

PICTURE_SUFFIXES = (".png",)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One training picture: `image` [H, W] uint8 and `mask` [H, W] uint8 class ids."""

    name: str
    image: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a data folder holds: the samples that are sound, and every problem found, as complete
    sentences.
    """

    samples: tuple[Sample, ...]
    problems: tuple[str, ...]
    value_counts: dict[int, int]
    fingerprint: str


def numeric_order(path: pathlib.Path) -> tuple:
    """Returns a sort key by which `2.png` comes before `10.png`."""
    return tuple(
        int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)
    ), path.name


def list_pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the pictures directly in `folder`, in numeric order.

    Raises:
        UserError: If the folder is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder. See README.md for the layout of a data folder."
        )
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()]
    return sorted(found, key=numeric_order)


def survey(data_dir: str | pathlib.Path, classes: ClassMap, *, progress=iter) -> Survey:
    """Reads `data_dir/train` whole and returns its samples with every problem found.

    Args:
        data_dir: The folder that holds `train/image` and `train/label`.
        classes: The values that masks may hold.
        progress: Wraps the list of pairs while it is gone through, such as `tqdm.tqdm`.
    """
    data_dir = pathlib.Path(data_dir)
    image_dir, mask_dir = data_dir / "train" / "image", data_dir / "train" / "label"
    problems: list[str] = []
    image_paths, found_masks = (_listed(folder, problems) for folder in (image_dir, mask_dir))
    mask_paths = {path.stem: path for path in found_masks}
    if not problems:
        problems += _unpaired(image_dir, image_paths, mask_dir, found_masks)

    samples: list[Sample] = []
    digest = hashlib.sha256()
    value_counts: collections.Counter[int] = collections.Counter()
    for path in progress([p for p in image_paths if p.stem in mask_paths]):
        try:
            image = images.read_grey(path)
        except UserError as error:
            problems.append(str(error))
            image = None
        try:
            mask = images.read_grey(mask_paths[path.stem])
        except UserError as error:
            problems.append(str(error))
            continue
        counts = np.bincount(mask.ravel(), minlength=256)
        value_counts.update({int(v): int(counts[v]) for v in np.flatnonzero(counts)})
        unknown = classes.unknown_values(mask)
        if unknown:
            listed = ", ".join(
                f"{value} ({count} px)" for value, count in list(unknown.items())[:8]
            )
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            problems.append(
                f"{mask_paths[path.stem]}: holds values outside the class map {classes}: "
                f"{listed}{more}. "
                "Mend the mask, or list the values in --classes."
            )
        if image is None:
            continue
        if image.shape != mask.shape:
            problems.append(
                f"{path}: is {image.shape[1]}x{image.shape[0]} pixels, its mask "
                f"{mask.shape[1]}x{mask.shape[0]}; "
                "both must have one size."
            )
        elif not unknown:
            ids = classes.ids(mask)
            samples.append(Sample(path.stem, image, ids))
            digest.update(f"{path.stem} {image.shape} {len(classes)}\n".encode())
            digest.update(image.tobytes())
            digest.update(ids.tobytes())
    missing = [
        n for v, n in zip(classes.mask_values, classes.names, strict=True) if not value_counts[v]
    ]
    if missing and value_counts:
        present = ", ".join(str(v) for v in sorted(value_counts))
        problems.append(
            f"{mask_dir}: no mask has a pixel of class {', '.join(missing)} "
            f"(values found: {present}; class map: {classes}). A network cannot learn a class "
            f"that never occurs."
        )
    return Survey(tuple(samples), tuple(problems), dict(value_counts), digest.hexdigest()[:16])


def load(data_dir: str | pathlib.Path, classes: ClassMap, *, progress=iter) -> Survey:
    """Returns the survey of `data_dir`, which holds no problem.

    Raises:
        UserError: If anything is wrong with the folder; the message lists every problem.
    """
    found = survey(data_dir, classes, progress=progress)
    if found.problems:
        raise UserError(list_problems(data_dir, found.problems))
    return found


def describe(found: Survey, classes: ClassMap) -> str:
    """Returns what a survey found as text: pairs, sizes, dtypes, mask values and their shares."""
    sizes = collections.Counter(
        f"{s.image.shape[1]}x{s.image.shape[0]} {s.image.dtype}" for s in found.samples
    )
    lines = [f"{len(found.samples)} sound pair(s) of image and mask"]
    lines += [f"  {count:6d} of {size}" for size, count in sizes.most_common()]
    total = sum(found.value_counts.values())
    lines.append(f"{total} mask pixel(s), uint8")
    for value, count in sorted(found.value_counts.items()):
        name = (
            classes.names[classes.mask_values.index(value)]
            if value in classes.mask_values
            else "not in the map"
        )
        lines.append(f"  value {value:3d}  {name:16s} {count:12d}  {count / total:7.2%}")
    return "\n".join(lines)


def list_problems(data_dir: str | pathlib.Path, problems: Sequence[str]) -> str:
    """Returns one message that numbers every problem of a data folder."""
    lines = [f"{data_dir}: {len(problems)} problem(s) with the data:"]
    return "\n".join(lines + [f"  {number}. {text}" for number, text in enumerate(problems, 1)])


def split(samples: Sequence[Sample], *, folds: int, fold: int) -> tuple[list[Sample], list[Sample]]:
    """Returns (training samples, held-out samples): contiguous block `fold` of `folds` is held out.

    Neighbouring slices of a volume resemble one another, so a random split would leak. With `folds`
    = 0 everything is for training and nothing is held out.

    Raises:
        UserError: If `fold` is outside 0..folds-1, or there are fewer samples than folds.
    """
    if folds == 0:
        return list(samples), []
    if folds == 1 or folds > len(samples):
        raise UserError(
            f"`folds` ({folds}) must be 0, or from 2 to the number of samples, {len(samples)}."
        )
    if not 0 <= fold < folds:
        raise UserError(f"`fold` ({fold}) must be from 0 to `folds` - 1 = {folds - 1}.")
    first = fold * len(samples) // folds
    last = (fold + 1) * len(samples) // folds
    return [*samples[:first], *samples[last:]], list(samples[first:last])


def _listed(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path]:
    """Returns the pictures of `folder`; if it is missing, none, and adds that to `problems`."""
    try:
        return list_pictures(folder)
    except UserError as error:
        problems.append(str(error))
        return []


def _unpaired(
    image_dir: pathlib.Path,
    image_paths: Sequence[pathlib.Path],
    mask_dir: pathlib.Path,
    mask_paths: Sequence[pathlib.Path],
) -> list[str]:
    """Returns the problems of pictures that do not form pairs by their stems."""
    problems = [] if image_paths else [f"{image_dir}: holds no PNG pictures."]
    stems = {image_dir: collections.Counter(p.stem for p in image_paths)}
    stems[mask_dir] = collections.Counter(p.stem for p in mask_paths)
    for folder, word in ((image_dir, "images"), (mask_dir, "masks")):
        problems += [
            f"{folder / stem}.*: {count} {word} share this stem; rename one."
            for stem, count in stems[folder].items()
            if count > 1
        ]
    for paths, missing, folder in (
        (image_paths, "mask", mask_dir),
        (mask_paths, "image", image_dir),
    ):
        problems += [
            f"{path}: there is no {missing} of the same name in {folder}."
            for path in paths
            if path.stem not in stems[folder]
        ]
    return problems
