"""The stem for speed: a network at a fraction of the resolution, so that an image costs less.

A block of f x f pixels becomes the channels of one pixel before the encoder, and the logits of the
block are channels of one pixel after the decoder (Shi et al. 2016, arXiv:1609.05158).
"""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="unet_core")
class SpaceToDepth(keras.layers.Layer):
    """Makes channels of the pixels of a block: [B, H, W, C] to [B, H/f, W/f, f * f * C].

    Args:
        factor: f, of which H and W are multiples.
    """

    def __init__(self, factor: int, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        """Returns `inputs` rearranged."""
        return tf.nn.space_to_depth(inputs, self.factor)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output."""
        rows, height, width, channels = inputs.shape
        sizes = [size and size // self.factor for size in (height, width)]
        return keras.KerasTensor((rows, *sizes, channels * self.factor**2), dtype=inputs.dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="unet_core")
class DepthToSpace(keras.layers.Layer):
    """The inverse of `SpaceToDepth`: [B, h, w, f * f * C] to [B, f * h, f * w, C].

    Args:
        factor: f.
    """

    def __init__(self, factor: int, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        """Returns `inputs` rearranged."""
        return tf.nn.depth_to_space(inputs, self.factor)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output."""
        rows, height, width, channels = inputs.shape
        sizes = [size and size * self.factor for size in (height, width)]
        return keras.KerasTensor((rows, *sizes, channels // self.factor**2), dtype=inputs.dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "factor": self.factor}
