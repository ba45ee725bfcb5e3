"""Several networks as one, whose probabilities are the mean of theirs.

    model = make_ensemble([first, second])      # pixel values -> logits, as each of them

Every layer is a copy with a name of its own, so that windows, inference, exports and ONNX treat
the network as they treat one.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from unet_core.models.layers import MeanOfNetworks


def make_ensemble(models: Sequence[keras.Model], overlapping: bool = False) -> keras.Model:
    """Returns one network with copies of all layers and weights of `models`.

    Args:
        models: Networks of `make_network`, of one number of channels and of logits. One alone is
            returned as it is.
        overlapping: Whether classes may overlap, each logit being that of a sigmoid.

    Returns:
        A `keras.Model` from [B, H, W, channels] pixel values to float32 logits [B, H, W, K], of
        which the probabilities are the mean of those of `models`.

    Raises:
        ValueError: If there are none, or channels or logits differ.
    """
    if len(models) == 1:
        return models[0]
    shapes = {(model.input_shape[-1], model.output_shape[-1]) for model in models}
    if len(shapes) != 1:
        raise ValueError(
            "Expected networks of one number of channels and of logits. Received networks of "
            f"{' and '.join(map(str, sorted(shapes))) or 'nothing'}."
        )
    images = keras.Input(models[0].input_shape[1:], name="images")
    logits = [_copied(model, images, f"network{n}_") for n, model in enumerate(models)]
    mean = MeanOfNetworks(overlapping, dtype="float32", name="mean")(logits)
    return keras.Model(images, mean, name=f"mean_of_{len(models)}")


def _copied(model: keras.Model, images: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
    """Returns the logits of a copy of `model` on `images`; names of layers begin with `prefix`."""
    copies: dict[int, tuple[keras.Layer, keras.Layer]] = {}

    def copy(layer):
        if not isinstance(layer, keras.Layer):
            return layer
        if id(layer) not in copies:
            config = {**layer.get_config(), "name": prefix + layer.name}
            copies[id(layer)] = layer.__class__.from_config(config), layer
        return copies[id(layer)][0]

    if isinstance(model, keras.Sequential):
        model = keras.Model(*model.inputs, *model.outputs, name=model.name)
    # The structure of the input is that of the model: a tensor, or a list of one.
    given = keras.tree.pack_sequence_as(model.input, [images])
    found = keras.models.clone_model(model, input_tensors=given, clone_function=copy)
    for copied, layer in copies.values():
        for ours, theirs in zip(copied.variables, layer.variables, strict=True):
            ours.assign(theirs.value)
        if isinstance(copied, keras.layers.Normalization):
            # It computes with constants made of its variables (Keras 3.15).
            copied.finalize_state()
    return found.outputs[0]
