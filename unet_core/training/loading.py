"""The weights of a checkpoint, without a loop: to predict, or to begin another run with."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from unet_core import files
from unet_core.errors import UserError
from unet_core.training import checkpoint_files
from unet_core.training.checkpoint_files import PREFIX, steps_in
from unet_core.training.variables import finalise, variables_of


def load_weights(
    directory: str | os.PathLike,
    model: Any,
    *,
    best: bool = False,
    averaged: bool = True,
    step: int | None = None,
    part: str | None = None,
) -> int:
    """Loads a checkpoint's weights into `model` and returns its step.

    Whether layers of `model` are frozen makes no difference.

    Args:
        directory: The folder of the checkpoints.
        model: A model of the same variables.
        best: Whether to load the one with the best score instead of the latest.
        averaged: Whether to load the moving average of the weights where the loop kept one, and
            not the weights themselves.
        step: The step to load.
        part: The part of the loop, if it has several.

    Raises:
        UserError: If there is none, it does not pass its verification, or it is of another network.
    """
    if not steps_in(directory):
        raise UserError(f"{directory}: holds no checkpoint; train first.")
    folder, manifest = checkpoint_files.find(files.local_path(directory), step=step, best=best)
    names = list(manifest.parts)
    if part is None and len(names) == 1:
        part = names[0]
    if part not in names:
        raise UserError(f"{folder}: `part` ({part!r}) must be one of {', '.join(names)}.")
    checkpoint_files.check_network(folder, manifest.parts[part].variables, model)
    variables = variables_of(model)
    prefix = "" if len(names) == 1 else f"{part}_"
    with checkpoint_files.reading(folder):
        reader = tf.train.load_checkpoint(str(folder / PREFIX))
        for place, variable in enumerate(variables):
            key = f"parts/{part}/model/{place}/.ATTRIBUTES/VARIABLE_VALUE"
            average = f"loop/{prefix}average_{place}/.ATTRIBUTES/VARIABLE_VALUE"
            taken = average if averaged and reader.has_tensor(average) else key
            variable.assign(reader.get_tensor(taken))
    finalise(model)
    return manifest.step
