"""A table: samples.csv with the columns image, mask and, if wanted, group, split, page."""

from __future__ import annotations

import csv
import io
import itertools
import pathlib

from unet_core.data.layouts.listing import PART_OF, FolderNames, SampleListing, paged
from unet_core.data.samples import Sample, Source
from unet_core.files import read_bytes

_MOST_BYTES = 2**30


def find(data_dir: pathlib.Path, _: FolderNames) -> SampleListing:
    """Returns the samples of a table; `data_dir` may be the file itself."""
    problems: list[str] = []
    samples = _samples(data_dir, problems)
    return SampleListing(tuple(samples), tuple(problems))


def _samples(path: pathlib.Path, problems: list[str]) -> list[Sample]:
    path = path / "samples.csv" if path.is_dir() else path
    try:
        text = read_bytes(path, most_bytes=_MOST_BYTES).decode("utf-8-sig")
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
        page, split = row.get("page") or "", row.get("split") or ""
        if missing:
            problems.append(f"{place}: there is no file {missing[0]}.")
        elif page and not page.isdecimal():
            problems.append(f"{place}: page {page!r} is no number from 0.")
        elif split and split not in PART_OF:
            problems.append(f"{place}: split {split!r} is none of {', '.join(PART_OF)}.")
        else:
            name = f"{files[0].stem}_{int(page):03d}" if int(page or 0) else files[0].stem
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            name = next(each for each in itertools.chain([name], numbered) if each not in taken)
            taken.add(name)
            image, *masks = (Source(file, int(page or 0)) for file in files)
            sample = Sample(
                name, image, tuple(masks), row.get("group") or "", PART_OF.get(split, "")
            )
            samples += [sample] if page else paged(sample, files[1:], problems)
    return samples
