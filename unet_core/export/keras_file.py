"""The network as it was trained, for `keras.saving.load_model` and for this package."""

from __future__ import annotations

import pathlib

import keras

from unet_core.export import Format, Serving
from unet_core.inference.trained import EXPORT_WEIGHTS


def write(model: keras.Model, folder: pathlib.Path, _: Serving) -> None:
    """Writes model.keras, which takes pixel values in 0..255 and gives logits."""
    model.save(folder / EXPORT_WEIGHTS)


KERAS = Format(write)
