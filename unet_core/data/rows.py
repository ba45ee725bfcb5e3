"""Pictures larger than memory, read and written in bands of rows.

with open_rows("slide.tif") as rows:
    with TiffWriter("mask.tif", rows.height, rows.width) as writer:
        for first in range(0, rows.height, 512):
            band = rows.read(first, min(first + 512, rows.height))    # [h, W, C] as in the file
            writer.write(segment(band))                               # [h, W] uint8

Of a TIFF only the strips or tiles are decoded that the rows touch. Each is handed as a small TIFF
of its own to what reads whole pictures, so that both read the same kinds and give the same pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
from PIL.ImageFile import ImageFile

from unet_core.data import images
from unet_core.errors import UserError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _COLOUR_MAP = 284, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
# What tells how a strip is decoded. Beside the above: fill order, options of the two fax codes,
# predictor, JPEG tables, and how the colours of YCbCr lie.
_OF_EVERY_STRIP = (
    *(_BITS, _COMPRESSION, _PHOTOMETRIC, 266, _SAMPLES, _PLANAR, 292, 293, 317, _COLOUR_MAP),
    *(_EXTRA_SAMPLES, _SAMPLE_FORMAT, 347, 530, 531),
)
_UNCOMPRESSED, _JPEG_OF_TIFF_6, _JPEG, _DEFLATE = 1, 6, 7, 8
_YCBCR = 6

_LARGEST_SEGMENT = 2**24
"""Pixels; a compressed strip or tile with more is no smaller than a picture worth reading whole."""

_STRIP_TARGET = 2**20
_DEFLATE_LEVEL = 4
_LARGEST_CLASSIC = 3_900_000_000
"""Bytes; offsets in a classic TIFF end at 2^32, and Deflate may lengthen noise a little."""


class Rows:
    """A picture that is read in bands of rows; made by `open_rows`, and closed by leaving a `with`.

    It is for one thread at a time.

    Attributes:
        height: Rows.
        width: Columns.
        channels: As stored: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; a palette gives 3.
        dtype: uint8, uint16 or float32.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        page: int,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        source: tuple[_Segments, BinaryIO] | None,
    ):
        self.height, self.width, self.channels = shape
        self.dtype = dtype
        self._path = path
        self._page = page
        self._source = source
        self._kept: dict[int, np.ndarray] = {}
        self._whole: np.ndarray | None = None

    def read(self, first: int, last: int) -> np.ndarray:
        """Returns the rows `first` to before `last`, from 0, as `images.read_image` would.

        What is decoded for one call is kept for the next, so that bands from top to bottom that
        overlap decode everything once.

        Returns:
            [last - first, width, channels] of `dtype`, which may be written to.

        Raises:
            UserError: If the file is damaged there, or so many pixels cannot be decoded at once.
            ValueError: If not 0 <= first < last <= height.
        """
        if not 0 <= first < last <= self.height:
            raise ValueError(
                f"`first` ({first}) and `last` ({last}) must rise within 0 to {self.height}."
            )
        if self._source is None:
            if self._whole is None:
                self._whole = images.read_image(self._path, self._page)
            return self._whole[first:last].reshape(-1, self.width, self.channels).copy()
        segments, _ = self._source
        touched = segments.touched(first, last)
        if len(touched) * segments.width * segments.height > images.MOST_PIXELS:
            raise UserError(
                f"{self._name(first, last)}: lie in strips or tiles with more than "
                f"{images.MOST_PIXELS} pixels, which are not decoded at once. Save the picture "
                "with smaller ones, or remove it if it is no picture of yours."
            )
        self._kept = {index: self._kept[index] for index in touched if index in self._kept}
        for index in touched:
            if index not in self._kept:
                self._kept[index] = self._decode(index)
        band = np.empty((last - first, self.width, self.channels), self.dtype)
        for index in touched:
            top, left = segments.corner(index)
            pixels = self._kept[index][max(first - top, 0) : last - top, : self.width - left]
            y = max(top - first, 0)
            band[y : y + len(pixels), left : left + pixels.shape[1]] = pixels
        return band

    def close(self) -> None:
        """Closes the file."""
        if self._source is not None:
            self._source[1].close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _decode(self, index: int) -> np.ndarray:
        """Returns the pixels of a strip or tile, [h, w, channels]."""
        segments, file = self._source
        top, _ = segments.corner(index)
        height = min(segments.height, self.height - top) if segments.strips else segments.height
        name = self._name(top, min(top + height, self.height))
        length = int(segments.lengths[index])
        try:
            file.seek(int(segments.offsets[index]))
            data = file.read(length)
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror}).") from error
        size = {_WIDTH: segments.width, _HEIGHT: height, _ROWS_PER_STRIP: height}
        with images.opened(
            name, content=_tiff({**segments.tags, **size}, data, segments.order)
        ) as p:
            return images.image_pixels(p).reshape(height, segments.width, self.channels)

    def _name(self, first: int, last: int) -> str:
        return f"{self._path}, rows {first + 1} to {last} of {self.height}"


def open_rows(path: str | os.PathLike, page: int = 0) -> Rows:
    """Opens page `page` (from 0) of the picture at `path` for reading in bands of rows.

    A TIFF may have any number of pixels, but for those whose channels lie in planes, whose JPEG
    compression is that of TIFF 6.0, or whose compressed strips or tiles have more than 2^24 pixels
    each: these, and all other formats, are decoded whole by the first `read`.

    Raises:
        UserError: As `images.read_image`, but for damaged pixels; if a TIFF does not hold what its
            header says, the rows that are missing are named.
    """
    with images.opened(path, page, of_any_size=True) as picture:
        images.check_image(path, picture)
        channels, dtype = images.kind_of(picture)
        shape = (picture.height, picture.width, channels)
        segments = _segments(path, picture)
        if segments is None:
            images.check_size(path, picture)
            return Rows(path, page, shape, np.dtype(dtype), None)
        return Rows(path, page, shape, np.dtype(dtype), (segments, open(path, "rb")))


@dataclasses.dataclass(frozen=True)
class _Segments:
    """The strips or tiles of a TIFF, row by row.

    Attributes:
        strips: Whether they are strips: as wide as the picture, the last as high as is left.
        width: Columns of each.
        height: Rows of each.
        across: How many lie side by side.
        offsets: [N] int64, bytes from the start of the file.
        lengths: [N] int64, bytes.
        tags: What is the same for all.
        order: "<" or ">", of bytes.
    """

    strips: bool
    width: int
    height: int
    across: int
    offsets: np.ndarray
    lengths: np.ndarray
    tags: Mapping[int, int | tuple[int, ...] | bytes]
    order: str

    def touched(self, first: int, last: int) -> range:
        """Returns the indices of those with rows from `first` to before `last`."""
        rows = range(first // self.height, (last - 1) // self.height + 1)
        return range(rows.start * self.across, rows.stop * self.across)

    def corner(self, index: int) -> tuple[int, int]:
        """Returns the first row and column of one."""
        return index // self.across * self.height, index % self.across * self.width


def _segments(path: str | os.PathLike, picture: ImageFile) -> _Segments | None:
    """Returns where the pixels of `picture` lie, or None if it must be decoded whole.

    Raises:
        UserError: If they do not lie within the file.
    """
    if not isinstance(picture, images.TiffImageFile):
        return None
    tags = picture.tag_v2
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    raw = compression == _UNCOMPRESSED
    strips = _TILE_WIDTH not in tags
    offsets = tags.get(_STRIP_OFFSETS if strips else _TILE_OFFSETS)
    lengths = tags.get(_STRIP_BYTES if strips else _TILE_BYTES)
    if (
        tags.get(_PLANAR, 1) != 1
        or compression == _JPEG_OF_TIFF_6
        or (tags.get(_PHOTOMETRIC) == _YCBCR and compression != _JPEG)
        or offsets is None
        or (lengths is None and not raw)
    ):
        return None
    width = picture.width if strips else tags[_TILE_WIDTH]
    height = tags.get(_ROWS_PER_STRIP, picture.height) if strips else tags[_TILE_HEIGHT]
    height = min(height, picture.height) if strips else height
    if width < 1 or height < 1:
        raise UserError(
            f"{path}: its strips or tiles have {width}x{height} pixels; the file is damaged. Copy "
            "it again, or remove it."
        )
    across, down = -(-picture.width // width), -(-picture.height // height)
    row_bytes = -(-width * tags.get(_BITS, (1,))[0] * tags.get(_SAMPLES, 1) // 8)
    if raw:
        lengths = np.full(across * down, row_bytes * height, np.int64)
        if strips:
            lengths[-1] = row_bytes * (picture.height - (down - 1) * height)
    if min(len(offsets), len(lengths)) < across * down:
        ...
    return None
