"""The layers of a network by part or by name.

layers_matching(model, "encoder")        # or "decoder"
layers_matching(model, "down?_conv*")    # a pattern of names as of files
"""

from __future__ import annotations

import fnmatch

import keras

PARTS = ("encoder", "decoder")
_DECODER = "up*"
# What is around encoder and decoder; see the contract of names in `unet_core.models.encoders`.
_AROUND = ("images", "scale*", "pad", "stem", "unstem*", "head*", "crop*", "logits*")


def layers_with_variables(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of `model` that have variables, in its order.

    Layers inside of a layer count as that layer, unless it is a model itself, which many of
    `keras.applications` are: then there are both.
    """
    found = []
    for layer in model.layers:
        if layer.variables:
            found.append(layer)
        if isinstance(layer, keras.Model):
            found += layers_with_variables(layer)
    return found


def layers_matching(model: keras.Model, pattern: str) -> list[keras.layers.Layer]:
    """Returns the layers with variables whose names match `pattern`; perhaps none.

    Args:
        model: A network of `unet_core.models.build`.
        pattern: "encoder", "decoder", or a name in which * stands for any text, ? for any
            character and [...] for one of several, as `fnmatch` has it.
    """
    if pattern in PARTS:
        return [layer for layer in model.layers if layer.variables and _part_of(layer) == pattern]
    layers = layers_with_variables(model)
    return [layer for layer in layers if fnmatch.fnmatchcase(layer.name, pattern)]


def _part_of(layer: keras.layers.Layer) -> str | None:
    if fnmatch.fnmatchcase(layer.name, _DECODER):
        return "decoder"
    if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in _AROUND):
        return None
    return "encoder"
