"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144) for segmentation.

The head is that of Kirillov et al. 2019 (arXiv:1901.02446).
"""

from __future__ import annotations

from collections.abc import Mapping

import keras

from unet_core.models.blocks import Blocks

_FINEST_STRIDE = 4


def fpn(features: Mapping[int, keras.KerasTensor], blocks: Blocks) -> dict[int, keras.KerasTensor]:
    """Returns {1: logits}.

    From the features of each stride a 1x1 convolution makes as many channels; from the deepest up,
    each is added to the next finer after repetition, and smoothed by a 3x3 convolution. Each of
    these maps is then convolved and doubled by bilinear interpolation until it has the finest
    stride; their sum makes the logits, which are interpolated to stride 1.

    The finest stride is 4 as in the papers, or that next to the deepest in a network of depth 1 or
    2; if its features are missing, the next that are there. Channels are 4 times `base_filters` in
    the pyramid and twice in the head: the papers' 256 and 128 for 64.

    Raises:
        UserError: If the padding is "valid".
    """
    blocks.need_same_padding("fpn")
    pyramid = _pyramid(features, blocks)
    finest = min(pyramid)
    parts = []
    for stride, x in pyramid.items():
        name = _name(stride)
        doublings = (stride // finest).bit_length() - 1
        for number in range(1, max(doublings, 1) + 1):
            x = blocks.convolution_unit(x, blocks.filters(1), f"{name}_conv{number}")
            if doublings:
                x = blocks.interpolate(x, 2, f"{name}_interpolate{number}")
        parts.append(x)
    x = keras.layers.Add(dtype=blocks.policy, name="up_sum")(parts) if parts[1:] else parts[0]
    return {1: blocks.interpolate(blocks.head(x), finest, "up_interpolate")}


def _pyramid(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns the maps of the pyramid by stride, the deepest first."""
    filters = blocks.filters(2)
    finest = min(_FINEST_STRIDE, 2 ** (blocks.depth - 1))
    pyramid, coarser, below = {}, 0, None
    for stride in sorted((stride for stride in features if stride >= finest), reverse=True):
        name = _name(stride)
        x = blocks.convolve(features[stride], filters, 1, f"{name}_lateral")
        if below is not None:
            times = coarser // stride
            repeat = keras.layers.UpSampling2D(times, dtype=blocks.policy, name=f"{name}_repeat")
            add = keras.layers.Add(dtype=blocks.policy, name=f"{name}_add")
            x = add([x, repeat(below)])
        coarser, below = stride, x
        pyramid[stride] = blocks.convolve(x, filters, 3, f"{name}_smooth", padding="same")
    return pyramid


def _name(stride: int) -> str:
    return f"up{stride.bit_length() - 1}"
