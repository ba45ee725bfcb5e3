"""What quantized exports need of the data of a run: images to calibrate on, and a check on others.

known = open_known_images(config, run, trained)       # None if no format needs them
export(..., calibration=known.calibration if known else ())
text, agreement = check_int8(exported / INT8_FILE, model, known, threshold)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import keras
import numpy as np

from unet_core import metrics
from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.resizing import resized
from unet_core.data.samples import Sample
from unet_core.drawing import tables
from unet_core.errors import UserError
from unet_core.export.onnx_int8 import open_onnx
from unet_core.inference.ensemble import fold_folders
from unet_core.inference.masks import Threshold, Thresholds, predicted_ids
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.sliding_window import WINDOW_PX, SlidingWindow
from unet_core.inference.trained import EXPORT_SETTINGS, Trained
from unet_core.reports.evaluation import confusion_of
from unet_core.run_directory import RunDirectory
from unet_core.runs.dataset import DataSet
from unet_core.runs.masks import few_of, open_data_of
from unet_core.settings import RunConfig
from unet_core.settings.prediction import FORMATS

CALIBRATION_IMAGES = 8
LEAST_AGREEMENT = 0.99
"""Below this share of equal pixels, an export in int8 is warned of."""
_WAY_OUT = "leave onnx_int8 out of `formats`"


@dataclasses.dataclass(frozen=True)
class KnownImages:
    """Images of a run whose masks are known.

    Attributes:
        data: Reads them.
        training: Those that the networks were trained on, as many as are calibrated on.
        held_out: Those that no network was trained on, at most 30; of folds there are none.
    """

    data: DataSet
    training: Sequence[Sample]
    held_out: Sequence[Sample]

    @property
    def calibration(self) -> list[np.ndarray]:
        """The images `training` as `Serving.calibration` takes them."""
        return [self.as_served(sample) for sample in self.training]

    def as_served(self, sample: Sample) -> np.ndarray:
        """Returns the pixels [H, W, C] of a sample as an exported network takes them.

        They have the values of their file, and the size that the network is trained at; of images
        above 1024 pixels it is the middle.

        Raises:
            UserError: If it cannot be read.
        """
        read, scaling = self.data.read, self.scaling
        source = sample.image
        pixels = images.read_channels(
            source.path, source.page, read.channels, use=read.use_channels
        )
        of_type = scaling == Scaling("range")
        # A graph that scales by the type takes 8 bits alone.
        pixels = scaling(pixels) if of_type else pixels.astype(np.float32)
        height, width = pixels.shape[:2]
        pixels = resized(pixels, read.resize.size(height, width, source))
        if of_type:
            pixels = np.rint(pixels).astype(np.uint8)
        return _middle(pixels)

    def truth(self, sample: Sample) -> np.ndarray:
        """Returns the class ids [H, W] of what `as_served` gives of a sample.

        Raises:
            UserError: If it cannot be read.
        """
        return _middle(self.data.read(sample).mask)

    @property
    def scaling(self) -> Scaling:
        """How the pixels of files are scaled for the network."""
        return Scaling.parse(self.data.settings.intensities)

    @property
    def classes(self) -> ClassMap:
        """The classes of the masks."""
        return self.data.read.classes


def open_known_images(
    config: RunConfig, run: RunDirectory, trained: Sequence[Trained]
) -> KnownImages | None:
    """Returns the images of a run or of folds; None if no format of `config` is calibrated.

    Raises:
        UserError: If a package for the formats is missing, `run` is an export, or its images are
            not there or others.
    """
    formats = [FORMATS[name] for name in config.prediction.formats]
    if not any(each.is_calibrated for each in formats):
        return None
    for each in formats:
        each.check_installed()
    if (run.path / EXPORT_SETTINGS).is_file():
        raise UserError(
            f"{run.path}: is an export, and onnx_int8 is calibrated on images that a run was "
            f"trained on. Give the `run_dir` of the run, or {_WAY_OUT}."
        )
    data_dir = config.data.data_dir
    if data_dir and not os.path.exists(data_dir):
        raise UserError(
            f"{data_dir}: is not there, and onnx_int8 is calibrated on images that {run.path} was "
            f"trained on. Give the folder where they are as `data_dir`, or {_WAY_OUT}."
        )
    folders = [RunDirectory(each) for each in fold_folders(run.path)]
    data = open_data_of(config, folders or [run], what="calibrated", way=_WAY_OUT)
    training, held_out = data.split()
    if len(trained) > 1:
        # What one of them has held out, the others were trained on.
        training, held_out = [*training, *held_out], []
    few = training[:: max(1, len(training) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    return KnownImages(data, few, few_of(held_out))


def check_int8(
    path: str | os.PathLike,
    model: keras.Model,
    known: KnownImages,
    threshold: Threshold | Thresholds | None,
) -> tuple[str, float]:
    """Compares the masks of a quantized export with those of the network in float32.

    It does so on the images that the run has held out or, if there are none, on those that were
    calibrated on.

    Args:
        path: The ONNX file.
        model: The network that it was made of.
        known: The images of the run.
        threshold: How masks are made.

    Returns:
        A sentence, and the share of pixels whose classes are the same, in [0, 1].

    Raises:
        UserError: If an image cannot be read.
    """
    classes, scale = known.classes, known.scaling
    samples, kind = (known.held_out, "held-out") if known.held_out else (known.training, "training")
    network = InferenceNetwork(model, precision="float32", overlapping=classes.overlapping)
    find_float32, find_int8 = SlidingWindow(network), open_onnx(path)
    equal: list[np.ndarray] = []
    confusions: dict[str, list[np.ndarray]] = {"int8": [], "float32": []}
    for sample in samples:
        image = known.as_served(sample)
        found = {"int8": find_int8(image), "float32": find_float32(scale(image))}
        ids = {name: predicted_ids(each, threshold) for name, each in found.items()}
        equal.append((ids["int8"] == ids["float32"]).ravel())
        for name, each in ids.items():
            confusions[name].append(confusion_of(known.truth(sample), each, classes))
    agreement = float(np.concatenate(equal).mean())
    text = (
        f"In int8, {100 * agreement:.2f} % of the pixels of {len(samples)} {kind} image(s) have "
        "the class that they have in float32"
    )
    if kind == "training":
        return f"{text}; no image is held out to score it on.", agreement
    of_int8, of_float32 = (
        metrics.scores(np.sum(confusions[name], axis=0), classes.names)
        for name in ("int8", "float32")
    )
    dice = ", ".join(
        f"{name} {tables.number(of_int8[f'dice/{name}'])} "
        f"(float32 {tables.number(of_float32[f'dice/{name}'])})"
        for name in classes.names
    )
    return f"{text}. Dice: {dice}.", agreement


def _middle(pixels: np.ndarray) -> np.ndarray:
    """Returns the middle of [H, W, ...], at most `WINDOW_PX` high and wide."""
    starts = [max(0, size - WINDOW_PX) // 2 for size in pixels.shape[:2]]
    rows, columns = (slice(start, start + WINDOW_PX) for start in starts)
    return pixels[rows, columns]
