"""A trained network as files that serve without this package.

    export(model, "exported", classes=classes, scaling=scaling, settings=settings, step=1000,
           formats=("saved_model", "keras", "onnx"))

    exported/classes.json    the classes: id, name, mask value
    exported/unet_core.json  the settings of the run and its step
    exported/saved_model/    for `tf.saved_model.load` and TensorFlow Serving
    exported/model.keras     the network as it was trained, for `keras.saving.load_model`
    exported/model.onnx      for ONNX Runtime, OpenVINO and others
    exported/model_int8.onnx the same in 8-bit integers, of `calibration` images

The SavedModel and the ONNX files take pixel values as they are in image files. Neither checks them:
what `data.intensities` refuses, NaN for example, gives probabilities without meaning.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from unet_core.conventions import number_of_logits
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.export import CLASSES_FILE, Serving
from unet_core.files import new_folder, os_errors, write_json
from unet_core.inference.masks import Threshold, Thresholds, usual_rule
from unet_core.inference.trained import (
    EXPORT_FORMAT,
    EXPORT_FORMAT_OF_SEVERAL,
    EXPORT_SETTINGS,
)
from unet_core.settings.prediction import FORMATS


def export(
    model: keras.Model,
    output_dir: str | os.PathLike,
    *,
    classes: ClassMap,
    scaling: Scaling,
    settings: Mapping[str, Any],
    step: int,
    formats: Sequence[str] = ("saved_model", "keras"),
    precision: str | None = None,
    threshold: Threshold | Thresholds | None = None,
    networks: int = 1,
    calibration: Sequence[np.ndarray] = (),
) -> None:
    """Writes `model` to the new folder `output_dir`, whole or not at all.

    Args:
        model: A network of `make_network`, with the weights to be served.
        output_dir: The folder to make; its parents are made if need be.
        classes: Its classes.
        scaling: How the images of files were scaled for it.
        settings: The settings of its run, for JSON; `open_trained` builds the network from them.
        step: How many steps the network was trained for.
        formats: What to write, names in `FORMATS`; the two JSON files are always written.
        precision: What the SavedModel computes in: "float32", "bfloat16" or "float16"; as `model`
            if None. The ONNX file "onnx" is float32.
        threshold: How masks are made of the probabilities of two classes or of those that may
            overlap; None is the usual: the most probable class, or all above 1/2.
        networks: Of how many networks `make_ensemble` has made `model`.
        calibration: For "onnx_int8": some images that `model` was trained on, see `Serving`.

    Raises:
        UserError: If `output_dir` exists or cannot be written, a format or `precision` is unknown,
            or a package is not installed.
        ValueError: If `model` is not for these classes, holds a layer that a format does not know,
            or a format needs `calibration` and there is none.
    """
    output_dir = pathlib.Path(output_dir)
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(
            f"`formats` ({', '.join(formats)}) must be some of {', '.join(FORMATS)}; "
            f"{', '.join(unknown) or 'nothing'} cannot be exported."
        )
    writers = [FORMATS[name] for name in formats]
    for writer in writers:
        writer.check_installed()
    if os.path.lexists(output_dir):
        raise UserError(
            f"{output_dir}: exists, and nothing is overwritten. Choose another folder, or delete "
            "this one."
        )
    wanted = number_of_logits(len(classes), classes.overlapping)
    found = model.output_shape[-1]
    if found != wanted:
        raise ValueError(
            f"Expected a network of {wanted} logits, for the classes {classes}. Received one of "
            f"{found}."
        )
    if not calibration and any(writer.is_calibrated for writer in writers):
        raise ValueError(
            f"Expected images that `model` was trained on as `calibration`, for `formats` "
            f"({', '.join(formats)}). Received none."
        )
    threshold = threshold or usual_rule(classes).threshold
    serving = Serving(classes, scaling, precision, threshold, calibration)
    # TensorFlow and h5py report a full disk by errors of their own.
    errors = os_errors(
        output_dir,
        "cannot be written",
        "Make room or choose another folder.",
        kinds=(OSError, tf.errors.OpError),
    )
    with errors, new_folder(output_dir) as folder:
        write_json(folder / CLASSES_FILE, _described(classes))
        stored = {"format": EXPORT_FORMAT, "step": step, "settings": dict(settings)}
        if networks > 1:
            # Programs of before cannot build it.
            stored |= {"format": EXPORT_FORMAT_OF_SEVERAL, "networks": networks}
        write_json(folder / EXPORT_SETTINGS, stored)
        for writer in writers:
            writer.write(model, folder, serving)


def _described(classes: ClassMap) -> list[dict]:
    pairs = zip(classes.names, classes.mask_values, strict=True)
    return [{"id": i, "name": name, "mask_value": value} for i, (name, value) in enumerate(pairs)]
