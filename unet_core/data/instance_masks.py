"""Masks that hold the numbers of objects: from these to the ids of two or three classes.

Class 0 is what is outside, class 1 the objects, and class 2, if there is one, the border between
objects that touch.

classes = of_objects(ClassMap.parse("0:background,1:nucleus,2:border"), border_px=2)
found = numbered(files, classes)          # found.numbers [H, W]: 0 outside, else the object
ids = found.ids(classes)                  # [H, W] uint8 class ids
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.errors import UserError

OBJECT, BORDER = 1, 2
"""Ids of classes."""


def of_objects(classes: ClassMap, border_px: int) -> ClassMap:
    """Returns a class map of which the second class are objects that masks number.

    Args:
        classes: Two classes or three. The values of the first, and those to be ignored, keep their
            meaning; every other number in a mask is an object.
        border_px: As `ClassMap.border_px`.

    Raises:
        UserError: If these are no such classes, or there is a class of borders without a width.
    """
    if classes.overlapping or len(classes) not in (2, 3):
        raise UserError(
            f"`classes` ({classes}) must be two or three with `masks` instances: what is outside, "
            "the objects and, if wanted, the border between objects that touch, such as "
            "0:background,1:nucleus,2:border."
        )
    if len(classes) == 3 and not border_px:
        raise UserError(
            f"`classes` ({classes}) has a class for the border between objects, and `border_px` is "
            "0. Give its reach into each object in pixels, such as 2, or leave that class out."
        )
    return dataclasses.replace(classes, border_px=border_px)


def object_class(classes: ClassMap, given: str = "") -> str:
    """Returns the name of the class of objects: `given`, or that of masks that number them."""
    return given or ("" if classes.border_px is None else classes.names[OBJECT])


def border_class(classes: ClassMap, object_id: int) -> int | None:
    """Returns the id of the border between objects of a class, None if there is none."""
    has_border = classes.border_px is not None and len(classes) == 3 and object_id == OBJECT
    return BORDER if has_border else None


class Numbered(NamedTuple):
    """What a mask that numbers objects holds.

    Attributes:
        numbers: [H, W] int64, 0 outside the objects.
        ignored: [H, W] bool, the pixels that count nowhere.
        claimed_twice: Pixels that several files claim; they are of the last of them.
    """

    numbers: np.ndarray
    ignored: np.ndarray
    claimed_twice: int = 0

    def ids(self, classes: ClassMap) -> np.ndarray:
        """Returns the class ids, [H, W] uint8.

        Without a class for it, the border between objects is outside.
        """
        ids = (self.numbers > 0).astype(np.uint8)
        if classes.border_px:
            ids[_between(self.numbers, classes.border_px)] = BORDER if len(classes) == 3 else 0
        ids[self.ignored] = IGNORED
        return ids


def numbered(files: Sequence[np.ndarray], classes: ClassMap) -> Numbered:
    """Returns what the mask of one image holds.

    Args:
        files: One array of numbers (or, with colours in `classes`, of colours), [H, W] or
            [H, W, 3]; or several, one for each object.
        classes: See `of_objects`.

    Raises:
        UserError: If numbers are negative, one of several files holds several objects, or they
            differ in size.
    """
    values = [classes.packed(each) for each in files]
    outside, ignored = classes.listed[0], classes.ignored
    if any(each.min() < 0 for each in values):
        raise UserError(
            "The mask holds numbers below 0; objects have numbers from 0 on. Save it with others, "
            "those to leave out as one that `classes` lists, such as 65535:ignore."
        )
    if len(values) == 1:
        is_ignored = np.isin(values[0], ignored)
        is_object = ~(is_ignored | np.isin(values[0], outside))
        numbers = values[0].astype(np.int64)
        # Where another number than 0 is outside, 0 is an object.
        numbers += bool((numbers[is_object] == 0).any())
        return Numbered(np.where(is_object, numbers, 0), is_ignored)
    if len({each.shape for each in values}) > 1:
        raise UserError("The masks of its objects have several sizes. Bring them to one.")
    numbers, claims = np.zeros(values[0].shape, np.int64), np.zeros(values[0].shape, np.int64)
    for number, each in enumerate(values, 1):
        is_object = ~np.isin(each, outside)
        if is_object.any() and np.ptp(each[is_object]):
            raise UserError(
                f"Mask {number} of {len(values)} holds several values beside those of "
                f"{classes.names[0]!r}; where each object has a file of its own, it holds one. "
                "Save it without blurred edges, or give all objects in one mask."
            )
        numbers[is_object] = number
        claims += is_object
    return Numbered(numbers, np.zeros(numbers.shape, bool), int(np.count_nonzero(claims > 1)))


def _between(numbers: np.ndarray, reach_px: int) -> np.ndarray:
    """Returns where [H, W] bool two objects are within `reach_px` of a pixel, or in it."""
    # In sequence they are exact in float32, which OpenCV takes.
    _, in_sequence = np.unique(numbers, return_inverse=True)
    none = numbers == 0
    labels = in_sequence.reshape(numbers.shape).astype(np.float32) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    largest = cv2.dilate(np.where(none, np.float32(0), labels), disc)
    least = cv2.erode(np.where(none, np.float32(2**25), labels), disc)
    return (least < largest) & (largest > 0)


class ObjectsFound:
    """Objects of masks, counted image by image."""

    def __init__(self, classes: ClassMap):
        self._classes = classes
        self.objects = self.touching = self.hidden = self.claimed_twice = 0

    def add(self, instances: np.ndarray, ids: np.ndarray, claimed_twice: int) -> None:
        """Counts one image: its numbers and class ids [H, W], and pixels of several objects."""
        self.objects += np.unique(instances[instances > 0]).size
        beside = _between(instances, 1) & (instances > 0)
        self.touching += np.unique(instances[beside]).size
        seen = np.unique(instances[(ids == OBJECT) & (instances > 0)]).size
        self.hidden += np.unique(instances[instances > 0]).size - seen
        self.claimed_twice += claimed_twice

    def describe(self) -> str:
        """Returns the counts as text."""
        name = self._classes.names[OBJECT]
        lines = [f"{self.objects} object(s) of {name}, {self.touching} of them touching another"]
        if self.hidden:
            lines.append(
                f"  {self.hidden} of them have no pixel of {name} left beside the border: a "
                "smaller --border_px keeps them."
            )
        if self.claimed_twice:
            lines.append(
                f"  {self.claimed_twice} pixel(s) are claimed by several files of one image; each "
                "is of the last of them."
            )
        if self.touching and not self._classes.border_px:
            lines.append(
                "  Objects that touch are one region to a network. A class between them tells them "
                f"apart: --classes={self._classes},N:border --border_px=2, N being a number for "
                "predicted masks."
            )
        return "\n".join(lines)
