"""ImageNet weights of the encoders that are networks of `keras.applications`.

with imagenet_weights("resnet50") as source:
    taken = fit(source, model, "imagenet")
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import warnings
from collections.abc import Iterator

import keras

from unet_core.errors import UserError, reason_of
from unet_core.models.encoders import ENCODERS
from unet_core.models.weights import Source, layers_of
from unet_core.models.weights_file import open_weights


@contextlib.contextmanager
def imagenet_weights(encoder: str) -> Iterator[Source]:
    """Gives the weights of an encoder by its layers, from Keras' folder or by Keras' download.

    Raises:
        UserError: If the encoder has none, or the file is not there and cannot be had; the message
            names it and the folder for it.
    """
    application = ENCODERS[encoder].application
    if application is None:
        have = [name for name in ENCODERS if ENCODERS[name].application]
        raise UserError(
            f"`encoder_weights` cannot be imagenet with the `encoder` {encoder}, which has no such "
            f"weights; those of {', '.join(have)} have. Give none, or a file."
        )
    path = folder() / application.weights_file
    if path.is_file():
        with open_weights(path) as source:
            yield source
        return
    try:
        # Keras prints what it does, and warns of sizes of images that do not matter here.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = getattr(keras.applications, application.name)(
                include_top=False, weights="imagenet", input_shape=(None, None, 3)
            )
    except Exception as error:  # Keras raises anything, a bare Exception if there is no network.
        raise UserError(
            f"The ImageNet weights of {encoder} cannot be downloaded ({_short(error)}). Bring the "
            f"file {application.weights_file} from a machine where "
            f'`keras.applications.{application.name}(include_top=False, weights="imagenet")` works,'
            f" and put it into {folder()}, or give it as `encoder_weights`."
        ) from error
    yield layers_of(model)


def folder() -> pathlib.Path:
    """Returns where Keras keeps the weights of its applications; it may not exist."""
    home = os.environ.get("KERAS_HOME") or os.path.join("~", ".keras")
    return pathlib.Path(os.path.expanduser(home)) / "models"


def _short(error: Exception) -> str:
    """Returns a reason without the address, which is long: "URL fetch failure on ...: why"."""
    return reason_of(error).rpartition(" -- ")[2]
