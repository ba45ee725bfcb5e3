"""What a training run or an export has left: a network with its weights and its settings.

trained = open_trained("runs/membrane")            # or the folder of an export
trained.model, trained.config, trained.classes, trained.step
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Annotated, Any

import keras
import msgspec

from unet_core import training
from unet_core.data.classes import CLASSES_MISSING, ClassMap
from unet_core.data.instance_masks import of_objects
from unet_core.data.resizing import Resize
from unet_core.errors import UserError, reason_of
from unet_core.files import read_json
from unet_core.models.build import full_size, make_network
from unet_core.models.ensemble import make_ensemble
from unet_core.models.own import make_own_network
from unet_core.models.recomputation import Recomputed
from unet_core.run_directory import RunDirectory, checked_config
from unet_core.settings import RunConfig
from unet_core.settings.data import DataSettings, parse_resize
from unet_core.settings.network import check_same_network
from unet_core.settings.prediction import parse_weights

EXPORT_SETTINGS = "unet_core.json"
EXPORT_WEIGHTS = "model.keras"
EXPORT_FORMAT = 1
EXPORT_FORMAT_OF_SEVERAL = 2
"""That of exports of several networks as one."""


class _Settings(msgspec.Struct, kw_only=True):
    format: int = 0
    settings: dict[str, Any]
    step: int
    networks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


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
        return make_classes(self.config.data)


def make_classes(settings: DataSettings) -> ClassMap:
    """Returns the class map of a run's data.

    Raises:
        UserError: If it was not given, or is malformed.
    """
    if settings.classes is None:
        raise UserError(CLASSES_MISSING)
    classes = ClassMap.parse(
        settings.classes,
        nearest=settings.stray_values == "nearest",
        clear=settings.clear_class,
    )
    return of_objects(classes, settings.border_px) if settings.masks == "instances" else classes


def make_resize(settings: DataSettings) -> Resize:
    """Returns how the images of a run are resized for its network."""
    factor, um = parse_resize(settings.resize)
    return Resize(factor, um, settings.pixel_size_um)


def build_network(config: RunConfig) -> keras.Model:
    """Returns the network of a run, its weights drawn from the seed; its precision is resolved.

    With deep supervision it has an output for each level.

    It runs the code that `network` names, so `config` must not come from a file alone; see
    `unet_core.settings.network.check_same_network`.
    """
    settings = dict(vars(config.network))
    own = settings.pop("network")
    # They are taken over once, when a run begins.
    del settings["encoder_weights"]
    classes = make_classes(config.data)
    common: dict[str, Any] = dict(
        classes=len(classes),
        channels=config.data.channels,
        seed=config.training.seed,
    )
    if own:
        precision, overlapping = config.network.precision, classes.overlapping
        return make_own_network(own, precision=precision, overlapping=overlapping, **common)
    return make_network(**common, **settings)


def as_trained(model: keras.Model, config: RunConfig) -> keras.layers.Layer:
    """Returns what a loop trains of the network of a run: itself, or with recomputation."""
    if not config.training.recompute:
        return model
    return Recomputed(model, size=config.data.crop_size)


def open_trained(
    path: str | os.PathLike, *, weights: str | None = None, network: str = ""
) -> Trained:
    """Returns the network of a run folder or of an export.

    Nothing that the files hold is executed: the network is built from its settings, and a function
    that they name as its maker is called only if `network` names it too.

    Args:
        path: Folder of a run (`--run_dir`) or of an export.
        weights: Which weights of a run, one of `WEIGHTS`; None is as the run's settings say.
        network: "module:function" of a network of one's own, see `unet_core.models.own`.

    Raises:
        UserError: If there is no network, it is damaged, or `network` is not what made it.
    """
    path = pathlib.Path(path)
    config, step = stored_config(path)
    check_same_network(path, config.network.network, network)
    if step is not None:
        return _open_export(path)
    run = RunDirectory(path)
    model = build_network(config)
    best, averaged = parse_weights(weights or config.prediction.weights)
    step = training.load_weights(run.checkpoints, model, best=best, averaged=averaged)
    return Trained(full_size(model), config, step)


def stored_config(path: pathlib.Path) -> tuple[RunConfig, int | None]:
    """Returns the settings of a run or an export in the folder `path`; of an export, its step too.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    if not (path / EXPORT_SETTINGS).is_file():
        return RunDirectory(path).read()[0], None
    config, stored = _read_export(path)
    return config, stored.step


def _read_export(path: pathlib.Path) -> tuple[RunConfig, _Settings]:
    settings, what, way = path / EXPORT_SETTINGS, "the settings of an export", "Export again."
    formats = (0, EXPORT_FORMAT, EXPORT_FORMAT_OF_SEVERAL)
    stored = read_json(settings, _Settings, what=what, way=way, formats=formats)
    return checked_config(settings, stored.settings, what=what, way=way), stored


def _open_export(path: pathlib.Path) -> Trained:
    config, stored = _read_export(path)
    try:
        weights = path / EXPORT_WEIGHTS
        if not weights.is_file():
            raise UserError(
                f"{path}: holds no {EXPORT_WEIGHTS}, which this package reads; export the format "
                "keras (`formats`) beside what else you need."
            )
        models = [full_size(build_network(config)) for _ in range(stored.networks)]
        model = make_ensemble(models, make_classes(config.data).overlapping)
        model.load_weights(weights)
    except UserError:
        raise
    except Exception as error:  # zipfile, h5py and Keras raise anything.
        raise UserError(
            f"{path}: cannot be read as an export ({reason_of(error)}). Export again."
        ) from error
    return Trained(model, config, stored.step)
