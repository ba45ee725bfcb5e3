"""Layers as nodes of an ONNX graph, on tensors [B, C, H, W] in float32.

A rule adds the nodes of one layer and returns the name of its output:

    rule(graph, layer, *inputs) -> str

`graph.add(operation, *inputs, **attributes)` adds a node and returns the name of its output;
`graph.constant(array, dtype)` adds an array, int64 if no dtype is given. Both are those of
`unet_core.export.onnx_file`, which knows the package onnx; this module does not. A rule raises
ValueError for a setting of a layer that it does not know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from unet_core.models.layers import FusedBatchNorm, LayerScale, PickChannels


class Graph(Protocol):
    """What rules use of an ONNX graph in the making; tensors are their names."""

    def add(self, operation: str, *inputs: str | int, **attributes: Any) -> str:
        """Adds a node and returns the name of its first output."""

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Adds an array and returns its name."""


Rule = Callable[..., str]


def of_rescaling(graph: Graph, layer: keras.layers.Rescaling, x: str) -> str:
    """Adds a factor and an offset, each one number or one for each channel."""
    x = graph.add("Mul", x, _for_channels(graph, layer.scale))
    return graph.add("Add", x, _for_channels(graph, layer.offset))


def of_normalization(graph: Graph, layer: keras.layers.Normalization, x: str) -> str:
    """Adds what `keras.layers.Normalization` does with the mean and variance of each channel."""
    if layer.invert:
        raise ValueError(_unknown(layer, "the inverse"))
    mean, variance = (np.ravel(_array(values)) for values in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    x = graph.add("Sub", x, _for_channels(graph, mean))
    return graph.add("Div", x, _for_channels(graph, deviation))


def of_picked_channels(graph: Graph, layer: PickChannels, x: str) -> str:
    """Adds channels in another order."""
    return graph.add("Gather", x, graph.constant(layer.order), axis=1)


def of_convolution(graph: Graph, layer: keras.layers.Conv2D, x: str) -> str:
    """Adds a convolution with its bias and activation."""
    # [H, W, in, out] there, [out, in, H, W] here.
    x = graph.add(
        "Conv",
        x,
        graph.constant(np.transpose(_array(layer.kernel), (3, 2, 0, 1)), np.float32),
        *_bias(graph, layer),
        pads=_pads(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding),
        strides=layer.strides,
        dilations=layer.dilation_rate,
        group=layer.groups,
    )
    return _activated(graph, layer, x)


def of_depthwise(graph: Graph, layer: keras.layers.DepthwiseConv2D, x: str) -> str:
    """Adds a convolution of each channel by itself, with its bias and activation."""
    # [H, W, in, of each] there, [in * of each, 1, H, W] here.
    kernel = np.transpose(_array(layer.kernel), (2, 3, 0, 1))
    channels, of_each, *size = kernel.shape
    x = graph.add(
        "Conv",
        x,
        graph.constant(kernel.reshape(channels * of_each, 1, *size), np.float32),
        *_bias(graph, layer),
        pads=_pads(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding),
        strides=layer.strides,
        dilations=layer.dilation_rate,
        group=channels,
    )
    return _activated(graph, layer, x)


def of_dense(graph: Graph, layer: keras.layers.Dense, x: str) -> str:
    """Adds a dense layer over the channels of each pixel, with its bias and activation."""
    if len(layer.input.shape) != 4:
        raise ValueError(_unknown(layer, "what has no height and width"))
    kernel = np.transpose(_array(layer.kernel))[:, :, None, None]
    x = graph.add("Conv", x, graph.constant(kernel, np.float32), *_bias(graph, layer))
    return _activated(graph, layer, x)


def of_transposed(graph: Graph, layer: keras.layers.Conv2DTranspose, x: str) -> str:
    """Adds a transposed convolution with its bias and activation."""
    overlap = [size - step for size, step in zip(layer.kernel_size, layer.strides, strict=True)]
    if min(overlap) < 0 or layer.output_padding is not None or set(layer.dilation_rate) != {1}:
        raise ValueError(_unknown(layer, "a kernel smaller than its stride, or dilation"))
    cut = overlap if layer.padding == "same" else [0, 0]
    x = graph.add(
        "ConvTranspose",
        x,
        # [H, W, out, in] there, [in, out, H, W] here.
        graph.constant(np.transpose(_array(layer.kernel), (3, 2, 0, 1)), np.float32),
        *_bias(graph, layer),
        pads=[*(n // 2 for n in cut), *(n - n // 2 for n in cut)],
        strides=layer.strides,
    )
    return _activated(graph, layer, x)


def of_max_pooling(graph: Graph, layer: keras.layers.MaxPooling2D, x: str) -> str:
    """Adds a pooling."""
    pads = _pads(layer.pool_size, layer.strides, (1, 1), layer.padding)
    return graph.add("MaxPool", x, kernel_shape=layer.pool_size, strides=layer.strides, pads=pads)


def of_upsampling(graph: Graph, layer: keras.layers.UpSampling2D, x: str) -> str:
    """Adds repetition."""
    if layer.interpolation != "nearest":
        raise ValueError(_unknown(layer, f"the interpolation {layer.interpolation!r}"))
    scales = graph.constant([1, 1, *layer.size], np.float32)
    how = dict(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return graph.add("Resize", x, "", scales, mode="nearest", **how)


def of_cropping(graph: Graph, layer: keras.layers.Cropping2D, x: str) -> str:
    """Adds a slice of rows and columns."""
    (top, bottom), (left, right) = layer.cropping
    # An end of -0 would be the beginning.
    last = np.iinfo(np.int64).max
    bounds = ([top, left], [-bottom or last, -right or last], [2, 3])
    return graph.add("Slice", x, *map(graph.constant, bounds))


def of_concatenation(graph: Graph, layer: keras.layers.Concatenate, *inputs: str) -> str:
    """Adds a concatenation of channels."""
    if layer.axis not in (-1, 3):
        raise ValueError(_unknown(layer, f"the axis {layer.axis}"))
    return graph.add("Concat", *inputs, axis=1)


def of_zero_padding(graph: Graph, layer: keras.layers.ZeroPadding2D, x: str) -> str:
    """Adds rows and columns of zeros."""
    (top, bottom), (left, right) = layer.padding
    return graph.add("Pad", x, graph.constant([0, 0, top, left, 0, 0, bottom, right]))


def of_product(graph: Graph, _: keras.layers.Multiply, *inputs: str) -> str:
    """Adds a product."""
    return functools.reduce(functools.partial(graph.add, "Mul"), inputs)


def of_batch_norm(graph: Graph, layer: FusedBatchNorm, x: str) -> str:
    """Adds a batch norm by its moving statistics."""
    variables = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    values = (graph.constant(_array(variable), np.float32) for variable in variables)
    return graph.add("BatchNormalization", x, *values, epsilon=layer.epsilon)


def of_layer_normalization(graph: Graph, layer: keras.layers.LayerNormalization, x: str) -> str:
    """Adds a normalisation of each pixel over its channels."""
    if layer.gamma is None or layer.beta is None:
        raise ValueError(_unknown(layer, "a normalisation without scale or offset"))
    values = (graph.constant(_array(v), np.float32) for v in (layer.gamma, layer.beta))
    last = graph.add("Transpose", x, perm=(0, 2, 3, 1))
    last = graph.add("LayerNormalization", last, *values, axis=-1, epsilon=layer.epsilon)
    return graph.add("Transpose", last, perm=(0, 3, 1, 2))


def of_layer_scale(graph: Graph, layer: LayerScale, x: str) -> str:
    """Adds a factor for each channel."""
    return graph.add("Mul", x, _for_channels(graph, _array(layer.gamma)))


def of_global_average(graph: Graph, layer: keras.layers.GlobalAveragePooling2D, x: str) -> str:
    """Adds the mean of each channel."""
    return graph.add("ReduceMean", x, axes=(2, 3), keepdims=int(layer.keepdims))


def of_reshape(graph: Graph, layer: keras.layers.Reshape, x: str) -> str:
    """Adds height and width of one pixel to [B, C]."""
    if len(layer.input.shape) != 2 or layer.target_shape[:-1] != (1, 1):
        raise ValueError(_unknown(layer, f"the shape {layer.target_shape}"))
    return graph.add("Reshape", x, graph.constant([0, -1, 1, 1]))


def of_addition(graph: Graph, _: keras.layers.Add, *inputs: str) -> str:
    """Adds the sum of tensors of one size, or of which some have one row and column."""
    return functools.reduce(lambda x, y: graph.add("Add", x, y), inputs)


def of_mean_of_networks(graph: Graph, layer: keras.layers.Layer, *logits: str) -> str:
    """Adds the logits whose probabilities are the mean over the networks of `logits`."""
    if layer.overlapping or layer.output.shape[-1] == 1:
        second = graph.add("Mean", *(graph.add("Sigmoid", x) for x in logits))
        first = graph.add("Mean", *(graph.add("Sigmoid", graph.add("Neg", x)) for x in logits))
        return graph.add("Sub", graph.add("Log", second), graph.add("Log", first))
    return graph.add("Log", graph.add("Mean", *(graph.add("Softmax", x, axis=1) for x in logits)))


def of_interpolation(graph: Graph, layer: keras.layers.Layer, x: str) -> str:
    """Adds `unet_core.models.resampling.Interpolate`."""
    scales = graph.constant([1, 1, layer.times, layer.times], np.float32)
    how = dict(coordinate_transformation_mode="half_pixel")
    return graph.add("Resize", x, "", scales, mode="linear", **how)


def of_broadcast_like(graph: Graph, _: keras.layers.Layer, x: str, like: str) -> str:
    """Adds `unet_core.models.resampling.BroadcastLike`."""
    shapes = (graph.add("Shape", x, end=2), graph.add("Shape", like, start=2))
    return graph.add("Expand", x, graph.add("Concat", *shapes, axis=0))


def of_relu(graph: Graph, layer: keras.layers.ReLU, x: str) -> str:
    """Adds ReLU, perhaps with a largest value."""
    if layer.negative_slope or layer.threshold:
        raise ValueError(_unknown(layer, "a slope or threshold"))
    x = graph.add("Relu", x)
    if layer.max_value is None:
        return x
    return graph.add("Min", x, graph.constant(layer.max_value, np.float32))


def of_leaky_relu(graph: Graph, layer: keras.layers.LeakyReLU, x: str) -> str:
    """Adds leaky ReLU."""
    return graph.add("LeakyRelu", x, alpha=float(layer.negative_slope))


def of_space_to_depth(graph: Graph, layer: keras.layers.Layer, x: str) -> str:
    """Adds `unet_core.models.stem.SpaceToDepth`."""
    return graph.add("SpaceToDepth", x, blocksize=layer.factor)


def of_depth_to_space(graph: Graph, layer: keras.layers.Layer, x: str) -> str:
    """Adds `unet_core.models.stem.DepthToSpace`."""
    return graph.add("DepthToSpace", x, blocksize=layer.factor, mode="DCR")


def of_group_norm(graph: Graph, layer: keras.layers.Layer, x: str) -> str:
    """Adds `unet_core.models.normalization.GroupNorm`."""
    # Groups as channels of an image of one row: InstanceNormalization, then scale and offset.
    shape = graph.add("Shape", x)
    grouped = graph.add("Reshape", x, graph.constant([0, layer.groups, -1]))
    ones, zeros = np.ones(layer.groups), np.zeros(layer.groups)
    scale, offset = (graph.constant(each, np.float32) for each in (ones, zeros))
    x = graph.add("InstanceNormalization", grouped, scale, offset, epsilon=layer.epsilon)
    x = graph.add("Reshape", x, shape)
    gamma, beta = (_array(each)[:, None, None] for each in (layer.gamma, layer.beta))
    x = graph.add("Mul", x, graph.constant(gamma, np.float32))
    return graph.add("Add", x, graph.constant(beta, np.float32))


def of_activation(graph: Graph, layer: keras.layers.Activation, x: str) -> str:
    """Adds the activation of a layer that is nothing else."""
    return _activated(graph, layer, x)


def _activated(graph: Graph, layer: keras.layers.Layer, x: str) -> str:
    if layer.activation is keras.activations.linear:
        return x
    if layer.activation not in ACTIVATIONS:
        raise ValueError(_unknown(layer, "its activation"))
    return ACTIVATIONS[layer.activation](graph, x)


def _relu6(graph: Graph, x: str) -> str:
    return graph.add("Clip", x, *(graph.constant(limit, np.float32) for limit in (0, 6)))


def _silu(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _gelu(graph: Graph, x: str) -> str:
    """Adds x / 2 * (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    half, one, root = (graph.constant(value, np.float32) for value in (0.5, 1, np.sqrt(0.5)))
    share = graph.add("Add", graph.add("Erf", graph.add("Mul", x, root)), one)
    return graph.add("Mul", graph.add("Mul", x, half), share)


ACTIVATIONS: dict[Callable, Callable[[Graph, str], str]] = {
    keras.activations.relu: lambda graph, x: graph.add("Relu", x),
    keras.activations.relu6: _relu6,
    keras.activations.sigmoid: lambda graph, x: graph.add("Sigmoid", x),
    keras.activations.silu: _silu,
    keras.activations.gelu: _gelu,
}
"""The nodes of each activation of Keras that can be written."""


def _for_channels(graph: Graph, values: Any) -> str:
    """Returns one number, or one for each channel, as a constant to compute with [B, C, H, W]."""
    values = np.asarray(values, np.float32)
    return graph.constant(values[:, None, None] if values.ndim else values, np.float32)


def _bias(graph: Graph, layer: keras.layers.Layer) -> list[str]:
    return [graph.constant(_array(layer.bias), np.float32)] if layer.use_bias else []


def _pads(
    sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int], padding: str
) -> list[int]:
    """Returns the zeros before both axes, then those after them.

    They are those of TensorFlow for sizes that are multiples of the strides.
    """
    # The odd one is after.
    around = [
        max(dilation * (size - 1) + 1 - stride, 0) if padding == "same" else 0
        for size, stride, dilation in zip(sizes, strides, dilations, strict=True)
    ]
    return [*(n // 2 for n in around), *(n - n // 2 for n in around)]


def _array(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable)


def _unknown(layer: keras.Layer, what: str) -> str:
    return f"{layer.name!r} ({type(layer).__name__}): {what} cannot be written as ONNX."
