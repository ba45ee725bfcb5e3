"""Where the picture lies that a file of annotations is about.

A file of annotations comes from elsewhere, so it does not decide what is read on this machine:

- With a folder of images (`--images`): its path in that folder, or as much of the end of the path
  as there is there.
- Without: its path beside the file of annotations, in the folder `images` beside it, or, by one
  `..`, in the folder above. Of an absolute path or an address the name alone counts.
- A file that names no picture is about the one of its own name, there.
"""

from __future__ import annotations

import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator

from unet_core.data.layouts.listing import SUFFIXES
from unet_core.errors import UserError

IMAGES_BESIDE = "images"
# What programs add to the name of a picture, ours among them.
_ENDINGS = ("_objects", "_rois", "_RoiSet", "-RoiSet", "_annotations")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Label Studio puts such before the names of files that were uploaded.
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")


class NotFoundError(UserError):
    """A picture that is not there; of many, one message tells."""


def find_named(named: str, annotations: pathlib.Path, images: pathlib.Path | None) -> pathlib.Path:
    """Returns the picture that a file of annotations names.

    Args:
        named: Its path or address there.
        annotations: The file of annotations.
        images: The folder of images, if one was given.

    Raises:
        NotFoundError: If it is not where it may be.
    """
    if "\0" not in named:
        for path in _places(named, annotations.parent, images):
            if os.path.lexists(path):
                return path
    raise NotFoundError(named)


def find_by_name(annotations: pathlib.Path, images: pathlib.Path | None) -> pathlib.Path:
    """Returns the picture that has the name of a file of annotations.

    Raises:
        UserError: If there is none, or more than one.
    """
    folders = [images] if images else [annotations.parent, annotations.parent / IMAGES_BESIDE]
    stem = annotations.stem
    stems = [stem, *(stem.removesuffix(end) for end in _ENDINGS if stem.endswith(end))]
    for each in stems:
        for folder in folders:
            found = [p for end in ("", *SUFFIXES) if (p := _picture(folder / (each + end)))]
            if len(found) > 1:
                listed = ", ".join(path.name for path in found)
                raise UserError(
                    f"{annotations}: may be about {listed} in {folder}. Rename one of them."
                )
            if found:
                return found[0]
    raise UserError(
        f"{annotations}: names no picture, and {' and '.join(map(str, folders))} has none called "
        f"{' or '.join(stems)} ({', '.join(SUFFIXES)}). Call it as its picture, or name the folder "
        "of the pictures with `images`."
    )


def _places(
    named: str, beside: pathlib.Path, images: pathlib.Path | None
) -> Iterator[pathlib.Path]:
    """Gives where a picture may lie, in the order in which it is looked for."""
    is_address = bool(_ADDRESS.match(named))
    for text in _spellings(named):
        text = text.replace("\\", "/")
        is_absolute = is_address or text.startswith("/") or bool(re.match("[A-Za-z]:", text))
        whole = [part for part in text.split("/") if part not in ("", ".")]
        parts = [part for part in whole if part != ".."]
        if not parts:
            continue
        for name in (parts[-1], _UPLOADED.sub("", parts[-1], count=1)):
            if images:
                ends = [[*parts[start:-1], name] for start in range(len(parts))]
                yield from (images.joinpath(*end) for end in ends)
                continue
            inside = [name] if is_absolute else [*whole[:-1], name]
            for folder in (beside, beside / IMAGES_BESIDE):
                path = pathlib.Path(os.path.normpath(folder.joinpath(*inside)))
                top = pathlib.Path(os.path.normpath(beside / ".."))
                if top in path.parents:
                    yield path


def _spellings(named: str) -> Iterator[str]:
    """Gives a path as it stands, and as an address stands for it."""
    yield named
    if "%" not in named and "?" not in named:
        return
    try:
        address = urllib.parse.urlsplit(named)
        # Label Studio names files of its machine so.
        local = urllib.parse.parse_qs(address.query).get("d")
    except ValueError:  # It is no address.
        return
    yield local[0] if local else urllib.parse.unquote(address.path)


def _picture(path: pathlib.Path) -> pathlib.Path | None:
    """Returns a path by which there is a picture, whether its suffix is in capitals or not."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    both = (path, path.with_suffix(path.suffix.upper()))
    return next((each for each in both if os.path.lexists(each)), None)
