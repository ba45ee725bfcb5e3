"""Fully convolutional networks (Long, Shelhamer and Darrell 2015, arXiv:1411.4038).

Scores of the classes are made of the deepest features, and added to those of less deep ones. The
paper's networks have features of the strides 32, 16 and 8, that is a depth of 5; at another depth,
"32s", "16s" and "8s" are the one, two and three deepest strides. The encoder stands for all that
comes before the scores, so the paper's two layers of 4096 channels are not part of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras

from unet_core.errors import UserError
from unet_core.models.blocks import Blocks
from unet_core.models.resampling import BilinearKernel

_Levels = dict[int, keras.KerasTensor]


def fcn32s(features: Mapping[int, keras.KerasTensor], blocks: Blocks) -> _Levels:
    """Returns {1: the scores of the deepest features, interpolated}."""
    return _decode("fcn32s", 1, features, blocks)


def fcn16s(features: Mapping[int, keras.KerasTensor], blocks: Blocks) -> _Levels:
    """Returns {1: the sum of the scores of the two deepest strides, interpolated}."""
    return _decode("fcn16s", 2, features, blocks)


def fcn8s(features: Mapping[int, keras.KerasTensor], blocks: Blocks) -> _Levels:
    """Returns {1: the sum of the scores of the three deepest strides, interpolated}."""
    return _decode("fcn8s", 3, features, blocks)


def _decode(
    name: str, number: int, features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> _Levels:
    """Returns {1: logits} of the `number` deepest strides.

    As in the paper, a sum is doubled by a transposed convolution, bilinear at first and trained on,
    and the last interpolation is fixed. Scores do not begin at 0, as they do there: no gradient
    would reach the encoder in the first step.

    Raises:
        UserError: If the padding is "valid", or features of one of the strides are missing.
    """
    blocks.need_same_padding(name)
    # Those of the depth 1 would go down to 1/2, which no encoder has.
    strides = [2 ** (blocks.depth - n) for n in range(number)]
    if not features.keys() >= set(strides):
        raise UserError(
            f"`decoder` {name!r} adds scores of the {number} deepest strides, here "
            f"{', '.join(map(str, strides))}; the encoder has features at "
            f"{', '.join(map(str, sorted(features)))}. Raise `depth` ({blocks.depth}), or take a "
            "decoder that adds fewer."
        )
    x = None
    for stride in strides:
        level = f"up{stride.bit_length() - 1}"
        score = blocks.convolve(features[stride], blocks.logits, 1, f"{level}_score")
        if x is None:
            x = score
            continue
        x = keras.layers.Conv2DTranspose(
            blocks.logits,
            4,
            strides=2,
            padding="same",
            use_bias=False,
            kernel_initializer=BilinearKernel(),
            dtype=blocks.policy,
            name=f"{level}_grow",
        )(x)
        x = keras.layers.Add(dtype=blocks.policy, name=f"{level}_add")([score, x])
    return {1: blocks.interpolate(x, strides[-1], "up0_interpolate")}
