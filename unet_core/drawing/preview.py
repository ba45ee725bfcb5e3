"""A sheet of augmented samples, to see before training what the network will see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unet_core.drawing import pictures


def contact_sheet(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    colours: pictures.Colours,
    *,
    columns: int = 6,
    clear: int | None = None,
) -> np.ndarray:
    """Returns a picture of all pairs, row by row, [H, W, 3] uint8 in BGR order.

    Each pair stands under its number, from 1, with the classes outlined and ignored pixels hatched.

    Args:
        pairs: At least one image and its mask [h, w] of class ids, all of one size.
        colours: Those of the classes.
        columns: Pairs in a row.
        clear: The class without outlines, or the most frequent of a pair if None.
    """
    tiles = [pictures.outlines(image, mask, colours, clear=clear) for image, mask in pairs]
    rows = [
        pictures.side_by_side(
            tiles[first : first + columns],
            [str(number) for number in range(first + 1, min(first + columns, len(tiles)) + 1)],
        )
        for first in range(0, len(tiles), columns)
    ]
    sheet = np.full((len(rows), *rows[0].shape), 255, np.uint8)
    for place, row in zip(sheet, rows, strict=True):
        place[:, : row.shape[1]] = row
    return sheet.reshape(-1, *rows[0].shape[1:])
