"""DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): atrous spatial pyramid pooling and a decoder."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from unet_core.models.blocks import Blocks
from unet_core.models.resampling import BroadcastLike

_DILATIONS_PX = (96, 192, 288)
"""Pixels between the places that the three atrous convolutions look at: rates 6, 12 and 18 at
stride 16, twice as much at stride 8 and half at 32, as in Chen et al. 2017 (arXiv:1706.05587)."""
_LOW_STRIDE = 4


def deeplab(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns {1: logits}.

    The deepest features go through the pyramid and are interpolated to the stride of low-level
    features, whose channels a 1x1 convolution reduces; joined, two 3x3 convolutions follow, then
    the logits, which are interpolated to stride 1. The low-level stride is 4 as in the paper, or a
    fourth of the deepest if that is less; if there are no such features, the next that are there,
    and if there are none but the deepest, these are not joined with any.

    Channels are 4 times `base_filters`, and 3/4 of it of the low-level features: the paper's 256
    and 48 for 64. Kernels are plain ones, not depthwise.

    Raises:
        UserError: If the padding is "valid".
    """
    blocks.need_same_padding("deeplab")
    filters, deepest = blocks.filters(2), 2**blocks.depth
    x = _pyramid(features[deepest], filters, blocks)
    least = min(_LOW_STRIDE, deepest / 4)
    stride = min(stride for stride in features if stride >= least)
    x = blocks.interpolate(x, deepest // stride, "up_pyramid_interpolate")
    if stride < deepest:
        low = _unit(features[stride], max(blocks.base_filters * 3 // 4, 1), 1, "up_low", blocks)
        x = keras.layers.Concatenate(dtype=blocks.policy, name="up_join")([low, x])
    for number in (1, 2):
        x = blocks.convolution_unit(x, filters, f"up_conv{number}")
    return {1: blocks.interpolate(blocks.head(x), stride, "up_interpolate")}


def _pyramid(x: keras.KerasTensor, filters: int, blocks: Blocks) -> keras.KerasTensor:
    """Returns the deepest features after atrous spatial pyramid pooling."""
    branches = [_unit(x, filters, 1, "up_pyramid0", blocks)]
    for number, pixels in enumerate(_DILATIONS_PX, 1):
        rate = max(pixels // 2**blocks.depth, 1)
        name = f"up_pyramid{number}"
        branches.append(_unit(x, filters, 3, name, blocks, dilation_rate=rate))
    # Of one value for each image and channel, no normalisation has statistics worth the name.
    pool = keras.layers.GlobalAveragePooling2D(keepdims=True, dtype=blocks.policy, name="up_pool")
    pooled = blocks.convolve(pool(x), filters, 1, "up_pool_conv")
    pooled = blocks.activate(pooled, "up_pool_conv")
    broadcast = BroadcastLike(dtype=blocks.policy, name="up_pool_broadcast")
    branches.append(broadcast([pooled, x]))
    x = keras.layers.Concatenate(dtype=blocks.policy, name="up_pyramid_join")(branches)
    return _unit(x, filters, 1, "up_pyramid", blocks)


def _unit(
    x: keras.KerasTensor, filters: int, size: int, name: str, blocks: Blocks, **kwargs
) -> keras.KerasTensor:
    """Returns x after a convolution of this size, the normalisation and the activation."""
    return blocks.activate(blocks.normalized_convolution(x, filters, size, name, **kwargs), name)
