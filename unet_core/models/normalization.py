"""Normalisation of each image by itself: group and instance norm.

    x = GroupNorm(8)(x)     # [B, H, W, C], C a multiple of 8

Statistics of batches are in `unet_core.models.layers.FusedBatchNorm`.
"""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

_PIXELS = (1, 2)


@keras.saving.register_keras_serializable(package="unet_core")
class GroupNorm(keras.layers.Layer):
    """Normalises each image over its pixels and each of `groups` groups of channels.

    With as many groups as channels it is instance norm. It does not depend on the batch, so it is
    exact on any number of replicas and has no moving averages.

    Source: Wu and He 2018, arXiv:1803.08494; Ulyanov et al. 2016, arXiv:1607.08022.

    Keras' `GroupNormalization` (seen on 3.15) takes groups as an axis of their own, and TensorFlow
    differentiates every operation in it. Here sums are over the pixels of each channel, and the
    gradient is put together from two more of them:

        y  = a x + b                             a = gamma / sd, b = beta - a mean
        dx = a dy - (mean(g) + xhat mean(g xhat)) / sd,    g = gamma dy

    with means over the pixels and channels of the group. On CPUs it takes about as long as the
    fused batch norm (`benchmarks/models.py`). On GPUs the operations are separate kernels, bound
    by memory; `jit_compile` fuses them.

    Input and output: [B, H, W, C] in the compute dtype; statistics are float32.

    Args:
        groups: Number of groups, of which C is a multiple.
        epsilon: Added to the variance.
    """

    def __init__(self, groups: int, *, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        """Makes scale and offset, [C] float32 each."""
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(f"{channels} channels are no multiple of {self.groups} groups.")
        self.gamma = self.add_weight(
            name="gamma", shape=(channels,), initializer="ones", autocast=False
        )
        self.beta = self.add_weight(
            name="beta", shape=(channels,), initializer="zeros", autocast=False
        )

    def call(self, inputs):
        """Returns `inputs` normalised."""
        gamma, beta = (tf.convert_to_tensor(v.value) for v in (self.gamma, self.beta))
        return _normalise(inputs, gamma, beta, groups=self.groups, epsilon=self.epsilon)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output: shape of the input, compute dtype."""
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}


def _normalise(inputs, gamma, beta, *, groups: int, epsilon: float):
    over_group = functools.partial(_mean_of_group, groups=groups)

    @tf.custom_gradient
    def normalise(inputs, gamma, beta):
        x = tf.cast(inputs, tf.float32)
        mean = over_group(tf.reduce_mean(x, _PIXELS, keepdims=True))
        difference = tf.math.squared_difference(x, mean)
        variance = over_group(tf.reduce_mean(difference, _PIXELS, keepdims=True))
        inverse = tf.math.rsqrt(variance + epsilon)
        factor = inverse * gamma
        outputs = tf.cast(x * factor + (beta - mean * factor), inputs.dtype)

        def gradient(upstream):
            x, dy = tf.cast(inputs, tf.float32), tf.cast(upstream, tf.float32)
            sum_dy = tf.reduce_sum(dy, _PIXELS, keepdims=True)
            sum_dy_x = tf.reduce_sum(dy * x, _PIXELS, keepdims=True)
            sum_dy_xhat = (sum_dy_x - sum_dy * mean) * inverse
            pixels = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]), tf.float32)
            slope = -tf.square(inverse) * over_group(gamma * sum_dy_xhat) / pixels
            shift = -inverse * over_group(gamma * sum_dy) / pixels - slope * mean
            dx = tf.cast(dy * factor + (x * slope + shift), inputs.dtype)
            return dx, *(tf.reduce_sum(each, (0, 1, 2)) for each in (sum_dy_xhat, sum_dy))

        return outputs, gradient

    return normalise(inputs, gamma, beta)


def _mean_of_group(values, groups: int):
    """Returns [B, 1, 1, C] with the mean of each group of channels in place of its values."""
    size = values.shape[-1] // groups
    if size == 1:
        return values
    grouped = tf.reshape(values, [-1, 1, 1, groups, size])
    mean = tf.reduce_mean(grouped, -1, keepdims=True)
    return tf.reshape(tf.broadcast_to(mean, tf.shape(grouped)), tf.shape(values))
