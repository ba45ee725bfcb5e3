"""Networks as files that serve without this package. Knows nothing of runs.

Formats by name; adding one takes its file here and one line in `FORMATS` of
`unet_core.settings.prediction`, from where its flag has the names.

The contract
------------
An entry is a `Format`. Its `write(model, folder, serving)` writes what it makes of `model`, a
network with the weights to be served, into `folder`, which exists and holds `CLASSES_FILE` already.
`serving` is what a program that serves it needs to know. Errors of the file system are passed on.
`check_installed()` raises UserError, with how to get it, if a package that is not always there is
missing; it is called before anything is written. `is_calibrated` says that `write` needs
`serving.calibration`, images that the network was trained on.

What serves takes pixel values as they are in image files, scales them as the run did, mirrors the
image around by a margin, and cuts that off again; only "keras" writes the network alone.

Importing this module imports neither TensorFlow nor NumPy.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import numpy as np

    from unet_core.data.classes import ClassMap
    from unet_core.data.intensities import Scaling
    from unet_core.inference.masks import Threshold, Thresholds

CLASSES_FILE = "classes.json"


@dataclasses.dataclass(frozen=True)
class Serving:
    """What belongs to a network that is served.

    Attributes:
        classes: Their names and mask values.
        scaling: From pixel values in files to those that the network takes.
        precision: What is computed in, "float32", "bfloat16" or "float16"; None is as the model.
            A format that has only one ignores it.
        threshold: How masks are made of the probabilities of two classes or of those that may
            overlap; None is the most probable class. A format without masks ignores it.
        calibration: Some of the images that the network was trained on, each [H, W, C] as in image
            files; with the scaling "range" of the type uint8. Only formats that are calibrated
            look at them.
    """

    classes: ClassMap
    scaling: Scaling
    precision: str | None
    threshold: Threshold | Thresholds | None = None
    calibration: Sequence[np.ndarray] = ()


def _needs_nothing() -> None:
    """Raises nothing: TensorFlow and Keras are always there."""


@dataclasses.dataclass(frozen=True)
class Format:
    """One way to write a network; see the contract above."""

    write: Callable[[keras.Model, pathlib.Path, Serving], None]
    check_installed: Callable[[], None] = _needs_nothing
    is_calibrated: bool = False
