"""What every library that reads files gives: one page, with what the file says about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from unet_core.data.io import limits

MOST_PAGES = 2**16
"""Of a file."""


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of a file that is open.

    Attributes:
        where: The file, for messages.
        format: "PNG", "JPEG", "BMP", "TIFF", "NumPy", "DICOM", "NIfTI" or "OME-Zarr".
        pages: Pictures in the file.
        height: Rows as stored.
        width: Columns as stored.
        samples: Numbers of each pixel, alpha included.
        dtype: The kind of number as stored, in the byte order of this machine; bool is one bit.
        read_rows: (first, last) -> those rows as stored, [h, W] or [h, W, samples].
        bits: Bits of a number that are used; fewer than the dtype has if they were packed.
        alpha: Whether the last sample is opacity.
        palette: The colours [n, 3] uint8 that the numbers stand for, or None.
        orientation: How the picture is turned when it is shown, 1 to 8 as in EXIF.
        white_is_zero: Whether the file says that 0 is to be shown white.
        lossy: Whether it was compressed as JPEG.
        in_bands: Whether some rows can be read without decoding all.
        metadata: What a picture of the same size may take over: TIFF tags by code, as
            `tifffile.imwrite` takes them (code, type, count, value).
        inverted_about: What a number and its negative in an image add up to, where the file is one
            of those whose images are to be inverted; None is not.
        is_measured: Whether numbers are quantities, of which images take what float32 holds.
        pixel_size_um: Width and height of a pixel in micrometres; None if the module does not know.
        directions: To which sides its axes run, such as "RAS"; an image and its mask have the same.
        notes: What is said of the numbers, such as that they are rescaled.
    """

    where: str
    format: str
    pages: int
    height: int
    width: int
    samples: int
    dtype: np.dtype
    read_rows: Callable[[int, int], np.ndarray]
    bits: int
    alpha: bool = False
    palette: np.ndarray | None = None
    orientation: int = 1
    white_is_zero: bool = False
    lossy: bool = False
    in_bands: bool = False
    metadata: Mapping[int, tuple] = dataclasses.field(default_factory=dict)
    inverted_about: float | None = None
    is_measured: bool = False
    pixel_size_um: tuple[float, float] | None = None
    directions: str = ""
    notes: tuple[str, ...] = ()

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as it is shown."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)

    def check_size(self) -> None:
        """Raises UserError if the page is too large to be decoded whole."""
        channels = self.samples if self.palette is None else 3
        limits.check_bytes(
            self.where,
            self.height * self.width * channels * self.dtype.itemsize,
            f"{self.width}x{self.height} pixels of {channels} channel(s), {self.dtype}",
        )

    def read(self) -> np.ndarray:
        """Returns all pixels as stored, upright.

        Raises:
            UserError: If they are too many.
        """
        self.check_size()
        return turned(self.read_rows(0, self.height), self.orientation)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns stored pixels [H, W(, C)] as they are shown with an orientation of EXIF, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # Where the first row and the first column of what is stored lie when it is shown.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
