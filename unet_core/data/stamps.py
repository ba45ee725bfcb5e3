"""What changes when a picture does: the size and time of its file, or of all files in its folder.

size, time_ns = size_and_time(path)
for file in files_in(path): ...             # the file, or those of a folder that counts as one
"""

from __future__ import annotations

import os
import pathlib

from unet_core.data.io import zarr_folders


def files_in(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the file itself, or those in a folder that counts as one, in order."""
    if not zarr_folders.is_zarr(path):
        return [path]
    return sorted(
        pathlib.Path(folder, name) for folder, _, names in os.walk(path) for name in names
    )


def size_and_time(path: pathlib.Path) -> list[int]:
    """Returns the bytes, and the time of the last change in nanoseconds.

    Raises:
        OSError: If they cannot be seen.
    """
    found = [each.stat() for each in files_in(path)] or [path.stat()]
    return [sum(each.st_size for each in found), max(each.st_mtime_ns for each in found)]
