"""Pages of TIFF files, by tifffile and imagecodecs.

A page is a picture: reduced copies and masks of transparency among the directories are none, the
planes of an ImageJ file with one directory are pages, and the channels of an OME-TIFF, which have a
directory each, are those of one page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import tifffile
from PIL.JpegImagePlugin import JpegImageFile

from unet_core.data.io import limits, ome_tiff
from unet_core.data.io.page import MOST_PAGES, Page
from unet_core.errors import UserError
from unet_core.files import os_errors

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY, _RGB, _MASK = (0, 1), 2, 4
_PALETTE, _YCBCR = 3, 6
_JPEG = (6, 7, 33007, 34892)
_LERC = 34887
_COLOUR_MAP, _ORIENTATION = 320, 274
_BITS = {1: "bool", 2: "uint8", 4: "uint8", **dict.fromkeys(range(9, 16), "uint16")}
"""Numbers of fewer bits than their type that are read, and the type."""
_KEPT_TAGS = (282, 283, 296, 33550, 33922, 34264, 34735, 34736, 34737)
"""Resolution and its unit; and what GeoTIFF says of where pixels lie."""
_LEAST_OFFSET = 8
_LONGEST_CODE, _LONGEST_TABLES = 8, 2**16
"""Of a strip or tile 8 bytes for each byte of its pixels are read, and 2^16 more; at worst the fax
codes turn 2 bits into 9."""


@dataclasses.dataclass(frozen=True)
class _Pages:
    """Where the pages of a file are.

    Attributes:
        directories: The number of each page's directory in the file, and its place in bytes; None
            where it is damaged.
        planes: Places of the pixels of each plane in bytes, if all have the one directory.
        channels: So many directories, one after another, are the channels of a page.
    """

    directories: tuple[tuple[int, int | None], ...]
    planes: tuple[int, ...] = ()
    channels: int = 1

    def __len__(self) -> int:
        return len(self.planes) or len(self.directories) // self.channels


def open_tiff(where: str, file: BinaryIO, page: int) -> Page:
    """Returns page `page` of a TIFF.

    Raises:
        UserError: If there is no such page, or it is of a kind that is not read.
    """
    with _refusing_logged() as logged:
        # What other files OME-XML names is not opened (tifffile 2026.3).
        tiff = tifffile.TiffFile(file, _multifile=False)
        pages = _pages_of(where, file, tiff, logged)
        if not 0 <= page < len(pages):
            raise no_such_page(where, page)
        first = 0 if pages.planes else page * pages.channels
        plane = pages.planes[page] if pages.planes else None
        found = []
        for number, place in pages.directories[first : first + pages.channels]:
            if place is None:
                directory = tiff.pages.get(number)
            else:
                tiff.filehandle.seek(place)
                directory = tifffile.TiffPage(tiff, index=number)
            _check_kind(where, directory)
            found.append(_page(where, file, directory, len(pages), plane))
        return found[0] if len(found) == 1 else ome_tiff.together(where, found)


def no_such_page(where: str, page: int) -> UserError:
    """Returns the error of a page that is not there."""
    return UserError(
        f"{where}: there is no page {page + 1}, counted from 1; the file has fewer. Name one that "
        "it has."
    )


@contextlib.contextmanager
def _refusing_logged() -> Iterator[list[str]]:
    """Makes what tifffile logs as an error, and goes on, an error; silences what it warns of.

    Gives the list of these, from which one may be taken that does not matter.
    """
    logger, thread = logging.getLogger("tifffile"), threading.get_ident()
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        if record.levelno >= logging.ERROR:
            messages.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)
    if messages:
        raise ValueError(messages[0].partition("> ")[2] or messages[0])


def _pages_of(where: str, file: BinaryIO, tiff: tifffile.TiffFile, logged: list[str]) -> _Pages:
    """Returns the pages of a file, found once while it does not change."""
    try:
        status = os.fstat(file.fileno())
    except OSError:  # It is in memory.
        return _find_pages(where, tiff, logged)
    key = (where, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    with _lock:
        found = _known.pop(key, None)
    if found is None:
        found = _find_pages(where, tiff, logged)
    with _lock:
        _known[key] = found
        while len(_known) > _MOST_KNOWN:
            del _known[next(iter(_known))]
    return found


_known: dict[tuple, _Pages] = {}
_MOST_KNOWN = 256
_lock = threading.Lock()


def _find_pages(where: str, tiff: tifffile.TiffFile, logged: list[str]) -> _Pages:
    """Looks through all directories of a file.

    Raises:
        UserError: If there are too many, as where one leads back to another.
    """
    with contextlib.suppress(IndexError):
        tiff.pages.get(MOST_PAGES)
        raise UserError(
            f"{where}: has more than {MOST_PAGES} pages, or its list of pages leads back to its "
            "start. Split it into several files, or remove it if it is damaged."
        )
    if not len(tiff.pages):
        raise ValueError("it has no pages")
    found = []
    for number in range(len(tiff.pages)):
        try:
            page = tiff.pages.get(number)
        except Exception:  # A damaged directory is refused when its page is read.
            found.append((number, None))
            continue
        if not (page.is_reduced or page.is_mask or page.photometric == _MASK):
            found.append((number, page.offset))
    if tiff.is_ome:
        before = len(logged)
        channels = ome_tiff.find_channels(where, tiff, {place for _, place in found})
        # Without sound OME-XML each directory is a page.
        del logged[before:]
        if channels is not None:
            return _Pages(tuple(channels[0]), channels=channels[1])
    first = tiff.pages.first
    if len(tiff.pages) == 1:
        return _Pages(((0, first.offset),), _planes(where, tiff))
    return _Pages(tuple(found) or ((0, first.offset),))


def _planes(where: str, tiff: tifffile.TiffFile) -> tuple[int, ...]:
    """Returns the places of the planes of a file whose only directory is that of the first."""
    page = tiff.pages.first
    if not (page.is_imagej or page.is_shaped or page.is_stk):
        return ()
    series = tiff.series[0]
    count = series.size // max(1, page.size)
    if count < 2:
        return ()
    start = series.dataoffset
    if start is None or start + count * page.nbytes > tiff.filehandle.size:
        raise UserError(
            f"{where}: says that it holds {count} planes, but not all are there. It is cut short "
            "or was edited by a program that does not know them; save it again."
        )
    if count > MOST_PAGES:
        raise UserError(f"{where}: has {count} planes; at most {MOST_PAGES} are read. Split it.")
    return tuple(range(start, start + count * page.nbytes, page.nbytes))


def _check_kind(where: str, page: tifffile.TiffPage) -> None:
    """Raises UserError if a page is of a kind that is not read."""
    kinds = (*_GREY, _RGB, _PALETTE, _MASK)
    is_colours_by_jpeg = page.photometric == _YCBCR and page.compression in _JPEG
    if page.photometric not in kinds and not is_colours_by_jpeg:
        name = getattr(page.photometric, "name", page.photometric)
        raise UserError(
            f"{where}: holds pixels of the kind {name}; it must be grey, RGB or a palette. "
            "Save it as RGB."
        )
    packed = page.bitspersample in _BITS and page.sampleformat in (1, 4)
    # tifffile 2026.3 does not read single bits of several channels as it writes them.
    packed = packed and (page.bitspersample > 1 or page.samplesperpixel == 1)
    whole = page.dtype is not None and page.dtype.kind in "uif"
    whole = whole and page.bitspersample == 8 * page.dtype.itemsize
    if not packed and not whole:
        kind = getattr(page.sampleformat, "name", page.sampleformat)
        raise UserError(
            f"{where}: holds numbers of {page.bitspersample} bits ({kind}); those of 8, 16 or 32 "
            "bits are read, and whole ones of 1, 2, 4 or 9 to 15. Save it as one of these."
        )
    if page.compression == _LERC and page.predictor != 1:
        # tifffile 2026.3 does not read them as it writes them.
        raise UserError(
            f"{where}: is compressed by LERC with differences of neighbours, which is not read. "
            "Save it with another compression, or without a predictor."
        )
    if page.imagedepth != 1:
        raise UserError(f"{where}: is a volume of {page.imagedepth} layers; save them as pages.")
    if page.photometric == _PALETTE and (page.colormap is None or page.samplesperpixel != 1):
        raise UserError(f"{where}: has a palette without colours, so that it must be damaged.")
    if page.imagelength < 1 or page.imagewidth < 1 or page.samplesperpixel < 1:
        raise ValueError(f"{page.imagewidth}x{page.imagelength} pixels")


def _page(
    where: str, file: BinaryIO, page: tifffile.TiffPage, pages: int, plane: int | None
) -> Page:
    bits = page.bitspersample
    dtype = np.dtype(_BITS.get(bits, page.dtype)).newbyteorder("=")
    extra = page.extrasamples
    orientation = page.tags.valueof(_ORIENTATION, 1)
    place = plane if plane is not None else page.dataoffsets[0] if page.is_final else None
    read_rows: Callable[[int, int], np.ndarray]
    if place is not None and page.planarconfig == 1:
        read_rows = functools.partial(_raw_rows, where, file, page, place)
    else:
        read_rows = _Segments(where, file, page)
    return Page(
        where,
        "TIFF",
        pages,
        page.imagelength,
        page.imagewidth,
        page.samplesperpixel,
        dtype,
        read_rows,
        bits,
        # Of four samples without a word about the last, it is opacity to all programs.
        alpha=extra[-1] in (1, 2) if extra else page.photometric == _RGB and _samples(page) == 4,
        palette=_palette(page) if page.photometric == _PALETTE else None,
        orientation=int(orientation) if orientation in range(1, 9) else 1,
        white_is_zero=page.photometric == 0,
        lossy=page.compression in _JPEG,
        in_bands=True,
        metadata={
            tag.code: (tag.code, int(tag.dtype), tag.count, tag.value)
            for tag in page.tags
            if tag.code in _KEPT_TAGS
        },
    )


def _samples(page: tifffile.TiffPage) -> int:
    return page.samplesperpixel


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    colours = np.asarray(page.colormap).reshape(3, -1).T
    # Some programs write levels of 8 bits in the 16 that the standard asks for.
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _raw_rows(
    where: str, file: BinaryIO, page: tifffile.TiffPage, place: int, first: int, last: int
) -> np.ndarray:
    """Returns rows that lie in the file as they are in memory."""
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    samples = page.samplesperpixel
    row_bytes = page.imagewidth * samples * dtype.itemsize
    name = _name(where, page, first, last)
    with os_errors(name, "cannot be read", "Copy the file again, or remove it."):
        if place + last * row_bytes > file.seek(0, os.SEEK_END):
            raise _cut_short(name)
        file.seek(place + first * row_bytes)
        data = file.read((last - first) * row_bytes)
    if len(data) < (last - first) * row_bytes:
        raise _cut_short(name)
    shape = (last - first, page.imagewidth, *([samples] if samples > 1 else []))
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


class _Segments:
    """Reads rows of a page by decoding the strips or tiles that they touch.

    What is decoded for one call is kept for the next, so that bands from top to bottom that overlap
    decode everything once.
    """

    def __init__(self, where: str, file: BinaryIO, page: tifffile.TiffPage):
        self._where, self._file, self._page = where, file, page
        self._height = page.tilelength if page.is_tiled else page.rowsperstrip
        self._width = page.tilewidth if page.is_tiled else page.imagewidth
        if self._height < 1 or self._width < 1:
            raise ValueError(f"strips or tiles of {self._width}x{self._height} pixels")
        self._across = -(-page.imagewidth // self._width)
        self._down = -(-page.imagelength // self._height)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self._planes = planes
        self._samples = page.samplesperpixel // planes
        wanted = planes * self._across * self._down
        found = min(len(page.dataoffsets), len(page.databytecounts))
        if found < wanted:
            raise ValueError(
                f"it lists {found} strips or tiles, but its {page.imagewidth}x{page.imagelength} "
                f"pixels are {wanted}"
            )
        self._kept: dict[int, np.ndarray | None] = {}
        self._lock = threading.Lock()

    def __call__(self, first: int, last: int) -> np.ndarray:
        page, samples = self._page, self._page.samplesperpixel
        self._check_size()
        rows = range(first // self._height, (last - 1) // self._height + 1)
        touched = [
            (plane * self._down + row) * self._across + column
            for plane in range(self._planes)
            for row in rows
            for column in range(self._across)
        ]
        self._kept = {index: self._kept[index] for index in touched if index in self._kept}
        dtype = np.dtype(_BITS.get(page.bitspersample, page.dtype)).newbyteorder("=")
        band: np.ndarray | None = None
        for index in touched:
            if index not in self._kept:
                self._kept[index] = self._decode(index)
            if band is None:
                # Not before something is decoded: the size of a damaged file may be anything.
                band = np.full((last - first, page.imagewidth, samples), page.nodata, dtype)
            pixels = self._kept[index]
            if pixels is None:  # A program that leaves out what is empty wrote it.
                continue
            plane, place = divmod(index, self._across * self._down)
            top, left = place // self._across * self._height, place % self._across * self._width
            pixels = pixels[max(first - top, 0) : last - top, : page.imagewidth - left]
            y = max(top - first, 0)
            target = band[y : y + len(pixels), left : left + pixels.shape[1]]
            target[..., plane : plane + self._samples] = pixels
        assert band is not None
        return band[..., 0] if samples == 1 else band

    def _check_size(self) -> None:
        """Raises UserError if a row of strips or tiles takes too much memory."""
        page = self._page
        pixels = self._across * self._planes * self._width * self._height * self._samples
        # Rows of one strip count as far as there are any.
        limits.check_bytes(
            self._where,
            pixels * max(1, np.dtype(page.dtype).itemsize),
            f"strips or tiles of {self._width}x{self._height} pixels, {self._across} side by side",
        )

    def _decode(self, index: int) -> np.ndarray | None:
        """Returns the pixels of a strip or tile, [h, w, samples]; None if it was left out."""
        page = self._page
        top = index // self._across % self._down * self._height
        name = _name(self._where, page, top, min(top + self._height, page.imagelength))
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        if offset == length == 0:
            return None
        if offset < _LEAST_OFFSET or length < 1:
            raise _cut_short(name)
        pixels = self._width * self._height * self._samples
        most = _LONGEST_CODE * pixels * max(1, page.bitspersample // 8) + _LONGEST_TABLES
        with os_errors(name, "cannot be read", "Copy the file again, or remove it."), self._lock:
            self._file.seek(offset)
            data = self._file.read(min(length, most))
        if len(data) < min(length, most):
            raise _cut_short(name)
        tables = {}
        try:
            if page.compression in _JPEG:
                tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
                self._check_jpeg(data, page.jpegheader)
            decoded, _, _ = page.decode(data, index, **tables)
        except Exception as error:  # Codecs raise anything.
            raise UserError(
                f"{name}: cannot be decoded ({error}): the file is damaged or cut short. Copy it "
                "again, or remove it."
            ) from error
        if decoded.ndim != 4 or decoded.shape[-1] != self._samples:
            raise UserError(f"{name}: hold other pixels than the file says; it is damaged.")
        return decoded[0]

    def _check_jpeg(self, data: bytes, header: bytes | None) -> None:
        """Raises ValueError if a JPEG has more pixels than its strip or tile."""
        width, height = JpegImageFile(io.BytesIO((header or b"") + data)).size
        if width * height > self._width * self._height:
            raise ValueError(f"a JPEG of {width}x{height} pixels")


def _name(where: str, page: tifffile.TiffPage, first: int, last: int) -> str:
    return f"{where}, rows {first + 1} to {last} of {page.imagelength}"


def _cut_short(name: str) -> UserError:
    return UserError(
        f"{name}: not all are in the file, which is damaged or cut short. Copy it again, or remove "
        "it."
    )
