"""What the package knows of each class of layers, one entry a class.

An entry says how far a layer looks (for windows), what becomes of it in a network for inference,
and how it is written as ONNX. Each part may be missing: without a reach the network looks
everywhere, and is predicted in overlapping windows that are blended; without nodes it cannot be
written as ONNX. A class that has no entry is copied for inference and has neither, even if it is a
subclass of one that has. Nothing is guessed.

A file that brings layers of its own adds them here, once, when it is imported:

    RULES[SqueezeExcite] = LayerRule(reach=reach.of_statistics, onnx=squeeze_excite_nodes)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from unet_core.models import onnx_nodes, reach
from unet_core.models.layers import (
    CropLike,
    FusedBatchNorm,
    LayerScale,
    MeanOfNetworks,
    MirrorPad,
    PickChannels,
    RowDropout,
    padding_for,
)
from unet_core.models.normalization import GroupNorm
from unet_core.models.resampling import BroadcastLike, Interpolate
from unet_core.models.stem import DepthToSpace, SpaceToDepth


@dataclasses.dataclass(frozen=True)
class Affine:
    """What a normalisation does at inference: (x - mean) * factor + offset, each [C] float32."""

    mean: np.ndarray
    factor: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """What is known of one class of layers.

    Attributes:
        reach: How far it looks, see `unet_core.models.reach`; None is not known.
        onnx: Its nodes, see `unet_core.models.onnx_nodes`; None is not known.
        computes: Whether it computes in the precision that is chosen for inference and keeps its
            weights in it. If not, it stays in the type it has.
        left_out: Whether it gives its first input in a network for inference: it does nothing
            there, or it pads the image or crops the logits, which is done outside of that network.
        affine: layer -> what it does, if a convolution before it can do that by its own weights.
        take_over: (copied layer, layer, affine) gives the copy, which has a bias, the weights of
            the layer with what follows it multiplied in; None where it cannot. Such a layer has
            `use_bias` and `activation`.
        activation: layer -> the name of the activation it computes, if a convolution before it can
            do that; else None.
    """

    reach: reach.Rule | None = None
    onnx: onnx_nodes.Rule | None = None
    computes: bool = True
    left_out: bool = False
    affine: Callable[[keras.Layer], Affine] | None = None
    take_over: Callable[[keras.Layer, keras.Layer, Affine], None] | None = None
    activation: Callable[[keras.Layer], str | None] = lambda _: None


UNKNOWN = LayerRule(computes=False)
"""The rule of a class that has no entry."""


def rule_of(layer: keras.Operation) -> LayerRule:
    """Returns the entry of the class of `layer`, or `UNKNOWN`."""
    return RULES.get(type(layer), UNKNOWN)


def _mirror_pad_reach(layer: MirrorPad, _: int, lines: Sequence[reach.Line]) -> reach.Line:
    (line,) = lines
    multiple = 2**layer.depth
    pixels = multiple + sum(padding_for(multiple, layer.depth, layer.valid))
    return dataclasses.replace(line, sizes=line.sizes | {(multiple, pixels % multiple)})


def _space_to_depth_reach(layer: SpaceToDepth, _: int, lines: Sequence[reach.Line]) -> reach.Line:
    return lines[0].window(layer.factor, layer.factor)


def _depth_to_space_reach(layer: DepthToSpace, _: int, lines: Sequence[reach.Line]) -> reach.Line:
    return lines[0].repeated(layer.factor)


def _interpolate_reach(layer: Interpolate, _: int, lines: Sequence[reach.Line]) -> reach.Line:
    return lines[0].interpolated(layer.times)


def _channelwise(rule: reach.Rule) -> reach.Rule:
    """Returns `rule` for layers that normalise along their `axis`, if that is the channels."""

    def of_axis(layer, axis, lines):
        axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
        return rule(layer, axis, lines) if axes in ([-1], [3]) else reach.join(lines).nowhere()

    return of_axis


def _fused_batch_norm(layer: FusedBatchNorm) -> Affine:
    gamma, beta, mean, variance = (
        keras.ops.convert_to_numpy(v.value).astype(np.float32)
        for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    return Affine(mean, gamma / np.sqrt(variance + np.float32(layer.epsilon)), beta)


def _layer_scale(layer: LayerScale) -> Affine:
    gamma = keras.ops.convert_to_numpy(layer.gamma.value).astype(np.float32)
    return Affine(np.zeros_like(gamma), gamma, np.zeros_like(gamma))


def _convolution_takes(copied: keras.Layer, layer: keras.Layer, affine: Affine) -> None:
    """Of convolutions, and of dense layers, whose kernels end with the channels they give."""
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    before = keras.ops.convert_to_numpy(layer.bias) if layer.use_bias else np.float32(0)
    factor = affine.factor
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        # [H, W, in, of each]
        factor = factor.reshape(kernel.shape[2:])
    copied.kernel.assign(kernel * factor)
    copied.bias.assign((before - affine.mean) * affine.factor + affine.offset)


def _plain_relu(layer: keras.layers.ReLU) -> str | None:
    plain = layer.negative_slope == 0 and layer.threshold == 0
    return {None: "relu", 6: "relu6"}.get(layer.max_value) if plain else None


def _named_activation(layer: keras.layers.Activation) -> str | None:
    name = getattr(layer.activation, "__name__", "")
    return name if layer.activation in onnx_nodes.ACTIVATIONS else None


_layers = keras.layers
_POINTWISE = LayerRule(reach=reach.of_pointwise)
_GLOBAL = LayerRule(reach=reach.of_global)

RULES: dict[type[keras.Operation], LayerRule] = {
    # Layers of networks of `make_network`.
    _layers.Rescaling: LayerRule(reach.of_pointwise, onnx_nodes.of_rescaling, computes=False),
    MirrorPad: LayerRule(_mirror_pad_reach, computes=False, left_out=True),
    CropLike: LayerRule(reach.of_first, left_out=True),
    _layers.Conv2D: LayerRule(
        reach.of_convolution, onnx_nodes.of_convolution, take_over=_convolution_takes
    ),
    _layers.Conv2DTranspose: LayerRule(reach.of_transposed, onnx_nodes.of_transposed),
    _layers.MaxPooling2D: LayerRule(reach.of_pooling, onnx_nodes.of_max_pooling),
    _layers.UpSampling2D: LayerRule(reach.of_upsampling, onnx_nodes.of_upsampling),
    _layers.Cropping2D: LayerRule(reach.of_cropping, onnx_nodes.of_cropping),
    _layers.Concatenate: LayerRule(reach.of_concatenation, onnx_nodes.of_concatenation),
    _layers.ReLU: LayerRule(reach.of_pointwise, onnx_nodes.of_relu, activation=_plain_relu),
    _layers.LeakyReLU: LayerRule(reach.of_pointwise, onnx_nodes.of_leaky_relu),
    _layers.Add: LayerRule(reach.of_pointwise, onnx_nodes.of_addition),
    _layers.Activation: LayerRule(
        reach.of_pointwise, onnx_nodes.of_activation, activation=_named_activation
    ),
    FusedBatchNorm: LayerRule(
        reach.of_pointwise, onnx_nodes.of_batch_norm, affine=_fused_batch_norm
    ),
    RowDropout: LayerRule(reach.of_pointwise, computes=False, left_out=True),
    GroupNorm: LayerRule(reach.of_statistics, onnx_nodes.of_group_norm),
    SpaceToDepth: LayerRule(_space_to_depth_reach, onnx_nodes.of_space_to_depth),
    DepthToSpace: LayerRule(_depth_to_space_reach, onnx_nodes.of_depth_to_space),
    Interpolate: LayerRule(_interpolate_reach, onnx_nodes.of_interpolation),
    BroadcastLike: LayerRule(reach.of_pointwise, onnx_nodes.of_broadcast_like),
    MeanOfNetworks: LayerRule(reach.of_pointwise, onnx_nodes.of_mean_of_networks, computes=False),
    # Those of the networks of `keras.applications`.
    PickChannels: LayerRule(reach.of_pointwise, onnx_nodes.of_picked_channels, computes=False),
    _layers.Normalization: LayerRule(
        reach.of_pointwise, onnx_nodes.of_normalization, computes=False
    ),
    _layers.DepthwiseConv2D: LayerRule(
        reach.of_convolution, onnx_nodes.of_depthwise, take_over=_convolution_takes
    ),
    _layers.Dense: LayerRule(reach.of_pointwise, onnx_nodes.of_dense, take_over=_convolution_takes),
    _layers.ZeroPadding2D: LayerRule(reach.of_zero_padding, onnx_nodes.of_zero_padding),
    _layers.Multiply: LayerRule(reach.of_pointwise, onnx_nodes.of_product),
    _layers.LayerNormalization: LayerRule(
        _channelwise(reach.of_pointwise), onnx_nodes.of_layer_normalization, computes=False
    ),
    LayerScale: LayerRule(reach.of_pointwise, onnx_nodes.of_layer_scale, affine=_layer_scale),
    _layers.GlobalAveragePooling2D: LayerRule(reach.of_global, onnx_nodes.of_global_average),
    _layers.Reshape: LayerRule(reach.of_global, onnx_nodes.of_reshape),
    # Others of Keras.
    _layers.SeparableConv2D: LayerRule(reach.of_convolution),
    _layers.AveragePooling2D: LayerRule(reach.of_pooling),
    _layers.Subtract: _POINTWISE,
    _layers.Average: _POINTWISE,
    _layers.Maximum: _POINTWISE,
    _layers.Minimum: _POINTWISE,
    _layers.ELU: _POINTWISE,
    _layers.Dropout: LayerRule(reach.of_pointwise, computes=False),
    _layers.BatchNormalization: LayerRule(_channelwise(reach.of_pointwise), computes=False),
    _layers.GroupNormalization: LayerRule(_channelwise(reach.of_statistics), computes=False),
    _layers.GlobalMaxPooling2D: _GLOBAL,
    _layers.Flatten: _GLOBAL,
}
