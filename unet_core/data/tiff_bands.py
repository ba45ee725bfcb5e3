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
import itertools
import operator
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL.ImageFile import ImageFile

from unet_core.data import images
from unet_core.errors import UserError
from unet_core.files import NewFile, naming, os_errors

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _COLOUR_MAP = 284, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
# What tells how a strip is decoded. Beside the above: fill order, options of the two fax codes,
# predictor, JPEG tables, and how the colours of YCbCr lie.
_OF_EVERY_SEGMENT = (
    *(_BITS, _COMPRESSION, _PHOTOMETRIC, 266, _SAMPLES, _PLANAR, 292, 293, 317, _COLOUR_MAP),
    *(_EXTRA_SAMPLES, _SAMPLE_FORMAT, 347, 530, 531),
)
_UNCOMPRESSED, _JPEG_OF_TIFF_6, _JPEG, _DEFLATE = 1, 6, 7, 8
_GREY, _RGB, _INDICES, _YCBCR = 1, 2, 3, 6
_UNSIGNED, _FLOAT = 1, 3
_ALPHA = 2

_Tags = Mapping[int, int | tuple[int, ...] | bytes]

_LARGEST_SEGMENT = 2**24
"""Pixels; a compressed strip or tile with more is no smaller than a picture worth reading whole."""

_LONGEST_CODE = 8
_LONGEST_TABLES = 2**16
"""Of a compressed strip or tile 8 bytes for each byte of its pixels are read, and 2^16 more; at
worst the fax codes turn 2 bits into 9."""

_STRIP_TARGET = 2**20
_DEFLATE_LEVEL = 4
_LARGEST_CLASSIC = 3_900_000_000
"""Bytes; offsets in a classic TIFF end at 2^32, and Deflate may lengthen noise a little."""

_WRITTEN = {("float32", 1), *itertools.product(("uint8", "uint16"), (1, 3, 4))}


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
            UserError: If the file is damaged there.
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
        segments, file = self._source
        touched = segments.touched(first, last)
        self._kept = {index: self._kept[index] for index in touched if index in self._kept}
        for index in touched:
            if index not in self._kept:
                self._kept[index] = self._decode(index, segments, file)
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

    def _decode(self, index: int, segments: _Segments, file: BinaryIO) -> np.ndarray:
        """Returns the pixels of a strip or tile, [h, w, channels]."""
        top, _ = segments.corner(index)
        height = min(segments.height, self.height - top) if segments.strips else segments.height
        name = self._name(top, min(top + height, self.height))
        with os_errors(name, "cannot be read", "Copy the file again, or remove it."):
            file.seek(segments.offsets[index])
            data = file.read(segments.lengths[index])
        size = {_WIDTH: segments.width, _HEIGHT: height, _ROWS_PER_STRIP: height}
        content = _small_tiff({**segments.tags, **size}, data, segments.order)
        with images.opened(name, content=content) as picture:
            pixels = images.image_pixels(picture)
        return pixels.reshape(height, segments.width, self.channels)

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
        offsets: Bytes from the start of the file.
        lengths: Bytes of each.
        tags: What is the same for all.
        order: "<" or ">", of bytes.
    """

    strips: bool
    width: int
    height: int
    across: int
    offsets: Sequence[int]
    lengths: Sequence[int]
    tags: _Tags
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
    if not isinstance(picture, images.TiffImageFile) or not _has_segments(picture):
        return None
    tags = picture.tag_v2
    strips, raw = _TILE_WIDTH not in tags, _is_raw(picture)
    width, height = _segment_size(picture)
    order = "<" if tags.prefix == b"II" else ">"
    kept = {tag: tags[tag] for tag in _OF_EVERY_SEGMENT if tag in tags}
    # A damaged tag cannot be written. It is found here, where it is still reported as damage.
    _directory(kept, 0, order)
    if width < 1 or height < 1:
        raise UserError(
            f"{path}: has strips or tiles of {width}x{height} pixels, so that it must be damaged. "
            "Copy it again, or remove it."
        )
    if not raw and width * height > _LARGEST_SEGMENT:
        return None
    across, down = -(-picture.width // width), -(-picture.height // height)
    row_bytes = -(-width * tags.get(_BITS, (1,))[0] * tags.get(_SAMPLES, 1) // 8)
    offsets, lengths = tags[_offsets_tag(strips)], tags.get(_lengths_tag(strips))
    found = len(offsets) if raw else min(len(offsets), len(lengths))
    _check_layout(path, picture, (width, height), (across, down), found)
    offsets = [operator.index(offset) for offset in offsets[: across * down]]
    if not raw:
        lengths = [operator.index(length) for length in lengths[: across * down]]
    else:
        # As nothing else is read, what the file says of their lengths does not matter.
        lengths = [row_bytes * height] * len(offsets)
        if strips:
            lengths[-1] = row_bytes * (picture.height - (down - 1) * height)
    segments = _Segments(strips, width, height, across, offsets, lengths, kept, order)
    _check_within_file(path, picture, segments)
    if not raw:
        # Each strip of a damaged file may claim all of the file.
        most = _LONGEST_CODE * row_bytes * height + _LONGEST_TABLES
        return dataclasses.replace(segments, lengths=[min(length, most) for length in lengths])
    return _cut_smaller(segments, picture.height, row_bytes) if strips else segments


def _is_raw(picture: ImageFile) -> bool:
    return picture.tag_v2.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED


def _offsets_tag(strips: bool) -> int:
    return _STRIP_OFFSETS if strips else _TILE_OFFSETS


def _lengths_tag(strips: bool) -> int:
    return _STRIP_BYTES if strips else _TILE_BYTES


def _has_segments(picture: ImageFile) -> bool:
    """Whether the strips or tiles of a TIFF can be decoded one by one."""
    tags = picture.tag_v2
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    strips = _TILE_WIDTH not in tags
    return (
        tags.get(_PLANAR, 1) == 1
        and compression != _JPEG_OF_TIFF_6
        # Its other codings need fractional tags.
        and (tags.get(_PHOTOMETRIC) != _YCBCR or compression == _JPEG)
        and tags.get(_offsets_tag(strips)) is not None
        and (tags.get(_lengths_tag(strips)) is not None or compression == _UNCOMPRESSED)
    )


def _segment_size(picture: ImageFile) -> tuple[int, int]:
    """Returns columns and rows of a strip or tile; raises TypeError if they are fractions."""
    tags = picture.tag_v2
    if _TILE_WIDTH in tags:
        return operator.index(tags[_TILE_WIDTH]), operator.index(tags[_TILE_HEIGHT])
    height = min(tags.get(_ROWS_PER_STRIP, picture.height), picture.height)
    return picture.width, operator.index(height)


def _check_layout(
    path: str | os.PathLike,
    picture: ImageFile,
    size: tuple[int, int],
    counts: tuple[int, int],
    found: int,
) -> None:
    """Raises UserError if strips or tiles are missing, or a row of tiles is too large.

    Args:
        path: The file.
        picture: The picture.
        size: Columns and rows of a strip or tile.
        counts: How many there must be side by side, and one below another.
        found: How many the file lists.
    """
    (width, height), (across, down) = size, counts
    if found < across * down:
        raise UserError(
            f"{path}: lists {found} strips or tiles, but its {picture.width}x{picture.height} "
            f"pixels are {across * down}; it is damaged. Copy it again, or remove it."
        )
    if _TILE_WIDTH in picture.tag_v2 and across * width * height > images.MOST_PIXELS:
        raise UserError(
            f"{path}: has tiles of {width}x{height} pixels, {across} side by side; at most "
            f"{images.MOST_PIXELS} pixels are decoded at once. Save the picture with smaller "
            "tiles, or remove it if it is no picture of yours."
        )


def _check_within_file(path: str | os.PathLike, picture: ImageFile, segments: _Segments) -> None:
    """Raises UserError if a strip or tile does not lie within the file."""
    size = picture.fp.seek(0, os.SEEK_END)
    places = zip(segments.offsets, segments.lengths, strict=True)
    for index, (offset, length) in enumerate(places):
        if offset < 0 or length < 1 or offset + length > size:
            first, _ = segments.corner(index)
            raise UserError(
                f"{path}: does not hold its rows {first + 1} to "
                f"{min(first + segments.height, picture.height)} of {picture.height} ({size} "
                "bytes, which are too few): it is cut short or damaged. Copy it again, or remove "
                "it."
            )


def _cut_smaller(segments: _Segments, rows: int, row_bytes: int) -> _Segments:
    """Returns uncompressed strips cut into strips of a size that is read at once.

    Args:
        segments: The strips as they lie in the file, of any size.
        rows: Rows of the picture.
        row_bytes: Bytes of a row.
    """
    offsets, lengths, height = segments.offsets, segments.lengths, segments.height
    step = max(1, _STRIP_TARGET // row_bytes)
    if all(after - before == lengths[0] for before, after in itertools.pairwise(offsets)):
        offsets, height = offsets[:1], -(-rows // step) * step
    step = next(count for count in range(min(step, height), 0, -1) if height % count == 0)
    offsets = [offset + row * row_bytes for offset in offsets for row in range(0, height, step)]
    offsets = offsets[: -(-rows // step)]
    lengths = [row_bytes * step] * len(offsets)
    lengths[-1] = row_bytes * (rows - (len(offsets) - 1) * step)
    return dataclasses.replace(segments, height=step, offsets=offsets, lengths=lengths)


class TiffWriter:
    """Writes a TIFF in bands of rows, whole or not at all.

    It takes its name when the `with` is left.

    Strips of about 1 MiB are compressed by Deflate; the file is a BigTIFF if it might not fit in
    4 GB. Colours are in RGB order, in the bands and in the file. As they read it, OpenCV 5.0
    multiplies colours of 8 bits by their alpha, and Pillow 13.0 keeps 8 of 16 bits of colours.

    Args:
        path: The file.
        height: Rows.
        width: Columns.
        channels: 1; or 3 (RGB) or 4 (RGB, alpha) of 8 or 16 bits.
        dtype: uint8, uint16 or float32.
        palette: [[red, green, blue], ...], each 0 to 255: pixels are indices, 1 channel of uint8,
            and viewers show index `i` in the colour `palette[i]`; those beyond it are black.

    Raises:
        ValueError: If these do not go together.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        height: int,
        width: int,
        channels: int = 1,
        dtype: npt.DTypeLike = np.uint8,
        palette: Sequence[Sequence[int]] | None = None,
    ):
        self._path = pathlib.Path(path)
        self._shape = (height, width, channels)
        self._dtype = np.dtype(dtype)
        kind = (self._dtype.name, channels)
        fits = palette is None or (kind == ("uint8", 1) and len(palette) <= 256)
        if min(height, width) < 1 or kind not in _WRITTEN or not fits:
            raise ValueError(
                f"{path}: cannot hold {height}x{width} pixels of {channels} channel(s) of "
                f"{self._dtype.name}, with{'out' if palette is None else ''} a palette. Height and "
                "width must be positive, channels 1, or 3 or 4 of uint8 or uint16; float32 has 1, "
                "and a palette takes 1 of uint8, and has at most 256 colours."
            )
        self._colour_map: tuple[int, ...] = ()
        if palette is not None:
            colours = np.zeros((256, 3), np.uint8)
            colours[: len(palette)] = palette
            self._colour_map = tuple((colours.T.ravel() * np.uint16(257)).tolist())
        row_bytes = width * channels * self._dtype.itemsize
        self._big = height * row_bytes > _LARGEST_CLASSIC
        self._rows_per_strip = min(height, max(1, _STRIP_TARGET // row_bytes))
        self._new: NewFile | None = None
        self._waiting: list[np.ndarray] = []
        self._rows = 0
        self._offsets: list[int] = []
        self._lengths: list[int] = []
        self._abandoned = False

    def write(self, rows: np.ndarray) -> None:
        """Appends `rows`, [h, width] or [h, width, channels].

        Raises:
            OSError: If the file cannot be written; the error names it by its final name.
            ValueError: If their shape or dtype is another, or they are more than are missing.
        """
        height, width, channels = self._shape
        shapes = [(width, channels), (width,)][: 1 + (channels == 1)]
        if rows.dtype != self._dtype or rows.ndim < 2 or rows.shape[1:] not in shapes:
            raise ValueError(
                f"Expected rows [h, {width}, {channels}] of {self._dtype}. Received "
                f"{list(rows.shape)} of {rows.dtype}."
            )
        if self._rows + len(rows) > height:
            raise ValueError(
                f"{self._path} takes {height} rows. Received {len(rows)} after {self._rows}."
            )
        rows = rows.reshape(len(rows), -1)
        while len(rows):
            room = self._rows_per_strip - self._rows % self._rows_per_strip
            # A copy, as the caller may fill the same array anew.
            self._waiting.append(rows[:room].astype(self._dtype.newbyteorder("<")))
            self._rows += len(rows[:room])
            rows = rows[room:]
            if self._rows % self._rows_per_strip == 0 or self._rows == height:
                self._write_strip()

    def abandon(self) -> None:
        """Lets the `with` be left with rows missing, silently; then there is no file."""
        self._abandoned = True

    def __enter__(self) -> TiffWriter:
        self._new = NewFile(self._path)
        with self._naming_errors():
            # The place of the directory is not known yet.
            self._file.write(_header(0, "<", self._big))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        height = self._shape[0]
        if kind is None and not self._abandoned and self._rows == height:
            with self._naming_errors():
                self._finish()
            return
        self._opened.discard()
        if kind is None and not self._abandoned:
            raise ValueError(
                f"{self._path} takes {height} rows, of which {self._rows} were written; it is not "
                "kept. Write all of them, or call `abandon`."
            )

    @property
    def _opened(self) -> NewFile:
        if self._new is None:
            raise ValueError(f"{self._path} is not open; write to it inside of a `with`.")
        return self._new

    @property
    def _file(self) -> BinaryIO:
        return self._opened.file

    def _write_strip(self) -> None:
        content = zlib.compress(b"".join(rows.tobytes() for rows in self._waiting), _DEFLATE_LEVEL)
        self._waiting.clear()
        with self._naming_errors():
            self._offsets.append(self._file.tell())
            self._lengths.append(self._file.write(content))

    def _finish(self) -> None:
        """Writes the directory and gives the file its name."""
        height, width, channels = self._shape
        tags: dict[int, int | tuple[int, ...] | bytes] = {
            _WIDTH: width,
            _HEIGHT: height,
            _BITS: (8 * self._dtype.itemsize,) * channels,
            _COMPRESSION: _DEFLATE,
            _PHOTOMETRIC: _RGB if channels > 1 else _GREY,
            _STRIP_OFFSETS: tuple(self._offsets),
            _SAMPLES: channels,
            _ROWS_PER_STRIP: self._rows_per_strip,
            _STRIP_BYTES: tuple(self._lengths),
            _PLANAR: 1,
            _SAMPLE_FORMAT: (_FLOAT if self._dtype.kind == "f" else _UNSIGNED,) * channels,
        }
        if channels == 4:
            tags[_EXTRA_SAMPLES] = _ALPHA
        if self._colour_map:
            tags |= {_PHOTOMETRIC: _INDICES, _COLOUR_MAP: self._colour_map}
        file = self._file
        file.write(bytes(file.tell() % 2))
        at = file.tell()
        file.write(_directory(tags, at, "<", self._big))
        file.seek(0)
        file.write(_header(at, "<", self._big))
        self._opened.commit()

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Makes an OSError inside the `with` name the file by its final name; nothing is kept."""
        try:
            with naming(self._path):
                yield
        except OSError:
            self._opened.discard()
            raise


def _small_tiff(tags: _Tags, data: bytes, order: str) -> bytes:
    """Returns a TIFF of one strip whose bytes are `data`."""
    header = len(_header(0, order))
    padded = data + bytes(len(data) % 2)
    directory = header + len(padded)
    place = {_STRIP_OFFSETS: header, _STRIP_BYTES: len(data)}
    return _header(directory, order) + padded + _directory({**tags, **place}, directory, order)


def _header(directory: int, order: str, big: bool = False) -> bytes:
    """Returns the start of a TIFF whose directory is `directory` bytes from its start."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(f"{order}HHHQ", 43, 8, 0, directory)
    return mark + struct.pack(f"{order}HI", 42, directory)


def _directory(tags: _Tags, at: int, order: str, big: bool = False) -> bytes:
    """Returns the only directory of a TIFF, to be written `at` bytes from its start."""
    number, offset, room = ("Q", "Q", 8) if big else ("H", "I", 4)
    beyond_at = at + struct.calcsize(number) + len(tags) * (4 + 2 * room) + room
    entries, beyond = [struct.pack(order + number, len(tags))], bytearray()
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple | bytes) else (value,)
        if isinstance(value, bytes):
            kind, code = 7, "B"
        else:
            bits = max(values).bit_length()
            kind, code = (3, "H") if bits <= 16 else (4, "I") if bits <= 32 else (16, "Q")
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > room:
            place = beyond_at + len(beyond)
            beyond += packed + bytes(len(packed) % 2)
            packed = struct.pack(order + offset, place)
        entries.append(struct.pack(f"{order}HH{offset}", tag, kind, len(values)))
        entries.append(packed.ljust(room, b"\0"))
    return b"".join([*entries, bytes(room), beyond])
