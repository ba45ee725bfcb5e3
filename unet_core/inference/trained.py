"""What a training run or an export has left: a network with its weights and its settings.

trained = open_trained("runs/membrane")            # or the folder of an export
trained.model, trained.config, trained.classes, trained.step
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import keras

from unet_core import assembly, training
from unet_core.config import RunConfig
from unet_core.data.classes import ClassMap
from unet_core.errors import UserError
from unet_core.run_directory import RunDirectory, config_of
from unet_core.runs import dataset

EXPORT_SETTINGS = "unet_core.json"
EXPORT_WEIGHTS = "model.keras"
EXPORT_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network that has been trained.

    Attributes:
        model: [B, H, W, channels] pixel values in 0..255 to logits.
        config: The settings it was trained with.
        step: The step its weights are of.
    """

    model: keras.Model
    config: RunConfig
    step: int

    @property
    def classes(self) -> ClassMap:
        """Its classes."""
        return dataset.make_classes(self.config)


def open_trained(path: str | os.PathLike, *, weights: str = "last") -> Trained:
    """Returns the network of a run folder or of an export.

    Nothing that the files hold is executed: the network is built from its settings.

    Args:
        path: Folder of a run (`--run_dir`) or of an export.
        weights: "last" or "best", which checkpoint of a run.

    Raises:
        UserError: If there is no network, or it is damaged.
    """
    path = pathlib.Path(path)
    if (path / EXPORT_SETTINGS).is_file():
        return _open_export(path)
    run = RunDirectory(path)
    config, _ = run.read()
    model = assembly.make_network(config, dataset.make_classes(config))
    step = training.load_weights(run.checkpoints, model, best=weights == "best")
    return Trained(model, config, step)


def _open_export(path: pathlib.Path) -> Trained:
    try:
        stored = json.loads((path / EXPORT_SETTINGS).read_text())
        if stored.get("format", EXPORT_FORMAT) != EXPORT_FORMAT:
            raise UserError(
                f"{path / EXPORT_SETTINGS}: has the format {stored['format']}; this version reads "
                f"{EXPORT_FORMAT}. Open it with the version that wrote it, or a later one."
            )
        config, step = config_of(stored["settings"]), int(stored["step"])
        weights = path / EXPORT_WEIGHTS
        if not weights.is_file():
            raise UserError(
                f"{path}: holds no {EXPORT_WEIGHTS}, which this package reads; export it with "
                "--formats=keras beside what else you need."
            )
        model = assembly.make_network(config, dataset.make_classes(config))
        model.load_weights(weights)
    except UserError:
        raise
    except Exception as error:  # zipfile, h5py and Keras raise anything.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as an export ({reason}). Export again.") from error
    return Trained(model, config, step)
