"""Files of pictures, one module for each library that reads them.

with opened(path, page) as found:          # a `Page`: what the file says, nothing decoded yet
    pixels = found.read()

A module gives a function (name for messages, open file, page) -> `Page`, and may raise anything;
`opened` makes one UserError of it that names the file. To add one: a file here, and its line below.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from unet_core.data.io import numpy_files, pillow, tiff
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
    # Inside too, as errors of decoders are no errors of the file system.
    with decoding(path), _open(path, content) as file, decoding(path):
        start = file.read(8)
        opener = next((o for mark, o in _OPENERS.items() if start.startswith(mark)), None)
        if opener is None:
            size = file.seek(0, os.SEEK_END)
            raise UserError(
                f"{path}: cannot be decoded as a picture ({size} bytes, which do not start as a "
                "PNG, JPEG, BMP, TIFF or NumPy file does). Save it as one of these, or move it "
                "away."
            )
        file.seek(0)
        found = opener(os.fspath(path), file, page)
        if not 0 <= page < found.pages:
            raise tiff.no_such_page(os.fspath(path), page)
        yield found


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
