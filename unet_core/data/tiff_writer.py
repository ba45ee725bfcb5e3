"""TIFF files written in bands of rows, by tifffile.

with TiffWriter("mask.tif", height, width) as writer:
    for band in bands:
        writer.write(band)              # [h, W] uint8
"""

from __future__ import annotations

import itertools
import os
import pathlib
import queue
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from unet_core.files import NewFile, naming

_STRIP_TARGET = 2**20
_DEFLATE_LEVEL = 4
_LARGEST_CLASSIC = 3_900_000_000
"""Bytes; offsets in a classic TIFF end at 2^32, and Deflate may lengthen noise a little."""
_WRITTEN = {("float32", 1), ("uint32", 1), *itertools.product(("uint8", "uint16"), (1, 3, 4))}
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_WAITING = 4
"""Strips, at most, that wait to be compressed."""


class TiffWriter:
    """Writes a TIFF in bands of rows, whole or not at all.

    It takes its name when the `with` is left.

    Strips of about 1 MiB are compressed by Deflate, in a thread; the file is a BigTIFF if it might
    not fit in 4 GB. Colours are in RGB order, in the bands and in the file. As they read it, OpenCV
    5.0 multiplies colours of 8 bits by their alpha, and Pillow 13.0 keeps 8 of 16 bits of colours.

    Args:
        path: The file.
        height: Rows.
        width: Columns.
        channels: 1; or 3 (RGB) or 4 (RGB, alpha) of 8 or 16 bits.
        dtype: uint8, uint16, uint32 or float32.
        palette: [[red, green, blue], ...], each 0 to 255: pixels are indices, 1 channel of uint8,
            and viewers show index `i` in the colour `palette[i]`; those beyond it are black.
        metadata: Tags to write, as `Page.metadata` has them.

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
        metadata: Mapping[int, tuple] | None = None,
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
                "width must be positive, channels 1, or 3 or 4 of uint8 or uint16; others have 1, "
                "and a palette takes 1 of uint8, and has at most 256 colours."
            )
        row_bytes = width * channels * self._dtype.itemsize
        self._rows_per_strip = min(height, max(1, _STRIP_TARGET // row_bytes))
        self._how = self._description(palette, metadata or {})
        self._new: NewFile | None = None
        self._rows: list[np.ndarray] = []
        self._count = 0
        self._strips: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = False

    def _description(
        self, palette: Sequence[Sequence[int]] | None, metadata: Mapping[int, tuple]
    ) -> dict[str, Any]:
        """Returns what tifffile is told of the picture."""
        height, width, channels = self._shape
        how: dict[str, Any] = {
            "shape": (height, width, *([channels] if channels > 1 else [])),
            "dtype": self._dtype.newbyteorder("<"),
            "photometric": "rgb" if channels > 1 else "minisblack",
            "planarconfig": "contig" if channels > 1 else None,
            "extrasamples": ["unassalpha"] if channels == 4 else None,
            "compression": "adobe_deflate",
            "rowsperstrip": self._rows_per_strip,
            "software": False,
            "metadata": None,
        }
        if palette is not None:
            colours = np.zeros((256, 3), np.uint16)
            colours[: len(palette)] = palette
            how |= {"photometric": "palette", "colormap": colours.T * np.uint16(257)}
        if {_X_RESOLUTION, _Y_RESOLUTION} <= set(metadata):
            how["resolution"] = (metadata[_X_RESOLUTION][3], metadata[_Y_RESOLUTION][3])
            how["resolutionunit"] = metadata[_UNIT][3] if _UNIT in metadata else 2
        resolution = (_X_RESOLUTION, _Y_RESOLUTION, _UNIT)
        how["extratags"] = [(*tag, True) for n, tag in metadata.items() if n not in resolution]
        return how

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
        if self._count + len(rows) > height:
            raise ValueError(
                f"{self._path} takes {height} rows. Received {len(rows)} after {self._count}."
            )
        if self._thread is None:
            raise ValueError(f"{self._path} is not open; write to it inside of a `with`.")
        while len(rows):
            room = self._rows_per_strip - self._count % self._rows_per_strip
            # A copy, as the caller may fill the same array anew.
            self._rows.append(rows[:room].astype(self._dtype.newbyteorder("<")))
            self._count += len(rows[:room])
            rows = rows[room:]
            if self._count % self._rows_per_strip == 0 or self._count == height:
                self._strips.put(b"".join(part.tobytes() for part in self._rows))
                self._rows.clear()
                self._raise()

    def abandon(self) -> None:
        """Lets the `with` be left with rows missing, silently; then there is no file."""
        self._abandoned = True

    def __enter__(self) -> TiffWriter:
        self._new = NewFile(self._path)
        self._thread = threading.Thread(target=self._run, args=(self._new,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        assert self._new is not None
        assert self._thread is not None
        height = self._shape[0]
        self._strips.put(None)
        self._thread.join()
        try:
            if kind is not None or self._abandoned:
                return
            if self._count < height:
                raise ValueError(
                    f"{self._path} takes {height} rows, of which {self._count} were written; it is "
                    "not kept. Write all of them, or call `abandon`."
                )
            self._raise()
            self._new.commit()
        finally:
            self._new.discard()

    def _raise(self) -> None:
        """Raises what the thread has met; an OSError names the file by its final name."""
        if self._error is not None:
            with naming(self._path):
                raise self._error

    def _run(self, new: NewFile) -> None:
        """Writes the strips as they come; in a thread, as tifffile asks for them."""
        strips = self._compressed()
        big = int(np.prod(self._shape)) * self._dtype.itemsize > _LARGEST_CLASSIC
        try:
            # By itself tifffile would take the number of the descriptor for a name.
            handle = tifffile.FileHandle(new.file, name=self._path.name, size=0)
            with tifffile.TiffWriter(handle, bigtiff=big, byteorder="<") as writer:
                writer.write(strips, **self._how)
        except BaseException as error:
            self._error = error
            # Who writes must not wait for room.
            for _ in strips:
                pass
            while not self._ended and self._strips.get() is not None:
                pass

    _ended = False

    def _compressed(self) -> Iterator[bytes]:
        while (strip := self._strips.get()) is not None:
            yield zlib.compress(strip, _DEFLATE_LEVEL)
        self._ended = True
