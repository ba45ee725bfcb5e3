"""Masks laid over images, and truth beside prediction. Pictures are uint8, in BGR order as OpenCV
writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

MISSED_BGR = (255, 120, 30)
INVENTED_BGR = (40, 40, 255)
# Distinct for people who do not tell red from green (Okabe and Ito 2008), in BGR; repeated beyond
# eight classes.
_CLASS_BGR = np.array(
    [
        (0, 94, 213),
        (178, 114, 0),
        (115, 158, 0),
        (66, 228, 240),
        (233, 180, 86),
        (0, 159, 230),
        (167, 121, 204),
        (153, 153, 153),
    ],
    np.uint8,
)


def overlay(image: np.ndarray, ids: np.ndarray, *, alpha: float = 0.45) -> np.ndarray:
    """Returns `image` [H, W] uint8 with the classes `ids` [H, W] blended over it, the most frequent
    left clear.
    """
    result = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    colours = _CLASS_BGR[ids % len(_CLASS_BGR)]
    blended = cv2.addWeighted(result, 1 - alpha, colours, alpha, 0)
    coloured = ids != np.bincount(ids.ravel()).argmax()
    result[coloured] = blended[coloured]
    return result


def errors(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, *, of_class: int
) -> np.ndarray:
    """Returns `image` with the pixels of class `of_class` that were missed in blue and those
    invented in red.
    """
    result = cv2.cvtColor(image // 2 + 64, cv2.COLOR_GRAY2BGR)
    result[(truth == of_class) & (predicted != of_class)] = MISSED_BGR
    result[(truth != of_class) & (predicted == of_class)] = INVENTED_BGR
    return result


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Returns the pictures ([H, W] or [H, W, 3], one height) in a row, each under its title."""
    columns = []
    for picture, title in zip(pictures, titles, strict=True):
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR) if picture.ndim == 2 else picture
        framed = cv2.copyMakeBorder(
            picture, 22, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)
        )
        cv2.putText(
            framed, title, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA
        )
        columns.append(framed)
    return np.hstack(columns)
