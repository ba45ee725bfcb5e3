"""Curves as pictures, drawn with OpenCV so that no plotting library is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from unet_core.drawing.pictures import Colours

_SIZE, _LEFT, _BELOW, _ABOVE = 400, 60, 44, 30


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    colours: Colours,
    *,
    x_title: str,
    y_title: str,
    x_ticks: Mapping[float, str] | None = None,
    y_ticks: Mapping[float, str] | None = None,
) -> np.ndarray:
    """Returns a picture [H, W, 3] uint8 of curves in the unit square.

    Args:
        lines: Name -> (x values, y values), each in 0..1; what is NaN is left out.
        colours: One (red, green, blue) for each curve.
        x_title: Under the horizontal axis.
        y_title: Above the vertical axis.
        x_ticks: What to write at which place 0..1 of the horizontal axis; by default the place.
        y_ticks: The same of the vertical axis.
    """
    height, width = _ABOVE + _SIZE + _BELOW, _LEFT + _SIZE + 200
    picture = np.full((height, width, 3), 255, np.uint8)

    def place(x, y):
        return np.stack([_LEFT + np.multiply(x, _SIZE), _ABOVE + _SIZE * (1 - np.asarray(y))], -1)

    shares = {float(tick): f"{tick:.1f}" for tick in np.linspace(0, 1, 6)}
    for tick, text in (x_ticks or shares).items():
        _polyline(picture, place([tick, tick], [0, 1]), (225, 225, 225), 1)
        _write(picture, text, (int(place(tick, 0)[0]) - 10, _ABOVE + _SIZE + 16))
    for tick, text in (y_ticks or shares).items():
        _polyline(picture, place([0, 1], [tick, tick]), (225, 225, 225), 1)
        _write(picture, text, (_LEFT - 6 - 8 * len(text), int(place(0, tick)[1]) + 4))
    _write(picture, x_title, (_LEFT + _SIZE // 2 - 20, height - 8))
    _write(picture, y_title, (2, 12))
    for number, (name, (x, y)) in enumerate(lines.items()):
        colour = colours[number][::-1]
        points = place(x, y)
        _polyline(picture, points[np.isfinite(points).all(-1)], colour, 2)
        top = _ABOVE + 14 + 20 * number
        _polyline(
            picture,
            np.array([[_LEFT + _SIZE + 12, top - 4], [_LEFT + _SIZE + 32, top - 4]]),
            colour,
            2,
        )
        _write(picture, name, (_LEFT + _SIZE + 38, top))
    return picture


def _polyline(picture: np.ndarray, points: np.ndarray, colour: Sequence[int], width: int) -> None:
    whole = np.rint(points).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(picture, [whole], False, tuple(map(int, colour)), width, cv2.LINE_AA)


def _write(picture: np.ndarray, text: str, at: tuple[int, int]) -> None:
    font, black = cv2.FONT_HERSHEY_SIMPLEX, (0, 0, 0)
    cv2.putText(picture, text, at, font, 0.42, black, thickness=1, lineType=cv2.LINE_AA)
