"""Pixels from PNG, JPEG, BMP and TIFF files, as stored, with errors that name the file.

`read_image` keeps intensities, `read_mask` keeps class values. Neither turns a picture: an
orientation in the EXIF data of a JPEG or PNG is not applied, and a TIFF that asks to be turned is
refused, so that an image and its mask cannot be turned differently.

A palette is replaced by its colours in images and kept as indices in masks; the transparent colour
of a PNG is left aside. Grey of 1, 2 or 4 bits is spread over 0 to 255.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile as PilTiffImageFile

from unet_core.errors import UserError, reason_of
from unet_core.files import write_whole

MOST_PIXELS = 2**29
"""A small file can unpack to more than the memory of any machine; 23000 x 23000 fit in this."""


class TiffImageFile(PilTiffImageFile):
    """A TIFF as Pillow 13.0 reads it, but for two things that go wrong there.

    PIL's own limit is for the whole process, and lower than a slide of 20000 x 20000 pixels. And
    libtiff gives numbers in the byte order of the machine, which Pillow knows of 16 bits without
    sign only: others of a big-endian file, if compressed, would be turned around.
    """

    tile: list[Any]

    def load_prepare(self) -> None:
        """Prepares decoding, as PIL does, without its limit and with the right byte order."""
        if self._im is None:
            self.im = Image.core.new(self.mode, self.size)
        if self.use_load_libtiff:
            layout, *rest = self.tile[0].args
            if layout.startswith(("F;", "I;")):
                args = (layout.replace("B", "N"), *rest)
                self.tile = [self.tile[0]._replace(args=args)]
        super().load_prepare()


_READERS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"II+\0": TiffImageFile,
    b"MM\0+": TiffImageFile,
}
# PIL's name of a kind of picture: (channels, dtype) of its pixels.
_KINDS = {
    "1": (1, "uint8"),
    "L": (1, "uint8"),
    "LA": (2, "uint8"),
    "P": (3, "uint8"),
    "RGB": (3, "uint8"),
    "RGBA": (4, "uint8"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
    "I": (1, "int32"),
    "F": (1, "float32"),
}
_TIFF_BITS_PER_SAMPLE = 258
_TIFF_ORIENTATION = 274
_TIFF_PLANAR_CONFIGURATION = 284


@dataclasses.dataclass(frozen=True)
class Header:
    """What a picture file says of itself; of several pages, what the first says.

    Attributes:
        width: Columns.
        height: Rows.
        channels: Channels of its pixels, alpha included; 3 for a palette.
        dtype: "uint8", "uint16", "float32", or "int32", which only masks may have.
        palette: Whether the pixels are indices into a table of colours.
        alpha: Whether the last channel is opacity.
        pages: Pictures in the file; only a TIFF has more than one.
        format: "PNG", "JPEG", "TIFF" or "BMP".
    """

    width: int
    height: int
    channels: int
    dtype: str
    palette: bool
    alpha: bool
    pages: int
    format: str


def read_header(path: str | os.PathLike, *, of_any_size: bool = False) -> Header:
    """Returns the header of the picture at `path`, without decoding its pixels.

    Args:
        path: The file.
        of_any_size: Whether the picture may have more than `MOST_PIXELS`.

    Raises:
        UserError: If the file cannot be read, is no picture of a kind that can be read, is larger
            than 2^29 pixels, or is seen to be cut short.
    """
    with opened(path, of_any_size=of_any_size) as picture:
        channels, dtype = kind_of(picture)
        return Header(
            width=picture.width,
            height=picture.height,
            channels=channels,
            dtype=dtype,
            palette=picture.mode == "P",
            alpha=channels in (2, 4),
            pages=picture.n_frames if isinstance(picture, TiffImageFile) else 1,
            format=str(picture.format),
        )


def read_image(path: str | os.PathLike, page: int = 0) -> np.ndarray:
    """Returns the pixels of page `page` (from 0) of the picture at `path` as stored.

    Returns:
        [H, W], or [H, W, C] with C = 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha); uint8, uint16 or
        float32.

    Raises:
        UserError: As `read_header`; and if the pixels are cut short, damaged, or 32-bit integers,
            or there is no such page.
    """
    with opened(path, page) as picture:
        check_image(path, picture)
        return image_pixels(picture, page)


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


def read_mask(path: str | os.PathLike, page: int = 0) -> np.ndarray:
    """Returns the values of page `page` (from 0) of the mask at `path` as stored.

    Indices into a palette stay indices, alpha is dropped, and whole numbers stored as floats become
    integers.

    Returns:
        [H, W] uint8, uint16 or int32; or [H, W, 3] uint8 in RGB order if the file is coloured, were
        its colours all grey.

    Raises:
        UserError: As `read_header`; and if the pixels are cut short or damaged, were compressed as
            JPEG, are fractions, or are colours of 16 bits, or there is no such page.
    """
    with opened(path, page) as picture:
        if picture.format == "JPEG" or "jpeg" in str(picture.info.get("compression")):
            raise UserError(
                f"{path}: is compressed as JPEG, which changes the values of pixels, so that they "
                "no longer stand for the classes; save the mask as PNG from its original."
            )
        if not _is_deep(picture):
            values = _pixels(picture)
        elif _deep_channels(picture) == 2:
            values = _deep_pixels(picture, page)
        else:
            raise UserError(
                f"{path}: holds colours of 16 bits; a coloured mask must have 8 bits a channel. "
                "Save it as 8-bit RGB."
            )
    if values.ndim == 3:
        return np.ascontiguousarray(values[..., 0] if values.shape[2] == 2 else values[..., :3])
    if values.dtype != np.float32:
        return values
    whole = (values == np.rint(values)) & (np.abs(values) < 2**31)
    if not whole.all():
        raise UserError(
            f"{path}: {np.count_nonzero(~whole)} pixel(s) of the mask hold no whole number, such "
            f"as {values[~whole][0]}; the values of a mask stand for classes. Save them as "
            "integers."
        )
    return values.astype(np.int32)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns `image` as [H, W, channels], of its dtype.

    Args:
        image: [H, W] or [H, W, C] as `read_image` returns it.
        channels: 1 or 3. Alpha is dropped, colours become grey by the luma of Rec. 601, and grey is
            repeated.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = np.ascontiguousarray(image[..., : 1 if image.shape[2] < 3 else 3])
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def describe_conversion(header: Header, channels: int) -> str | None:
    """Returns what reading does to a picture, such as "alpha dropped, RGB to grey".

    That is what `read_image` and `to_channels` change; None if it stays as it is.
    """
    steps = []
    if header.palette:
        steps.append("palette to RGB")
    if header.alpha:
        steps.append("alpha dropped")
    if header.channels >= 3 and channels == 1:
        steps.append("RGB to grey")
    if header.channels < 3 and channels == 3:
        steps.append("grey to RGB")
    return ", ".join(steps) or None


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Writes `pixels` as PNG, whole or not at all.

    `pixels` are [H, W], or [H, W, 3] in BGR order; uint8 or uint16.

    Raises:
        OSError: If the file cannot be written.
    """
    _, encoded = cv2.imencode(".png", pixels)
    _write_picture(path, encoded.tobytes())


def write_palette_png(
    path: str | os.PathLike, ids: np.ndarray, palette: Sequence[Sequence[int]]
) -> None:
    """Writes `ids` ([H, W] uint8) as PNG whose viewers show id `i` in the colour `palette[i]`.

    Args:
        path: The file; it is written whole or not at all.
        ids: [H, W] uint8.
        palette: [[red, green, blue], ...], each 0 to 255; ids beyond it are black.

    Raises:
        OSError: If the file cannot be written.
    """
    picture = Image.fromarray(ids)
    # With fewer colours PIL would store fewer bits a pixel, and cut the ids beyond them.
    colours = [level for colour in palette for level in colour]
    picture.putpalette(colours + [0] * (3 * 256 - len(colours)))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    _write_picture(path, encoded.getvalue())


def _write_picture(path: str | os.PathLike, content: bytes) -> None:
    # To wait for the disk can take longer than all else, and a picture can be made again.
    write_whole(path, content, flushed=False)


@contextlib.contextmanager
def opened(
    path: str | os.PathLike,
    page: int = 0,
    *,
    content: bytes | None = None,
    of_any_size: bool = False,
) -> Iterator[ImageFile]:
    """Gives page `page` of the picture at `path`, not decoded yet.

    Whatever fails before or inside the `with` becomes a UserError that names the file.

    Args:
        path: The file.
        page: The page, from 0.
        content: What to read instead of the file, which is only named in errors.
        of_any_size: Whether the picture may have more than `MOST_PIXELS`.
    """
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            start = file.read(8)
            size = file.seek(0, os.SEEK_END)
            reader = next((r for mark, r in _READERS.items() if start.startswith(mark)), None)
            if reader is None:
                raise UserError(
                    f"{path}: cannot be decoded as a picture ({size} bytes, which do not start as "
                    "a PNG, JPEG, BMP or TIFF file does); replace or remove it."
                )
            if reader is PngImageFile:
                # OpenCV 5.0 returns the rows it could decode of a cut PNG, and says nothing.
                file.seek(-8, os.SEEK_END)
                if file.read(4) != b"IEND":
                    raise UserError(
                        f"{path}: the PNG is cut short ({size} bytes, no end mark); copy it again."
                    )
            file.seek(0)
            picture = reader(file, os.fspath(path))
            _turn_to(path, picture, page)
            if not of_any_size:
                check_size(path, picture)
            _check_kind(path, picture)
            yield picture
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Decoders raise anything, from SyntaxError to struct.error.
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read ({reason_of(error)}).") from error
        raise UserError(
            f"{path}: cannot be decoded as a picture ({error}): it is damaged, cut short, or of a "
            "kind that is not read. Copy it again, save it as PNG or TIFF of 8 or 16 bits, or "
            "remove it."
        ) from error


def _turn_to(path: str | os.PathLike, picture: ImageFile, page: int) -> None:
    """Makes `page` the current page of `picture`.

    Raises:
        UserError: If there is no such page.
    """
    if page == 0:
        return
    with contextlib.suppress(EOFError):
        if isinstance(picture, TiffImageFile):
            picture.seek(page)
            return
    raise UserError(
        f"{path}: there is no page {page + 1}, counted from 1; the file has fewer. Name one that "
        "it has."
    )


def check_size(path: str | os.PathLike, picture: ImageFile) -> None:
    """Raises UserError if `picture` is too large to be decoded whole."""
    if picture.width * picture.height > MOST_PIXELS:
        raise UserError(
            f"{path}: has {picture.width}x{picture.height} pixels; at most {MOST_PIXELS} are "
            "read. Cut it into tiles, or remove it if it is no picture of yours."
        )


def check_image(path: str | os.PathLike, picture: ImageFile) -> None:
    """Raises UserError if the pixels of `picture` can be those of a mask only."""
    if picture.mode == "I":
        raise UserError(
            f"{path}: holds 32-bit integers; an image must be 8-bit, 16-bit or 32-bit float. "
            "Save it as one of these."
        )


def kind_of(picture: ImageFile) -> tuple[int, str]:
    """Returns the channels and the dtype of the pixels of `picture`, see `Header`."""
    return (_deep_channels(picture), "uint16") if _is_deep(picture) else _KINDS[picture.mode]


def image_pixels(picture: ImageFile, page: int = 0) -> np.ndarray:
    """Returns the pixels of `picture`, which is turned to `page`, as `read_image` does."""
    if _is_deep(picture):
        return _deep_pixels(picture, page)
    return _pixels(picture.convert("RGB") if picture.mode == "P" else picture)


def _check_kind(path: str | os.PathLike, picture: ImageFile) -> None:
    """Raises UserError if `picture` is of a kind that is not read."""
    if picture.mode not in _KINDS:
        raise UserError(
            f"{path}: holds pixels of the kind {picture.mode}; it must be grey, RGB or a palette. "
            "Save it as RGB."
        )
    if not isinstance(picture, TiffImageFile):
        return
    orientation = picture.tag_v2.get(_TIFF_ORIENTATION, 1)
    if orientation != 1:
        raise UserError(
            f"{path}: asks to be turned or mirrored (TIFF orientation {orientation}), which not "
            "every program does; the pixels of an image and its mask must lie alike. Save it "
            "upright, with orientation 1."
        )
    if _is_deep(picture) and picture.tag_v2.get(_TIFF_PLANAR_CONFIGURATION, 1) != 1:
        # OpenCV 5.0 takes the planes for interleaved pixels, and says nothing.
        raise UserError(
            f"{path}: stores its 16-bit channels in planes one after another, which is not read. "
            "Save it with the channels of each pixel together."
        )


def _pixels(picture: ImageFile) -> np.ndarray:
    """Returns the decoded pixels of `picture`, of a dtype that `Header` names."""
    pixels = np.array(picture)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _is_deep(picture: ImageFile) -> bool:
    """Whether `picture` has several channels of 16 bits, of which PIL would keep only 8."""
    if len(picture.getbands()) == 1:
        return False
    if isinstance(picture, TiffImageFile):
        return max(picture.tag_v2[_TIFF_BITS_PER_SAMPLE]) > 8
    return ";16" in _layout(picture)


def _deep_channels(picture: ImageFile) -> int:
    """Returns the channels of a picture that `_is_deep`."""
    # PIL takes grey and alpha of 16 bits for RGBA.
    return 2 if _layout(picture).startswith("LA") else len(picture.getbands())


def _layout(picture: ImageFile) -> str:
    """Returns PIL's name of the layout of the pixels in the file, such as "RGB;16B"."""
    layout = picture.tile[0].args
    return layout if isinstance(layout, str) else str(layout[0])


def _deep_pixels(picture: ImageFile, page: int) -> np.ndarray:
    """Returns the pixels of a picture that `_is_deep`, [H, W, C] uint16."""
    channels = _deep_channels(picture)
    picture.fp.seek(0)
    encoded = np.frombuffer(picture.fp.read(), np.uint8)
    decoded, pages = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    if not decoded:
        raise ValueError("the pixels cannot be decoded")
    pixels = pages[0]
    # OpenCV gives BGR, and BGRA for grey and alpha, or for RGB with a transparent colour.
    return np.ascontiguousarray(pixels[..., {2: [2, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]])
