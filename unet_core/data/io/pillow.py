"""PNG, JPEG and BMP files, by Pillow; PNG of several channels of 16 bits by imagecodecs."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from unet_core.data.io.page import Page
from unet_core.errors import UserError

PNG, JPEG, BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"
_ORIENTATION = 274
# What pixels depend on, and what is said about them. All else is left out: text of any length, the
# frames of an animation, and the transparent colour.
_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"eXIf", b"pHYs", b"IEND")
# PIL's name of a kind of picture: samples and dtype of its pixels.
_KINDS = {
    "1": (1, "bool"),
    "L": (1, "uint8"),
    "LA": (2, "uint8"),
    "P": (1, "uint8"),
    "RGB": (3, "uint8"),
    "RGBA": (4, "uint8"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
}
_DEEP_PNG = {2: 3, 4: 2, 6: 4}
"""Samples of each colour type of PNG that has several."""


def open_png(where: str, file: BinaryIO) -> Page:
    """Returns the picture of a PNG.

    Raises:
        UserError: If it is cut short.
    """
    content = _png_without_text(where, file)
    depth, colour = content[24], content[25]
    picture = PngImageFile(io.BytesIO(content))
    orientation = _orientation(picture.info.get("exif", b""))
    if depth < 16 or colour not in _DEEP_PNG:
        return _page(where, "PNG", picture, orientation)

    def read_rows(first: int, last: int) -> np.ndarray:
        import imagecodecs  # Takes long, and is for few files.

        # Pillow 13.0 keeps 8 of 16 bits of each channel.
        return imagecodecs.png_decode(content)[first:last]

    return Page(
        where,
        "PNG",
        1,
        picture.height,
        picture.width,
        _DEEP_PNG[colour],
        np.dtype(np.uint16),
        read_rows,
        16,
        alpha=colour != 2,
        orientation=orientation,
        metadata=_resolution(picture),
    )


def open_jpeg(where: str, file: BinaryIO) -> Page:
    """Returns the picture of a JPEG file."""
    picture = JpegImageFile(file)
    orientation = _orientation(picture.info.get("exif", b""))
    return _page(where, "JPEG", picture, orientation)


def open_bmp(where: str, file: BinaryIO) -> Page:
    """Returns the picture of a BMP file."""
    return _page(where, "BMP", BmpImageFile(file), 1)


def _page(where: str, form: str, picture: ImageFile, orientation: int) -> Page:
    if picture.mode not in _KINDS:
        raise UserError(
            f"{where}: holds pixels of the kind {picture.mode}; it must be grey, RGB or a palette. "
            "Save it as RGB."
        )
    samples, dtype = _KINDS[picture.mode]

    def read_rows(first: int, last: int) -> np.ndarray:
        pixels = np.array(picture)
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)[first:last]

    palette = None
    if picture.mode == "P":
        order, colours = picture.palette.getdata()  # BMP has blue first.
        table = np.frombuffer(colours, np.uint8).reshape(-1, len(order))
        palette = table[:, [order.index(channel) for channel in "RGB"]]
    return Page(
        where,
        form,
        1,
        picture.height,
        picture.width,
        samples,
        np.dtype(dtype),
        read_rows,
        8 * np.dtype(dtype).itemsize if dtype != "bool" else 1,
        alpha=samples in (2, 4),
        palette=palette,
        orientation=orientation,
        lossy=form == "JPEG",
        metadata=_resolution(picture),
    )


def _resolution(picture: ImageFile) -> dict[int, tuple]:
    """Returns the dots per inch that a file names, as tags of TIFF."""
    dots = picture.info.get("dpi")
    if not dots or not all(0 < float(each) < 1e9 for each in dots):
        return {}
    across, down = ((round(float(each) * 1e4), 10_000) for each in dots)
    return {282: (282, 5, 1, across), 283: (283, 5, 1, down), 296: (296, 3, 1, 2)}


def _orientation(exif: bytes) -> int:
    """Returns the orientation that EXIF data say; 1 if they are damaged, as viewers do."""
    found = 1
    with contextlib.suppress(Exception):  # Pillow raises anything; the pixels are sound.
        data = Image.Exif()
        data.load(exif)
        found = int(data.get(_ORIENTATION, 1))
    return found if 1 <= found <= 8 else 1


def _png_without_text(where: str, file: BinaryIO) -> bytes:
    """Returns a PNG with the chunks alone that its pixels depend on.

    What follows its end is left out too.

    Raises:
        UserError: If its end is missing. OpenCV and Pillow do not look for it.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(len(PNG))
    kept = [PNG]
    while True:
        head = file.read(8)
        if len(head) == 8:
            length, name = struct.unpack(">I4s", head)
        if len(head) < 8 or file.tell() + length + 4 > size:
            raise UserError(
                f"{where}: the PNG is cut short ({size} bytes, no end mark); copy it again."
            )
        if name in _KEPT_CHUNKS:
            kept.append(head + file.read(length + 4))
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if name == b"IEND":
            # EXIF data may follow the pixels, where Pillow looks only after decoding.
            kept.sort(key=lambda chunk: chunk[4:8] in (b"IDAT", b"IEND"))
            return b"".join(kept)
