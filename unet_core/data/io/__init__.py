"""Files of pictures, one module for each library that reads them.

with opened(path, page) as found:          # a `Page`: what the file says, nothing decoded yet
    pixels = found.read()

A folder whose name ends in .zarr counts as one file.

A module gives a function (name for messages, open file, page) -> `Page`, and may raise anything;
`opened` makes one UserError of it that names the file. To add one: a file here, and its line below.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from unet_core.data.io import dicom, nifti, numpy_files, pillow, tiff, zarr_folders
from unet_core.data.io.page import Page
from unet_core.errors import UserError, reason_of
from unet_core.files import open_to_read

_Opener = Callable[[str, BinaryIO, int], Page]


def _of_one_page(open_picture: Callable[[str, BinaryIO], Page]) -> _Opener:
    def open_page(where: str, file: BinaryIO, page: int) -> Page:
        if page:
            raise tiff.no_such_page(where, page)
        return open_picture(where, file)

    return open_page


_OPENERS: dict[bytes, _Opener] = {
    pillow.PNG: _of_one_page(pillow.open_png),
    pillow.JPEG: _of_one_page(pillow.open_jpeg),
    pillow.BMP: _of_one_page(pillow.open_bmp),
    **dict.fromkeys(tiff.MARKS, tiff.open_tiff),
    numpy_files.NPY: numpy_files.open_npy,
    numpy_files.NPZ: numpy_files.open_npz,
}
"""What reads a file, by its first bytes."""

_BYTES_OF_START = dicom.MARK_AT + len(dicom.MARK)


def _opener_of(start: bytes) -> _Opener | None:
    """Returns what reads a file that starts so; None if nothing does."""
    # What stands before the mark of DICOM may be anything, and often is that of a TIFF.
    if start[dicom.MARK_AT :] == dicom.MARK:
        return dicom.open_dicom
    opener = next((o for mark, o in _OPENERS.items() if start.startswith(mark)), None)
    if opener is None and (nifti.is_nifti(start) or start.startswith(nifti.GZIP)):
        return nifti.open_nifti
    return opener


@contextlib.contextmanager
def opened(
    path: str | os.PathLike, page: int = 0, *, content: bytes | None = None
) -> Iterator[Page]:
    """Gives page `page` (from 0) of the file at `path`, not decoded yet.

    Whatever fails before or inside the `with` becomes a UserError that names the file.

    Args:
        path: The file.
        page: The page, from 0.
        content: What to read instead of the file, which is only named in errors.
    """
    if content is None and zarr_folders.is_zarr(path):
        with decoding(path):
            yield _checked(zarr_folders.open_zarr(os.fspath(path), page), path, page)
        return
    # Inside too, as errors of decoders are no errors of the file system.
    with decoding(path), _open(path, content) as file, decoding(path):
        opener = _opener_of(file.read(_BYTES_OF_START))
        if opener is None:
            size = file.seek(0, os.SEEK_END)
            raise UserError(
                f"{path}: cannot be decoded as a picture ({size} bytes, which do not start as a "
                "PNG, JPEG, BMP, TIFF, NumPy, DICOM or NIfTI file does). Save it as one of these, "
                "or move it away."
            )
        file.seek(0)
        yield _checked(opener(os.fspath(path), file, page), path, page)


def _checked(found: Page, path: str | os.PathLike, page: int) -> Page:
    if not 0 <= page < found.pages:
        raise tiff.no_such_page(os.fspath(path), page)
    return found


def _open(path: str | os.PathLike, content: bytes | None) -> contextlib.AbstractContextManager:
    return open_to_read(path) if content is None else io.BytesIO(content)


@contextlib.contextmanager
def decoding(path: str | os.PathLike) -> Iterator[None]:
    """Makes one UserError that names the file of whatever fails inside the `with`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Decoders raise anything, from SyntaxError to struct.error.
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: cannot be read ({reason_of(error)}).") from error
        raise UserError(
            f"{path}: cannot be decoded as a picture ({error}): it is damaged, cut short, or of a "
            "kind that is not read. Copy it again, save it as PNG or TIFF of 8 or 16 bits, or "
            "remove it."
        ) from error
