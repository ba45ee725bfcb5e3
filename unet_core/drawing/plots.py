"""Curves and confusion matrices as pictures, drawn with OpenCV: no plotting library is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from unet_core.drawing.pictures import Colours

_SIZE, _LEFT, _BELOW, _ABOVE = 400, 60, 44, 30
_CELL = 64
# Blue, orange, green and purple that all people can tell apart: Okabe and Ito 2008.
_COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167))
_GREY = (120, 120, 120)


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


def panels(
    x: Sequence[float],
    series: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    x_title: str,
    mark: tuple[str, float] | None = None,
) -> np.ndarray:
    """Returns a picture [H, W, 3] uint8 of plots side by side over one horizontal axis.

    Args:
        x: The values of the axis, ascending.
        series: Title of a plot -> name of a curve -> its values at `x`, >= 0; what is not finite is
            left out. A plot whose values are all in 0..1 has that axis, others end at the highest.
        x_title: Under the horizontal axis.
        mark: Name and place of a vertical line in each plot, such as the best epoch.
    """
    first, length = x[0], (x[-1] - x[0]) or 1
    across = [(value - first) / length for value in x]
    names, drawn = list(dict.fromkeys(name for lines in series.values() for name in lines)), []
    for title, lines in series.items():
        values = {name: np.asarray(line, np.float64) for name, line in lines.items()}
        finite = np.concatenate([line[np.isfinite(line)] for line in values.values()])
        top = max(1.0, finite.max(initial=0.0))
        shown = {name: (across, line / top) for name, line in values.items()}
        colours = [_COLOURS[names.index(name) % len(_COLOURS)] for name in shown]
        if mark:
            shown[mark[0]] = ([(mark[1] - first) / length] * 2, [0, 1])
            colours.append(_GREY)
        ticks = {share: f"{share * top:.3g}" for share in (0, 0.2, 0.4, 0.6, 0.8, 1)}
        ends = {across[0]: f"{first:g}", across[-1]: f"{x[-1]:g}"}
        drawn.append(
            curves(shown, colours, x_title=x_title, y_title=title, x_ticks=ends, y_ticks=ticks)
        )
    return np.hstack(drawn)


def history(
    columns: Mapping[str, Sequence[float]],
    scores: Mapping[str, str],
    *,
    epoch_steps: int,
    best_step: int,
) -> np.ndarray:
    """Returns a picture [H, W, 3] uint8 of the history of a run, the best epoch marked.

    Args:
        columns: "step", and "<part>/<score>" for each part, such as train, and each score that it
            has; see `unet_core.training.history.read_columns`.
        scores: Title of a plot -> the score in it.
        epoch_steps: Steps of an epoch.
        best_step: The step to mark.
    """
    named = {name: name.partition("/") for name in columns}
    series = {
        title: {part: columns[name] for name, (part, _, score) in named.items() if score == wanted}
        for title, wanted in scores.items()
    }
    epochs = [step / epoch_steps for step in columns["step"]]
    return panels(epochs, series, x_title="epoch", mark=("best epoch", best_step / epoch_steps))


def confusion(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns a picture [H, W, 3] uint8 of a confusion matrix with its counts.

    Args:
        counts: [C, C], true classes in rows; a cell is the darker, the larger its share of the row.
        names: The C names of the classes; what is too long is cut.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    greys = np.kron(255 - np.rint(130 * shares), np.ones((_CELL, _CELL))).astype(np.uint8)
    left, above = 160, 50
    picture = cv2.copyMakeBorder(greys, above, 10, left, 10, cv2.BORDER_CONSTANT, value=255)
    picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    _write(picture, "truth \\ predicted", (6, 20))
    for place, name in enumerate(names):
        _write(picture, name[:18], (6, above + _CELL * place + 36))
        _write(picture, name[:7], (left + _CELL * place + 4, above - 10))
        for column, count in enumerate(counts[place]):
            at = (left + _CELL * column + 6, above + _CELL * place + 36)
            _write(picture, f"{count}", at)
    return picture


def _polyline(picture: np.ndarray, points: np.ndarray, colour: Sequence[int], width: int) -> None:
    whole = np.rint(points).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(picture, [whole], False, tuple(map(int, colour)), width, cv2.LINE_AA)


def _write(picture: np.ndarray, text: str, at: tuple[int, int]) -> None:
    font, black = cv2.FONT_HERSHEY_SIMPLEX, (0, 0, 0)
    cv2.putText(picture, text, at, font, 0.42, black, thickness=1, lineType=cv2.LINE_AA)
