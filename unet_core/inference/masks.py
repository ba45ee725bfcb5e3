"""From probabilities to class ids, and to the file that holds them."""

from __future__ import annotations

import pathlib

import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.classes import ClassMap


def predicted_ids(probabilities: np.ndarray) -> np.ndarray:
    """Returns the class ids [H, W] uint8 of probabilities [H, W, C].

    Of two classes the second needs more than 1/2. A pixel with NaN is of no class: `IGNORED`.
    """
    if probabilities.shape[-1] == 2:
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
