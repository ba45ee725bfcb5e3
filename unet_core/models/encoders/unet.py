"""The contracting path of Ronneberger et al. 2015 (arXiv:1505.04597)."""

from __future__ import annotations

import keras

from unet_core.models.blocks import Blocks
from unet_core.models.encoders import Encoder


def make_features(x: keras.KerasTensor, blocks: Blocks) -> dict[int, keras.KerasTensor]:
    """Returns features at the strides 1, 2, 4, ..., 2**depth.

    Each pooling doubles their channels; dropout stands at the end.
    """
    features = {}
    for level in range(blocks.depth):
        x = blocks.double_convolution(x, blocks.filters(level), f"down{level}")
        features[2**level] = x
        x = keras.layers.MaxPooling2D(2, dtype=blocks.policy, name=f"down{level}_pool")(x)
    x = blocks.double_convolution(x, blocks.filters(blocks.depth), "bottom")
    features[2**blocks.depth] = blocks.drop(x, "bottom_dropout")
    return features


UNET = Encoder(make_features)
