"""A copy of a network for inference only: fewer layers, weights in the type they are used in.

network = InferenceNetwork(model, precision="bfloat16")
probabilities = network(images)   # [B, H, W, C] pixel values -> [B, H, W, K], all of one trace
network.refresh()                 # after the weights of `model` have changed

It neither pads nor crops: `geometry` says which sizes fit, and what the edges are worth.
`unet_core.inference.sliding_window` takes images of any size. What becomes of each class of layers
is in `unet_core.models.layer_rules`.

More was measured and left out, as it gave less than 3 % on a CPU whose time goes to convolutions by
more than 90 %: variables frozen to constants, transposed convolutions as 1x1 ones, one convolution
for each part of a concatenation. XLA took three times as long.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from unet_core import losses
from unet_core.errors import UserError
from unet_core.models.build import PRECISIONS
from unet_core.models.geometry import tile_geometry
from unet_core.models.layer_rules import rule_of
from unet_core.models.walk import Call, calls


class InferenceNetwork:
    """A copy of `model` that infers faster and cannot be trained further.

    It is compiled once for each type of pixels.

    Batch norm is folded into the convolution before it, in float32. ReLU moves into the
    convolution, where TensorFlow computes both with the bias in one kernel. Dropout is gone, and so
    are the layers that pad the image and crop the logits. The weights are stored in the type that
    is computed in, so that no call converts them.

    Args:
        model: A network of `make_network`. Of another functional or sequential model, the same
            layers are treated the same and the rest is copied.
        precision: "float32", "bfloat16" or "float16"; as `model` if None.
        overlapping: Whether classes may overlap, each logit being that of a sigmoid.

    Attributes:
        model: The model that the weights are from.
        overlapping: As given.
        layers: The copy, from [B, H, W, C] pixel values to float32 logits [B, h, w, K]; its
            variables are its own.
        geometry: Which sizes it takes, by how much its logits are smaller, and how many of them
            depend on what is outside of the image.
        channels: C.

    Raises:
        UserError: If `precision` is none of these.
        ValueError: If `model` is neither functional nor sequential, or see `tile_geometry`.
    """

    def __init__(
        self, model: keras.Model, *, precision: str | None = None, overlapping: bool = False
    ):
        if precision is not None and precision not in PRECISIONS:
            raise UserError(f"`precision` ({precision!r}) must be one of {', '.join(PRECISIONS)}.")
        self.model = model
        self.overlapping = overlapping
        self.geometry = tile_geometry(model)
        self.channels = model.input_shape[-1]
        self._pairs: list[_Pair] = []
        self._compiled: dict[np.dtype, Callable] = {}
        if isinstance(model, keras.Sequential):
            model = keras.Model(*model.inputs, *model.outputs, name=model.name)
        self.layers = self._copy(model, precision)
        self.layers.trainable = False
        self.refresh()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities [B, h, w, K] float32 of [B, H, W, channels].

        `images` are uint8, or float32 in 0..255. Of two classes that do not overlap K is 1, the
        probability of the second.
        """
        if images.dtype not in self._compiled:
            spec = tf.TensorSpec([None, None, None, self.channels], tf.as_dtype(images.dtype))
            self._compiled[images.dtype] = tf.function(self._probabilities, input_signature=[spec])
        return self._compiled[images.dtype](images).numpy()

    def refresh(self) -> None:
        """Takes over the weights that `model` has now. Nothing is traced anew."""
        for copied, layer, norm in self._pairs:
            if norm is not None:
                take_over, affine = rule_of(layer).take_over, rule_of(norm).affine
                # `_absorbed` takes no other pair.
                assert take_over is not None
                assert affine is not None
                take_over(copied, layer, affine(norm))
                continue
            for ours, theirs in zip(copied.variables, layer.variables, strict=True):
                ours.assign(theirs.value)
            if isinstance(copied, keras.layers.Normalization):
                # It computes with constants made of its variables (Keras 3.15).
                copied.finalize_state()

    def _probabilities(self, images: tf.Tensor) -> tf.Tensor:
        logits = self.layers(images, training=False)
        # Of two classes the second says all.
        one = logits.shape[-1] == 1
        return losses.probabilities(logits, overlapping=one or self.overlapping)

    def _copy(self, model: keras.Model, precision: str | None) -> keras.Model:
        absorbed = _absorbed(model)
        gone = {id(layer) for chain in absorbed.values() for layer in chain}
        given = {id(tensor) for tensor in model.outputs}
        last = {id(call.layer) for call in calls(model) if id(call.outputs[0]) in given}
        left_out: set[int] = set()

        def copy(layer):
            if not isinstance(layer, keras.Layer):
                return layer
            rule, config, norm = rule_of(layer), layer.get_config(), None
            if rule.computes:
                chosen = "float32" if id(layer) in last else precision or layer.compute_dtype
                config["dtype"] = keras.DTypePolicy(chosen)
            for follower in absorbed.get(id(layer), ()):
                if rule_of(follower).affine:
                    norm, config["use_bias"] = follower, True
                else:
                    config["activation"] = rule_of(follower).activation(follower)
            copied = layer.__class__.from_config(config)
            if rule.left_out or id(layer) in gone:
                left_out.add(id(copied))
            else:
                self._pairs.append((copied, layer, norm))
            return copied

        def call(layer, *args, **kwargs):
            if id(layer) in left_out:
                return keras.tree.flatten(args)[0]
            return layer(*args, **kwargs)

        return keras.models.clone_model(model, clone_function=copy, call_function=call)


# A layer of the copy, the one it stands for, and the normalisation it has taken over.
_Pair = tuple[keras.Layer, keras.Layer, keras.Layer | None]


def _absorbed(model: keras.Model) -> dict[int, list[keras.Layer]]:
    """Returns, by the id of a convolution, the layers right after it that it can take over.

    These are a normalisation, an activation, or the one after the other.
    """
    found = calls(model)
    times = collections.Counter(id(call.layer) for call in found)
    readers: dict[int, list[Call | None]] = collections.defaultdict(list)
    for call in found:
        for tensor in call.inputs:
            readers[id(tensor)].append(call)
    for tensor in model.outputs:
        readers[id(tensor)].append(None)

    def only_reader(call: Call) -> Call | None:
        reading = readers[id(call.outputs[0])]
        one = reading[0] if len(reading) == 1 else None
        return one if one and times[id(one.layer)] == 1 else None

    absorbed = {}
    for call in found:
        layer = call.layer
        if not rule_of(layer).take_over or times[id(layer)] > 1:
            continue
        if layer.activation is not keras.activations.linear:
            continue
        chain, following = [], only_reader(call)
        if following and rule_of(following.layer).affine:
            chain.append(following.layer)
            following = only_reader(following)
        if following and rule_of(following.layer).activation(following.layer):
            chain.append(following.layer)
        absorbed[id(layer)] = chain
    return absorbed
