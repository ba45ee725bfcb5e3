"""From probabilities to class ids, and to the file that holds them.

make_mask = MaskRule(Threshold(class_id=1, value=0.4), steps=[Step("fill_holes", 1)])
ids = make_mask(probabilities)            # [H, W, C] -> [H, W] uint8
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.inference.post_processing import Step, post_process


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Of two classes: the probability above which a pixel is of one of them.

    Attributes:
        class_id: That class, 0 or 1.
        value: The probability, in [0, 1].
    """

    class_id: int
    value: float


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """How a mask is made of probabilities.

    Attributes:
        threshold: None gives each pixel its most probable class.
        steps: What is done to the mask after that, in this order.
    """

    threshold: Threshold | None = None
    steps: Sequence[Step] = ()

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the class ids [H, W] uint8 of probabilities [H, W, C] of a whole image."""
        ids = predicted_ids(probabilities, self.threshold)
        return post_process(ids, probabilities, self.steps) if self.steps else ids


MOST_PROBABLE = MaskRule()
"""Each pixel has its most probable class."""


def predicted_ids(probabilities: np.ndarray, threshold: Threshold | None = None) -> np.ndarray:
    """Returns the class ids [H, W] uint8 of probabilities [H, W, C].

    Of two classes the second needs more than 1/2, or the class of `threshold` more than its value,
    compared in float32. A pixel with NaN is of no class: `IGNORED`.
    """
    if threshold is not None:
        own, other = threshold.class_id, 1 - threshold.class_id
        above = probabilities[..., own] > np.float32(threshold.value)
        ids = np.where(above, np.uint8(own), np.uint8(other))
    elif probabilities.shape[-1] == 2:
        ids = (probabilities[..., 1] > probabilities[..., 0]).astype(np.uint8)
    else:
        ids = probabilities.argmax(-1).astype(np.uint8)
    if np.isnan(probabilities.sum()):
        ids[np.isnan(probabilities).any(-1)] = IGNORED
    return ids


def write_mask(path: pathlib.Path, ids: np.ndarray, classes: ClassMap, mask_format: str) -> None:
    """Writes class `ids` [H, W] as PNG, by `mask_format`.

    It is "values" (those of the class map), "index" (class numbers) or "palette" (class numbers
    that show in colours).

    Raises:
        OSError: If the file cannot be written.
    """
    if mask_format == "palette":
        images.write_palette_png(path, ids, classes.palette())
    elif mask_format == "index":
        images.write_png(path, ids)
    else:
        values = classes.values(ids)
        images.write_png(path, values[..., ::-1] if classes.is_colour else values)
