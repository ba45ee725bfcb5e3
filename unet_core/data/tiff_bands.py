"""Pictures larger than memory, read in bands of rows.

with open_rows("slide.tif") as rows:
    for first in range(0, rows.height, 512):
        band = rows.read(first, min(first + 512, rows.height))    # [h, W, C] as in the file

Of a TIFF only the strips or tiles are decoded that the rows touch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import numpy as np

from unet_core.data import images
from unet_core.data.io import decoding, opened
from unet_core.data.io.page import Page


class Rows:
    """A picture that is read in bands of rows; made by `open_rows`, and closed by leaving a `with`.

    It is for one thread at a time.

    Attributes:
        height: Rows, as it is shown.
        width: Columns, as it is shown.
        channels: As stored, with alpha; a palette gives 3.
        alpha: Whether the last channel is opacity.
        dtype: uint8, uint16 or float32.
        metadata: What a picture of the same size may take over, see `Page`.
    """

    def __init__(self, page: Page, stack: contextlib.ExitStack):
        sample = images.image_pixels(page, np.zeros((1, 1, page.samples), page.dtype)[..., 0])
        self.height, self.width = page.upright
        self.channels = page.samples if page.palette is None else 3
        self.alpha = page.alpha
        self.dtype = sample.dtype
        self.metadata: Mapping[int, tuple] = _as_shown(page)
        self._page = page
        self._stack = stack
        self._whole: np.ndarray | None = None

    def read(self, first: int, last: int) -> np.ndarray:
        """Returns the rows `first` to before `last`, from 0, as `images.read_image` would.

        Bands from top to bottom that overlap decode everything once.

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
        page = self._page
        with decoding(page.where):
            if page.in_bands and page.orientation == 1:
                band = images.image_pixels(page, page.read_rows(first, last))
            else:
                if self._whole is None:
                    self._whole = images.image_pixels(page, page.read())
                band = self._whole[first:last].copy()
        return band.reshape(last - first, self.width, self.channels)

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _as_shown(page: Page) -> Mapping[int, tuple]:
    """Returns the metadata of a page that hold for it as it is shown."""
    if page.orientation == 1:
        return page.metadata
    # What is said of where pixels lie on Earth is said of the rows as they are stored.
    kept = {tag: value for tag, value in page.metadata.items() if tag in (282, 283, 296)}
    if page.orientation >= 5 and 282 in kept and 283 in kept:
        kept[282], kept[283] = (282, *kept[283][1:]), (283, *kept[282][1:])
    return kept


def open_rows(path: str | os.PathLike, page: int = 0) -> Rows:
    """Opens page `page` (from 0) of the picture at `path` for reading in bands of rows.

    A TIFF or an .npy file may have any number of pixels, unless it is to be turned or a row of its
    strips or tiles takes too much memory: these, and all other formats, are decoded whole by the
    first `read`.

    Raises:
        UserError: As `images.read_image`, but for damaged pixels.
    """
    stack = contextlib.ExitStack()
    found = stack.enter_context(opened(path, page))
    try:
        images.check_image(found)
        if not found.in_bands or found.orientation != 1:
            found.check_size()
        return Rows(found, stack)
    except BaseException:
        stack.close()
        raise
