"""A network of one's own, made by a function that a person names.

    make_own_network("my_package.my_module:make_network", classes=3, channels=1,
                     precision="float32", seed=0)

The contract
------------
`make_network(*, classes, channels, precision, seed) -> keras.Model`, called by these keywords.

- `classes`: Number of classes, >= 2, or >= 1 if they may overlap. `channels`: those of the images,
  1 or 3. `precision`: "float32", "bfloat16" or "float16", what the layers should compute in, such
  as by `dtype="mixed_bfloat16"`. `seed`: give it to the initialisers, so that a run can be
  repeated.
- The model is functional or sequential, with one input [B, H, W, channels], pixel values 0..255 of
  any height and width: `keras.Input((None, None, channels))`. It scales them itself.
- It has one output of logits, float32 whatever the precision: [B, H, W, 1] for two classes (that of
  class 1) and [B, H, W, classes] for more or for those that may overlap, of the size of the image,
  for every size. A network that halves its images pads and crops by
  `unet_core.models.layers.MirrorPad` and `CropLike`.
- Layers of classes that `unet_core.models.layer_rules` does not know work. The network is then
  predicted in overlapping windows that are blended, and cannot be written as ONNX; an entry there
  for the class, in the module of the function, tells how.
- A layer of an own class gives its arguments by `get_config`: networks for inference are copies.

Nothing here looks for the function in a file: only who has been asked for it by a person calls it.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from unet_core.conventions import number_of_logits
from unet_core.errors import UserError
from unet_core.models.geometry import tile_geometry
from unet_core.models.walk import calls
from unet_core.own_code import OwnFunction, described

_SIGNATURE = "make_network(*, classes, channels, precision, seed)"
# No multiples of anything: a network that takes this size takes others too.
_ODD_SIZE = (97, 131)


def make_own_network(
    name: str,
    *,
    classes: int,
    channels: int,
    precision: str,
    seed: int,
    overlapping: bool = False,
) -> keras.Model:
    """Imports the function `name`, "module:function", calls it and checks what it returns.

    `overlapping` is whether classes may overlap, so that each has a logit.

    Raises:
        UserError: If it cannot be imported or called, raises an error, or returns something that is
            no network as the contract above asks for.
    """
    arguments = dict(classes=classes, channels=channels, precision=precision, seed=seed)
    function = OwnFunction.load("network", name, _SIGNATURE, **arguments)
    model = function(**arguments)
    try:
        _check(model, channels, number_of_logits(classes, overlapping))
    except ValueError as error:
        raise UserError(f"`network` ({name}): {error}") from error
    return model


def _check(model: Any, channels: int, logits: int) -> None:
    """Raises ValueError, with what was expected and received, if `model` breaks the contract."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a keras.Model. Received a {type(model).__name__}.")
    if not getattr(model, "outputs", None):
        raise ValueError(
            f"Expected a functional model, keras.Model(images, logits). {type(model).__name__} "
            "tells nothing of how its layers are connected, so that it could be trained, but "
            "neither predicted in windows nor exported nor drawn."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "Expected a network of one input and one output. Received one of "
            f"{len(model.inputs)} and {len(model.outputs)}."
        )
    wanted = (None, None, None, channels)
    if tuple(model.inputs[0].shape) != wanted:
        raise ValueError(
            f"Expected an input of the shape {wanted}, images of any size and {channels} "
            f"channel(s). Received {tuple(model.inputs[0].shape)}."
        )
    output = model.outputs[0]
    if output.dtype != "float32":
        raise ValueError(
            f"Expected logits in float32. Received {output.dtype}; end with "
            'keras.layers.Activation("linear", dtype="float32").'
        )
    if len(output.shape) != 4 or output.shape[-1] != logits:
        raise ValueError(
            f"Expected logits [B, H, W, {logits}]. Received the shape {tuple(output.shape)}."
        )
    _check_sizes(model, channels)
    tile_geometry(model)
    for call in calls(model):
        _check_copies(call.layer)


def _check_sizes(model: keras.Model, channels: int) -> None:
    way = "Pad and crop by MirrorPad and CropLike of unet_core.models.layers, or resize."
    # Run, because symbolic shapes are not checked by every layer (Keras 3.15).
    image = np.zeros((1, *_ODD_SIZE, channels), np.uint8)
    try:
        shape = model(image, training=False).shape
    except Exception as error:
        raise ValueError(
            f"Expected a network for images of every size. It does not take one of "
            f"{_ODD_SIZE[0]}x{_ODD_SIZE[1]} ({described(error)}). {way}"
        ) from error
    if tuple(shape[1:3]) != _ODD_SIZE:
        raise ValueError(
            f"Expected logits of the size of the image, for every size. Received {shape[1]}x"
            f"{shape[2]} for an image of {_ODD_SIZE[0]}x{_ODD_SIZE[1]}. {way}"
        )


def _check_copies(layer: keras.Operation) -> None:
    if not isinstance(layer, keras.Layer):
        return
    try:
        type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ValueError(
            f"Expected layers that can be copied. {layer.name!r} ({type(layer).__name__}) cannot "
            f"be made again of its get_config() ({described(error)})."
        ) from error
