"""A table: samples.csv with the columns image, mask and, if wanted, group, split, page.

Programs write them otherwise: with semicolons or tabs for commas, columns in capitals, paths of
Windows, whole numbers with a point. That is read as it is meant.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import pathlib
import re
from collections.abc import Callable, Mapping

from unet_core.data.layouts.listing import (
    PART_OF,
    FolderNames,
    SampleListing,
    composed,
    is_one_file,
    paged,
    stem_of,
)
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError, reason_of
from unet_core.files import read_bytes

_MOST_BYTES = 2**30
_MOST_DIGITS = 9
_MOST_SHOWN = 200
_DELIMITERS = (",", ";", "\t")
_Names = Callable[[pathlib.Path], Mapping[str, pathlib.Path]]


def find(data_dir: pathlib.Path, names: FolderNames) -> SampleListing:
    """Returns the samples of a table; `data_dir` may be the file itself."""
    path = data_dir / "samples.csv" if data_dir.is_dir() else data_dir
    try:
        text = read_bytes(path, most_bytes=_MOST_BYTES).decode("utf-8-sig")
        columns, rows = _rows(text)
    except (OSError, UnicodeError, csv.Error) as error:
        problem = f"{path}: cannot be read as a CSV file ({error}). Save it as CSV, in UTF-8."
        return SampleListing((), (problem,))
    if not rows or not {"image", "mask"} <= set(columns):
        there = ", ".join(map(repr, columns))[:_MOST_SHOWN] or "none"
        problem = (
            f"{path}: needs the columns image and mask and at least one row; group, split, page "
            f"may follow. It has {len(rows)} row(s); its columns are {there}."
        )
        return SampleListing((), (problem,))
    samples, problems = [], []
    names_of = functools.cache(_names_of)
    for number, row in rows:
        try:
            sample = _sample(path.parent, row, names.outside, names_of)
        except UserError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        if row.get("page"):
            samples.append(sample)
        else:
            samples += paged(sample, [source.path for source in sample.mask], problems)
    return SampleListing(tuple(samples), tuple(problems))


def _rows(text: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the columns of a table, and its rows with the numbers of their lines.

    Raises:
        csv.Error: If it is no table.
    """
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [name.strip().lower() for name in next(table, [])]
    rows = []
    for cells in table:
        if any(cells):
            # Cells that a row lacks are empty.
            filled = [cell.strip() for cell in cells] + [""] * len(columns)
            rows.append((table.line_num, dict(zip(columns, filled, strict=False))))
    return columns, rows


def _sample(
    folder: pathlib.Path, row: Mapping[str, str], outside: bool, names_of: _Names
) -> Sample:
    """Returns the sample of a row; `names_of` is `_names_of`, remembered.

    Raises:
        UserError: If something is wrong with it.
    """
    cells = [row["image"], *row["mask"].split("|")]
    if not all(cells):
        raise UserError("the cell of the image or of a mask is empty; name a file.")
    files = [_file(folder, cell, outside, names_of) for cell in cells]
    page, split = row.get("page") or "0", row.get("split", "").lower()
    # Python turns away a number of more than 4300 digits with an error of its own.
    written = re.fullmatch(rf"([0-9]{{1,{_MOST_DIGITS}}})(\.0*)?", page)
    if not written:
        raise UserError(f"page {page[:20]!r} is no number from 0 of at most {_MOST_DIGITS} digits.")
    if split and split not in PART_OF:
        raise UserError(f"split {split[:80]!r} is none of {', '.join(PART_OF)}.")
    number = int(written[1])
    image, *masks = (Source(file, number) for file in files)
    name = stem_of(files[0]) + (f"_{number:03d}" if number else "")
    return Sample(name, image, tuple(masks), row.get("group", ""), PART_OF.get(split, ""))


def _file(folder: pathlib.Path, cell: str, outside: bool, names_of: _Names) -> pathlib.Path:
    """Returns the file that a cell names.

    Raises:
        UserError: If there is none, or it lies outside of the folder and may not.
    """
    shown = repr(cell) if len(cell) < _MOST_SHOWN else f"{cell[:_MOST_SHOWN]!r}..."
    if "\0" in cell:
        raise UserError(f"{shown} holds a NUL character, which no path can. Write the table anew.")
    file = folder / cell
    try:
        # A path is of 4,096 bytes at most, a name of 255; links may lead in a circle.
        if not os.path.lexists(file):
            file = folder / cell.replace("\\", "/")
        found = file
        if not os.path.lexists(file):
            found = names_of(file.parent).get(composed(file.name), file)
        resolved = found.resolve()
        is_file = found.is_file() or is_one_file(found)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{shown} cannot be followed ({reason_of(error)}).") from error
    if not outside and folder.resolve() not in resolved.parents:
        raise UserError(
            f"{shown} leaves the data folder {folder}. Set `outside_paths` if it may, or put the "
            "file there."
        )
    if is_file:
        return found
    if found.is_symlink():
        raise UserError(
            f"{shown} is a link that leads to no file. Fetch what it leads to (`git annex get`, "
            "`dvc pull`)."
        )
    raise UserError(f"there is no file {file}.")


def _names_of(folder: pathlib.Path) -> Mapping[str, pathlib.Path]:
    """Returns what is in a folder by composed names; Macs write the same names otherwise."""
    return {composed(path.name): path for path in folder.iterdir()} if folder.is_dir() else {}
