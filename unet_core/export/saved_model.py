"""A network for `tf.saved_model.load` and TensorFlow Serving.

    serve = tf.saved_model.load("exported/saved_model").signatures["serving_default"]
    masks = serve(images=tf.constant(images))["masks"]     # [B, H, W, C] uint8 -> [B, H, W] uint8

It needs TensorFlow and nothing else. Signatures: `serving_default` for uint8, `serving_uint16` and
`serving_float32`, from `images` [B, H, W, channels] of any size to `probabilities`
[B, H, W, classes] float32 and `masks` [B, H, W] uint8, the class ids; and `classes`, from nothing
to `names` [classes] and `mask_values` [classes] or, for colours, [classes, 3]. The last is in its
`assets/classes.json` too. Of classes that may overlap `masks` are [B, H, W, classes], 1 where each
is. With the intensities "range", floats are 0 to 1.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from unet_core import losses
from unet_core.conventions import MIDDLE, SPREAD, mirrored
from unet_core.data.intensities import WHITE, Scaling
from unet_core.export import CLASSES_FILE, Format, Serving
from unet_core.inference.masks import Thresholds
from unet_core.inference.network import InferenceNetwork

_SIGNATURES = {
    "serving_default": tf.uint8,
    "serving_uint16": tf.uint16,
    "serving_float32": tf.float32,
}


def write(model: keras.Model, folder: pathlib.Path, serving: Serving) -> None:
    """Writes saved_model/."""
    overlapping = serving.classes.overlapping
    network = InferenceNetwork(model, precision=serving.precision, overlapping=overlapping)
    server = _Server(network, serving, folder / CLASSES_FILE)
    tf.saved_model.save(server, str(folder / "saved_model"), server.signatures())


SAVED_MODEL = Format(write)


class _Server(tf.Module):
    """What a SavedModel consists of.

    Args:
        network: [B, H, W, C] float32 in 0..255 to logits.
        serving: What belongs to it.
        described: The file that names the classes.
    """

    def __init__(self, network: InferenceNetwork, serving: Serving, described: pathlib.Path):
        super().__init__()
        # The variables, not the model: Keras' own objects would have to be there to load them.
        self.weights = [variable.value for variable in network.layers.variables]
        self.described = tf.saved_model.Asset(str(described))
        self._network = network
        self._serving = serving

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        def of(dtype: tf.DType):
            spec = tf.TensorSpec([None, None, None, self._network.channels], dtype, name="images")
            return tf.function(self._serve, input_signature=[spec]).get_concrete_function()

        found = {name: of(dtype) for name, dtype in _SIGNATURES.items()}
        found["classes"] = tf.function(self._describe, input_signature=[]).get_concrete_function()
        return found

    def _serve(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        # A server that is not in Python does not look at the shape of the signature, and kernels
        # that meet another rank say what nobody understands, or end the process.
        images = tf.ensure_shape(images, [None, None, None, self._network.channels])
        pixels = scaled(images, self._serving.scaling)
        shape, around = tf.shape(images), self._network.geometry
        before, after = around.padding()
        for axis in (1, 2):
            size = shape[axis]
            last = size + after + -size % around.stride
            pixels = tf.gather(pixels, mirrored(tf.range(-before, last), size, tf), axis=axis)
        logits = self._network.layers(pixels, training=False)
        logits = logits[:, : shape[1], : shape[2]]
        probabilities = losses.probabilities(logits, self._network.overlapping)
        return {"probabilities": probabilities, "masks": self._masks(probabilities)}

    def _masks(self, probabilities: tf.Tensor) -> tf.Tensor:
        threshold = self._serving.threshold
        if threshold is None:
            return tf.cast(tf.argmax(probabilities, -1), tf.uint8)
        if isinstance(threshold, Thresholds):
            return tf.cast(probabilities > tf.constant(threshold.values), tf.uint8)
        own = tf.constant(threshold.class_id, tf.uint8)
        return tf.where(probabilities[..., threshold.class_id] > threshold.value, own, 1 - own)

    def _describe(self) -> dict[str, tf.Tensor]:
        return {
            "names": tf.constant(self._serving.classes.names),
            "mask_values": tf.constant(self._serving.classes.mask_values, tf.int32),
        }


def scaled(images: tf.Tensor, scaling: Scaling) -> tf.Tensor:
    """Returns what `scaling` makes of each of `images`, in TensorFlow and without its checks.

    Args:
        images: [B, H, W, C] uint8, uint16 or float32, as in image files.
        scaling: How to scale them.

    Returns:
        [B, H, W, C] float32; 0 to 255 is the range that networks are made for.
    """
    pixels = tf.cast(images, tf.float32)
    if scaling.form == "range" and scaling.numbers:
        low, high = scaling.numbers
        return (pixels - low) * (255 / (high - low))
    if scaling.form == "range":
        return pixels * (255 / WHITE[images.dtype.name])
    if scaling.form == "fixed":
        mean, deviation = scaling.numbers
        return MIDDLE + SPREAD * ((pixels - mean) / deviation)
    exact = tf.cast(pixels, tf.float64)
    if scaling.form == "percentile":
        low, high = _percentiles(exact, scaling.numbers)
        if scaling.min_max:
            least, greatest = _percentiles(exact, (0, 100))
            is_apart = low < high
            low, high = tf.where(is_apart, low, least), tf.where(is_apart, high, greatest)
        spread = (exact - low) * (255 / _or_one(high - low))
        return tf.cast(tf.clip_by_value(spread, 0, 255), tf.float32)
    mean, variance = tf.nn.moments(exact, (1, 2), keepdims=True)
    return tf.cast(MIDDLE + SPREAD * ((exact - mean) / _or_one(tf.sqrt(variance))), tf.float32)


def _percentiles(pixels: tf.Tensor, percents: Sequence[float]) -> list[tf.Tensor]:
    """Returns the percentiles [B, 1, 1, C] of each image and channel, as `np.percentile` does."""
    batch, height, width, channels = tf.unstack(tf.shape(pixels))
    flat = tf.reshape(pixels, [batch, height * width, channels])
    ordered = tf.transpose(tf.sort(tf.transpose(flat, (0, 2, 1))), (0, 2, 1))
    last = tf.cast(height * width - 1, tf.float64)
    found = []
    for percent in percents:
        position = last * (percent / 100)
        below = tf.floor(position)
        lower, upper = (
            tf.gather(ordered, tf.cast(index, tf.int32), axis=1)
            for index in (below, tf.minimum(below + 1, last))
        )
        value = lower + (upper - lower) * (position - below)
        found.append(value[:, tf.newaxis, tf.newaxis])
    return found


def _or_one(spread: tf.Tensor) -> tf.Tensor:
    """Returns `spread` with 1 in place of 0: what does not vary stays finite."""
    return tf.where(spread > 0, spread, tf.ones_like(spread))
