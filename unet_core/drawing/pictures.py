"""Masks laid over images, and truth beside prediction.

Pictures are [H, W, 3] uint8, in BGR order as OpenCV writes them; images come as `Pair.image` does:
grey, RGB, or of other channels, in 0..255.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap

MISSED_BGR = (255, 120, 30)
INVENTED_BGR = (40, 40, 255)
CONFUSED_BGR = (60, 220, 255)
# Of the frame of a picture in a row, in pixels.
_AROUND = 4
Colours = Sequence[tuple[int, int, int]]
"""A colour (red, green, blue) for each class, as `ClassMap.palette` gives them."""


def displayable(image: np.ndarray) -> np.ndarray:
    """Returns `image` [H, W] or [H, W, C] as a picture.

    Two channels are shown as red and green, and of more than three the first as red, green and
    blue.

    What is not uint8 is clipped to 0..255; if it fills less than a quarter of that, as micrographs
    of 12 bits in 16 do, it is shown by its own range, from its 0.1th to its 99.9th percentile.
    """
    if image.ndim == 3 and image.shape[2] != 3:
        empty = np.zeros_like(image[..., :1])
        image = image[..., 0] if image.shape[2] == 1 else np.dstack([image, empty])[..., :3]
    if image.dtype != np.uint8:
        low, high = np.percentile(image, (0.1, 99.9))
        if 0 < high - low < 64:
            image = (image - low) * (255 / (high - low))
        image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(image)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)


def mask_picture(ids: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Returns class `ids` [H, W] as a picture.

    Two classes that are numbers in mask files are black and white, the larger number white; others
    have their colours. Ignored pixels are grey.
    """
    colours: list[Sequence[int]] = [colour[::-1] for colour in classes.colours()]
    if len(classes) == 2 and not classes.is_colour and not classes.overlapping:
        first, second = classes.listed
        colours = [[255 * (first > second)] * 3, [255 * (second > first)] * 3]
    table = np.full((256, 3), 128, np.uint8)
    table[: len(colours)] = colours
    return table[ids]


def comparison(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, classes: ClassMap
) -> np.ndarray:
    """Returns image, truth, prediction and errors side by side.

    Args:
        image: [H, W] or [H, W, 3].
        truth: [H, W] class ids or `IGNORED`.
        predicted: [H, W] class ids.
        classes: Their meaning.
    """
    title = "missed blue, invented red"
    if len(classes) == 2 and not classes.overlapping:
        title = f"{classes.names[1 - classes.clear]}: {title}"
    else:
        title += ", confused yellow"
    shown = [displayable(image), mask_picture(truth, classes), mask_picture(predicted, classes)]
    return side_by_side(
        [*shown, errors(image, truth, predicted, clear=classes.clear)],
        ["image", "truth", "prediction", title],
    )


def overlay(
    image: np.ndarray, ids: np.ndarray, classes: ClassMap, *, alpha: float = 0.45
) -> np.ndarray:
    """Returns `image` with the classes `ids` [H, W] blended over it in their colours.

    The class `classes.clear` is left out.
    """
    result = displayable(image)
    blended = cv2.addWeighted(result, 1 - alpha, _in_bgr(classes.colours())[ids], alpha, 0)
    coloured = ids != classes.clear
    result[coloured] = blended[coloured]
    return result


def with_legend(picture: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Returns `picture` with a strip below it that names the classes beside their colours.

    The class that is left clear is not among them. Names that do not fit go to further lines.
    """
    width = picture.shape[1]
    size = _text_size(width)
    font, line = _font(size), 2 * size
    shown = [n for n in range(len(classes)) if classes.overlapping or n != classes.clear]
    places, x, y = [], size // 2, 0
    for number in shown:
        needed = 2 * size + int(font.getlength(classes.names[number]))
        if x > size // 2 and x + needed > width:
            x, y = size // 2, y + line
        places.append((x, y))
        x += needed + size
    strip = PIL.Image.new("RGB", (width, y + line), "white")
    draw = PIL.ImageDraw.Draw(strip)
    for number, (x, y) in zip(shown, places, strict=True):
        box = (x, y + size // 2, x + size, y + size // 2 + size)
        draw.rectangle(box, fill=classes.palette()[number], outline="black")
        draw.text((x + size + size // 2, y + line // 2), classes.names[number], "black", font, "lm")
    return np.vstack([picture, np.asarray(strip)[..., ::-1]])


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


def outlines(image: np.ndarray, ids: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Returns `image` with the classes `ids` [H, W] outlined in their colours.

    The class `classes.clear` is left out. IGNORED pixels are hatched.

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
    drawn = is_edge & ~is_ignored & (ids != classes.clear)
    result[drawn] = _in_bgr(classes.colours())[ids[drawn]]
    # A white line beside a black one is seen on any ground.
    diagonal = np.indices(ids.shape).sum(0) % 8
    result[is_ignored & (diagonal == 0)] = 255
    result[is_ignored & (diagonal == 1)] = 0
    return result


def errors(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, *, clear: int
) -> np.ndarray:
    """Returns `image` with wrong pixels coloured; ignored pixels are never wrong.

    Blue is what was missed: something else than the class `clear`, where `clear` was predicted. Red
    is what was invented: something else, predicted where `clear` is. Yellow are pixels of another
    class than the predicted one, neither being `clear`.
    """
    result = displayable(image) // 2 + 64
    wrong = (truth != IGNORED) & (truth != predicted)
    result[wrong] = CONFUSED_BGR
    result[wrong & (predicted == clear)] = MISSED_BGR
    result[wrong & (truth == clear)] = INVENTED_BGR
    return result


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Returns the pictures ([H, W] or [H, W, 3], one height) in a row, each under its title.

    The letters grow with the pictures; what of a title is wider than its picture is cut off.
    """
    size = _text_size(max(picture.shape[1] for picture in pictures))
    columns = []
    for picture, title in zip(pictures, titles, strict=True):
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR) if picture.ndim == 2 else picture
        strip = PIL.Image.new("RGB", (picture.shape[1] + 2 * _AROUND, 2 * size), "white")
        PIL.ImageDraw.Draw(strip).text((6, size), title, "black", _font(size), "lm")
        sides = 0, _AROUND, _AROUND, _AROUND
        framed = cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=(255,) * 3)
        columns.append(np.vstack([np.asarray(strip), framed]))
    return np.hstack(columns)


def panels_of(row: np.ndarray, count: int) -> list[np.ndarray] | None:
    """Returns the pictures that `side_by_side` has put in a row; None if it cannot be of `count`.

    Args:
        row: [H, W, 3].
        count: Their number; they are of one size.
    """
    width = row.shape[1] // count - 2 * _AROUND
    above = 2 * _text_size(width)
    height = row.shape[0] - above - _AROUND
    if row.shape[1] % count or height < 1 or width < 1:
        return None
    columns = np.split(row, count, axis=1)
    return [each[above:-_AROUND, _AROUND:-_AROUND] for each in columns]


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

    Without any it is one that says so.
    """
    if not tiles:
        tiles, titles = [np.full((32, 64, 3), 255, np.uint8)], ["none"]
    rows = [
        side_by_side(tiles[first : first + columns], titles[first : first + columns])
        for first in range(0, len(tiles), columns)
    ]
    width = rows[0].shape[1]
    return np.vstack(
        [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    )


def _text_size(width: int) -> int:
    """Returns the height of letters in pixels that suits a picture of `width` pixels."""
    return max(11, width // 40)


@functools.cache
def _font(size: int) -> PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.load_default(size)


def _in_bgr(colours: Colours) -> np.ndarray:
    return np.array(colours, np.uint8)[:, ::-1]
