"""Masks laid over images, and truth beside prediction.

Pictures are [H, W, 3] uint8, in BGR order as OpenCV writes them; images come as `Pair.image` does:
grey or RGB, in 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap

MISSED_BGR = (255, 120, 30)
INVENTED_BGR = (40, 40, 255)
# Of the frame of a picture in a row, in pixels.
_ABOVE, _AROUND = 22, 4
Colours = Sequence[tuple[int, int, int]]
"""A colour (red, green, blue) for each class, as `ClassMap.palette` gives them."""


def displayable(image: np.ndarray) -> np.ndarray:
    """Returns `image` [H, W] or [H, W, 3] as a picture; what lies outside 0..255 is clipped."""
    image = image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)


def mask_picture(ids: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Returns class `ids` [H, W] as a picture.

    Two classes are shown by their grey values, more by colours; ignored pixels are grey.
    """
    greys = [value for value in classes.mask_values if isinstance(value, int)]
    colours: list[Sequence[int]] = [colour[::-1] for colour in classes.palette()]
    if len(classes) == 2 and not classes.is_colour and max(greys) <= 255:
        colours = [[value] * 3 for value in greys]
    table = np.full((256, 3), 128, np.uint8)
    table[: len(classes)] = colours
    return table[ids]


def comparison(
    image: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    classes: ClassMap,
    *,
    of_class: int | None,
) -> np.ndarray:
    """Returns image, truth, prediction and errors side by side.

    Args:
        image: [H, W] or [H, W, 3].
        truth: [H, W] class ids or `IGNORED`.
        predicted: [H, W] class ids.
        classes: Their meaning.
        of_class: The class whose missed and invented pixels have different colours; None shows
            all errors alike.
    """
    title = "errors red"
    if of_class is not None:
        title = f"{classes.names[of_class]}: missed blue, invented red"
    shown = [displayable(image), mask_picture(truth, classes), mask_picture(predicted, classes)]
    return side_by_side(
        [*shown, errors(image, truth, predicted, of_class=of_class)],
        ["image", "truth", "prediction", title],
    )


def overlay(
    image: np.ndarray,
    ids: np.ndarray,
    colours: Colours,
    *,
    alpha: float = 0.45,
    clear: int | None = None,
) -> np.ndarray:
    """Returns `image` with the classes `ids` [H, W] blended over it in their colours.

    The class `clear`, or the most frequent if None, is left out.
    """
    result = displayable(image)
    blended = cv2.addWeighted(result, 1 - alpha, _in_bgr(colours)[ids], alpha, 0)
    clear = int(np.bincount(ids.ravel()).argmax()) if clear is None else clear
    coloured = ids != clear
    result[coloured] = blended[coloured]
    return result


def objects(image: np.ndarray, labels: np.ndarray, *, alpha: float = 0.45) -> np.ndarray:
    """Returns `image` with the numbered objects `labels` [H, W] blended over it.

    Each has a colour of its own; 0 is left out.
    """
    result = displayable(image)
    # Hues by the golden angle: numbers that follow one another, as neighbours do, differ most.
    numbers = np.arange(labels.max() + 1)
    hues = np.uint8(np.round(numbers * 137.508 / 2) % 180)
    hsv = np.stack([hues, np.full_like(hues, 200), np.full_like(hues, 235)], -1)[None]
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0][labels]
    blended = cv2.addWeighted(result, 1 - alpha, colours, alpha, 0)
    result[labels > 0] = blended[labels > 0]
    return result


def outlines(
    image: np.ndarray, ids: np.ndarray, colours: Colours, *, clear: int | None = None
) -> np.ndarray:
    """Returns `image` with the classes `ids` [H, W] outlined in their colours.

    The class `clear`, or the most frequent if None, is left out. IGNORED pixels are hatched.

    The outline of a class is its pixels that touch another class or an ignored pixel.
    """
    result = displayable(image)
    is_edge = np.zeros(ids.shape, bool)
    down, right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    is_edge[1:] |= down
    is_edge[:-1] |= down
    is_edge[:, 1:] |= right
    is_edge[:, :-1] |= right
    is_ignored = ids == IGNORED
    counts = np.bincount(ids[~is_ignored], minlength=1)
    clear = int(counts.argmax()) if clear is None else clear
    drawn = is_edge & ~is_ignored & (ids != clear)
    result[drawn] = _in_bgr(colours)[ids[drawn]]
    # A white line beside a black one is seen on any ground.
    diagonal = np.indices(ids.shape).sum(0) % 8
    result[is_ignored & (diagonal == 0)] = 255
    result[is_ignored & (diagonal == 1)] = 0
    return result


def errors(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, *, of_class: int | None
) -> np.ndarray:
    """Returns `image` with wrong pixels coloured.

    Pixels of class `of_class` that were missed are blue, and those predicted where it is not are
    red; without a class all wrong pixels are red. Ignored pixels are never wrong.
    """
    result = displayable(image) // 2 + 64
    kept = truth != IGNORED
    if of_class is None:
        result[kept & (truth != predicted)] = INVENTED_BGR
        return result
    result[kept & (truth == of_class) & (predicted != of_class)] = MISSED_BGR
    result[kept & (truth != of_class) & (predicted == of_class)] = INVENTED_BGR
    return result


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Returns the pictures ([H, W] or [H, W, 3], one height) in a row, each under its title."""
    columns = []
    for picture, title in zip(pictures, titles, strict=True):
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR) if picture.ndim == 2 else picture
        framed = cv2.copyMakeBorder(
            picture, _ABOVE, _AROUND, _AROUND, _AROUND, cv2.BORDER_CONSTANT, value=(255,) * 3
        )
        cv2.putText(
            framed, title, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA
        )
        columns.append(framed)
    return np.hstack(columns)


def panels_of(row: np.ndarray, count: int) -> list[np.ndarray] | None:
    """Returns the pictures that `side_by_side` has put in a row; None if it cannot be of `count`.

    Args:
        row: [H, W, 3].
        count: Their number; they are of one size.
    """
    height, width = row.shape[0] - _ABOVE - _AROUND, row.shape[1] // count - 2 * _AROUND
    if row.shape[1] % count or height < 1 or width < 1:
        return None
    columns = np.split(row, count, axis=1)
    return [each[_ABOVE:-_AROUND, _AROUND:-_AROUND] for each in columns]


def stacked(rows: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Returns pictures [H, W, 3] one below the other, each under its title."""
    framed = [side_by_side([picture], [title]) for title, picture in rows]
    width = max(picture.shape[1] for picture in framed)
    wide = [
        cv2.copyMakeBorder(
            picture, 0, 0, 0, width - picture.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3
        )
        for picture in framed
    ]
    return np.vstack(wide)


def contact_sheet(
    tiles: Sequence[np.ndarray], titles: Sequence[str], *, columns: int = 6
) -> np.ndarray:
    """Returns small pictures of one size, [H, W] or [H, W, 3], in rows, each under its title.

    Raises:
        ValueError: If there are none.
    """
    if not tiles:
        raise ValueError("`tiles` must hold at least one picture.")
    rows = [
        side_by_side(tiles[first : first + columns], titles[first : first + columns])
        for first in range(0, len(tiles), columns)
    ]
    width = rows[0].shape[1]
    return np.vstack(
        [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    )


def _in_bgr(colours: Colours) -> np.ndarray:
    return np.array(colours, np.uint8)[:, ::-1]
