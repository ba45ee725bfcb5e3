"""A trained network as files that serve without this package.

    export(model, config, "exported", step=1000, formats=("saved_model", "keras", "onnx"))

    exported/classes.json    the classes: id, name, mask value
    exported/unet_core.json  the settings of the run and its step
    exported/saved_model/    for `tf.saved_model.load` and TensorFlow Serving
    exported/model.keras     the network as it was trained, for `keras.saving.load_model`
    exported/model.onnx      for ONNX Runtime, OpenVINO and others

The SavedModel needs TensorFlow and nothing else:

    serve = tf.saved_model.load("exported/saved_model").signatures["serving_default"]
    masks = serve(images=tf.constant(images))["masks"]     # [B, H, W, C] uint8 -> [B, H, W] uint8

It and the ONNX file take pixel values as they are in image files, scale them as the run did, mirror
the image around by a margin, and cut that off again. Neither checks the pixels: what
`data.intensities` refuses, NaN for example, gives probabilities without meaning.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from unet_core import losses
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import WHITE, Scaling
from unet_core.errors import UserError
from unet_core.export import onnx_file
from unet_core.files import new_folder, os_errors, write_json
from unet_core.inference.network import make_inference_network
from unet_core.models.layers import mirrored_indices
from unet_core.models.unet import TileGeometry, tile_geometry
from unet_core.settings import RunConfig

_FORMAT = 1
FORMATS = ("saved_model", "keras", "onnx")
_SIGNATURES = {
    "serving_default": tf.uint8,
    "serving_uint16": tf.uint16,
    "serving_float32": tf.float32,
}


def export(
    model: keras.Model,
    config: RunConfig,
    output_dir: str | os.PathLike,
    *,
    step: int,
    formats: Sequence[str] = ("saved_model", "keras"),
    precision: str | None = None,
    margin: int | None = None,
) -> None:
    """Writes `model` to the new folder `output_dir`, whole or not at all.

    Args:
        model: A network of `make_unet`, with the weights to be served.
        config: The settings of its run: classes, intensities, channels.
        output_dir: The folder to make; its parents are made if need be.
        step: How many steps the network was trained for.
        formats: What to write, out of `FORMATS`; the two JSON files are always written.
        precision: What the SavedModel computes in: "float32", "bfloat16" or "float16"; as `model`
            if None. The ONNX file is float32.
        margin: Pixels mirrored around the image; `default_margin(model)` if None.

    The SavedModel has the signatures `serving_default` for uint8, `serving_uint16` and
    `serving_float32`, from `images` [B, H, W, channels] of any size to `probabilities`
    [B, H, W, classes] float32 and `masks` [B, H, W] uint8, the class ids; and `classes`, from
    nothing to `names` [classes] and `mask_values` [classes] or, for colours, [classes, 3]. The last
    is in its `assets/classes.json` too. With the intensities "range", floats are 0 to 1.

    The ONNX file has the input and outputs of `serving_default`; with intensities other than
    "range", which are in the units of the files, those of `serving_float32`.

    Raises:
        UserError: If `output_dir` exists or cannot be written, a format is unknown, `onnx` is not
            installed, or the settings are wrong.
        ValueError: If `model` is no network of `make_unet`, or not for these classes and channels.
    """
    output_dir = pathlib.Path(output_dir)
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(
            f"`formats` ({', '.join(formats)}) must be some of {', '.join(FORMATS)}; "
            f"{', '.join(unknown) or 'nothing'} cannot be exported."
        )
    if "onnx" in formats:
        onnx_file.check_installed()
    if os.path.lexists(output_dir):
        raise UserError(
            f"{output_dir}: exists, and nothing is overwritten. Choose another folder, or delete "
            "this one."
        )
    classes = ClassMap.parse(config.data.classes, config.data.stray_values == "nearest")
    scaling = Scaling.parse(config.data.intensities)
    wanted = (config.data.channels, 1 if len(classes) == 2 else len(classes))
    found = (model.input_shape[-1], model.output_shape[-1])
    if found != wanted:
        raise ValueError(
            f"Expected a network of {wanted[0]} channels and {wanted[1]} logits, for the classes "
            f"{classes}. Received one of {found[0]} and {found[1]}."
        )
    margin = default_margin(model) if margin is None else margin
    errors = os_errors(
        output_dir,
        "cannot be written",
        "Make room or choose another folder.",
        kinds=(OSError, tf.errors.OpError),
    )
    with errors, new_folder(output_dir) as partial:
        write_json(partial / "classes.json", _described(classes))
        settings = {"format": _FORMAT, "settings": config.stored(), "step": step}
        write_json(partial / "unet_core.json", settings)
        if "saved_model" in formats:
            server = _Server(
                make_inference_network(model, precision=precision, bare=True),
                tile_geometry(model),
                scaling,
                margin,
                classes,
                partial / "classes.json",
            )
            tf.saved_model.save(server, str(partial / "saved_model"), server.signatures())
        if "keras" in formats:
            model.save(partial / "model.keras")
        if "onnx" in formats:
            proto = onnx_file.make_onnx(model, scaling, margin, classes.names)
            (partial / "model.onnx").write_bytes(proto.SerializeToString())


def default_margin(model: keras.Model) -> int:
    """Returns the pixels to mirror around an image so that `model` sees no zeros near its edge: the
    network's halo, rounded up to a multiple of its stride.
    """
    found = tile_geometry(model)
    return -(-found.halo // found.stride) * found.stride


class _Server(tf.Module):
    """What a SavedModel consists of.

    Args:
        network: [B, H, W, C] float32 in 0..255 to logits, without padding and cropping layers.
        around: Its surroundings.
        scaling: From pixel values in files to those.
        margin: Pixels mirrored around the image.
        classes: Their names and mask values.
        described: The file that names them.
    """

    def __init__(
        self,
        network: keras.Model,
        around: TileGeometry,
        scaling: Scaling,
        margin: int,
        classes: ClassMap,
        described: pathlib.Path,
    ):
        super().__init__()
        # The variables, not the model: Keras' own objects would have to be there to load them.
        self.weights = [variable.value for variable in network.variables]
        self.described = tf.saved_model.Asset(str(described))
        self._run = network
        self._around = around
        self._scaling = scaling
        self._margin = margin
        self._classes = classes

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        channels = self._run.input_shape[-1]

        def of(dtype: tf.DType):
            spec = tf.TensorSpec([None, None, None, channels], dtype, name="images")
            return tf.function(self._serve, input_signature=[spec]).get_concrete_function()

        found = {name: of(dtype) for name, dtype in _SIGNATURES.items()}
        found["classes"] = tf.function(self._describe, input_signature=[]).get_concrete_function()
        return found

    def _serve(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, margin = scaled(images, self._scaling), self._margin
        shape = tf.shape(images)
        before, after = self._around.padding(margin)
        for axis in (1, 2):
            excess = -shape[axis] % self._around.stride
            index = mirrored_indices(shape[axis], before, after + excess)
            pixels = tf.gather(pixels, index, axis=axis)
        logits = self._run(pixels, training=False)
        logits = logits[:, margin : margin + shape[1], margin : margin + shape[2]]
        probabilities = losses.probabilities(logits)
        masks = tf.cast(tf.argmax(probabilities, -1), tf.uint8)
        return {"probabilities": probabilities, "masks": masks}

    def _describe(self) -> dict[str, tf.Tensor]:
        return {
            "names": tf.constant(self._classes.names),
            "mask_values": tf.constant(self._classes.mask_values, tf.int32),
        }


def scaled(images: tf.Tensor, scaling: Scaling) -> tf.Tensor:
    """Returns what `scaling` makes of each of `images`, in TensorFlow and without its checks.

    Args:
        images: [B, H, W, C] uint8, uint16 or float32, as in image files.

    Returns:
        [B, H, W, C] float32; 0 to 255 is the range that networks are made for.
    """
    pixels = tf.cast(images, tf.float32)
    if scaling.form == "range":
        return pixels * (255 / WHITE[images.dtype.name])
    if scaling.form == "fixed":
        mean, deviation = scaling.numbers
        return 127.5 + 63.75 * ((pixels - mean) / deviation)
    exact = tf.cast(pixels, tf.float64)
    if scaling.form == "percentile":
        low, high = _percentiles(exact, scaling.numbers)
        spread = (exact - low) * (255 / _or_one(high - low))
        return tf.cast(tf.clip_by_value(spread, 0, 255), tf.float32)
    mean, variance = tf.nn.moments(exact, (1, 2), keepdims=True)
    return tf.cast(127.5 + 63.75 * ((exact - mean) / _or_one(tf.sqrt(variance))), tf.float32)


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


def _described(classes: ClassMap) -> list[dict]:
    pairs = zip(classes.names, classes.mask_values, strict=True)
    return [{"id": i, "name": name, "mask_value": value} for i, (name, value) in enumerate(pairs)]
