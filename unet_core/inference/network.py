"""A copy of a network for inference only: fewer layers, weights in the type they are used in.

network = make_inference_network(model, precision="bfloat16")
logits = network(images)     # [B, H, W, C] pixel values -> [B, H, W, K] float32, as `model`

More was measured and left out, as it gave less than 3 % on a CPU whose time goes to convolutions by
more than 90 %: variables frozen to constants, transposed convolutions as 1x1 ones, one convolution
for each part of a concatenation. XLA took three times as long.
"""

from __future__ import annotations

import collections

import keras
import numpy as np

from unet_core.errors import UserError
from unet_core.models.layers import CropLike, FusedBatchNorm, MirrorPad, RowDropout

PRECISIONS = ("float32", "bfloat16", "float16")
_RELU = {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}
_layers = keras.layers
# What computes between the scaled image and the logits; other layers keep the type they have.
_COMPUTING = (
    _layers.Conv2D,
    _layers.Conv2DTranspose,
    _layers.MaxPooling2D,
    _layers.UpSampling2D,
    _layers.Cropping2D,
    _layers.Concatenate,
    _layers.ReLU,
    FusedBatchNorm,
    CropLike,
)


def make_inference_network(
    model: keras.Model, *, precision: str | None = None, bare: bool = False
) -> keras.Model:
    """Returns a copy of `model` that infers faster and cannot be trained further.

    Batch norm is folded into the convolution before it, in float32. ReLU moves into the
    convolution, where TensorFlow computes both with the bias in one kernel. Dropout is gone. The
    weights are stored in the type that is computed in, so that no call converts them.

    Args:
        model: A network of `make_unet`. Of another functional or sequential model, the same layers
            are treated the same and the rest is copied; a subclassed model is returned as it is.
        precision: "float32", "bfloat16" or "float16"; as `model` if None.
        bare: Leave out the layers that pad the image and crop the logits. With "same" convolutions
            height and width must then be multiples of the stride, and with "valid" ones the logits
            are smaller than the image (see `unet_core.models.unet.tile_geometry`).

    Returns:
        A model of [B, H, W, C] pixel values to float32 logits [B, H, W, K]; its variables are its
        own.

    Raises:
        UserError: If `precision` is none of these.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"`precision` ({precision!r}) must be one of {', '.join(PRECISIONS)}.")
    if not getattr(model, "outputs", None):
        return model
    if isinstance(model, keras.Sequential):
        model = keras.Model(*model.inputs, *model.outputs, name=model.name)
    absorbed = _absorbed(model)
    left_out = {id(layer) for chain in absorbed.values() for layer in chain}
    dropped = (RowDropout, MirrorPad) if bare else (RowDropout,)
    given = {id(tensor) for tensor in model.outputs}
    last = {id(layer) for layer in model.layers if id(layer.output) in given}
    copies: dict[int, keras.Layer] = {}
    stands_for: dict[int, keras.Layer] = {}

    def copy(layer):
        if not isinstance(layer, keras.Layer):
            return layer
        config = layer.get_config()
        if isinstance(layer, _COMPUTING):
            chosen = "float32" if id(layer) in last else precision or layer.compute_dtype
            config["dtype"] = keras.DTypePolicy(chosen)
        chain = absorbed.get(id(layer), ())
        if any(isinstance(follower, FusedBatchNorm) for follower in chain):
            config["use_bias"] = True
        if any(isinstance(follower, _layers.ReLU) for follower in chain):
            config["activation"] = "relu"
        copied = layer.__class__.from_config(config)
        copies[id(layer)], stands_for[id(copied)] = copied, layer
        return copied

    def call(layer, *args, **kwargs):
        original = stands_for.get(id(layer))
        if isinstance(original, dropped) or id(original) in left_out:
            return args[0]
        if bare and isinstance(original, CropLike):
            return args[0][0]
        return layer(*args, **kwargs)

    network = keras.models.clone_model(model, clone_function=copy, call_function=call)
    for layer in model.layers:
        if id(layer) in copies and id(layer) not in left_out and not isinstance(layer, dropped):
            chain = absorbed.get(id(layer), ())
            norms = [follower for follower in chain if isinstance(follower, FusedBatchNorm)]
            _copy_weights(layer, norms, copies[id(layer)])
    network.trainable = False
    return network


def _absorbed(model: keras.Model) -> dict[int, list[keras.Layer]]:
    """Returns, by the id of a convolution, the layers right after it that it can take over."""
    if any(len(entry["inbound_nodes"]) > 1 for entry in model.get_config()["layers"]):
        # `input` and `output` of a layer that is called several times tell of one call only.
        return {}
    readers: dict[int, list] = collections.defaultdict(list)
    for operation in model.operations:
        if not isinstance(operation, _layers.InputLayer):
            for tensor in keras.tree.flatten(operation.input):
                readers[id(tensor)].append(operation)
    for tensor in model.outputs:
        readers[id(tensor)].append(None)
    found = {}
    for layer in model.layers:
        if type(layer) is _layers.Conv2D and layer.activation is keras.activations.linear:
            chain = _only_reader(readers, layer, FusedBatchNorm)
            relu = _only_reader(readers, chain[0] if chain else layer, _layers.ReLU)
            if relu and all(relu[0].get_config()[k] == v for k, v in _RELU.items()):
                chain += relu
            found[id(layer)] = chain
    return found


def _only_reader(readers, layer: keras.Layer, kind: type) -> list[keras.Layer]:
    """Returns the one layer that reads the output of `layer`, or nothing if there are others or it
    is no `kind`.
    """
    found = readers[id(layer.output)]
    return list(found) if len(found) == 1 and isinstance(found[0], kind) else []


def _copy_weights(layer: keras.Layer, norms: list[FusedBatchNorm], copied: keras.Layer) -> None:
    """Gives `copied` the weights of `layer`, multiplied out with the batch norm behind it."""
    if not norms:
        for ours, theirs in zip(copied.variables, layer.variables, strict=True):
            ours.assign(theirs.value)
        return
    (norm,) = norms
    gamma, beta, mean, variance = (
        keras.ops.convert_to_numpy(v.value).astype(np.float32)
        for v in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    factor = gamma / np.sqrt(variance + np.float32(norm.epsilon))
    before = keras.ops.convert_to_numpy(layer.bias) if layer.use_bias else np.float32(0)
    copied.kernel.assign(keras.ops.convert_to_numpy(layer.kernel) * factor)
    copied.bias.assign((before - mean) * factor + beta)
