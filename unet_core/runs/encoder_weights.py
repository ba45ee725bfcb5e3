"""What the encoder of a new run begins with: `encoder_weights`."""

from __future__ import annotations

import csv
import io
import os
import pathlib

import keras

from unet_core.errors import UserError
from unet_core.files import local_path, write_whole
from unet_core.inference.trained import build_network, open_trained
from unet_core.models.build import check_encoder
from unet_core.models.imagenet import imagenet_weights
from unet_core.models.weights import Taken, fit, layers_of
from unet_core.models.weights_file import open_weights
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig
from unet_core.settings.network import NetworkSettings
from unet_core.training.checkpoint_files import steps_in

TABLE = "encoder_weights.csv"
_MOST_SHOWN = 5


def prepare(config: RunConfig, run: RunDirectory) -> Taken | None:
    """Returns the weights that the encoder begins with, read and fitted to the network.

    It is None if there are none, or if the run has a checkpoint: it goes on with its own, and what
    it began with is not needed any more.

    Args:
        config: The settings, precision resolved.
        run: The run's folder, which is not touched.

    Raises:
        UserError: If they cannot be had, or do not fit, or the encoder cannot have this depth or
            padding.
    """
    network = config.network
    check_encoder(network.encoder, network.depth, network.padding)
    given = network.encoder_weights
    if given == "none" or steps_in(run.checkpoints):
        return None
    model = build_network(config)
    if given == "imagenet":
        print(f"Looking for the ImageNet weights of {network.encoder}.")
        with imagenet_weights(network.encoder) as source:
            return fit(source, model, "imagenet")
    path = local_path(given)
    if path.is_dir():
        return fit(layers_of(open_trained(path).model), model, given)
    if not os.path.lexists(path):
        raise UserError(
            f"`encoder_weights` ({given!r}) must be none, imagenet, or a file of weights or the "
            "folder of a run that is there."
        )
    with open_weights(path) as source:
        return fit(source, model, given)


def take_over(
    taken: Taken, model: keras.Model, settings: NetworkSettings, run: RunDirectory | None
) -> None:
    """Gives the network what `prepare` has returned, and writes the table.

    Args:
        taken: The weights.
        model: The network, on all replicas; nothing has been copied from it yet.
        settings: Those of the network.
        run: The run's folder, to write the table to; None for workers that do not write.

    Raises:
        UserError: If the table is there and the run has not written it.
    """
    taken.apply(model)
    if run:
        print(_summary(taken, settings))
        _write_table(taken, run, run.path / TABLE)


def _summary(taken: Taken, settings: NetworkSettings) -> str:
    """Returns how many layers were loaded, and the first of those that were not, with reasons."""
    encoder = [row for row in taken.rows if row.of_encoder]
    left_out = [row for row in encoder if not row.loaded]
    others = len(taken.rows) - len(encoder)
    lines = [
        f"Encoder weights: {len(taken.arrays)} of {len(encoder)} layers of {settings.encoder} from "
        f"{settings.encoder_weights}; {others} layers there that the encoder does not have."
    ]
    lines += [f"  left out: {row.layer} ({row.reason})" for row in left_out[:_MOST_SHOWN]]
    if len(left_out) > _MOST_SHOWN:
        lines.append(f"  and {len(left_out) - _MOST_SHOWN} more; all are in {TABLE}.")
    return "\n".join(lines)


def _write_table(taken: Taken, run: RunDirectory, path: pathlib.Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "outcome", "reason"])
    for row in taken.rows:
        writer.writerow([row.layer, "loaded" if row.loaded else "left out", row.reason])
    run.claim(path)
    write_whole(path, text.getvalue().encode())
