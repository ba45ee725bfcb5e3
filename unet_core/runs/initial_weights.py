"""What a new run begins with: `encoder_weights`, or all weights of another run, `init_from`."""

from __future__ import annotations

import csv
import io
import os
import pathlib

import keras

from unet_core.errors import UserError
from unet_core.files import local_path, write_whole
from unet_core.inference.trained import build_network, make_classes, open_trained
from unet_core.models.build import check_encoder
from unet_core.models.imagenet import imagenet_weights
from unet_core.models.weights import Taken, fit, fit_file, layers_of
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig
from unet_core.training.checkpoint_files import steps_in

TABLES = {"encoder_weights": "encoder_weights.csv", "init_from": "init_from.csv"}
"""The table that each of the two flags leaves in the run's folder."""
_MOST_SHOWN = 5


def prepare(config: RunConfig, run: RunDirectory) -> Taken | None:
    """Returns the weights that the network begins with, read and fitted to it.

    It is None if there are none, or if the run has a checkpoint: it goes on with its own, and what
    it began with is not needed any more.

    Args:
        config: The settings, precision resolved.
        run: The run's folder, which is not touched.

    Raises:
        UserError: If they cannot be had, or do not fit, or the encoder cannot have this depth or
            padding.
    """
    network, init_from = config.network, config.fine_tuning.init_from
    check_encoder(network.encoder, network.depth, network.padding)
    given = network.encoder_weights
    if given != "none" and init_from:
        raise UserError(
            f"`init_from` ({init_from}) gives the whole network its weights, and `encoder_weights` "
            f"({given}) the encoder; leave one of them out."
        )
    if not (init_from or given != "none") or steps_in(run.checkpoints):
        return None
    model = build_network(config)
    if init_from:
        return _whole(config, model, init_from)
    if given == "imagenet":
        print(f"Looking for the ImageNet weights of {network.encoder}.")
        with imagenet_weights(network.encoder) as source:
            return fit(source, model, "imagenet", part="encoder")
    path = _there("encoder_weights", given, "none, imagenet, or a file of weights or the folder")
    if path.is_dir():
        return fit(layers_of(open_trained(path).model), model, given, part="encoder")
    return fit_file(path, model, part="encoder")


def _whole(config: RunConfig, model: keras.Model, given: str) -> Taken:
    """Returns the weights of another run, export or file that fit the network."""
    path = _there("init_from", given, "a file of weights or the folder")
    if not path.is_dir():
        return fit_file(path, model)
    trained = open_trained(path, network=config.network.network)
    there, here = trained.classes, make_classes(config.data)
    # Logits of classes that exclude one another are not those of classes that may overlap.
    theirs = list(there.names) if there.overlapping == here.overlapping else []
    classes = [theirs.index(name) if name in theirs else None for name in here.names]
    return fit(
        layers_of(trained.model), model, given, classes=classes, overlapping=here.overlapping
    )


def _there(setting: str, given: str, what: str) -> pathlib.Path:
    """Returns the path of what is given, which is there."""
    path = local_path(given)
    if not os.path.lexists(path):
        raise UserError(f"`{setting}` ({given!r}) must be {what} of a run or export that is there.")
    return path


def take_over(
    taken: Taken, model: keras.Model, config: RunConfig, run: RunDirectory | None
) -> None:
    """Gives the network what `prepare` has returned, and writes the table.

    Args:
        taken: The weights.
        model: The network, on all replicas; nothing has been copied from it yet.
        config: The settings.
        run: The run's folder, to write the table to; None for workers that do not write.

    Raises:
        UserError: If the table is there and the run has not written it.
    """
    taken.apply(model)
    if run:
        print(_summary(taken, config))
        _write_table(taken, run, run.path / TABLES[_setting(config)])


def _setting(config: RunConfig) -> str:
    return "init_from" if config.fine_tuning.init_from else "encoder_weights"


def _summary(taken: Taken, config: RunConfig) -> str:
    """Returns how many layers were loaded, and the first of those that were not, with reasons."""
    setting = _setting(config)
    whole = setting == "init_from"
    wanted = [row for row in taken.rows if row.wanted]
    told = [row for row in wanted if not row.loaded or (whole and row.reason)]
    others = len(taken.rows) - len(wanted)
    title = "Weights" if whole else "Encoder weights"
    of_what = "the network" if whole else config.network.encoder
    lines = [
        f"{title}: {len(taken.arrays)} of {len(wanted)} layers of {of_what} from "
        f"{config[setting]}; {others} layers there that the {'network' if whole else 'encoder'} "
        "does not have."
    ]
    lines += [
        f"  {'loaded' if row.loaded else 'left out'}: {row.layer} ({row.reason})"
        for row in told[:_MOST_SHOWN]
    ]
    if len(told) > _MOST_SHOWN:
        lines.append(f"  and {len(told) - _MOST_SHOWN} more; all are in {TABLES[setting]}.")
    return "\n".join(lines)


def _write_table(taken: Taken, run: RunDirectory, path: pathlib.Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "outcome", "reason"])
    for row in taken.rows:
        writer.writerow([row.layer, "loaded" if row.loaded else "left out", row.reason])
    run.claim(path)
    write_whole(path, text.getvalue().encode())
