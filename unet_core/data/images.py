"""Pixels from PNG, JPEG, BMP, TIFF, NumPy, DICOM, NIfTI and OME-Zarr, with errors that name them.

`read_image` keeps intensities, `read_mask` keeps class values. Both turn a picture as its EXIF data
or TIFF orientation say, so that they lie as viewers show them. What a file says of itself holds in
every format alike:

- Grey of 1, 2 or 4 bits is spread over 0 to 255.
- Values are those that are stored also where the file says that 0 is white, as ImageJ has them.
- DICOM and NIfTI files give the numbers that they rescale theirs to; images of which a DICOM file
  says that 0 is white (MONOCHROME1) are inverted.
- A palette is replaced by its colours in images; masks are indices, or colours if that is asked.
- The transparent colour of a PNG is left aside.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from unet_core.data.io import opened
from unet_core.data.io.page import Page
from unet_core.errors import UserError
from unet_core.files import write_whole

MOST_PNG_SIDE = 1_000_000
"""Pixels of a side that libpng writes."""
_TAKEN = {"uint8", "uint16", "float32"}
_TO_FLOAT = {"int8", "int16", "float16"}
"""Kinds of numbers that images may have: as they are, and as float32, which holds them exactly."""

_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_PER_METRE = {2: 1 / 0.0254, 3: 100.0}
"""Of the units of resolution in a TIFF, inch and centimetre."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a picture file says of one of its pages.

    Attributes:
        width: Columns, as it is shown.
        height: Rows, as it is shown.
        channels: Channels of its pixels, alpha included; 3 for a palette.
        dtype: The kind of its numbers as stored, such as "uint8"; that also for 1, 2 or 4 bits.
        palette: The colours that its pixels are indices into, red, green and blue of each; empty if
            they are none.
        alpha: Whether the last channel is opacity.
        pages: Pictures in the file.
        format: See `Page`.
        turned: Whether it is stored otherwise than it is shown.
        white_is_zero: Whether the file asks that 0 be shown white; values are as stored.
        directions: To which sides its axes run, see `Page`.
        notes: What is done to its numbers beside.
    """

    width: int
    height: int
    channels: int
    dtype: str
    palette: bytes
    alpha: bool
    pages: int
    format: str
    turned: bool = False
    white_is_zero: bool = False
    directions: str = ""
    notes: tuple[str, ...] = ()


def read_header(
    path: str | os.PathLike,
    page: int = 0,
    *,
    of_any_size: bool = False,
    content: bytes | None = None,
) -> Header:
    """Returns the header of page `page` (from 0) of the picture at `path`, decoding no pixels.

    Args:
        path: The file.
        page: The page, from 0.
        of_any_size: Whether the picture may take more memory than is decoded at once.
        content: What to read instead of the file, which is only named in errors.

    Raises:
        UserError: If the file cannot be read, is no picture of a kind that can be read, would take
            too much memory, or is seen to be cut short; or there is no such page.
    """
    with opened(path, page, content=content) as found:
        if not of_any_size:
            found.check_size()
        return _header(found)


def read_image(
    path: str | os.PathLike, page: int = 0, *, content: bytes | None = None
) -> np.ndarray:
    """Returns the pixels of page `page` (from 0) of the picture at `path`.

    Args:
        path: The file.
        page: The page, from 0.
        content: What to read instead of the file, which is only named in errors.

    Returns:
        [H, W], or [H, W, C] with all channels of the file, alpha included; uint8, uint16 or
        float32, which whole numbers with a sign become.

    Raises:
        UserError: As `read_header`; and if the pixels are cut short, damaged, or of 32 or 64 bits
            but for float32.
    """
    with opened(path, page, content=content) as found:
        check_image(found)
        return image_pixels(found, found.read())


def read_channels(
    path: str | os.PathLike, page: int, channels: int, *, use: Sequence[int] = ()
) -> np.ndarray:
    """Returns the pixels of page `page` of the picture at `path` as [H, W, channels].

    Raises:
        UserError: As `read_image` and `to_channels`.
    """
    with opened(path, page) as found:
        check_header(path, _header(found), channels, use)
        pixels = image_pixels(found, found.read())
        return to_channels(pixels, channels, alpha=found.alpha, use=use)


def readable(
    paths: Iterable[pathlib.Path], *, progress: Callable[[Any], Iterable] = iter
) -> tuple[list[pathlib.Path], list[str]]:
    """Returns those of `paths` whose pictures can be decoded, and a sentence about each other.

    Args:
        paths: Files.
        progress: Wraps them, to show how far it is.
    """
    found, problems = [], []
    for path in progress(paths):
        try:
            read_image(path)
            found.append(path)
        except UserError as error:
            problems.append(str(error))
    return found, problems


def read_mask(path: str | os.PathLike, page: int = 0, *, colours: bool = False) -> np.ndarray:
    """Returns the values of page `page` (from 0) of the mask at `path` as stored.

    Alpha is dropped, and whole numbers stored as floats become integers.

    Args:
        path: The file.
        page: The page, from 0.
        colours: Whether indices into a palette become its colours; otherwise they stay indices.

    Returns:
        [H, W] uint8, uint16 or int32; or [H, W, 3] uint8 in RGB order if the file is coloured, were
        its colours all grey.

    Raises:
        UserError: As `read_header`; and if the pixels are cut short or damaged, were compressed as
            JPEG, are fractions or beyond 32 bits, or are colours of 16 bits, or if there are other
            channels.
    """
    with opened(path, page) as found:
        if found.lossy:
            raise UserError(
                f"{path}: is compressed as JPEG, which changes the values of pixels, so that they "
                "no longer stand for the classes; save the mask as PNG from its original."
            )
        channels = found.samples - found.alpha
        if channels not in (1, 3):
            raise UserError(
                f"{path}: has {channels} channels; a mask has one number for each pixel, or red, "
                "green and blue. Save one of them."
            )
        if channels == 3 and found.dtype != np.uint8:
            raise UserError(
                f"{path}: holds colours of {found.bits} bits; a coloured mask must have 8 bits a "
                "channel. Save it as 8-bit RGB."
            )
        values = found.read()
        if colours and found.palette is not None:
            return _colours(values, found.palette)
        if found.palette is None:
            values = _spread(values, found.bits)
    if values.ndim == 3:
        return np.ascontiguousarray(values[..., 0] if channels == 1 else values[..., :3])
    return values if values.dtype in (np.uint8, np.uint16) else _integers(path, values)


def _integers(path: str | os.PathLike, values: np.ndarray) -> np.ndarray:
    """Returns the values of a mask as int32.

    Raises:
        UserError: If they are fractions, or beyond 32 bits.
    """
    if values.dtype.kind == "f":
        whole = (values == np.rint(values)) & (np.abs(values) < 2**31)
        why = "no whole number"
    else:
        limits = np.iinfo(np.int32)
        whole = (values <= limits.max) & (values >= limits.min)
        why = "a number beyond 32 bits"
    if not whole.all():
        raise UserError(
            f"{path}: {np.count_nonzero(~whole)} pixel(s) of the mask hold {why}, such as "
            f"{values[~whole][0]}; the values of a mask stand for classes. Save them as integers."
        )
    return values.astype(np.int32)


def to_channels(
    image: np.ndarray, channels: int, *, alpha: bool | None = None, use: Sequence[int] = ()
) -> np.ndarray:
    """Returns `image` as [H, W, channels], of its dtype.

    Colours become grey by the luma of Rec. 601, grey is repeated, and alpha is dropped.

    Args:
        image: [H, W] or [H, W, C] as `read_image` returns it.
        channels: The number that is wanted.
        alpha: Whether the last of the image's channels is opacity; None is that of 2 and 4, unless
            as many are wanted.
        use: The channels to take, from 0, instead of all.

    Raises:
        UserError: If the image has other channels, so that some would be dropped or made up.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    found = image.shape[2]
    if alpha is None:
        alpha = found in (2, 4) and found != channels
    problem = _misfit(found, alpha, channels, use)
    if problem:
        raise UserError(problem)
    if use:
        return np.ascontiguousarray(image[..., list(use)])
    if found == channels:
        return np.ascontiguousarray(image)
    image = np.ascontiguousarray(image[..., : found - alpha])
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _misfit(found: int, alpha: bool, channels: int, use: Sequence[int]) -> str | None:
    """Returns what is wrong with an image of `found` channels, see `to_channels`."""
    if use:
        beyond = [each for each in use if each >= found]
        if not beyond:
            return None
        return (
            f"has {found} channel(s), 0 to {found - 1}, and `use_channels` asks for {beyond[0]}. "
            "Name channels that every image has."
        )
    real = found - alpha
    if channels in (found, real) or (real, channels) in ((1, 3), (3, 1)):
        return None
    listed = ",".join(map(str, range(min(channels, real))))
    return (
        f"has {real} channel(s){' beside alpha' * alpha}, and the network takes {channels} "
        f"(`channels`). Set `channels` to {real}, or say which to take with `use_channels`, such "
        f"as {listed}."
    )


def check_header(path: object, header: Header, channels: int, use: Sequence[int] = ()) -> None:
    """Raises UserError if the header tells that a picture cannot be an image of the network."""
    problem = _misfit(header.channels, header.alpha, channels, use)
    if problem:
        raise UserError(f"{path}: {problem}")
    _check_dtype(path, header.dtype)


def describe_conversion(header: Header, channels: int, use: Sequence[int] = ()) -> str | None:
    """Returns what reading does to a picture, such as "alpha dropped, RGB to grey".

    That is what `read_image` and `to_channels` change; None if it stays as it is.
    """
    steps = list(header.notes)
    if header.turned:
        steps.append("turned as the file says")
    if header.white_is_zero:
        steps.append("values as stored though 0 is shown white")
    if header.palette:
        steps.append("palette to RGB")
    if header.dtype in _TO_FLOAT:
        steps.append("to float32")
    real = header.channels - header.alpha
    if use:
        steps.append(f"channels {','.join(map(str, use))} of {header.channels} taken")
    elif header.channels != channels:
        if header.alpha:
            steps.append("alpha dropped")
        if (real, channels) == (3, 1):
            steps.append("RGB to grey")
        if (real, channels) == (1, 3):
            steps.append("grey to RGB")
    return ", ".join(steps) or None


def check_image(page: Page) -> None:
    """Raises UserError if the pixels of `page` can be those of a mask only."""
    _check_dtype(page.where, _dtype_name(page))


def _dtype_name(page: Page) -> str:
    """Returns the kind of the numbers of an image; of quantities, float32 stands for others."""
    name = "uint8" if page.bits in (1, 2, 4) else page.dtype.name
    return "float32" if page.is_measured and name not in _TAKEN | _TO_FLOAT else name


def _check_dtype(path: object, dtype: str) -> None:
    if dtype not in _TAKEN | _TO_FLOAT | {"bool"}:
        raise UserError(
            f"{path}: holds numbers of the kind {dtype}; an image must have 8 or 16 bits, or "
            "32-bit floats. Save it as one of these."
        )


def image_pixels(page: Page, stored: np.ndarray) -> np.ndarray:
    """Returns rows of `page` as `read_image` does, given them as they are stored."""
    if page.palette is not None:
        return _colours(stored, page.palette)
    stored = _spread(stored, page.bits)
    if page.inverted_about is not None:
        stored = (page.inverted_about - stored).astype(stored.dtype)
    return stored if stored.dtype.name in _TAKEN else stored.astype(np.float32)


def _colours(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Returns the colours [H, W, 3] uint8 of indices; those beyond the palette are black."""
    table = np.zeros((max(len(palette), int(indices.max()) + 1), 3), np.uint8)
    table[: len(palette)] = palette
    return table[indices]


def _spread(stored: np.ndarray, bits: int) -> np.ndarray:
    """Returns numbers of 1, 2 or 4 bits spread over 0 to 255, others as they are."""
    if bits not in (1, 2, 4):
        return stored
    return stored.astype(np.uint8) * np.uint8(255 // (2**bits - 1))


def _header(page: Page) -> Header:
    height, width = page.upright
    return Header(
        width=width,
        height=height,
        channels=page.samples if page.palette is None else 3,
        dtype=_dtype_name(page),
        palette=b"" if page.palette is None else page.palette.tobytes(),
        alpha=page.alpha,
        pages=page.pages,
        format=page.format,
        turned=page.orientation != 1,
        white_is_zero=page.white_is_zero,
        directions=page.directions,
        notes=_notes(page),
    )


def _notes(page: Page) -> tuple[str, ...]:
    found = list(page.notes)
    if page.inverted_about is not None:
        found.append("inverted, as 0 is shown white")
    if page.is_measured and _dtype_name(page) != page.dtype.name and page.bits >= 8:
        found.append(f"{page.dtype.name} to float32")
    return tuple(found)


def write_png(
    path: str | os.PathLike, pixels: np.ndarray, metadata: Mapping[int, tuple] | None = None
) -> None:
    """Writes `pixels` as PNG, whole or not at all.

    Args:
        path: The file.
        pixels: [H, W], or [H, W, 3] in BGR order; uint8 or uint16.
        metadata: `Page.metadata`, of which a PNG holds the resolution.

    Raises:
        OSError: If the file cannot be written.
        UserError: If a side is longer than `MOST_PNG_SIDE`.
    """
    height, width = pixels.shape[:2]
    if max(height, width) > MOST_PNG_SIDE:
        raise UserError(
            f"{path}: would have {width}x{height} pixels; a side of a PNG has at most "
            f"{MOST_PNG_SIDE}. Cut the picture into parts."
        )
    _, encoded = cv2.imencode(".png", pixels)
    _write_picture(path, encoded.tobytes(), metadata)


def write_palette_png(
    path: str | os.PathLike,
    ids: np.ndarray,
    palette: Sequence[Sequence[int]],
    metadata: Mapping[int, tuple] | None = None,
) -> None:
    """Writes `ids` ([H, W] uint8) as PNG whose viewers show id `i` in the colour `palette[i]`.

    Args:
        path: The file; it is written whole or not at all.
        ids: [H, W] uint8.
        palette: [[red, green, blue], ...], each 0 to 255; ids beyond it are black.
        metadata: As in `write_png`.

    Raises:
        OSError: If the file cannot be written.
    """
    picture = Image.fromarray(ids)
    # With fewer colours PIL would store fewer bits a pixel, and cut the ids beyond them.
    colours = [level for colour in palette for level in colour]
    picture.putpalette(colours + [0] * (3 * 256 - len(colours)))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    _write_picture(path, encoded.getvalue(), metadata)


def _write_picture(
    path: str | os.PathLike, content: bytes, metadata: Mapping[int, tuple] | None
) -> None:
    if metadata:
        content = _with_resolution(content, metadata)
    # To wait for the disk can take longer than all else, and a picture can be made again.
    write_whole(path, content, flushed=False)


def _with_resolution(png: bytes, metadata: Mapping[int, tuple]) -> bytes:
    """Returns a PNG with the resolution that tags of TIFF name, if they do."""
    if not {_X_RESOLUTION, _Y_RESOLUTION} <= set(metadata):
        return png
    unit = metadata[_UNIT][3] if _UNIT in metadata else 2
    per_metre = _PER_METRE.get(int(unit))
    lengths = []
    for tag in (_X_RESOLUTION, _Y_RESOLUTION):
        dots, of = metadata[tag][3]
        lengths.append(round(dots / of * (per_metre or 1)) if of else 0)
    if not all(0 < length < 2**31 for length in lengths):
        return png
    end_of_header = 33
    chunk = io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"pHYs", struct.pack(">IIB", *lengths, per_metre is not None))
    return png[:end_of_header] + chunk.getvalue() + png[end_of_header:]
