"""PNG, JPEG and BMP files, by Pillow; PNG of several channels of 16 bits by imagecodecs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

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
_LONGEST_DEFLATE = 1032
"""Bytes that one byte of Deflate stands for, at most."""
_LONGEST_JPEG = 1024
"""Pixels that one byte of a JPEG stands for: a block of 8 x 8 takes a bit or more."""


def open_png(where: str, file: BinaryIO) -> Page:
    """Returns the picture of a PNG.

    Raises:
        UserError: If it is cut short, or its pixels cannot be in so small a file.
    """
    chunks = _chunks(where, file)
    head = _joined(file, [chunk for chunk in chunks if chunk.name != b"IDAT"])
    picture = PngImageFile(io.BytesIO(head))
    orientation = _orientation(picture.info.get("exif", b""))
    depth, colour = head[24], head[25]
    samples = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    coded = sum(chunk.length for chunk in chunks if chunk.name == b"IDAT")
    rows_bytes = picture.height * (picture.width * samples * depth // 8)
    if rows_bytes > _LONGEST_DEFLATE * coded:
        raise ValueError(f"{picture.width}x{picture.height} pixels in {coded} bytes")

    def content() -> bytes:
        return _joined(file, chunks)

    if depth < 16 or samples == 1:
        return _page(
            where, "PNG", picture, orientation, lambda: PngImageFile(io.BytesIO(content()))
        )

    def read_rows(first: int, last: int) -> np.ndarray:
        import imagecodecs  # Takes long, and is for few files.

        # Pillow 13.0 keeps 8 of 16 bits of each channel.
        return imagecodecs.png_decode(content())[first:last]

    return Page(
        where,
        "PNG",
        1,
        picture.height,
        picture.width,
        samples,
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
    size = file.seek(0, io.SEEK_END)
    if picture.height * picture.width > _LONGEST_JPEG * size:
        raise ValueError(f"{picture.width}x{picture.height} pixels in {size} bytes")
    orientation = _orientation(picture.info.get("exif", b""))
    return _page(where, "JPEG", picture, orientation, lambda: picture)


def open_bmp(where: str, file: BinaryIO) -> Page:
    """Returns the picture of a BMP file."""
    picture = BmpImageFile(file)
    page = _page(where, "BMP", picture, 1, lambda: picture)
    tile = picture.tile[0]
    if tile.codec_name == "raw":
        stride, size = tile.args[1], file.seek(0, io.SEEK_END)
        if tile.offset + stride * (page.height - 1) > size:
            raise ValueError(f"{page.width}x{page.height} pixels in {size} bytes, cut short")
    if tile.codec_name != "raw" or tile.args[0] != "BGRX":
        return page

    def read_rows(first: int, last: int) -> np.ndarray:
        file.seek(tile.offset)
        data = file.read(page.height * page.width * 4)
        pixels = np.frombuffer(data, np.uint8).reshape(page.height, page.width, 4)
        # The last row comes first, and blue.
        return pixels[:: tile.args[2]][first:last][..., [2, 1, 0, 3]]

    # Pillow 13.0 writes opacity where the standard has a byte without a meaning, and drops it.
    return dataclasses.replace(page, samples=4, alpha=True, read_rows=read_rows)


def _page(
    where: str, form: str, picture: ImageFile, orientation: int, whole: Callable[[], ImageFile]
) -> Page:
    """Returns the page of a picture of which Pillow knows the header; `whole` decodes it."""
    if picture.mode not in _KINDS:
        raise UserError(
            f"{where}: holds pixels of the kind {picture.mode}; it must be grey, RGB or a palette. "
            "Save it as RGB."
        )
    samples, dtype = _KINDS[picture.mode]

    def read_rows(first: int, last: int) -> np.ndarray:
        pixels = np.array(whole())
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


class _Chunk(NamedTuple):
    """A part of a PNG: its name, the place of its content in the file, and its length."""

    name: bytes
    place: int
    length: int


def _chunks(where: str, file: BinaryIO) -> list[_Chunk]:
    """Returns the chunks of a PNG that its pixels depend on; what follows its end is left out.

    Raises:
        UserError: If its end is missing. OpenCV and Pillow do not look for it.
    """
    size = file.seek(0, io.SEEK_END)
    place = file.seek(len(PNG))
    found: list[_Chunk] = []
    while not found or found[-1].name != b"IEND":
        head = file.read(8)
        length, name = struct.unpack(">I4s", head) if len(head) == 8 else (size, b"")
        if place + 8 + length + 4 > size:
            raise UserError(
                f"{where}: the PNG is cut short ({size} bytes, no end mark); copy it again."
            )
        if name in _KEPT_CHUNKS:
            found.append(_Chunk(name, place + 8, length))
        place = file.seek(place + 8 + length + 4)
    # EXIF data may follow the pixels, where Pillow looks only after decoding.
    return sorted(found, key=lambda chunk: chunk.name in (b"IDAT", b"IEND"))


def _joined(file: BinaryIO, chunks: Sequence[_Chunk]) -> bytes:
    """Returns a PNG of some chunks; it gets an empty one if there are none of pixels.

    Raises:
        ValueError: If the check sum of one is another.
    """
    parts = [PNG]
    for chunk in chunks:
        file.seek(chunk.place - 8)
        content = file.read(8 + chunk.length + 4)
        if zlib.crc32(content[4:-4]) != int.from_bytes(content[-4:], "big"):
            raise ValueError(f"the check sum of its part {chunk.name.decode()} is another")
        parts.append(content)
    if not any(chunk.name == b"IDAT" for chunk in chunks):
        empty = b"IDAT"
        parts.insert(-1, bytes(4) + empty + zlib.crc32(empty).to_bytes(4, "big"))
    return b"".join(parts)
