"""What decoders change sizes with: bilinear interpolation, and one value for a whole image."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable(package="unet_core")
class BilinearKernel(keras.initializers.Initializer):
    """The kernel with which a transposed convolution interpolates bilinearly.

    Its size is twice the stride s, which is even, and its padding "same". Each channel is
    interpolated by itself; weights are products of 1 - |i + 1/2 - s| / s of both axes, i = 0 ...
    2 s - 1 (Long, Shelhamer and Darrell 2015, arXiv:1411.4038, section 3.3).
    """

    def __call__(self, shape, dtype=None):
        """Returns the kernel [2 s, 2 s, out, in]."""
        height, width, outputs, inputs = shape
        rows, columns = (
            1 - np.abs(np.arange(size) + 0.5 - size / 2) / (size / 2) for size in (height, width)
        )
        kernel = np.multiply.outer(np.outer(rows, columns), np.eye(outputs, inputs))
        return keras.ops.convert_to_tensor(kernel, dtype or "float32")


@keras.saving.register_keras_serializable(package="unet_core")
class Interpolate(keras.layers.Layer):
    """Bilinear interpolation between the middles of pixels: [B, H, W, C] to [B, t H, t W, C].

    Beyond the middles of the outermost pixels these go on. Keras' `UpSampling2D` (seen on 3.15)
    fails in a graph where height and width are not known.

    Args:
        times: t.
    """

    def __init__(self, times: int, **kwargs):
        super().__init__(**kwargs)
        self.times = times

    def call(self, inputs):
        """Returns `inputs` interpolated; in float32, whatever their type."""
        size = tf.shape(inputs)[1:3] * self.times
        return tf.cast(tf.image.resize(inputs, size, "bilinear"), inputs.dtype)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output."""
        rows, height, width, channels = inputs.shape
        sizes = [size and size * self.times for size in (height, width)]
        return keras.KerasTensor((rows, *sizes, channels), dtype=inputs.dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "times": self.times}


@keras.saving.register_keras_serializable(package="unet_core")
class BroadcastLike(keras.layers.Layer):
    """Repeats the first input [B, 1, 1, C] to the height and width of the second."""

    def call(self, inputs):
        """Returns the first of `inputs` [B, 1, 1, C] as [B, H, W, C]."""
        x, like = inputs
        shape = tf.concat([tf.shape(x)[:1], tf.shape(like)[1:3], tf.shape(x)[3:]], 0)
        # The gradient is a sum over the image, which a 16-bit type would not hold.
        return tf.cast(tf.broadcast_to(tf.cast(x, tf.float32), shape), x.dtype)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output: of the first, with the second's size."""
        x, like = inputs
        return keras.KerasTensor((*like.shape[:3], x.shape[3]), dtype=x.dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        # Keras 3.15 refuses to save a layer without one if its dtype was given as a policy.
        return super().get_config()
