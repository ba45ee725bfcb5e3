"""What changes when a picture does: the size and time of its file, or of all files in its folder.

size, time_ns = size_and_time(path)
digest = digest_of(path)
"""

from __future__ import annotations

import hashlib
import os
import pathlib

from unet_core.data.io import zarr_folders


def _files_in(path: pathlib.Path) -> list[pathlib.Path]:
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
    found = [each.stat() for each in _files_in(path)] or [path.stat()]
    return [sum(each.st_size for each in found), max(each.st_mtime_ns for each in found)]


def digest_of(path: pathlib.Path) -> bytes:
    """Returns the SHA-256 of the file; of a folder, that of the names and digests of its files.

    Raises:
        OSError: If one cannot be read.
    """
    if not zarr_folders.is_zarr(path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    found = hashlib.sha256()
    for each in _files_in(path):
        found.update(os.fsencode(each.relative_to(path)) + b"\0" + digest_of(each))
    return found.digest()
