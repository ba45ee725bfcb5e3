"""The contracting path of residual blocks, as in ResUNet (Zhang et al. 2018, arXiv:1711.10684)."""

from __future__ import annotations

import keras

from unet_core.models.blocks import Blocks
from unet_core.models.encoders import Encoder


def make_features(x: keras.KerasTensor, blocks: Blocks) -> dict[int, keras.KerasTensor]:
    """Returns features at the strides 1, 2, 4, ..., 2**depth.

    Each level is one residual block (He et al. 2016, arXiv:1512.03385): two 3x3 convolutions, the
    first of which halves the resolution from the second level on, beside a shortcut by a 1x1
    convolution. Dropout stands at the end.
    """
    features = {}
    for level in range(blocks.depth + 1):
        x = features[2**level] = _residual_block(x, blocks, level)
    features[2**blocks.depth] = blocks.drop(x, "bottom_dropout")
    return features


def _residual_block(x: keras.KerasTensor, blocks: Blocks, level: int) -> keras.KerasTensor:
    name, filters, strides = f"down{level}", blocks.filters(level), 2 if level else 1
    inner = blocks.normalized_convolution(x, filters, 3, f"{name}_conv1", strides=strides)
    inner = blocks.activate(inner, f"{name}_conv1")
    inner = blocks.normalized_convolution(inner, filters, 3, f"{name}_conv2")
    shortcut = blocks.normalized_convolution(x, filters, 1, f"{name}_shortcut", strides=strides)
    x = keras.layers.Add(dtype=blocks.policy, name=f"{name}_add")([inner, shortcut])
    return blocks.activate(x, name)


# Its shortcuts add what has one size.
RESIDUAL = Encoder(make_features, pads_only=True)
